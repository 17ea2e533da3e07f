//! Tasks of a sweep and the files that they leave.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use msd_data::NUM_FOLDS;
use serde::{Deserialize, Serialize};

use super::config::{Arm, SweepConfig, check_name, unique};
use crate::{
    architecture_choice::architecture_in,
    args::{DatasetArgs, Stage},
    failure::{bad_input, program},
    report::plain::quoted,
    run_folder::{is_empty_or_absent, is_same, parent, trainings_path},
    task::Task as DatasetTask,
};

/// A planned sweep, as `plan.json` keeps it in the folder of its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sweep {
    #[serde(skip)]
    pub(crate) folder: PathBuf,
    pub(crate) config: SweepConfig,
    pub(crate) datasets: Vec<SweepDataset>,
    /// Digest of the settings and of the architecture file of each arm, by its name. Absent in plans of earlier versions.
    #[serde(default)]
    pub(crate) arms: BTreeMap<String, String>,
    pub(crate) tasks: Vec<Task>,
    /// Results of this and of earlier plans, by their path in the folder, with the digest of the arm that they were made for.
    #[serde(default)]
    pub(crate) made: BTreeMap<PathBuf, String>,
}

/// Dataset of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SweepDataset {
    /// Name in the names of tasks and folders.
    pub(crate) name: String,
    /// TASK or path of the file, as given.
    pub(crate) task: String,
    pub(crate) folder: PathBuf,
}

/// Piece of work that one process does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Task {
    /// Unique name, also of the files of its state.
    pub(crate) name: String,
    pub(crate) stage: Stage,
    /// Index in the sweep's datasets.
    pub(crate) dataset: usize,
    /// Network that the task is about; none for the preparation of a dataset.
    pub(crate) cell: Option<Cell>,
    /// Indices of the tasks that must be done before; all of them are lower than the task's own.
    pub(crate) after: Vec<usize>,
}

/// Network of an arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cell {
    /// Index in the sweep's arms.
    pub(crate) arm: usize,
    pub(crate) seed: u64,
    pub(crate) fold: usize,
}

impl Cell {
    /// Seed of the architecture that a random arm with this number draws: another one for every seed and fold, so that the arm's
    /// mean is one over architectures.
    pub(crate) fn draw(self, number: u64) -> u64 {
        number
            .wrapping_mul(1_000_003)
            .wrapping_add(self.seed)
            .wrapping_mul(NUM_FOLDS as u64)
            .wrapping_add(self.fold as u64)
    }
}

impl Sweep {
    /// Plans the sweep of a TOML file.
    ///
    /// # Errors
    /// Those of [`SweepConfig::load`]; a dataset that is neither a task nor a folder.
    pub(crate) fn plan(file: &Path) -> Result<Self> {
        let config = SweepConfig::load(file)?;
        let output =
            config.output.as_deref().map_or_else(|| file.with_extension(""), |output| parent(file).join(output));
        if output == file {
            bad_input!("{}: expected a name that ends in .toml, or output = \"FOLDER\" in it", file.display());
        }
        let dataset = |task: &String| {
            let args = DatasetArgs { task: Some(task.clone()), data: None };
            let found = DatasetTask::locate(&args)?.context("a task was given")?;
            check_name(&found.name)?;
            Ok(SweepDataset { name: found.name, task: task.clone(), folder: found.folder })
        };
        let datasets = config.datasets.iter().map(dataset).collect::<Result<Vec<_>>>()?;
        unique("datasets, by their folders' names", datasets.iter().map(|dataset| dataset.name.clone()))?;
        let tasks = tasks(&config, &datasets);
        let arms = config.arms.iter().map(|arm| Ok((arm.name.clone(), config.digest(arm)?))).collect::<Result<_>>()?;
        Ok(Self { folder: output, config, datasets, arms, tasks, made: BTreeMap::new() })
    }

