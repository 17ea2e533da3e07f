//! Results of a sweep: one row per trained network.

use std::{collections::BTreeMap, path::Path};

use adw_supernet::Architecture;
use anyhow::{Context, Result};
use msd_data::{Plan, Report, dataset::case_id, metrics::LabelMetrics};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    config::Difference,
    plan::{Cell, Sweep, Task},
    state::Attempt,
};
use crate::{
    architecture_choice::architecture_in, args::Stage, failure::bad_input, report::run_data::history, run_config,
    run_folder::config_path,
};

/// A trained network and its scores.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) dataset: String,
    pub(crate) arm: String,
    pub(crate) seed: u64,
    pub(crate) fold: usize,
    /// Metrics of each validation case and label.
    pub(crate) cases: BTreeMap<String, BTreeMap<u16, LabelMetrics>>,
    /// Multiply-adds of the network for one patch.
    pub(crate) macs_per_patch: u64,
    pub(crate) parameters: u64,
    /// Steps of the training.
    pub(crate) steps: usize,
    /// Seconds of the search's epochs; none without a search. An epoch that was interrupted counts from its resume.
    pub(crate) search_s: Option<f64>,
    /// Seconds of the training's epochs.
    pub(crate) retrain_s: f64,
    /// Model of the CUDA device, if there is one, and processor that the training began on.
    pub(crate) processor: String,
    /// Host of the last attempt at the training.
    pub(crate) host: String,
    /// Settings that must agree for a fair comparison.
    pub(crate) conditions: Vec<(Difference, String)>,
}

impl Sweep {
    /// Reads the rows of all trainings that are done.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        let done = self.tasks.iter().filter(|task| task.stage == Stage::Retrain && self.is_done(task));
        let row = |task: &Task| {
            let cell = task.cell.context("a training has a network")?;
            let started = self.attempts(task).into_iter().rev().find_map(|attempt| match attempt {
                Attempt::Started { host, .. } => Some(host),
                _ => None,
            });
            self.row(task.dataset, cell, started.unwrap_or_default())
        };
        done.map(|task| row(task).with_context(|| task.name.clone())).collect()
    }

    fn row(&self, dataset: usize, cell: Cell, host: String) -> Result<Row> {
        let directory = self.retrain(dataset, cell);
        let report = Report::load(&directory.join("metrics.json"))?;
        let (facts, config) = run_config::load(&config_path(&directory))?;
        let settings = config.settings;
        let plan = Plan::load(&self.run(dataset, cell).join("plan.json"))?;
        let cost = Architecture::load(&architecture_in(&directory))?.cost(plan.patch_size);
        let steps = settings.retrain.epochs * settings.retrain.iterations_per_epoch;
        let batch = settings.retrain.batch_size.unwrap_or(plan.batch_size);
        let predict = &settings.predict;
        let scoring = json!([predict.step, predict.mirror, predict.precision, report.nsd_tolerance_mm]);
        let searches = self.arm(cell).trains_found();
        let optimisation = {
            let retrain = &settings.retrain;
            json!([retrain.lr, retrain.optimizer, retrain.clip, retrain.precision])
        };
        let initial = if searches && settings.retrain.warm_start { "those of the search" } else { "random ones" };
        let conditions = vec![
            (Difference::Steps, steps.to_string()),
            (Difference::Batch, format!("{batch} of {:?} at {:?} mm", plan.patch_size, plan.spacing_mm)),
            (Difference::Augmentation, json!(settings.data.augmentation).to_string()),
            (Difference::Averaging, json!(settings.retrain.ema).to_string()),
            (Difference::Optimisation, optimisation.to_string()),
            (Difference::InitialWeights, initial.to_owned()),
            (Difference::Scoring, scoring.to_string()),
        ];
        let cases = report.metric_per_case.into_iter();
        let cases = cases.map(|case| (case_id(&case.prediction_file).unwrap_or_default(), case.metrics)).collect();
        let search = self.search(dataset, cell);
        Ok(Row {
            dataset: self.datasets[dataset].name.clone(),
            arm: self.arm(cell).name.clone(),
            seed: cell.seed,
            fold: cell.fold,
            cases,
            macs_per_patch: cost.macs,
            parameters: cost.parameters,
            steps,
            search_s: searches.then(|| seconds(&search)).transpose()?,
            retrain_s: seconds(&directory)?,
            processor: facts.processor,
            host,
            conditions,
        })
    }
}

/// Seconds of all epochs in the history of a search or training.
pub(crate) fn seconds(directory: &Path) -> Result<f64> {
    let rows: Vec<Value> = history(directory)?;
    if rows.is_empty() {
        bad_input!("{}: no history of its epochs", directory.display());
    }
    Ok(rows.iter().filter_map(|row| row.get("wall_s")?.as_f64()).sum())
}
