//! Files appear whole or not at all: written beside their final name, flushed to the disk, then renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `path` through `write`. Whatever stood there stays until the new content is complete on the disk; after an
/// error or a kill nothing half-written carries the name. What a kill leaves beside it, `.<name>.writing`, is overwritten
/// by the next attempt at the same file.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let written = aside(path).and_then(|aside| {
        let result = write_synced(&aside, write).and_then(|()| fs::rename(&aside, path));
        if result.is_err() {
            // The error being reported matters more than a leftover that cannot be removed.
            let _ = fs::remove_file(&aside);
        }
        result
    });
    written.map_err(Error::io(path))
}

fn write_synced(aside: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(aside)?);
    write(&mut out)?;
    out.into_inner()?.sync_all()
}

/// A hidden name in the same folder, so that the rename stays within one file system. The same for every attempt: what
/// a killed process leaves does not pile up.
fn aside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this is not the name of a file"))?;
    let mut aside = OsString::from(".");
    aside.push(name);
    aside.push(".writing");
    Ok(path.with_file_name(aside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |out| {
            out.write_all(b"new, half")?;
            Err(io::Error::other("out of ideas"))
        });
        assert!(failed.unwrap_err().to_string().contains("a.txt"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn what_a_kill_left_is_overwritten_by_the_next_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii.gz");
        fs::write(dir.path().join(".a.nii.gz.writing"), "a long half of something").unwrap();
        write_atomically(&path, |out| out.write_all(b"whole")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(dir.path()), ["a.nii.gz"]);
    }
}
