//! Names and locks of files and folders under construction: `.NAME.PID-N.adw-tmp`, for a folder a file that is locked beside
//! `.NAME.PID-N.adw-tmp.d`, since network file systems lock files alone between machines.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ENDING: &str = ".adw-tmp";

/// Bytes of the target's name that a temporary name keeps: file systems allow 255 in all.
const KEPT_NAME_BYTES: usize = 180;

/// Candidate names tried before giving up. Others are taken only by what earlier processes with the same id left.
const MAX_ATTEMPTS: usize = 1000;

/// Files and folders under construction by this process.
static UNDER_CONSTRUCTION: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn under_construction() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNDER_CONSTRUCTION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files and folders of this process, removed; see [`remove_own`].
#[derive(Debug)]
#[must_use = "dropped, it lets the other threads go on"]
pub struct OwnRemoved {
    _guard: MutexGuard<'static, BTreeSet<PathBuf>>,
}

/// Removes all that this process has under construction, on the way to a sudden end: while the result lives, other threads
/// wait where they would start, commit or drop a file or folder.
pub fn remove_own() -> OwnRemoved {
    let guard = under_construction();
    // A folder comes behind its lock in this order, and without it would stay.
    for path in guard.iter().rev().filter(|path| !folder_of(path).exists()) {
        // A thread that still writes into a folder can make one attempt fail; `remove_stale` removes what stays.
        let remove = || fs::remove_file(path).is_ok() || fs::remove_dir_all(path).is_ok() || !path.exists();
        let _ = (0..3).any(|_| remove());
    }
    OwnRemoved { _guard: guard }
}

/// Gives `from`, which is `temporary` or lies in it, the name `target`, unless [`remove_own`] is at work: what that removes must
/// not get its name meanwhile.
///
/// # Errors
/// The system's error.
pub(crate) fn take_name(temporary: &Path, from: &Path, target: &Path) -> io::Result<()> {
    let mut own = under_construction();
    fs::rename(from, target)?;
    if from == temporary {
        own.remove(temporary);
    }
    Ok(())
}

/// Ends the construction of `path`, which was removed.
pub(crate) fn is_done(path: &Path) {
    under_construction().remove(path);
}

/// Creates a temporary file beside `target`. Returns its path and the handle, locked where the file system has locks. Removes what
/// killed processes left of the same target.
pub(crate) fn create_beside(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "is not the name of a file");
    let name = target.file_name().ok_or_else(invalid)?;
    let prefix = temporary_prefix(name);
    // A leftover that cannot be removed is no reason not to write.
    let _ = remove_stale_names(parent(target), |name| name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes()));
    for _ in 0..MAX_ATTEMPTS {
        let path = target.with_file_name(temporary_name(&prefix, COUNTER.fetch_add(1, Ordering::Relaxed)));
        let mut own = under_construction();
        let handle = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => created?,
        };
        // Between creation and lock, `remove_stale` of another process may take it for a leftover. An error other than
        // `WouldBlock` comes from a file system without locks, where `remove_stale` removes nothing.
        let lost = matches!(handle.try_lock(), Err(TryLockError::WouldBlock));
        if !lost && path.exists() {
            own.insert(path.clone());
            return Ok((path, handle));
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "has too many temporary files beside it"))
}

/// Creates the folder whose lock is the temporary file `lock`.
pub(crate) fn create_folder_of(lock: &Path) -> io::Result<PathBuf> {
    let folder = folder_of(lock);
    let mut own = under_construction();
    fs::create_dir(&folder)?;
    own.insert(folder.clone());
    Ok(folder)
}

/// Folder under construction whose lock is the temporary file `lock`.
fn folder_of(lock: &Path) -> PathBuf {
    let mut name = lock.as_os_str().to_owned();
    name.push(".d");
    name.into()
}

/// Beginning of all temporary names of a target: `.NAME.`, shortened where file systems would refuse it.
fn temporary_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    if name.len() <= KEPT_NAME_BYTES {
        prefix.push(name);
    } else {
        let name = name.to_string_lossy();
        prefix.push(&name[..name.floor_char_boundary(KEPT_NAME_BYTES)]);
    }
    prefix.push(".");
    prefix
}

fn temporary_name(prefix: &OsStr, n: u64) -> OsString {
    let mut temporary = prefix.to_owned();
    temporary.push(format!("{}-{n}{ENDING}", std::process::id()));
    temporary
}

