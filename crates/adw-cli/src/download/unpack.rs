//! Unpacking of a dataset's archive, which may be damaged or hostile.

use std::{
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};
use tar::EntryType;

use crate::failure::bad_input;

/// Unpacks the tar file `archive` into the folder `into` and returns `into/folder`, which holds a `dataset.json`.
///
/// # Errors
/// The archive is refused, and `into` is to be thrown away, if an entry is a link or a device, is absolute or climbs out
/// with `..`, lies outside `folder`, or if the entries claim more than `max_bytes` in all. Sizes are those of the
/// headers, checked before a byte is written: a header that claims terabytes costs nothing.
pub(crate) fn unpack(archive: impl Read, into: &Path, folder: &str, max_bytes: u64) -> Result<PathBuf> {
    let mut archive = tar::Archive::new(archive);
    let mut left = max_bytes;
    for entry in archive.entries().context("not a tar archive")? {
        let mut entry = entry.context("damaged tar archive")?;
        let path = entry.path().context("damaged tar archive")?.into_owned();
        let is_dir = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => false,
            EntryType::Directory => true,
            EntryType::XGlobalHeader => continue,
            other => bad_input!("archive entry {} is a {other:?}, not a file or folder", path.display()),
        };
        let inside = inside(&path, folder)?;
        // macOS keeps resource forks in such files; the decathlon's archives are full of them.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("._")) {
            continue;
        }
        let target = into.join(inside);
        if is_dir {
            fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
            continue;
        }
        let size = entry.size();
        let Some(rest) = left.checked_sub(size) else {
            bad_input!("archive entry {} of {size} bytes takes the archive past {max_bytes} bytes", path.display());
        };
        left = rest;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let mut file = fs::File::create_new(&target).with_context(|| format!("cannot create {}", target.display()))?;
        let written =
            std::io::copy(&mut entry, &mut file).with_context(|| format!("cannot write {}", target.display()))?;
        if written != size {
            bad_input!("archive ends inside {}: {written} of {size} bytes", path.display());
        }
    }
    let dataset = into.join(folder);
    if !dataset.join("dataset.json").is_file() {
        bad_input!("the archive holds no {folder}/dataset.json");
    }
    Ok(dataset)
}

/// `path` without `.` components, if it stays below `folder`.
fn inside(path: &Path, folder: &str) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => bad_input!("archive entry {} leads outside the folder it is unpacked in", path.display()),
        }
    }
    if !clean.as_os_str().is_empty() && !clean.starts_with(folder) && clean != Path::new(&format!("._{folder}")) {
        bad_input!("archive entry {} is not in {folder}/", path.display());
    }
    Ok(clean)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tar archive of entries (name as written in the header, type, claimed size, content).
    pub(crate) fn archive(entries: &[(&str, EntryType, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, kind, size, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written by hand: the builder's own setters refuse the names this is about.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(*size);
            header.set_mode(0o644);
            if *kind == EntryType::Symlink || *kind == EntryType::Link {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    fn file<'a>(name: &'a str, content: &'a [u8]) -> (&'a str, EntryType, u64, &'a [u8]) {
        (name, EntryType::Regular, content.len() as u64, content)
    }

    const GOOD: (&str, EntryType, u64, &[u8]) = ("T/dataset.json", EntryType::Regular, 2, b"{}");

    #[test]
    fn files_and_folders_come_out_and_resource_forks_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(&[
            ("./T/", EntryType::Directory, 0, b""),
            GOOD,
            file("./T/imagesTr/a.nii.gz", b"voxels"),
            file("T/imagesTr/._a.nii.gz", b"junk"),
            file("./._T", b"junk"),
        ]);
        let folder = unpack(&bytes[..], dir.path(), "T", 100).unwrap();
        assert_eq!(fs::read(folder.join("imagesTr/a.nii.gz")).unwrap(), b"voxels");
        assert_eq!(fs::read_dir(folder.join("imagesTr")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn hostile_entries_are_refused_by_name() {
        let outside = tempfile::tempdir().unwrap();
        let absolute = outside.path().join("x").display().to_string();
        for (entry, complaint) in [
            (file("../evil", b"x"), "../evil leads outside"),
            (file("T/../../evil", b"x"), "leads outside"),
            (file(&absolute, b"x"), "leads outside"),
            (file("Other/a", b"x"), "is not in T/"),
            (("T/link", EntryType::Symlink, 0, b"".as_slice()), "T/link is a Symlink"),
            (("T/link", EntryType::Link, 0, b""), "T/link is a Link"),
            (("T/tty", EntryType::Char, 0, b""), "T/tty is a Char"),
            (("T/big", EntryType::Regular, 1 << 32, b""), "of 4294967296 bytes takes the archive past 100"),
            (file("T/dataset.json", b"again"), "cannot create"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let into = dir.path().join("into");
            fs::create_dir(&into).unwrap();
            let error = unpack(&archive(&[GOOD, entry])[..], &into, "T", 100).unwrap_err();
            assert!(format!("{error:#}").contains(complaint), "{error:#} for {complaint}");
            assert!(!dir.path().join("evil").exists());
        }
        assert!(!outside.path().join("x").exists());
    }

    #[test]
    fn an_archive_cut_short_or_without_a_dataset_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let whole = archive(&[GOOD, file("T/a", &[7; 2000])]);
        assert!(unpack(&whole[..2048], dir.path(), "T", 10_000).is_err());
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(&archive(&[file("T/a", b"x")])[..], dir.path(), "T", 100).unwrap_err();
        assert!(error.to_string().contains("no T/dataset.json"));
    }
}
