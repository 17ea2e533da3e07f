//! Runs of a task on disk, and the choice of the one that a command works on.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{
    failure::{bad_input, program},
    fold::Fold,
    report::progress::note,
    run_folder::RunFolder,
};

/// Run that a command works on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RunChoice {
    pub(crate) root: PathBuf,
    /// Fold of the search found there, or the fold on the command line; else it is the run's.
    pub(crate) fold: Option<usize>,
    /// True if an existing search is continued.
    pub(crate) resume: bool,
}

/// Progress of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SearchState {
    /// The architecture exists.
    Finished,
    /// Neither an architecture nor a process that works on one.
    Interrupted,
    /// A process holds the run.
    Running,
}

/// Run found on disk.
#[derive(Clone, Debug)]
struct RunSummary {
    path: PathBuf,
    started: SystemTime,
    /// Fold and state of each of its searches, by fold.
    searches: Vec<(usize, SearchState)>,
}

impl RunSummary {
    /// The lowest fold, or `fold` alone, whose search is in the wanted state.
    fn find(&self, fold: Option<usize>, wanted: SearchState) -> Option<usize> {
        self.searches.iter().find(|(k, state)| *state == wanted && fold.is_none_or(|fold| *k == fold)).map(|(k, _)| *k)
    }

    /// Returns true if the run has neither a search nor a training, finished or in progress.
    fn is_untouched(&self) -> bool {
        self.searches.is_empty() && !self.path.join("retrain").exists() && !RunFolder::is_in_use(&self.path)
    }
}

/// Folder with the runs of all tasks: `$ADW_RUNS` unless that is empty, else `runs` in the current folder.
pub(crate) fn runs_root() -> PathBuf {
    env::var_os("ADW_RUNS").filter(|value| !value.is_empty()).map_or_else(|| "runs".into(), PathBuf::from)
}

/// Folder with the runs of a task, in [`runs_root`].
pub(crate) fn task_runs(task: &str) -> PathBuf {
    runs_root().join(task)
}

/// Chooses the run of a search: a new one; with `resume` the newest interrupted search, else the newest finished one,
/// whose result is then shown.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn choose_for_search(
    task: &str,
    task_runs: &Path,
    fold: Option<usize>,
    preset: Option<&str>,
    resume: bool,
) -> Result<RunChoice> {
    let runs = newest_first(task_runs)?;
    // A run may have been stopped before its search left anything.
    let interrupted =
        |run: &RunSummary| run.find(fold, SearchState::Interrupted).map(Some).or(run.is_untouched().then_some(fold));
    let finished = |run: &RunSummary| run.find(fold, SearchState::Finished).map(Some);
    if resume {
        let found = runs.iter().find_map(|run| Some((run, interrupted(run)?)));
        let found = found.or_else(|| runs.iter().find_map(|run| Some((run, finished(run)?))));
        if let Some((run, fold)) = found {
            note(&format!("continuing {}", run.path.display()));
            return Ok(RunChoice { root: run.path.clone(), fold, resume: true });
        }
        note(&format!("no search to continue in {}: starting one", task_runs.display()));
    } else if let Some(run) = runs.first()
        && let Some(fold) = run.find(fold, SearchState::Interrupted)
    {
        note(&format!(
            "note: starting a new search. The one in {} (fold {fold}) was interrupted; to continue it: {} search {task} \
             --resume",
            run.path.display(),
            program()
        ));
    }
    Ok(RunChoice { root: new_run(task_runs, preset)?, fold, resume: false })
}

/// Chooses the run of a training: the newest with a finished search, of `fold` if given. With `own_architecture` any run
/// will do, for its data and settings, and a new one if there is none.
///
/// # Errors
/// No finished search; a folder that cannot be read.
pub(crate) fn choose_for_retrain(
    task: &str,
    task_runs: &Path,
    fold: Option<usize>,
    preset: Option<&str>,
    own_architecture: bool,
) -> Result<RunChoice> {
    let runs = newest_first(task_runs)?;
    let choice = |run: &RunSummary, fold| {
        note(&format!("training in {}", run.path.display()));
        RunChoice { root: run.path.clone(), fold, resume: false }
    };
    if own_architecture {
        return match runs.first() {
            Some(run) => Ok(choice(run, fold)),
            None => Ok(RunChoice { root: new_run(task_runs, preset)?, fold, resume: false }),
        };
    }
    let finished = |run: &RunSummary| run.find(fold, SearchState::Finished);
    if let Some(newest) = runs.first().filter(|run| finished(run).is_none()) {
        let path = newest.path.display();
        if newest.find(fold, SearchState::Running).is_some() {
            note(&format!("note: the newest search, {path}, is still running"));
        } else if newest.find(fold, SearchState::Interrupted).is_some() {
            let program = program();
            note(&format!(
                "note: the newest search, {path}, was interrupted; to continue it: {program} search {task} --resume"
            ));
        }
    }
    let Some((run, fold)) = runs.iter().find_map(|run| Some((run, finished(run)?))) else {
        let fold = fold.map_or(String::new(), |fold| format!(" of fold {fold}"));
        bad_input!("no finished search{fold} in {}: start one with `{} search {task}`", task_runs.display(), program());
    };
    Ok(choice(run, Some(fold)))
}