    /// Plans the sweep of a TOML file, and writes `plan.json`.
    ///
    /// # Errors
    /// Those of [`Self::plan`]; a folder of other files than a sweep's; results of an earlier plan that the new one would give to arms with other settings; a disk that
    /// cannot be written to.
    pub(crate) fn create(file: &Path) -> Result<Self> {
        let mut sweep = Self::plan(file)?;
        let path = sweep.plan_file();
        check_folder(file, &sweep.folder)?;
        // A plan that this version cannot read is replaced.
        if let Ok(earlier) = Self::in_folder(&sweep.folder) {
            sweep.check_datasets_of(&earlier)?;
            sweep.made = earlier.results_made();
            sweep.check_results_made()?;
        }
        adw_files::create_folders(&sweep.folder.join("tasks"))
            .with_context(|| format!("cannot create {}", sweep.folder.display()))?;
        let text = serde_json::to_string(&sweep)?;
        adw_files::write_bytes(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(sweep)
    }

    /// Results that are there, of this plan and of earlier ones.
    fn results_made(&self) -> BTreeMap<PathBuf, String> {
        let mut made = self.made.clone();
        for task in self.tasks.iter().filter(|task| self.is_done(task)) {
            let result = self.result(task);
            let digest = task.cell.and_then(|cell| self.arms.get(&self.arm(cell).name));
            if let (Ok(path), Some(digest)) = (result.strip_prefix(&self.folder), digest) {
                made.insert(path.to_owned(), digest.clone());
            }
        }
        made.retain(|path, _| self.folder.join(path).is_file());
        made
    }

    /// Refuses results that were made with other settings than this plan has for their arms.
    fn check_results_made(&self) -> Result<()> {
        for task in &self.tasks {
            let Some(arm) = task.cell.map(|cell| &self.arm(cell).name) else { continue };
            let result = self.result(task);
            let before = result.strip_prefix(&self.folder).ok().and_then(|path| self.made.get(path));
            if before.is_some_and(|before| Some(before) != self.arms.get(arm)) {
                bad_input!(
                    "arm {arm} has other settings than its results in {}: give it another name, or remove them",
                    result.display()
                );
            }
        }
        Ok(())
    }

    /// Refuses results that were made with another dataset.
    fn check_datasets_of(&self, earlier: &Self) -> Result<()> {
        for task in earlier.tasks.iter().filter(|task| earlier.is_done(task)) {
            let result = earlier.result(task);
            let before = &earlier.datasets[task.dataset];
            let now = self.datasets.iter().find(|dataset| dataset.name == before.name);
            // A dataset that has moved is another one only if its cases are, which searches and trainings look at.
            if now.is_some_and(|now| before.folder.exists() && !is_same(&now.folder, &before.folder)) {
                bad_input!(
                    "dataset {} is in another folder than that of {}: write to another output, or remove the results",
                    before.name,
                    result.display()
                );
            }
        }
        Ok(())
    }

    /// Opens a sweep that was planned before.
    ///
    /// # Errors
    /// There is no plan, or the file has changed since.
    pub(crate) fn open(file: &Path) -> Result<Self> {
        let now = Self::plan(file)?;
        let path = now.plan_file();
        let plan_it = || format!("`{} sweep plan {}`", program(), quoted(file));
        if !path.is_file() {
            bad_input!("{}: is not planned yet: {}", file.display(), plan_it());
        }
        let planned = Self::in_folder(&now.folder).with_context(|| format!("plan again: {}", plan_it()))?;
        if planned != (Self { made: planned.made.clone(), ..now }) {
            bad_input!("{} has changed since it was planned: plan again, {}", file.display(), plan_it());
        }
        Ok(planned)
    }

    /// Reads the sweep whose results are in `folder`.
    ///
    /// # Errors
    /// There is no plan, or it is damaged.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("plan.json");
        let text = adw_files::read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match serde_json::from_str::<Self>(&text) {
            Ok(planned) => Ok(Self { folder: folder.to_owned(), ..planned }),
            Err(error) => bad_input!("{}: {error}", path.display()),
        }
    }

