//! One dataset's download: fetched, checked, unpacked aside and renamed into place.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use md5::{Digest, Md5};

use crate::{
    UsageError,
    fetch::{Patience, fetch},
    manifest::Manifest,
    unpack::unpack,
};

/// Makes `root/TaskNN_Name` exist, downloading what is missing, and returns it.
///
/// The archive grows in `root/.TaskNN_Name.tar.part`, which a later call takes up again; it is unpacked in a temporary
/// folder beside it and renamed, so `root/TaskNN_Name` is either absent or whole.
///
/// # Errors
/// A server that stays away or refuses, a wrong checksum (the part file is then removed), a hostile or damaged archive,
/// a full or read-only disk, another download of the same task under way.
pub(crate) fn download(manifest: &Manifest, root: &Path, mirror: Option<&str>, patience: Patience) -> Result<PathBuf> {
    let folder = root.join(&manifest.folder);
    if folder.join("dataset.json").is_file() {
        return Ok(folder);
    }
    if folder.exists() {
        return Err(UsageError(format!(
            "{} exists but holds no dataset.json: move it away, then download again",
            folder.display()
        ))
        .into());
    }
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let part_path = root.join(format!(".{}.tar.part", manifest.folder));
    let mut part = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&part_path)
        .with_context(|| format!("cannot write {}", part_path.display()))?;
    match part.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("another download of {} is under way in {}", manifest.task, root.display())
        }
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the download"),
    }
    check_free_space(root, manifest, part.metadata()?.len())?;

    let url = manifest.url_from(mirror);
    let bar = ProgressBar::new(manifest.approximate_bytes).with_style(
        ProgressStyle::with_template(
            "{prefix} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left {msg}",
        )
        .expect("the template is a constant"),
    );
    bar.set_prefix(manifest.folder.clone());
    if let Err(error) = fetch_checked(&url, manifest, &mut part, patience, &bar) {
        // What a wrong file leaves is of no use to the next attempt; what a cut connection leaves is.
        if error.is::<WrongFile>() || part.metadata().is_ok_and(|data| data.len() == 0) {
            let _ = fs::remove_file(&part_path);
        }
        return Err(error);
    }

    bar.set_message("unpacking");
    let aside = tempfile::Builder::new()
        .prefix(&format!(".{}.", manifest.folder))
        .tempdir_in(root)
        .with_context(|| format!("cannot write in {}", root.display()))?;
    part.seek(SeekFrom::Start(0))?;
    let unpacked = unpack(io::BufReader::new(&part), aside.path(), &manifest.folder, manifest.most_bytes())
        .with_context(|| format!("cannot unpack {}", part_path.display()))?;
    fs::rename(&unpacked, &folder).with_context(|| format!("cannot rename to {}", folder.display()))?;
    fs::remove_file(&part_path).with_context(|| format!("cannot remove {}", part_path.display()))?;
    bar.finish_and_clear();
    Ok(folder)
}

/// The archive and, until it is renamed, what comes out of it must fit.
fn check_free_space(root: &Path, manifest: &Manifest, have: u64) -> Result<()> {
    let needed = (2 * manifest.approximate_bytes).saturating_sub(have);
    if let Some(free) = free_bytes(root).filter(|&free| free < needed) {
        return Err(UsageError(format!(
            "{} has {} MB free, {} needs {} MB for the archive and what it holds",
            root.display(),
            free / 1_000_000,
            manifest.folder,
            needed / 1_000_000
        ))
        .into());
    }
    Ok(())
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Every byte arrived and they are not the published ones.
#[derive(Debug)]
struct WrongFile(String);

impl std::fmt::Display for WrongFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongFile {}

/// Fills `part` until its MD5 is the manifest's. A wrong sum after a resumed download is given one download from the
/// start: the archive may have changed between the pieces.
fn fetch_checked(url: &str, manifest: &Manifest, part: &mut File, patience: Patience, bar: &ProgressBar) -> Result<()> {
    let mut fresh = part.metadata()?.len() == 0;
    loop {
        let fetched = fetch(url, manifest, part, patience, bar);
        bar.set_message("checking");
        let sum = md5_of(part)?;
        bar.set_message("");
        if sum == manifest.md5 {
            // A server that lies about lengths may end in an error with every byte in place.
            return Ok(());
        }
        fetched?;
        if fresh {
            return Err(WrongFile(format!(
                "{url} is not the published {}.tar: its MD5 is {sum}, not {}",
                manifest.folder, manifest.md5
            ))
            .into());
        }
        fresh = true;
        part.set_len(0)?;
    }
}

/// MD5 of the whole file as 32 lower-case hexadecimal digits.
fn md5_of(file: &mut File) -> Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Md5::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut buffer).context("cannot read the download back")?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(hexadecimal(&hash.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