/// The runs in the folder `task_runs`, newest first; none if the folder does not exist.
fn newest_first(task_runs: &Path) -> Result<Vec<RunSummary>> {
    let mut runs = Vec::new();
    for path in folders(task_runs)? {
        // config.toml is the first file of a run, and never written again.
        let Ok(started) = fs::metadata(path.join("config.toml")).and_then(|data| data.modified()) else {
            continue;
        };
        let mut searches: Vec<_> = folders(&path.join("search"))?
            .iter()
            .filter_map(|fold| {
                let number = fold.file_name()?.to_str()?.strip_prefix("fold_")?.parse().ok()?;
                let state = match fold.join("architecture.json").is_file() {
                    true => SearchState::Finished,
                    false if RunFolder::is_held(&path, Fold::Number(number)) => SearchState::Running,
                    false => SearchState::Interrupted,
                };
                Some((number, state))
            })
            .collect();
        searches.sort_by_key(|(fold, _)| *fold);
        runs.push(RunSummary { path, started, searches });
    }
    runs.sort_by(|a, b| (b.started, &b.path).cmp(&(a.started, &a.path)));
    Ok(runs)
}

/// Path of a new run, `<preset>-<number>`, one above the highest number in the folder.
fn new_run(task_runs: &Path, preset: Option<&str>) -> Result<PathBuf> {
    let preset = Path::new(preset.unwrap_or("quick"));
    let stem = preset.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
    let highest = folders(task_runs)?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.rsplit_once('-')?.1.parse::<u32>().ok())
        .max()
        .unwrap_or(0);
    Ok(task_runs.join(format!("{stem}-{:03}", highest + 1)))
}

/// Folders in `dir`; none if it does not exist.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_dir() {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, time::Duration};

    fn run(task_runs: &Path, name: &str, age_s: u64, fold: usize, finished: bool) -> PathBuf {
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

        let lock = File::create(new.join(".lock_fold_2")).unwrap();
        lock.lock().unwrap();
        assert_eq!(newest_first(dir.path()).unwrap()[0].find(None, SearchState::Running), Some(2));
        drop(lock);
        assert_eq!(newest_first(dir.path()).unwrap()[0].find(None, SearchState::Interrupted), Some(2));
    }

    #[test]
    fn new_names_count_up_from_the_highest() {
        let dir = tempfile::tempdir().unwrap();
        assert!(new_run(dir.path(), None).unwrap().ends_with("quick-001"));
        run(dir.path(), "quick-007", 0, 0, true);
        assert!(new_run(dir.path(), Some("configs/paper.toml")).unwrap().ends_with("paper-008"));
    }

    #[test]
    fn resume_takes_the_interrupted_search_then_the_finished_one_then_a_new_run() {
        let dir = tempfile::tempdir().unwrap();
        let choose = || choose_for_search("phantom", dir.path(), None, None, true).unwrap();
        let choice = |name: &str, fold, resume| RunChoice { root: dir.path().join(name), fold, resume };
        assert_eq!(choose(), choice("quick-001", None, false));

        let run = dir.path().join("quick-001");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("config.toml"), "").unwrap();
        assert_eq!(choose(), choice("quick-001", None, true), "not yet begun");

        for fold in [1, 3] {
            let fold = run.join(format!("search/fold_{fold}"));
            fs::create_dir_all(&fold).unwrap();
            fs::write(fold.join("architecture.json"), "{}").unwrap();
        }
        assert_eq!(choose(), choice("quick-001", Some(1), true), "finished");

        fs::remove_file(run.join("search/fold_3/architecture.json")).unwrap();
        assert_eq!(choose(), choice("quick-001", Some(3), true), "interrupted");
    }

    #[test]
    fn a_training_takes_the_newest_finished_search_or_any_run_for_an_architecture_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let choose = |fold, own| choose_for_retrain("phantom", dir.path(), fold, None, own);
        assert!(choose(None, false).unwrap_err().to_string().contains("search phantom"));
        assert_eq!(choose(None, true).unwrap().root, dir.path().join("quick-001"));
        let old = run(dir.path(), "quick-001", 100, 1, true);
        let new = run(dir.path(), "quick-002", 10, 2, false);
        let choice = |root, fold| RunChoice { root, fold, resume: false };
        assert_eq!(choose(None, false).unwrap(), choice(old, Some(1)));
        assert!(choose(Some(2), false).unwrap_err().to_string().contains("no finished search of fold 2"));
        assert_eq!(choose(Some(2), true).unwrap(), choice(new, Some(2)));
    }
}
