//! Run that a command works on: settings, dataset, plan and splits.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use adw_supernet::DiceCe;
use anyhow::{Context, Result};
use candle_core::Device;
use md5::{Digest, Md5};
use msd_data::{Dataset, Fingerprint, Memory, Plan, PlanOptions};
use serde_json::json;

use crate::{
    args::ConfigArgs,
    dataset_folder, digest,
    failure::bad_input,
    fold::Fold,
    interrupt, ranks,
    report::{progress::note, run_data::json as read_json},
    run_config::{self, RunConfig, RunFacts},
    run_folder::{RunFolder, check_new, config_path, splits_path},
    splits::Splits,
};

/// Run that a command opens or creates, with the settings of the command line.
pub(crate) struct RunRequest<'a> {
    /// Folder of the run.
    pub(crate) root: &'a Path,
    /// Folder of the dataset; that of the run if absent.
    pub(crate) data: Option<&'a Path>,
    pub(crate) config: &'a ConfigArgs,
    /// Cross-validation fold; that of the run if absent.
    pub(crate) fold: Option<Fold>,
    /// Fingerprint of the dataset, if it was computed before.
    pub(crate) fingerprint: Option<&'a Path>,
    /// Limit of the memory for planning.
    pub(crate) memory: Memory,
}

/// Run folder on disk or about to be created: what all folds and trainings of a run share.
pub(crate) struct Run {
    pub(crate) facts: RunFacts,
    pub(crate) config: RunConfig,
    pub(crate) dataset: Dataset,
    pub(crate) plan: Plan,
    pub(crate) splits: Splits,
    /// Fold that the command works on.
    pub(crate) fold: Fold,
    pub(crate) root: PathBuf,
    /// Facts about the training cases, of a new run.
    fingerprint: Option<Fingerprint>,
    folder: Option<RunFolder>,
}

impl Run {
    /// Opens the run in `request.root`, or prepares a new one, of which nothing is on disk until [`Run::folder`] is
    /// called: bad data leaves no trace.
    ///
    /// An existing run keeps its settings, except for the keys for which `may_change` returns true.
    ///
    /// # Errors
    /// A root that cannot be written to, bad settings or data, settings other than those of the run.
    pub(crate) fn open(request: &RunRequest<'_>, device: &Device, may_change: fn(&str) -> bool) -> Result<Self> {
        if RunFolder::exists(request.root) {
            return Self::existing(request, may_change);
        }
        match Self::new(request, device) {
            // Another fold of the same run was faster.
            Err(_) if RunFolder::exists(request.root) => Self::existing(request, may_change),
            new => new,
        }
    }

    fn new(request: &RunRequest<'_>, device: &Device) -> Result<Self> {
        let Some(data) = request.data else {
            bad_input!(
                "{} is not a run (it has no config.toml): to start one, name its dataset with TASK or --data",
                request.root.display()
            );
        };
        let config = RunConfig::from_args(request.config)?;
        check_new(request.root)?;
        // A fingerprint comes from a process that has checked the dataset.
        let checked = match request.fingerprint {
            Some(_) => None,
            None => Some(dataset_folder::check(data, config.settings.data.positions(), request.memory)?),
        };
        let (error, known) = checked.map_or((None, None), |checked| (checked.error, checked.fingerprint));
        let mut dataset = dataset_folder::open(data)?;
        dataset.positions = config.settings.data.positions();
        let fold = request.fold.unwrap_or(Fold::Number(0));
        let splits = Splits::new(&dataset, config.settings.seed, config.settings.data.groups.as_deref())?;
        splits.fold(fold)?;
        let fingerprint = match request.fingerprint {
            Some(file) => Fingerprint::load(file, &dataset)?,
            None => dataset_folder::checked_fingerprint(&dataset, known, request.memory)?,
        };
        let plan = plan(&fingerprint, &dataset, &config)?;
        // An error that is none for this run, such as one of a test image.
        if let Some(error) = error {
            note(&format!("warning: {error}"));
        }
        if let Some([left, right]) = config.settings.data.augmentation.mixed_sides(&plan) {
            note(&format!(
                "warning: patches are mirrored from left to right, where {left} and {right} cannot be told apart: \
                 --set 'data.augmentation.mirror_axes=[\"anterior-posterior\",\"superior-inferior\"]' leaves that out"
            ));
        }
        let data = std::path::absolute(&dataset.root).context("the dataset's folder")?;
        let facts = RunFacts::new(data, if let Fold::Number(number) = fold { number } else { 0 }, device);
        Ok(Self {
            facts,
            config,
            dataset,
            plan,
            splits,
            fold,
            root: request.root.to_owned(),
            fingerprint: Some(fingerprint),
            folder: None,
        })
    }

