//! Files that are either complete or absent: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::file_kind::check_replaceable;
use crate::temporary::{create_beside, is_done, sync_parent, take_name};

/// A file under construction, which takes its name in [`Self::commit`]. Dropped before that, it is removed.
///
/// ```
/// use std::io::Write;
/// let path = std::env::temp_dir().join("adw-files-doc.txt");
/// let mut file = adw_files::NewFile::create(&path)?;
/// file.write_all(b"whole")?;
/// file.commit()?;
/// assert_eq!(std::fs::read(&path)?, b"whole");
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct NewFile {
    out: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl NewFile {
    /// Starts a file that will become `target`; what carries that name stays until [`Self::commit`].
    ///
    /// # Errors
    /// `InvalidInput` if `target` exists and is no regular file, or is no name of a file; the system's error.
    pub fn create(target: &Path) -> io::Result<Self> {
        check_replaceable(target)?;
        let (temporary, file) = create_beside(target)?;
        let out = BufWriter::with_capacity(1 << 16, file);
        Ok(Self { out, temporary, target: target.to_path_buf(), committed: false })
    }

    /// Waits until the content is on the disk, gives the file its name and waits for that, too.
    ///
    /// # Errors
    /// The system's error; then the old content stays, except when only the last step fails (syncing the folder).
    pub fn commit(self) -> io::Result<()> {
        self.commit_after(|| Ok(()))
    }

    /// Does what [`Self::commit`] does, and gives the old content the name `previous` instead of removing it, replacing what
    /// carries that name. A process killed in between leaves no file at the target, and the old one at `previous`.
    ///
    /// # Errors
    /// Those of [`Self::commit`]; `InvalidInput` if `previous` exists and is no regular file.
    pub fn commit_keeping(self, previous: &Path) -> io::Result<()> {
        let target = self.target.clone();
        let mut is_moved = false;
        let outcome = self.commit_after(|| {
            check_replaceable(previous)?;
            match fs::rename(&target, previous) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                outcome => outcome.map(|()| is_moved = true),
            }
        });
        if outcome.is_err() && is_moved && !target.exists() {
            // The error of the commit is the one to report.
            let _ = fs::rename(previous, &target);
        }
        outcome
    }

    fn commit_after(mut self, prepare: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        // Again: what was there at the beginning may be another thing by now.
        check_replaceable(&self.target)?;
        prepare()?;
        take_name(&self.temporary, &self.temporary, &self.target)?;
        self.committed = true;
        sync_parent(&self.target)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.committed {
            // The caller has a more important error to report, and `remove_stale` removes what stays.
            let _ = fs::remove_file(&self.temporary);
            is_done(&self.temporary);
        }
    }
}

/// Writes `path` through `write`. What carries that name stays until the new content is complete on the disk. The file has the
/// permissions of a new one, also where it replaces another.
///
/// # Errors
/// Those of [`NewFile::create`] and [`NewFile::commit`]; the error of `write`.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut NewFile) -> io::Result<()>) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    write(&mut file)?;
    file.commit()
}

/// Writes `bytes` as the content of `path`, as [`write_atomic`] does.
///
/// # Errors
/// Those of [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic(path, |file| file.write_all(bytes))
}
