//! Locks between processes.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::file_kind::{existing, open_own};

/// Interval between two attempts.
const POLL: Duration = Duration::from_millis(20);

/// A lock, held until it is dropped. The system releases it however the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Handle that holds the lock, for work on the locked file: some file systems release a lock when any other handle of the
    /// same process is closed.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Locks `path` for one process: an existing folder (on Unix), or a file, created empty if absent. Between machines, on a network
/// file system, lock files: the system locks folders there on each machine for itself.
///
/// A `timeout` above zero matters even where no other process is expected: the system takes a moment to release the locks
/// of a killed process, and a run that is resumed at once would meet those of its predecessor.
///
/// ```
/// use std::time::Duration;
/// let path = std::env::temp_dir().join("adw-files-doc.lock");
/// let lock = adw_files::lock_with_timeout(&path, Duration::from_secs(1))?;
/// let second = adw_files::lock_with_timeout(&path, Duration::ZERO);
/// assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
/// # drop(lock);
/// # std::io::Result::Ok(())
/// ```
///
/// # Errors
/// `WouldBlock` if the lock is held elsewhere for all of `timeout`; `InvalidInput` for a link, device, pipe or socket;
/// the system's error, also that of a file system without locks.
pub fn lock_with_timeout(path: &Path, timeout: Duration) -> io::Result<Lock> {
    let file = open(path)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { file }),
            Err(TryLockError::WouldBlock) if start.elapsed() < timeout => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "is in use by another process"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if existing(path)?.is_some_and(|found| found.is_dir()) { File::open(path) } else { open_own(path) }
}