    /// Opens a sweep, and plans it if that was not done before.
    ///
    /// # Errors
    /// Those of [`Self::open`] and [`Self::create`].
    pub(crate) fn open_or_create(file: &Path) -> Result<Self> {
        if Self::plan(file)?.plan_file().is_file() { Self::open(file) } else { Self::create(file) }
    }

    fn plan_file(&self) -> PathBuf {
        self.folder.join("plan.json")
    }

    /// Arm of a network.
    pub(crate) fn arm(&self, cell: Cell) -> &Arm {
        &self.config.arms[cell.arm]
    }

    /// Fingerprint of a dataset.
    pub(crate) fn fingerprint(&self, dataset: usize) -> PathBuf {
        self.folder.join("data").join(format!("{}.json", self.datasets[dataset].name))
    }

    /// Run of a network, which the folds of an arm share, and arms that train its networks.
    pub(crate) fn run(&self, dataset: usize, cell: Cell) -> PathBuf {
        let of_dataset = self.folder.join("runs").join(&self.datasets[dataset].name);
        let arm = self.arm(cell);
        of_dataset.join(arm.search_of.as_ref().unwrap_or(&arm.name)).join(format!("seed_{}", cell.seed))
    }

    /// Folder of a network's search.
    pub(crate) fn search(&self, dataset: usize, cell: Cell) -> PathBuf {
        self.run(dataset, cell).join(format!("search/fold_{}", cell.fold))
    }

    /// Folder of a network's training.
    pub(crate) fn retrain(&self, dataset: usize, cell: Cell) -> PathBuf {
        trainings_path(&self.run(dataset, cell), self.arm(cell).training_name()).join(format!("fold_{}", cell.fold))
    }

    /// Last file that a task writes: it is done when that exists.
    pub(crate) fn result(&self, task: &Task) -> PathBuf {
        match (task.stage, task.cell) {
            (Stage::Search, Some(cell)) => architecture_in(&self.search(task.dataset, cell)),
            (Stage::Retrain, Some(cell)) => self.retrain(task.dataset, cell).join("metrics.json"),
            _ => self.fingerprint(task.dataset),
        }
    }

    /// Returns true if a task's result exists.
    pub(crate) fn is_done(&self, task: &Task) -> bool {
        self.result(task).is_file()
    }
}

