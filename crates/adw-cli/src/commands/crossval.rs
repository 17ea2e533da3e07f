//! `adw crossval`: search, train and score every fold, and judge all cases of all folds together.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use adw_supernet::Architecture;
use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::Parser;
use msd_data::{FoundPostprocessing, Postprocessing, Report, metrics::LabelMetrics};
use serde::Serialize;

use super::retrain;
use crate::{
    architecture_choice::architecture_in,
    args::{Cli, Command, CrossvalArgs, SearchPer},
    child::Arguments,
    device,
    ensemble::POSTPROCESSING,
    failure::{Reported, bad_input},
    fold::Fold,
    interrupt, memory,
    report::{
        html, metrics,
        progress::{emit, note, say},
    },
    run::{Run, RunRequest},
    run_config::{self, RunConfig},
    run_folder::{RunFolder, check_new, config_path, splits_path, trainings_path},
    runs::task_runs,
    splits::Splits,
    statistics::{Sample, Spread, mean},
    task::Task,
};

pub(crate) fn run(args: &CrossvalArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let mut args = args.clone();
    if args.search == SearchPer::Once {
        // The weights of the one search suit fold 0 alone, and scores of all folds are taken together.
        args.config.set.insert(0, "retrain.warm_start=false".to_owned());
    }
    let crossval = Crossval::new(&args)?;
    let mut folds = 0..;
    let num_folds = loop {
        let fold = folds.next().unwrap_or_default();
        crossval.fold(fold)?;
        let num_folds = Splits::load(&splits_path(&crossval.root))?.folds.len();
        if fold + 1 >= num_folds {
            break num_folds;
        }
    };
    crossval.judge(num_folds)
}

/// Cross-validation in the folder of a run.
struct Crossval<'a> {
    args: &'a CrossvalArgs,
    root: PathBuf,
    /// Folder of the dataset, unless that is the run's.
    data: Option<PathBuf>,
    /// True if the command line's settings make the run.
    is_new: bool,
}

impl<'a> Crossval<'a> {
    /// Finds run and dataset and checks the settings, before work that takes hours.
    fn new(args: &'a CrossvalArgs) -> Result<Self> {
        retrain::check_name(args.name.as_deref())?;
        let named = Task::locate(&args.dataset)?;
        let root = match (&args.run, &named) {
            (Some(root), _) => root.clone(),
            (None, Some(task)) => task_runs(&task.name).join(format!("crossval-{}", preset_name(args))),
            (None, None) => {
                bad_input!("no dataset is named: give a TASK such as `hippocampus`, --data DIR or --run DIR")
            }
        };
        let is_new = !RunFolder::exists(&root);
        if is_new {
            RunConfig::from_args(&args.config)?;
            check_new(&root)?;
        }
        let data = named.map(|task| task.provide(&args.fetch).map(Path::to_owned)).transpose()?;
        let crossval = Self { args, root, data, is_new };
        if crossval.searches() && args.search == SearchPer::Once {
            note(
                "warning: the one search trains on fold 0's training cases, which are the other folds' validation cases: \
                 their scores will be too good",
            );
        }
        if !is_new {
            let run = crossval.open()?;
            run.splits.check_cross_validation(&splits_path(&crossval.root))?;
            crossval.check_earlier(&run)?;
        }
        interrupt::resumes(Some((&crossval.root, None)));
        Ok(crossval)
    }

    fn searches(&self) -> bool {
        !self.args.architecture.is_given()
    }

    fn name(&self) -> Option<&str> {
        self.args.name.as_deref()
    }

    /// Opens the run with the settings of the command line.
    fn open(&self) -> Result<Run> {
        let request = RunRequest {
            root: &self.root,
            data: self.data.as_deref(),
            config: &self.args.config,
            fold: None,
            fingerprint: None,
            memory: memory::limit(self.args.memory),
        };
        Run::open(&request, &Device::Cpu, retrain::may_change)
    }

