//! Files of a run that a report or a watcher shows. They are read without the run's lock, so that a run in progress has a report, too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use adw_search::{RetrainRow, SearchRow};
use adw_supernet::Architecture;
use anyhow::{Context, Result};
use msd_data::{Dataset, Fingerprint, Plan, Postprocessing, Report};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    dataset_folder,
    ensemble::MODEL,
    failure::bad_input,
    fold::Fold,
    run_config::{self, RunConfig, RunFacts},
    run_folder::{check_run, config_path, splits_path},
    splits::Splits,
    statistics::Spread,
};

/// A run as its folder holds it.
pub(crate) struct RunData {
    pub(crate) root: PathBuf,
    pub(crate) facts: RunFacts,
    pub(crate) config: RunConfig,
    pub(crate) config_text: String,
    pub(crate) plan: Plan,
    pub(crate) splits: Splits,
    /// None in runs of earlier versions.
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) searches: Vec<SearchData>,
    pub(crate) trainings: Vec<TrainingData>,
    /// Cross-validations whose folds are all scored.
    pub(crate) crossvals: Vec<CrossvalData>,
}

/// Cross-validation of one architecture, or of one of each fold.
pub(crate) struct CrossvalData {
    /// Name of several trainings of a run.
    pub(crate) name: Option<String>,
    pub(crate) report: Report,
    pub(crate) scores: PooledScores,
}

/// Part of a cross-validation's `metrics.json` that other reports do not have.
#[derive(Deserialize)]
pub(crate) struct PooledScores {
    /// By label, or `foreground_mean`, and metric.
    pub(crate) spread: BTreeMap<String, BTreeMap<String, Spread>>,
    /// Number of searches and their honesty, for a person.
    pub(crate) searches: String,
    pub(crate) postprocessing: PostprocessingScores,
}

/// Postprocessing that was found, and each label's mean Dice before and after it.
#[derive(Deserialize)]
pub(crate) struct PostprocessingScores {
    pub(crate) postprocessing: Postprocessing,
    pub(crate) dice: BTreeMap<u16, [Option<f64>; 2]>,
}

impl CrossvalData {
    /// Returns true if the architectures come from searches.
    pub(crate) fn searches(&self) -> bool {
        self.scores.searches != "none"
    }

    /// Returns true for a training of the cross-validation.
    pub(crate) fn covers(&self, training: &TrainingData) -> bool {
        training.name == self.name && training.fold != Fold::All
    }
}

/// Search of one fold.
pub(crate) struct SearchData {
    pub(crate) fold: usize,
    pub(crate) rows: Vec<SearchRow>,
    /// None until it is finished.
    pub(crate) architecture: Option<Architecture>,
}

/// Training of one architecture, on one fold or on all cases.
pub(crate) struct TrainingData {
    /// Name of several trainings of a run.
    pub(crate) name: Option<String>,
    pub(crate) fold: Fold,
    pub(crate) folder: PathBuf,
    pub(crate) facts: RunFacts,
    pub(crate) num_epochs: usize,
    pub(crate) steps_per_epoch: usize,
    /// Setting `retrain.warm_start`: the architecture of the run's search starts from the weights of that search.
    pub(crate) warm_start: bool,
    pub(crate) rows: Vec<RetrainRow>,
    pub(crate) architecture: Architecture,
    /// None until it is finished, and if no case was left to score.
    pub(crate) metrics: Option<Report>,
}

impl TrainingData {
    /// Name for people.
    pub(crate) fn title(&self) -> String {
        let network = self.network();
        match self.fold {
            Fold::Number(fold) => format!("{network}, fold {fold}"),
            Fold::All => format!("{network}, all cases"),
        }
    }

    /// Name of the training, or the kind of its network.
    pub(crate) fn network(&self) -> &str {
        let is_from = |origin: &str| self.architecture.provenance.contains_key(origin);
        match &self.name {
            Some(name) => name,
            None if is_from("uniform") => "plain network",
            None if is_from("random") => "random architecture",
            None if is_from("fold") => "found architecture",
            None => "given architecture",
        }
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> usize {
        self.rows.len() * self.steps_per_epoch
    }

    /// Returns true if nothing is left to do.
    pub(crate) fn is_finished(&self) -> bool {
        self.metrics.is_some() || (self.fold == Fold::All && self.folder.join(MODEL).is_file())
    }

    /// Sum of the epochs' times, seconds.
    pub(crate) fn wall_s(&self) -> f64 {
        self.rows.iter().map(|row| row.wall_s).sum()
    }
}

impl SearchData {
    /// Sum of the epochs' times, seconds.
    pub(crate) fn wall_s(&self) -> f64 {
        self.rows.iter().map(|row| row.wall_s).sum()
    }
}

impl RunData {
    /// Returns true if a training began with the weights of the run's search.
    pub(crate) fn is_warm(&self, training: &TrainingData) -> bool {
        let search = self.searches.iter().find(|search| search.fold == training.facts.fold);
        let found = search.and_then(|search| search.architecture.as_ref());
        let architecture = &training.architecture;
        training.warm_start
            && !is_baseline(architecture)
            && found.is_some_and(|found| found.is_same_network(architecture))
    }