    fn existing(request: &RunRequest<'_>, may_change: fn(&str) -> bool) -> Result<Self> {
        let (facts, stored) = run_config::load(&config_path(request.root))?;
        let config = stored.changed_by(request.config)?;
        if let Some((key, was, is)) = stored.difference(&config, |key| !may_change(key)) {
            bad_input!(
                "{} was made with {key} = {was}, not {is}: {}, or choose another --run",
                request.root.display(),
                ranks::remedy(&key)
            );
        }
        let data = request.data.unwrap_or(&facts.data);
        if request.data.is_none() && !data.exists() {
            bad_input!(
                "{}: no such folder; the dataset of {} lay there, --data DIR names its place now",
                data.display(),
                request.root.display()
            );
        }
        let mut dataset = dataset_folder::open(data)?;
        dataset.positions = config.settings.data.positions();
        let plan = Plan::load(&request.root.join("plan.json"))?;
        let splits = Splits::load(&splits_path(request.root))?;
        check_same(request.root, &plan, &splits, &dataset)?;
        check_unchanged(request.root, &plan, &dataset)?;
        let fold = request.fold.unwrap_or(Fold::Number(facts.fold));
        splits.fold(fold)?;
        let folder = RunFolder::open(request.root, fold)?;
        let run = Self {
            facts,
            config,
            dataset,
            plan,
            splits,
            fold,
            root: request.root.to_owned(),
            fingerprint: None,
            folder: Some(folder),
        };
        run.note_how_to_resume();
        Ok(run)
    }

    /// Notes the command that continues work on this run, with the fold where it is not the run's own.
    fn note_how_to_resume(&self) {
        let is_other = self.fold != Fold::Number(self.facts.fold);
        interrupt::resumes(Some((&self.root, is_other.then(|| self.fold.to_string()))));
    }

    /// Fold of the search whose architecture is trained: the run's own where all cases are trained on.
    pub(crate) fn search_fold(&self) -> usize {
        match self.fold {
            Fold::Number(number) => number,
            Fold::All => self.facts.fold,
        }
    }

    /// Loss of searches and trainings: Dice over the batch or per sample, as the plan says, and cross-entropy.
    pub(crate) fn loss(&self) -> DiceCe {
        DiceCe { batch_dice: self.plan.batch_dice, ..DiceCe::default() }
    }

    /// MD5 of what tells this dataset and its folds from others: labels, intensities and the validation cases of every fold.
    pub(crate) fn dataset_digest(&self) -> String {
        let folds: Vec<_> = self.splits.folds.iter().map(|fold| &fold.validation).collect();
        let facts = json!([self.plan.labels, self.plan.intensity, folds]).to_string();
        digest::hexadecimal(Md5::new_with_prefix(facts))
    }

    /// Digest of the dataset's place and the plan: runs that share it prepare the same cases.
    pub(crate) fn preparation_digest(&self) -> String {
        let root = self.dataset.root.canonicalize().unwrap_or_else(|_| self.dataset.root.clone());
        digest::hexadecimal(Md5::new_with_prefix(json!([root, self.plan]).to_string()))
    }

    /// Facts that a search or training of this run depends on, besides its settings.
    pub(crate) fn identity(&self) -> Result<BTreeMap<String, String>> {
        let fold = self.splits.fold(self.fold)?;
        let cases = json!([self.plan, fold.train, fold.validation, fold.train_a, fold.train_b]).to_string();
        let dice = if self.plan.batch_dice { "of the batch" } else { "per sample" };
        Ok(BTreeMap::from([
            ("task".into(), self.plan.dataset_name.clone()),
            ("plan and cases".into(), digest::hexadecimal(Md5::new_with_prefix(cases))),
            ("fold".into(), self.fold.to_string()),
            ("loss".into(), format!("Dice {dice} + cross-entropy, targets at the centres of cells")),
        ]))
    }

    /// Takes the run that another process has created since this one was opened, if it is the same but for the fold.
    fn join(&mut self) -> Result<()> {
        let (facts, config) = run_config::load(&config_path(&self.root))?;
        let plan = Plan::load(&self.root.join("plan.json"))?;
        let splits = Splits::load(&splits_path(&self.root))?;
        let same = RunFacts { fold: facts.fold, processor: facts.processor.clone(), ..self.facts.clone() } == facts;
        if !same || config.difference(&self.config, |_| true).is_some() || plan != self.plan || splits != self.splits {
            bad_input!("{} has become another run meanwhile: choose another --run", self.root.display());
        }
        self.folder = Some(RunFolder::open(&self.root, self.fold)?);
        self.facts = facts;
        self.note_how_to_resume();
        Ok(())
    }