    /// Refuses trainings of earlier calls with other networks or settings: no mean should be taken over both.
    fn check_earlier(&self, run: &Run) -> Result<()> {
        for number in 0..run.splits.folds.len() {
            let directory = trainings_path(&self.root, self.name()).join(format!("fold_{number}"));
            let path = config_path(&directory);
            if !path.is_file() {
                continue;
            }
            let found = self.found(number);
            if self.searches()
                && (!found.is_file()
                    || Architecture::load(&found)?.blocks != Architecture::load(&architecture_in(&directory))?.blocks)
            {
                bad_input!(
                    "{} trained another network than {}: give the options that it was started with, or another --name",
                    directory.display(),
                    found.display()
                );
            }
            let (_, stored) = run_config::load(&path)?;
            if let Some((key, was, is)) = stored.difference(&run.config, |key| !key.starts_with("predict.")) {
                bad_input!(
                    "{} was started with {key} = {was}, not {is}: give --set {key}={was}, or another --name",
                    directory.display()
                );
            }
            // The command line's value is that of all folds: those with another one are scored again.
            let asked = stored.changed_by(&self.args.config)?;
            if let Some((key, was, is)) = asked.difference(&run.config, |_| true) {
                bad_input!(
                    "{} was scored with {key} = {was}, the run has {is}: give --set {key}={was}, or --set {key}={is} to score it again",
                    directory.display()
                );
            }
        }
        Ok(())
    }

    /// File of the architecture that the search for a fold finds.
    fn found(&self, number: usize) -> PathBuf {
        architecture_in(&self.root.join(format!("search/fold_{}", self.search_fold(number))))
    }

    /// Fold whose search finds the architecture of a fold.
    fn search_fold(&self, number: usize) -> usize {
        if self.args.search == SearchPer::Once { 0 } else { number }
    }

    /// Searches and trains a fold as far as that is not done.
    fn fold(&self, number: usize) -> Result<()> {
        let (search_fold, found) = (self.search_fold(number), self.found(number));
        if self.searches() && !found.is_file() {
            note(&format!("fold {search_fold}: search"));
            self.child(&self.command("search", search_fold, self.is_new))?;
        }
        let architecture = Some(found.as_path()).filter(|_| self.searches() && search_fold != number);
        let arguments = self
            .command("retrain", number, true)
            .option("--name", self.name())
            .architecture(&self.args.architecture)
            .path("--architecture", architecture);
        let directory = trainings_path(&self.root, self.name()).join(format!("fold_{number}"));
        let config = config_path(&directory);
        // Settings of prediction may change: the fold is then scored again.
        let as_asked = || -> Result<bool> {
            let (_, stored) = run_config::load(&config)?;
            Ok(stored.difference(&stored.changed_by(&self.args.config)?, |_| true).is_none())
        };
        if !directory.join("metrics.json").is_file() || (config.is_file() && !as_asked()?) {
            note(&format!("fold {number}: training"));
            return self.child(&arguments);
        }
        match Cli::try_parse_from(arguments.line()).map(|cli| cli.command) {
            Ok(Command::Retrain(args)) => retrain::check_same(&args, &candle_core::Device::Cpu),
            _ => unreachable!("the arguments are those of a training"),
        }
    }

    /// Arguments of a search or training of a fold, which goes on if it was interrupted.
    fn command(&self, command: &str, fold: usize, with_settings: bool) -> Arguments {
        let args = self.args;
        let arguments = Arguments::of(command)
            .path("--run", Some(&self.root))
            .path("--data", self.data.as_deref())
            .option("--fold", Some(fold))
            .flag("--resume")
            .path("--scratch", args.scratch.scratch.as_deref())
            .resources(&args.device, args.memory, &args.process);
        if with_settings { arguments.config(&args.config) } else { arguments }
    }

    /// Runs a command in a process of its own: its memory is free again afterwards.
    fn child(&self, arguments: &Arguments) -> Result<()> {
        let status = interrupt::stopping_itself(|| {
            if interrupt::signal().is_some() {
                return Ok(None);
            }
            let child = interrupt::start_child(&mut arguments.command()?).context("cannot start a process")?;
            interrupt::wait_for_child(child).context("cannot wait for a process").map(Some)
        });
        interrupt::end_if_interrupted();
        let Some(status) = status? else {
            bail!("a signal has arrived, and this process has not ended");
        };
        let go_on =
            format!("{} is not finished; once that is put right, the same command goes on", self.root.display());
        match status.code().map(u8::try_from) {
            Some(Ok(0)) => Ok(()),
            Some(Ok(code)) => {
                note(&go_on);
                Err(Reported(code).into())
            }
            _ => {
                bad_input!("a process was ended from outside ({status}), as systems do where memory runs out: {go_on}")
            }
        }
    }