/// Checks that the sweep of a TOML file can be in `folder`: it is absent, empty or a sweep, whose first part is the folder `tasks`.
///
/// # Errors
/// It has other files, such as a dataset or a run.
fn check_folder(file: &Path, folder: &Path) -> Result<()> {
    if !is_empty_or_absent(folder) && !folder.join("tasks").is_dir() {
        bad_input!(
            "{}: the results would go to {}, which exists and is not a sweep: name a new folder by output = \"FOLDER\"",
            file.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Lists all tasks, stage by stage.
fn tasks(config: &SweepConfig, datasets: &[SweepDataset]) -> Vec<Task> {
    let prepare = |(dataset, of): (usize, &SweepDataset)| Task {
        name: format!("prepare.{}", of.name),
        stage: Stage::Prepare,
        dataset,
        cell: None,
        after: vec![],
    };
    let mut tasks: Vec<Task> = datasets.iter().enumerate().map(prepare).collect();
    let mut cells = Vec::new();
    for dataset in 0..datasets.len() {
        for arm in 0..config.arms.len() {
            for &seed in &config.seeds {
                cells.extend(config.folds.iter().map(|&fold| (dataset, Cell { arm, seed, fold })));
            }
        }
    }
    let name = |stage: Stage, dataset: usize, cell: &Cell| {
        let (dataset, arm) = (&datasets[dataset].name, &config.arms[cell.arm].name);
        format!("{}.{dataset}.{arm}.seed_{}.fold_{}", stage.name(), cell.seed, cell.fold)
    };
    let mut searches = BTreeMap::new();
    for (dataset, cell) in cells.iter().filter(|(_, cell)| config.arms[cell.arm].searches()) {
        searches.insert((*dataset, cell.arm, cell.seed, cell.fold), tasks.len());
        let name = name(Stage::Search, *dataset, cell);
        tasks.push(Task { name, stage: Stage::Search, dataset: *dataset, cell: Some(*cell), after: vec![*dataset] });
    }
    let mut trainings = BTreeMap::new();
    for (dataset, cell) in &cells {
        let arm = &config.arms[cell.arm];
        let key = |arm: usize| (*dataset, arm, cell.seed, cell.fold);
        let other = |name: &Option<String>| config.arms.iter().position(|arm| Some(&arm.name) == name.as_ref());
        let of_arm = |arm: usize| searches.get(&key(arm)).copied();
        // One training at a time works on a fold of a run.
        let of_run = other(&arm.search_of).and_then(|arm| trainings.get(&key(arm)).copied());
        let after = of_run.or_else(|| of_arm(cell.arm)).or_else(|| of_arm(other(&arm.cost_of)?)).unwrap_or(*dataset);
        trainings.insert(key(cell.arm), tasks.len());
        let name = name(Stage::Retrain, *dataset, cell);
        tasks.push(Task { name, stage: Stage::Retrain, dataset: *dataset, cell: Some(*cell), after: vec![after] });
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_arms_draw_another_architecture_for_every_seed_and_fold() {
        let cells = |seed| (0..NUM_FOLDS).map(move |fold| Cell { arm: 0, seed, fold });
        let draws = [0, 1, 2, u64::MAX].into_iter().flat_map(cells).flat_map(|cell| [cell.draw(1), cell.draw(2)]);
        assert_eq!(draws.collect::<std::collections::BTreeSet<_>>().len(), 4 * NUM_FOLDS * 2);
    }

    #[test]
    fn a_sweep_takes_no_folder_of_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        let check = || check_folder(Path::new("s.toml"), &folder);
        check().unwrap();
        std::fs::create_dir(&folder).unwrap();
        check().unwrap();
        std::fs::write(folder.join("plan.json"), "{}").unwrap();
        let message = check().unwrap_err().to_string();
        assert!(message.contains("s.toml: ") && message.contains("data, which exists and is not a sweep"), "{message}");
        std::fs::create_dir(folder.join("tasks")).unwrap();
        check().unwrap();
    }

    #[test]
    fn a_thousand_tasks_come_stage_by_stage_after_those_they_need() {
        let text = "datasets = []\nfolds = [0, 1, 2, 3, 4]\nseeds = [1, 2, 3, 4]\n[[arms]]\nname = \"found\"\n\
                    [[arms]]\nname = \"plain\"\nuniform_width = 8\n[[arms]]\nname = \"random\"\nrandom = 1\ncost_of = \"found\"\n\
                    [[arms]]\nname = \"warm\"\nsearch_of = \"found\"";
        let config: SweepConfig = toml::from_str(text).unwrap();
        let dataset = |i: usize| SweepDataset { name: format!("d{i}"), task: String::new(), folder: PathBuf::new() };
        let datasets: Vec<_> = (0..13).map(dataset).collect();
        let tasks = tasks(&config, &datasets);
        assert_eq!(tasks.len(), 13 + 13 * 20 + 13 * 80);
        assert!(tasks.is_sorted_by_key(|task| task.stage));
        for (index, task) in tasks.iter().enumerate() {
            assert!(task.after.iter().all(|&needed| needed < index));
            let needed: Vec<_> = task.after.iter().map(|&needed| tasks[needed].name.as_str()).collect();
            match task.name.as_str() {
                "prepare.d3" => assert!(needed.is_empty()),
                "search.d3.found.seed_2.fold_4" | "retrain.d3.plain.seed_2.fold_4" => {
                    assert_eq!(needed, ["prepare.d3"]);
                }
                "retrain.d3.found.seed_2.fold_4" | "retrain.d3.random.seed_2.fold_4" => {
                    assert_eq!(needed, ["search.d3.found.seed_2.fold_4"]);
                }
                "retrain.d3.warm.seed_2.fold_4" => assert_eq!(needed, ["retrain.d3.found.seed_2.fold_4"]),
                _ => assert!(needed.iter().all(|needed| needed.contains(".d")), "{needed:?}"),
            }
        }
    }
}
