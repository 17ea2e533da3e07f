//! Run on disk: the places of its files, its creation and its lock.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use adw_files::{Lock, NewFolder, lock_with_timeout, write_bytes};
use anyhow::{Context, Result};

use crate::{
    failure::{bad_input, program},
    fold::Fold,
    ranks,
};

/// The system releases the lock of a killed process a moment later.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Folder of a run, of which this process has locked a fold until it is dropped: several processes can work on a run, each on
/// its own fold.
#[derive(Debug)]
pub(crate) struct RunFolder {
    root: PathBuf,
    /// `None` in the other processes of an `mpirun`, whose rank 0 holds the lock.
    _lock: Option<Lock>,
}

impl RunFolder {
    /// Returns true if `root` is a run.
    pub(crate) fn exists(root: &Path) -> bool {
        config_path(root).is_file()
    }

    /// Creates a run with its first files, `config.toml` the last of them: `root` is either no run or a complete one at
    /// every instant.
    ///
    /// # Errors
    /// `root` exists and is not empty; the disk is full or read-only.
    pub(crate) fn create(root: &Path, files: &[(&str, &str)], fold: Fold) -> Result<Self> {
        check_new(root)?;
        if root.exists() {
            // Possibly a mount point or the current folder, which cannot be renamed over.
            let written = write_files(root, files);
            if written.is_err() {
                for (name, _) in files {
                    // The error of the write is the one to report.
                    let _ = fs::remove_file(root.join(name));
                }
            }
            written?;
        } else {
            let folder = new_folder(root)?;
            write_files(folder.path(), files)?;
            folder.commit().with_context(|| format!("cannot create {}", root.display()))?;
        }
        Self::open(root, fold)
    }