    /// Reads the run in `root`.
    ///
    /// # Errors
    /// No run; a damaged file.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        check_run(root)?;
        let (facts, config) = run_config::load(&config_path(root))?;
        let mut searches = Vec::new();
        for (fold, folder) in fold_folders(&root.join("search")) {
            let Fold::Number(fold) = fold else { continue };
            let architecture = folder.join("architecture.json");
            let architecture = architecture.is_file().then(|| Architecture::load(&architecture)).transpose()?;
            searches.push(SearchData { fold, rows: history(&folder)?, architecture });
        }
        let retrain = root.join("retrain");
        let (mut trainings, mut crossvals) = (Vec::new(), Vec::new());
        let mut names: Vec<_> =
            folders(&retrain).into_iter().filter(|name| !name.starts_with("fold_")).map(Some).collect();
        names.insert(0, None);
        for name in names {
            let parent = name.as_ref().map_or(retrain.clone(), |name| retrain.join(name));
            for (fold, folder) in fold_folders(&parent) {
                trainings.extend(training(name.clone(), fold, folder)?);
            }
            let file = parent.join("metrics.json");
            if let Some((report, scores)) = json(&file)?.zip(json(&file)?) {
                crossvals.push(CrossvalData { name, report, scores });
            }
        }
        Ok(Self {
            root: root.to_owned(),
            config_text: adw_files::read_text(&config_path(root))?,
            plan: Plan::load(&root.join("plan.json"))?,
            splits: Splits::load(&splits_path(root))?,
            fingerprint: json(&root.join("fingerprint.json"))?,
            facts,
            config,
            searches,
            trainings,
            crossvals,
        })
    }

    /// The run's dataset; none if it has moved.
    pub(crate) fn dataset(&self) -> Option<Dataset> {
        let mut dataset = dataset_folder::open(&self.facts.data).ok()?;
        dataset.positions = self.config.settings.data.positions();
        Some(dataset)
    }
}

/// Returns true for a network of `--uniform-width`, `--plain` or `--random`, by its provenance.
pub(crate) fn is_baseline(architecture: &Architecture) -> bool {
    ["uniform", "random"].iter().any(|origin| architecture.provenance.contains_key(*origin))
}

/// Training in `folder`; none if it has not begun.
fn training(name: Option<String>, fold: Fold, folder: PathBuf) -> Result<Option<TrainingData>> {
    let config = config_path(&folder);
    if !config.is_file() {
        return Ok(None);
    }
    let (facts, config) = run_config::load(&config)?;
    let architecture = Architecture::load(&folder.join("architecture.json"))?;
    let metrics = json(&folder.join("metrics.json"))?;
    Ok(Some(TrainingData {
        name,
        fold,
        facts,
        num_epochs: config.settings.retrain.epochs,
        steps_per_epoch: config.settings.retrain.iterations_per_epoch,
        warm_start: config.settings.retrain.warm_start,
        rows: history(&folder)?,
        architecture,
        metrics,
        folder,
    }))
}

/// Rows of the history in `folder`; none before the first epoch's end. A line that is being written is left out.
pub(crate) fn history<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>> {
    let path = folder.join("history.jsonl");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = adw_files::read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = Vec::new();
    for (i, line) in text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(error) => bad_input!("{}: line {}: {error}", path.display(), i + 1),
        }
    }
    Ok(rows)
}

/// Content of a JSON file; none if there is no such file.
pub(crate) fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = adw_files::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => bad_input!("{}: {error}", path.display()),
    }
}

/// Names of the folders in `folder`, in their order; none if it does not exist.
fn folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The folders `fold_K` and `fold_all` in `folder`.
fn fold_folders(folder: &Path) -> Vec<(Fold, PathBuf)> {
    let fold = |name: &String| Some((name.strip_prefix("fold_")?.parse().ok()?, folder.join(name)));
    folders(folder).iter().filter_map(fold).collect()
}
