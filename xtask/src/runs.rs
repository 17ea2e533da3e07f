//! The runs of a task on disk: `runs/<task>/<name>/search/fold_<k>/architecture.json` and so on.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};

/// How far a search got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchState {
    /// There is an architecture.
    Finished,
    /// Neither an architecture nor a process that works on one.
    Interrupted,
    /// A process holds the run.
    Running,
}

/// One run folder.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    started: SystemTime,
    /// By a process that works on it.
    held: bool,
    /// Per fold that was searched.
    pub(crate) searches: Vec<(u32, SearchState)>,
}

impl Run {
    /// The lowest fold, or `fold` alone, whose search is in the wanted state.
    pub(crate) fn find(&self, fold: Option<u32>, wanted: SearchState) -> Option<u32> {
        self.searches.iter().find(|(k, state)| *state == wanted && fold.is_none_or(|fold| *k == fold)).map(|(k, _)| *k)
    }

    /// Whether nothing was searched or trained in it yet, nor is now.
    pub(crate) fn is_untouched(&self) -> bool {
        self.searches.is_empty() && !self.held && !self.path.join("retrain").exists()
    }
}

/// The runs in `runs/<task>`, newest first; none if the folder does not exist.
pub(crate) fn newest_first(task_runs: &Path) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for path in folders(task_runs)? {
        // config.toml is the first file of a run, and never written again.
        let Ok(started) = fs::metadata(path.join("config.toml")).and_then(|data| data.modified()) else {
            continue;
        };
        let held = is_held(&path);
        let mut searches: Vec<_> = folders(&path.join("search"))?
            .iter()
            .filter_map(|fold| {
                let number = fold.file_name()?.to_str()?.strip_prefix("fold_")?.parse().ok()?;
                let state = match fold.join("architecture.json").is_file() {
                    true => SearchState::Finished,
                    false if held => SearchState::Running,
                    false => SearchState::Interrupted,
                };
                Some((number, state))
            })
            .collect();
        searches.sort_by_key(|(fold, _)| *fold);
        runs.push(Run { path, started, held, searches });
    }
    runs.sort_by(|a, b| (b.started, &b.path).cmp(&(a.started, &a.path)));
    Ok(runs)
}

/// `runs/<task>/<preset>-<number>`, one above the highest number there is.
pub(crate) fn new_run(task_runs: &Path, preset: &str) -> Result<PathBuf> {
    let stem = Path::new(preset).file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
    let highest = folders(task_runs)?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.rsplit_once('-')?.1.parse::<u32>().ok())
        .max()
        .unwrap_or(0);
    Ok(task_runs.join(format!("{stem}-{:03}", highest + 1)))
}

/// `adw` locks `.lock` in a run for as long as it works on it; the system lets go of it when the process ends, however.
/// A killed process holds it a moment longer, so a run counts as held only if it stays so.
fn is_held(run: &Path) -> bool {
    File::open(run.join(".lock")).is_ok_and(|file| {
        (0..20).all(|attempt| {
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
        })
    })
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(task_runs: &Path, name: &str, age_s: u64, fold: u32, finished: bool) -> PathBuf {
        let run = task_runs.join(name);
        let fold = run.join(format!("search/fold_{fold}"));
        fs::create_dir_all(&fold).unwrap();
        let config = File::create(run.join("config.toml")).unwrap();
        config.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        if finished {
            fs::write(fold.join("architecture.json"), "{}").unwrap();
        }
        run
    }

    #[test]
    fn runs_come_newest_first_with_the_state_of_their_searches() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest_first(&dir.path().join("absent")).unwrap().is_empty());
        let old = run(dir.path(), "quick-001", 100, 0, true);
        let new = run(dir.path(), "mine", 10, 2, false);
        fs::create_dir(dir.path().join("not-a-run")).unwrap();
        let runs = newest_first(dir.path()).unwrap();
        assert_eq!(runs.iter().map(|run| &run.path).collect::<Vec<_>>(), [&new, &old]);
        assert_eq!(runs[0].find(None, SearchState::Interrupted), Some(2));
        assert_eq!(runs[0].find(None, SearchState::Finished), None);
        assert_eq!(runs[0].find(Some(0), SearchState::Interrupted), None);
        assert_eq!(runs[1].find(Some(0), SearchState::Finished), Some(0));

        let lock = File::create(new.join(".lock")).unwrap();
        lock.lock().unwrap();
        assert_eq!(newest_first(dir.path()).unwrap()[0].find(None, SearchState::Running), Some(2));
        drop(lock);
        assert_eq!(newest_first(dir.path()).unwrap()[0].find(None, SearchState::Interrupted), Some(2));
    }

    #[test]
    fn new_names_count_up_from_the_highest() {
        let dir = tempfile::tempdir().unwrap();
        assert!(new_run(dir.path(), "quick").unwrap().ends_with("quick-001"));
        run(dir.path(), "quick-007", 0, 0, true);
        assert!(new_run(dir.path(), "configs/paper.toml").unwrap().ends_with("paper-008"));
    }
}