    /// The folder on disk, if the run was there before.
    pub(crate) fn existing_folder(&self) -> Option<&RunFolder> {
        self.folder.as_ref()
    }

    /// The folder on disk, created with its first files on the first call.
    ///
    /// # Errors
    /// The disk is full or read-only, or another process has made another run there.
    pub(crate) fn folder(&mut self) -> Result<&RunFolder> {
        if self.folder.is_none() && RunFolder::exists(&self.root) {
            // Another fold of the same run was faster.
            self.join()?;
        } else if self.folder.is_none() {
            let plan = serde_json::to_string_pretty(&self.plan)?;
            let splits = serde_json::to_string_pretty(&self.splits)?;
            let config = run_config::render(&self.facts, &self.config)?;
            let fingerprint = serde_json::to_string(&self.fingerprint)?;
            let files = [
                ("plan.json", plan.as_str()),
                ("fingerprint.json", &fingerprint),
                ("splits.json", &splits),
                ("config.toml", &config),
            ];
            match RunFolder::create(&self.root, &files, self.fold) {
                Ok(folder) => {
                    self.folder = Some(folder);
                    interrupt::resumes(Some((&self.root, None)));
                }
                Err(_) if RunFolder::exists(&self.root) => self.join()?,
                Err(error) => return Err(error),
            }
        }
        Ok(self.folder.as_ref().expect("it was just created"))
    }
}

/// Refuses a dataset other than the one that the run was made for; its folder may have moved.
fn check_same(root: &Path, plan: &Plan, splits: &Splits, dataset: &Dataset) -> Result<()> {
    let (run, data) = (root.display(), dataset.root.display());
    if plan.labels != dataset.labels || plan.modalities != dataset.modalities {
        bad_input!(
            "{run} was made for {}, {data} has other labels or modalities: choose another --run or --data",
            plan.dataset_name
        );
    }
    let ids = dataset.training_ids();
    let known: BTreeSet<_> = splits.ids().collect();
    if let Some(id) = known.iter().find(|id| !ids.contains(id)) {
        bad_input!("{run} was made for {}, {data} has no case {id}: choose another --run or --data", plan.dataset_name);
    }
    if let Some(new) = ids.iter().find(|id| !known.contains(id)) {
        let n = ids.len() - known.len();
        note(&format!("warning: {n} cases of {data}, such as {new}, are not in splits.json of {run} and are left out"));
    }
    Ok(())
}

/// Refuses a dataset if cases of it are not what they were when the run was made: scores would mix old and new data.
fn check_unchanged(root: &Path, plan: &Plan, dataset: &Dataset) -> Result<()> {
    let known: Option<Fingerprint> = read_json(&root.join("fingerprint.json"))?;
    if let Some(known) = known
        && let Some(id) = known.changed_case(dataset)?
    {
        let (run, data) = (root.display(), dataset.root.display());
        bad_input!(
            "{run} was made for {}, in {data} the case {id} is another now: choose another --run (`retrain --architecture FILE` \
             trains the network of this one there) or --data",
            plan.dataset_name
        );
    }
    Ok(())
}

/// Plans the network of a dataset with these facts; the settings may fix the patch and the voxel size.
///
/// # Errors
/// Bad data; a patch that the poolings do not divide.
pub(crate) fn plan(fingerprint: &Fingerprint, dataset: &Dataset, config: &RunConfig) -> Result<Plan> {
    let data = &config.settings.data;
    let options = PlanOptions { gpu_memory_gb: data.gpu_memory_gb, spacing_mm: data.spacing_mm, batch_size: None };
    let mut plan = msd_data::plan(fingerprint, dataset, &options)?;
    if let Some(patch) = data.patch_size {
        for axis in 0..3 {
            let divisor: usize = plan.strides.iter().map(|stride| stride[axis]).product();
            if patch[axis] == 0 || !patch[axis].is_multiple_of(divisor) {
                bad_input!(
                    "data.patch_size = {patch:?}: the poolings of this dataset need a multiple of {divisor} along axis \
                     {axis}, such as {}",
                    patch[axis].next_multiple_of(divisor).max(divisor)
                );
            }
        }
        plan.patch_size = patch;
    }
    Ok(plan)
}
