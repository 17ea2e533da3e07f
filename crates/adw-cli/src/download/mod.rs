//! Download of a dataset: fetched, checked, unpacked aside and renamed into place.

mod manifest;
mod transfer;
#[cfg(test)]
mod web_server;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
pub(crate) use manifest::Manifest;
use md5::{Digest, Md5};
use msd_data::archive;
pub(crate) use transfer::RetryPolicy;
use transfer::fetch;

use crate::{digest, failure::bad_input, report::progress::note, run_folder::new_folder};

/// Makes `root/TaskNN_Name` exist, downloading what is missing, and returns it.
///
/// The archive grows in `root/.TaskNN_Name.tar.part`, where a later call continues; it is unpacked in a temporary folder
/// beside it and renamed, so `root/TaskNN_Name` is either absent or whole.
///
/// # Errors
/// A server that stays away or refuses, a wrong checksum (the part file is then removed), a hostile or damaged archive,
/// a full or read-only disk, another download of the same task in progress.
pub(crate) fn download(manifest: &Manifest, root: &Path, mirror: Option<&str>, retry: RetryPolicy) -> Result<PathBuf> {
    let folder = root.join(&manifest.folder);
    if folder.join("dataset.json").is_file() {
        return Ok(folder);
    }
    if folder.exists() {
        bad_input!("{} exists but holds no dataset.json: move it away, then download again", folder.display());
    }
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let part_path = part_path(&folder);
    let mut part = open_part(&part_path, manifest)?;
    check_free_space(root, manifest, part.metadata()?.len())?;

    let facts = [&manifest.modality, &manifest.target, &manifest.licence].map(String::as_str);
    let facts: Vec<_> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
    note(&format!("{}: {}", manifest.folder, facts.join(", ")));
    if !manifest.citation.is_empty() {
        note(&format!("please cite: {}", manifest.citation));
    }
    let url = manifest.url_from(mirror);
    let bar = progress_bar(manifest);
    if let Err(error) = fetch_checked(&url, manifest, &mut part, retry, &bar) {
        // A cut connection leaves bytes that the next attempt can use; a wrong file does not.
        if part.metadata().is_ok_and(|data| data.len() == 0) {
            let _ = fs::remove_file(&part_path);
        }
        return Err(error);
    }

    bar.set_message("unpacking");
    let aside = new_folder(&folder)?;
    part.seek(SeekFrom::Start(0))?;
    archive::unpack(io::BufReader::new(&part), aside.path(), &manifest.folder, manifest.max_bytes())
        .with_context(|| format!("cannot unpack {}", part_path.display()))?;
    aside.commit_part(&manifest.folder).with_context(|| format!("cannot rename to {}", folder.display()))?;
    fs::remove_file(&part_path).with_context(|| format!("cannot remove {}", part_path.display()))?;
    bar.finish_and_clear();
    note(&format!("{} is ready", folder.display()));
    Ok(folder)
}

/// Archive of the dataset `folder` under construction.
fn part_path(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.tar.part"))
}

/// Removes what a download that was killed at its very end left beside the dataset `folder`. A place that is read-only keeps it.
pub(crate) fn remove_leftovers(folder: &Path) {
    let path = part_path(folder);
    if path.is_file() && adw_files::open_own(&path).is_ok_and(|part| part.try_lock().is_ok()) {
        let _ = fs::remove_file(&path);
    }
    let _ = folder.parent().map(adw_files::remove_stale);
}

/// Opens the archive under construction and locks it until it is closed.
fn open_part(path: &Path, manifest: &Manifest) -> Result<File> {
    let part = adw_files::open_own(path).with_context(|| format!("cannot write {}", path.display()))?;
    match part.try_lock() {
        Ok(()) => Ok(part),
        Err(TryLockError::WouldBlock) => {
            bad_input!("another process is downloading {} to {}: wait for it", manifest.task, path.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn progress_bar(manifest: &Manifest) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left {msg}",
    )
    .expect("the template is a constant");
    ProgressBar::new(manifest.approximate_bytes).with_style(style).with_prefix(manifest.folder.clone())
}

/// Refuses a download for which the disk lacks room: for the archive and for the files that come out of it.
fn check_free_space(root: &Path, manifest: &Manifest, have: u64) -> Result<()> {
    let needed = (2 * manifest.approximate_bytes).saturating_sub(have);
    if let Some(free) = free_bytes(root).filter(|&free| free < needed) {
        bad_input!(
            "{} has {} MB free, {} needs {} MB for the archive and its files: choose another folder with --data",
            root.display(),
            free / 1_000_000,
            manifest.folder,
            needed / 1_000_000
        );
    }
    Ok(())
}

/// Free bytes on the disk of `dir`; none if the system does not say.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Fills `part` until its MD5 is the manifest's. After a wrong sum of a continued download, the whole is downloaded once
/// more: the archive may have changed between the pieces. A file that is not the published one leaves `part` empty.
fn fetch_checked(url: &str, manifest: &Manifest, part: &mut File, retry: RetryPolicy, bar: &ProgressBar) -> Result<()> {
    let mut is_fresh = part.metadata()?.len() == 0;
    loop {
        let fetched = fetch(url, manifest, part, retry, bar);
        bar.set_message("checking");
        let sum = md5_of(part)?;
        bar.set_message("");
        if sum == manifest.md5 {
            // A server that announces a wrong length may end in an error with every byte in place.
            return Ok(());
        }
        fetched?;
        part.set_len(0)?;
        if is_fresh {
            bad_input!("{url} is not the published {}.tar: its MD5 is {sum}, not {}", manifest.folder, manifest.md5);
        }
        is_fresh = true;
    }
}

/// MD5 of the whole file as 32 lower-case hexadecimal digits.
fn md5_of(file: &mut File) -> Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut digest = Md5::new();
    digest::add(&mut digest, file).context("cannot read the download back")?;
    Ok(digest::hexadecimal(digest))
}

#[cfg(test)]
mod tests;
