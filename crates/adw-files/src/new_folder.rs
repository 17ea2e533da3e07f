//! Folders that appear with all their content or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::file_kind::existing;
use crate::temporary::{create_beside, create_folder_of, is_done, sync_folder, sync_parent, take_name};

/// A folder under construction, which takes its name in [`Self::commit`]. Dropped before that, it is removed with its
/// content.
///
/// ```
/// let parent = std::env::temp_dir();
/// # let _ = std::fs::remove_dir_all(parent.join("adw-files-doc"));
/// let folder = adw_files::NewFolder::create(&parent.join("adw-files-doc"))?;
/// adw_files::write_bytes(&folder.path().join("a.txt"), b"whole")?;
/// folder.commit()?;
/// assert_eq!(std::fs::read(parent.join("adw-files-doc/a.txt"))?, b"whole");
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct NewFolder {
    temporary: PathBuf,
    target: PathBuf,
    /// File beside the folder that marks it as held by this process, and its handle, which is locked.
    lock: (PathBuf, File),
    committed: bool,
}

impl NewFolder {
    /// Starts an empty folder that will become `target`, whose parent must exist.
    ///
    /// # Errors
    /// `InvalidInput` if `target` has no name of its own (`.`, `..`); `AlreadyExists` if it exists and is no empty folder;
    /// the system's error.
    pub fn create(target: &Path) -> io::Result<Self> {
        check_absent_or_empty(target)?;
        let lock = create_beside(target)?;
        let temporary = create_folder_of(&lock.0).inspect_err(|_| remove_lock(&lock.0))?;
        Ok(Self { temporary, target: target.to_path_buf(), lock, committed: false })
    }

    /// Path of the folder before [`Self::commit`].
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the folder its name and waits until that is on the disk. Files in it must have been synced by their writers,
    /// as [`crate::write_atomic`] does.
    ///
    /// # Errors
    /// The system's error, also if the name is taken by now.
    pub fn commit(mut self) -> io::Result<()> {
        sync_folder(&self.temporary)?;
        // Replaces an empty folder, and only that.
        take_name(&self.temporary, &self.temporary, &self.target)?;
        self.committed = true;
        sync_parent(&self.target)
    }

    /// Gives the folder `part` in this one the name, as [`Self::commit`] does, and removes the rest.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub fn commit_part(self, part: impl AsRef<Path>) -> io::Result<()> {
        let part = self.temporary.join(part);
        sync_folder(&part)?;
        take_name(&self.temporary, &part, &self.target)?;
        sync_parent(&self.target)
    }
}

fn check_absent_or_empty(target: &Path) -> io::Result<()> {
    let Some(found) = existing(target)? else { return Ok(()) };
    if found.is_dir() && fs::read_dir(target)?.next().is_none() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "exists and is not an empty folder"))
}

/// Removes the file of a folder's lock. The folder has its name by then, so a failure is no error: one is tried again, and a file
/// that stays is removed by `remove_stale`.
fn remove_lock(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_file(path));
    is_done(path);
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.committed {
            // The caller has a more important error to report, and `remove_stale` removes what stays, by its lock.
            if fs::remove_dir_all(&self.temporary).is_err() && self.temporary.exists() {
                return;
            }
            is_done(&self.temporary);
        }
        remove_lock(&self.lock.0);
    }
}
