//! A run on disk: where its files lie, how it comes to be, and who may write to it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::failure::bad_input;

/// The folder of a run, held by this process until it is dropped.
#[derive(Debug)]
pub(crate) struct RunFolder {
    root: PathBuf,
    /// Locked while this process works on the run. The system releases it however the process ends.
    _lock: File,
}

impl RunFolder {
    /// Whether `root` is a run.
    pub(crate) fn exists(root: &Path) -> bool {
        config_path(root).is_file()
    }

    /// Creates a run with its first files: `root` is either absent or a complete run at every instant.
    ///
    /// # Errors
    /// `root` exists and is not empty; the disk is full or read-only.
    pub(crate) fn create(root: &Path, files: &[(&str, &str)]) -> Result<Self> {
        check_new(root)?;
        let aside = Aside::new(root)?;
        for (name, text) in files {
            write_synced(&aside.path().join(name), text.as_bytes())?;
        }
        aside.put_in_place()?;
        Self::open(root)
    }

    /// Opens a run for work.
    ///
    /// # Errors
    /// It is no run, another process works on it, or it cannot be written to.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        if !Self::exists(root) {
            bad_input!("{} is not a run (it has no config.toml): start one with `adw search`", root.display());
        }
        let path = root.join(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot write to the run {}", root.display()))?;
        match adw_search::lock_patiently(&lock) {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bad_input!("{} is in use by another process", root.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Prepared cases that do not fit into memory.
    pub(crate) fn prepared(&self) -> PathBuf {
        self.root.join("prepared")
    }

    /// `search/fold_<k>`
    pub(crate) fn search(&self, fold: usize) -> PathBuf {
        self.root.join(format!("search/fold_{fold}"))
    }

    /// `retrain/fold_<k>`, or `retrain/<name>/fold_<k>`
    pub(crate) fn retrain(&self, name: Option<&str>, fold: usize) -> PathBuf {
        let folder = self.root.join("retrain");
        name.map_or(folder.clone(), |name| folder.join(name)).join(format!("fold_{fold}"))
    }
}

/// `config.toml` of the run in `root`.
pub(crate) fn config_path(root: &Path) -> PathBuf {
    root.join("config.toml")
}

/// Checks that a run can be created in `root`.
///
/// # Errors
/// It has no name of its own (`.`), is no empty folder, or cannot be written to.
pub(crate) fn check_new(root: &Path) -> Result<()> {
    if root.file_name().is_none() {
        bad_input!("--run {}: expected the name of a new folder", root.display());
    }
    if root.exists() && fs::read_dir(root).map_or(true, |mut entries| entries.next().is_some()) {
        bad_input!("{} exists and is not a run: choose another --run", root.display());
    }
    check_writable(root)
}

/// Checks that files can be created in `dir`, or where `dir` would be created, and leaves nothing there.
///
/// # Errors
/// What the system says, naming the folder: asked before work starts, so that an hour's result is not lost at its end.
pub(crate) fn check_writable(dir: &Path) -> Result<()> {
    let mut existing = std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?;
    while !existing.exists() {
        existing = parent(&existing);
    }
    if !existing.is_dir() {
        bad_input!("{} is not a folder: choose another place than {}", existing.display(), dir.display());
    }
    let probe = existing.join(format!(".adw-{}.tmp", std::process::id()));
    let written = fs::write(&probe, b"probe");
    let _ = fs::remove_file(&probe);
    written.with_context(|| format!("cannot write in {}", existing.display()))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The folder that `path` lies in.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}

/// A folder under construction beside its final place; removed with its content unless it is put there.
pub(crate) struct Aside {
    path: PathBuf,
    target: PathBuf,
}

impl Aside {
    /// An empty folder that will become `target`; creates the folders above.
    pub(crate) fn new(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            bad_input!("{} has no name: name a new folder", target.display());
        };
        let name = name.to_string_lossy();
        let parent = parent(target);
        fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let path = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, target: target.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the folder in its place, which is absent or an empty folder: rename replaces that, and only that.
    pub(crate) fn put_in_place(self) -> Result<()> {
        fs::rename(&self.path, &self.target).with_context(|| format!("cannot create {}", self.target.display()))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_created_whole_and_held_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("is not a run"));
        let run = RunFolder::create(&root, &[("config.toml", "seed = 1"), ("plan.json", "{}")]).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("in use"));
        assert!(run.retrain(Some("plain"), 2).ends_with("a/b/retrain/plain/fold_2"));
        drop(run);
        RunFolder::open(&root).unwrap();
        assert!(RunFolder::create(&root, &[]).unwrap_err().to_string().contains("is not a run"));
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        assert!(RunFolder::create(&root, &[("no/such/folder", "")]).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn places_without_a_name_and_names_without_a_place() {
        assert_eq!(parent(Path::new("metrics.json")), Path::new("."));
        check_writable(&parent(Path::new("metrics.json"))).unwrap();
        for path in [".", "..", "x/.."] {
            let error = Aside::new(Path::new(path)).err().unwrap();
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