    /// Opens a run for work on a fold.
    ///
    /// # Errors
    /// It is no run, another process works on that fold, or it cannot be written to.
    pub(crate) fn open(root: &Path, fold: Fold) -> Result<Self> {
        check_run(root)?;
        if ranks::is_follower() {
            return Ok(Self { root: root.to_owned(), _lock: None });
        }
        match lock_with_timeout(&lock_path(root, fold), LOCK_TIMEOUT) {
            Ok(lock) => {
                // Temporary files of killed processes, that of the run's own creation beside it; those of live ones are locked. A
                // leftover that cannot be removed harms nothing.
                let _ = (adw_files::remove_stale(root), adw_files::remove_stale(&parent(root)));
                Ok(Self { root: root.to_owned(), _lock: Some(lock) })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bad_input!("fold {fold} of {} is in use by another process", root.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot lock the run {}", root.display())),
        }
    }

    /// Returns true if a process works on a fold of the run in `root`.
    pub(crate) fn is_held(root: &Path, fold: Fold) -> bool {
        is_locked(&lock_path(root, fold))
    }

    /// Returns true if a process works on any fold of the run in `root`.
    pub(crate) fn is_in_use(root: &Path) -> bool {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let is_lock = |name: &OsStr| name.to_string_lossy().starts_with(LOCK_PREFIX);
        entries.into_iter().any(|entry| is_lock(&entry.file_name()) && is_locked(&entry.path()))
    }

    /// Folder of prepared cases that do not fit into memory.
    pub(crate) fn prepared(&self) -> PathBuf {
        self.root.join("prepared")
    }

    /// Folder of a search, `search/fold_<k>`.
    pub(crate) fn search(&self, fold: usize) -> PathBuf {
        self.root.join(format!("search/fold_{fold}"))
    }

    /// Folder of a training, `retrain/fold_<k>` or `retrain/<name>/fold_<k>`.
    pub(crate) fn retrain(&self, name: Option<&str>, fold: Fold) -> PathBuf {
        trainings_path(&self.root, name).join(format!("fold_{fold}"))
    }
}

/// Folder with the trainings of all folds, `retrain` or `retrain/<name>`.
pub(crate) fn trainings_path(root: &Path, name: Option<&str>) -> PathBuf {
    let folder = root.join("retrain");
    name.map_or(folder.clone(), |name| folder.join(name))
}

fn lock_path(root: &Path, fold: Fold) -> PathBuf {
    root.join(format!("{LOCK_PREFIX}{fold}"))
}

/// Name of a fold's lock, before the fold.
const LOCK_PREFIX: &str = ".lock_fold_";

fn is_locked(lock: &Path) -> bool {
    lock.is_file()
        && lock_with_timeout(lock, Duration::from_secs(2)).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Path of `config.toml` of the run in `root`.
pub(crate) fn config_path(root: &Path) -> PathBuf {
    root.join("config.toml")
}

/// Path of `splits.json` of the run in `root`.
pub(crate) fn splits_path(root: &Path) -> PathBuf {
    root.join("splits.json")
}

/// Checks that `root` is a run.
///
/// # Errors
/// It is the folder of a training, or has no `config.toml`.
pub(crate) fn check_run(root: &Path) -> Result<()> {
    if !RunFolder::exists(root) {
        bad_input!("{} is not a run (it has no config.toml): start one with `{} search`", root.display(), program());
    }
    // Trainings have a config.toml, too.
    let has_plan = |folder: &Path| folder.join("plan.json").is_file();
    let folder = fs::canonicalize(root).with_context(|| root.display().to_string())?;
    let run = folder.ancestors().skip(1).find(|above| RunFolder::exists(above) && has_plan(above));
    match run.filter(|_| !has_plan(&folder)) {
        Some(run) => {
            bad_input!("{} is the folder of a training, not a run: name its run, {}", root.display(), run.display())
        }
        None => Ok(()),
    }
}

/// Checks that a run can be created in `root`, which is absent or an empty folder.
///
/// # Errors
/// It is neither, or cannot be written to.
pub(crate) fn check_new(root: &Path) -> Result<()> {
    if !root.exists() && root.file_name().is_none() {
        bad_input!("--run {}: expected the name of a new folder", root.display());
    }
    if !is_empty_or_absent(root) {
        bad_input!("{} exists and is not a run: choose another --run", root.display());
    }
    check_writable(root)
}

/// Checks that `root` is a run, or that one can be created there; another process may do so at any moment.
///
/// # Errors
/// Those of [`check_new`] and [`check_run`].
pub(crate) fn check_run_or_new(root: &Path) -> Result<()> {
    match check_new(root) {
        Err(_) if RunFolder::exists(root) => check_run(root),
        checked => checked,
    }
}

/// Returns true if `dir` does not exist or is a folder without entries.
pub(crate) fn is_empty_or_absent(dir: &Path) -> bool {
    !dir.exists() || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Checks that files can be created in `dir`, or where `dir` would be created, and leaves nothing there.
///
/// # Errors
/// The system's error with the name of the folder. Checked before work starts, so that an hour's result is not lost at its
/// end.
pub(crate) fn check_writable(dir: &Path) -> Result<()> {
    let mut existing = std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?;
    // A link that leads nowhere exists: no folder can be created under its name.
    while fs::symlink_metadata(&existing).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        existing = parent(&existing);
    }
    if !existing.is_dir() {
        bad_input!("{} is not a folder: choose another place than {}", existing.display(), dir.display());
    }
    // A file without a name, of which nothing is left even by a kill.
    let written = tempfile::tempfile_in(&existing).and_then(|mut probe| probe.write_all(b"probe"));
    written.with_context(|| format!("cannot write in {}", existing.display()))
}

/// Checks that the file `path` can be written: it is absent or a regular file, and its folder takes files.
///
/// # Errors
/// It is a folder, a link, a device, a pipe or a socket; those of [`check_writable`] for its folder.
pub(crate) fn check_output(path: &Path) -> Result<()> {
    check_writable(&parent(path))?;
    match adw_files::check_replaceable(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            bad_input!("{} {error}: choose another file", path.display())
        }
        checked => checked.with_context(|| format!("cannot write {}", path.display())),
    }
}

fn write_files(folder: &Path, files: &[(&str, &str)]) -> Result<()> {
    for (name, text) in files {
        let path = folder.join(name);
        write_bytes(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Checks that a text that begins with the byte `first` can be written to `path`.
///
/// # Errors
/// Those of [`check_output`]; there is a file of another kind, such as a label map, or the description of a dataset.
pub(crate) fn check_text_output(path: &Path, first: u8) -> Result<()> {
    check_output(path)?;
    let mut byte = [first];
    // A file that cannot be read is not known to be of another kind.
    let _ = adw_files::open_regular(path).and_then(|mut file| file.read(&mut byte));
    let is_description = path.exists() && path.file_name() == Some(OsStr::new("dataset.json"));
    if byte[0] != first || is_description {
        bad_input!("{}: would replace a file of another kind; choose another file", path.display());
    }
    Ok(())
}

/// Returns true if both paths lead to the same existing file or folder.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Folder that `path` lies in.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}

/// Starts an empty folder that becomes `target` when it is committed; creates the folders above.
///
/// # Errors
/// `target` has no name, or exists and is not an empty folder; the disk is full or read-only.
pub(crate) fn new_folder(target: &Path) -> Result<NewFolder> {
    let parent = parent(target);
    adw_files::create_folders(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    NewFolder::create(target).with_context(|| format!("cannot create {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLD: Fold = Fold::Number(2);

    #[test]
    fn a_run_is_created_whole_and_a_fold_of_it_is_held_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        assert!(RunFolder::open(&root, FOLD).unwrap_err().to_string().contains("is not a run"));
        let run = RunFolder::create(&root, &[("config.toml", "seed = 1"), ("plan.json", "{}")], FOLD).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        assert!(RunFolder::open(&root, FOLD).unwrap_err().to_string().contains("in use"));
        assert!(
            RunFolder::is_in_use(&root)
                && RunFolder::is_held(&root, FOLD)
                && !RunFolder::is_held(&root, Fold::Number(3))
        );
        drop(RunFolder::open(&root, Fold::Number(3)).unwrap());
        let training = run.retrain(Some("plain"), FOLD);
        assert!(training.ends_with("a/b/retrain/plain/fold_2"));
        fs::create_dir_all(&training).unwrap();
        fs::write(training.join("config.toml"), "seed = 1").unwrap();
        for check in [check_run, check_run_or_new] {
            check(&root).unwrap();
            let message = check(&training).unwrap_err().to_string();
            assert!(message.contains("fold_2 is the folder of a training") && message.ends_with("a/b"), "{message}");
        }
        drop(run);
        // The lock of a creation that was killed at its very end.
        fs::write(dir.path().join("a/.b.1-1.adw-tmp"), "").unwrap();
        RunFolder::open(&root, FOLD).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        RunFolder::create(&empty, &[("plan.json", "{}"), ("config.toml", "seed = 1")], FOLD).unwrap();
        assert!(RunFolder::create(&root, &[], FOLD).unwrap_err().to_string().contains("is not a run"));
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        assert!(RunFolder::create(&root, &[("no/such/folder", "")], FOLD).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn places_without_a_name_and_names_without_a_place() {
        assert_eq!(parent(Path::new("metrics.json")), Path::new("."));
        check_writable(&parent(Path::new("metrics.json"))).unwrap();
        for path in [".", "..", "x/.."] {
            let error = new_folder(Path::new(path)).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error), 2, "{error}");
            let error = check_new(Path::new(path)).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error), 2, "{error}");
        }
    }

    #[test]
    fn writability_is_asked_of_the_nearest_folder_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(&dir.path().join("x/y/z")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_writable(&file.join("below")).unwrap_err().to_string().contains("not a folder"));
    }
}