    /// Scores all cases of all folds, and decides the postprocessing on them.
    fn judge(&self, num_folds: usize) -> Result<()> {
        let run = self.open()?;
        let trainings = trainings_path(&self.root, self.name());
        let folder = |number: usize| trainings.join(format!("fold_{number}"));
        let reports = (0..num_folds).map(|number| Ok(Report::load(&folder(number).join("metrics.json"))?));
        let reports = reports.collect::<Result<Vec<_>>>()?;
        let report = Report::pooled(&reports)?;
        let mut pairs = Vec::new();
        for number in 0..num_folds {
            for id in run.splits.fold(Fold::Number(number))?.validation {
                let prediction = folder(number).join("validation").join(format!("{id}.nii.gz"));
                pairs.push((prediction, run.dataset.training_case(&id)?.label.clone()));
            }
        }
        let limit = memory::limit(self.args.memory);
        let found = Postprocessing::find_in(pairs, run.dataset.positions, limit)?;
        let steps = trainings.join(POSTPROCESSING);
        found.postprocessing.save(&steps)?;
        let pooled = Pooled {
            report: &report,
            spread: spreads(&reports),
            folds: reports.iter().map(|report| report.foreground_mean).collect(),
            searches: match (self.searches(), self.args.search) {
                (false, _) => "none",
                (true, SearchPer::Fold) => "one per fold",
                (true, SearchPer::Once) => "one, of fold 0: it has seen the validation cases of the other folds",
            },
            postprocessing: &found,
        };
        let file = trainings.join("metrics.json");
        let text = serde_json::to_string_pretty(&pooled)?;
        adw_files::write_bytes(&file, text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?;
        let page = html::write_at_end(&self.root);
        if self.args.process.json {
            emit("crossval", &serde_json::json!({ "file": file, "spread": pooled.spread }));
        } else {
            say(&metrics::table(&report, &run.plan.labels));
            for (name, scores) in &pooled.spread {
                // A label that no case has and no network predicts has no Dice.
                let Some(dice) = scores.get("Dice") else { continue };
                let Spread { mean, standard_deviation, interval_95: [low, high], .. } = dice;
                let label = run.plan.labels.iter().find(|label| label.value.to_string() == *name);
                let name = label.map_or("mean", |label| &label.name);
                say(&format!(
                    "{name}: Dice {mean:.4}, standard deviation {standard_deviation:.4}, 95 % interval {low:.4} to {high:.4}\n"
                ));
            }
            let [before, after] = [0, 1].map(|i| mean(found.dice.values().map(|dice| dice[i])));
            say(&format!("Dice after postprocessing {after:.4}, before {before:.4}: {}\n", steps.display()));
            say(&format!("{}\n", file.display()));
            if let Some(page) = page {
                say(&format!("{}\n", page.display()));
            }
        }
        Ok(())
    }
}

/// Scores of all folds together, as nnU-Net pools them, with their spread.
#[derive(Serialize)]
struct Pooled<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// By label, or `foreground_mean`, and metric; the interval is of a bootstrap over folds and their cases.
    spread: BTreeMap<String, BTreeMap<&'static str, Spread>>,
    /// Means of each fold over labels.
    folds: Vec<msd_data::metrics::MeanMetrics>,
    searches: &'static str,
    postprocessing: &'a FoundPostprocessing,
}

/// Value of a metric of a label.
type Metric = fn(&LabelMetrics) -> f64;

/// Names of the metrics in reports, and their values.
const METRICS: [(&str, Metric); 4] =
    [("Dice", |m| m.dice), ("IoU", |m| m.iou), ("HD95", |m| m.hd95_mm), ("NSD", |m| m.nsd)];

/// Spread of each metric over the cases of all folds: of each label, and of `foreground_mean`, their mean.
fn spreads(folds: &[Report]) -> BTreeMap<String, BTreeMap<&'static str, Spread>> {
    let of_metrics = |label: Option<u16>| {
        let scores = |case: &BTreeMap<u16, LabelMetrics>, metric: Metric| match label {
            Some(label) => vec![metric(&case[&label])],
            None => case.values().map(metric).collect(),
        };
        let spread = |(name, metric): &(&'static str, Metric)| {
            let fold =
                |report: &Report| report.metric_per_case.iter().map(|case| scores(&case.metrics, *metric)).collect();
            Some((*name, Sample { seeds: vec![folds.iter().map(fold).collect()] }.spread()?))
        };
        METRICS.iter().filter_map(spread).collect()
    };
    let labels = folds.iter().take(1).flat_map(|report| report.mean.keys());
    let of_labels = labels.map(|label| (label.to_string(), of_metrics(Some(*label))));
    of_labels.chain([("foreground_mean".to_owned(), of_metrics(None))]).collect()
}

fn preset_name(args: &CrossvalArgs) -> String {
    let preset = Path::new(args.config.preset.as_deref().unwrap_or("quick"));
    preset.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned())
}