/// Recognises `.NAME.PID-N.adw-tmp`.
fn is_temporary_name(name: &OsStr) -> bool {
    let numbers = || {
        let name = name.as_encoded_bytes().strip_prefix(b".")?.strip_suffix(ENDING.as_bytes())?;
        let numbers = str::from_utf8(&name[name.iter().rposition(|&b| b == b'.')? + 1..]).ok()?;
        let (pid, n) = numbers.split_once('-')?;
        Some((pid.parse::<u32>().ok()?, n.parse::<u64>().ok()?))
    };
    numbers().is_some()
}

/// Removes the temporary files and folders directly in `folder` that no live process holds; returns their number. A folder
/// that does not exist holds none.
///
/// # Errors
/// The system's error if the folder cannot be read or a leftover cannot be removed.
pub fn remove_stale(folder: &Path) -> io::Result<usize> {
    remove_stale_names(folder, |_| true)
}

/// Does the work of [`remove_stale`] for temporary names that are `wanted`.
fn remove_stale_names(folder: &Path, wanted: impl Fn(&OsStr) -> bool) -> io::Result<usize> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        if !is_temporary_name(&name) || !wanted(&name) || !kind.is_file() {
            continue;
        }
        let path = entry.path();
        // Gone or renamed meanwhile. For writing: NFS locks no other handles.
        let Ok(handle) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if handle.try_lock().is_err() {
            continue;
        }
        // The folder first: without its lock it would stay.
        for (result, count) in [(fs::remove_dir_all(folder_of(&path)), 0), (fs::remove_file(&path), 1)] {
            match result {
                Ok(()) => removed += count,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

/// Syncs the folder that `path` lies in, which makes a rename in it durable.
///
/// # Errors
/// The system's error.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_folder(parent(path))
}

/// Creates a folder and those above it that are missing, each durably: its name is on the disk on return.
///
/// # Errors
/// The system's error; `AlreadyExists` if a name is taken by something else.
pub fn create_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if parent(path) != path {
        create_folders(parent(path))?;
    }
    match fs::create_dir(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        outcome => outcome.and_then(|()| sync_parent(path)),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Syncs the names in a folder. Does nothing where folders cannot be opened (Windows; folders that one may write but not read) or
/// synced (some network file systems).
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewFile, NewFolder};

    #[test]
    fn nothing_takes_its_name_while_it_is_removed() {
        let dir = std::env::temp_dir().join(format!("adw-files-names-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [file, folder, part] = ["file", "folder", "part"].map(|name| dir.join(name));
        let new_file = NewFile::create(&file).unwrap();
        let new_folder = NewFolder::create(&folder).unwrap();
        let with_part = NewFolder::create(&part).unwrap();
        fs::create_dir(with_part.path().join("inner")).unwrap();
        let guard = under_construction();
        let commits = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                scope.spawn(|| new_file.commit().unwrap());
                scope.spawn(|| new_folder.commit().unwrap());
                scope.spawn(|| with_part.commit_part("inner").unwrap());
            });
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!([&file, &folder, &part].into_iter().all(|path| !path.exists()));
        drop(guard);
        commits.join().unwrap();
        assert!(file.is_file() && folder.is_dir() && part.is_dir());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing else stays");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn names_are_recognised_and_fit_into_a_file_system() {
        for name in ["a.nii.gz", ".hidden", &"ü".repeat(127), "x"] {
            let temporary = temporary_name(&temporary_prefix(OsStr::new(name)), u64::MAX);
            assert!(temporary.len() <= 255 && is_temporary_name(&temporary), "{temporary:?}");
        }
        for name in ["a.adw-tmp", ".a.adw-tmp", ".a.1.adw-tmp", ".a.x-1.adw-tmp", "a.1-1.adw-tmp", ".a.1-1.tmp"] {
            assert!(!is_temporary_name(OsStr::new(name)), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn names_need_not_be_utf8() {
        use std::os::unix::ffi::OsStrExt;
        let temporary = temporary_name(&temporary_prefix(OsStr::from_bytes(b"\xff\xfe.nii")), 3);
        assert!(temporary.as_bytes().starts_with(b".\xff\xfe.nii."));
        assert!(is_temporary_name(&temporary));
    }
}
