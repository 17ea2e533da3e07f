//! Files that are either complete or absent: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Replaces `path` by what `write` writes. A process killed at any instant leaves the old file or the new one; a
/// failure leaves the old one and nothing beside it.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let aside = aside(path)?;
    let written = write_synced(&aside, write).and_then(|()| fs::rename(&aside, path).map_err(|e| Error::io(path, e)));
    if written.is_err() {
        // The error being reported matters more than a leftover that cannot be removed.
        let _ = fs::remove_file(&aside);
    }
    written?;
    sync_folder_of(path)
}

fn write_synced(aside: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let io = |e| Error::io(aside, e);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(aside).map_err(io)?);
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)
}

/// A name no reader looks for, in the same folder so that the rename stays within one file system.
fn aside(path: &Path) -> Result<PathBuf> {
    let mut name = path.file_name().ok_or_else(|| Error::file(path, "not the name of a file"))?.to_owned();
    name.push(".tmp");
    Ok(path.with_file_name(name))
}

/// A rename is durable once its folder is synced; platforms that cannot open a folder skip this.
fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        let handle = File::open(folder).map_err(|e| Error::io(folder, e))?;
        handle.sync_all().map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        replace(&path, |w| w.write_all(b"old").map_err(|e| Error::io(&path, e))).unwrap();
        let failed = replace(&path, |w| {
            w.write_all(b"new, half").map_err(|e| Error::io(&path, e))?;
            Err(Error::file(&path, "out of ideas"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        replace(&path, |w| w.write_all(b"new").map_err(|e| Error::io(&path, e))).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
