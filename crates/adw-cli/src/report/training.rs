//! Progress of a search or training.

use std::fmt::Write;

use adw_search::{ArchBatches, Event, IterationReport, Phase, RetrainConfig, RetrainRow, SearchConfig, SearchRow};
use adw_supernet::widths_line;
use serde::Serialize;
use serde_json::json;

use super::progress::{Progress, emit, note};

/// Size of a search or training. It weighs iterations by the passes of the network, so that the estimate of the time left
/// holds although later epochs do more per iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Workload {
    /// Number of epochs.
    pub(crate) epochs: usize,
    /// Number of iterations of each epoch.
    pub(crate) iterations_per_epoch: usize,
    /// Number of epochs that train weights only, at the beginning.
    pub(crate) warmup_epochs: usize,
    /// Number of architecture steps per iteration after those.
    pub(crate) arch_steps: usize,
}

impl Workload {
    /// Work of a search.
    pub(crate) fn of_search(settings: &SearchConfig) -> Self {
        Self {
            epochs: settings.epochs,
            iterations_per_epoch: settings.iterations_per_epoch,
            warmup_epochs: settings.warmup_epochs,
            arch_steps: match settings.arch_batches {
                ArchBatches::AAndB => 2,
                ArchBatches::BOnly => 1,
            },
        }
    }

    /// Work of a training.
    pub(crate) fn of_training(settings: &RetrainConfig) -> Self {
        let RetrainConfig { epochs, iterations_per_epoch, .. } = *settings;
        Self { epochs, iterations_per_epoch, warmup_epochs: 0, arch_steps: 0 }
    }

    /// Work done before `iteration` of `epoch`. A weight step is a forward pass, a gradient with respect to the maps
    /// and one by the weights; an architecture step goes without the last.
    pub(crate) fn done(&self, epoch: usize, iteration: usize) -> u64 {
        let warmup = (epoch.min(self.warmup_epochs) * self.iterations_per_epoch) as u64;
        let all = (epoch * self.iterations_per_epoch + iteration) as u64;
        let slow = if epoch < self.warmup_epochs { 0 } else { all - warmup };
        3 * all + 2 * self.arch_steps as u64 * slow
    }
}

/// Latest numbers of a search or training: those of an iteration, Dice and architecture of the epoch before.
#[derive(Debug, Default)]
struct Status {
    workload: Workload,
    iteration: usize,
    numbers: EpochNumbers,
}

/// Turns the events of a search or training into a progress bar, or into lines for programs.
pub(crate) struct Reporter {
    /// `search` or `retrain`.
    stage: &'static str,
    workload: Workload,
    json: bool,
    status: Status,
    progress: Option<Progress>,
}

impl Reporter {
    /// Reporter of the stage called `stage`.
    pub(crate) fn new(stage: &'static str, workload: Workload, json: bool) -> Self {
        let (status, progress) = (Status::default(), None);
        Self { stage, workload, json, status, progress }
    }

    /// Reports an event.
    pub(crate) fn event<R: Serialize>(&mut self, event: &Event<'_, R>)
    where
        for<'r> EpochNumbers: From<&'r R>,
    {
        match event {
            Event::Started { epoch, iteration, .. } => self.start(*epoch, *iteration),
            Event::Iteration(report) => {
                let Some(progress) = &mut self.progress else {
                    return;
                };
                self.status.iteration(report);
                progress.step(self.status.work_done(), || self.status.line());
            }
            Event::Epoch(row) => {
                let Some(progress) = &mut self.progress else {
                    return;
                };
                self.status.numbers = EpochNumbers::from(*row);
                progress.milestone("epoch", row, || self.status.line());
            }
            Event::CheckpointDamaged { damage, used } => {
                note(&format!("warning: {damage}; continuing from the one before, {}", used.display()));
            }
            Event::Saved(_) | Event::Validation { .. } => {}
        }
    }

    fn start(&mut self, epoch: usize, iteration: usize) {
        let Self { stage, workload, json, .. } = *self;
        self.status = Status { workload, iteration, numbers: EpochNumbers { epoch, ..EpochNumbers::default() } };
        if json {
            let fields = json!({
                "stage": stage, "epoch": epoch, "iteration": iteration,
                "epochs": workload.epochs, "iterations_per_epoch": workload.iterations_per_epoch,
            });
            emit("started", &fields);
        }
        let (done, all) = (self.status.work_done(), workload.done(workload.epochs, 0));
        self.progress = Some(Progress::new(stage, done, all, json));
    }
}

impl Status {
    /// Takes over the numbers of an iteration.
    fn iteration(&mut self, report: &IterationReport) {
        self.iteration = report.iteration + 1;
        let value = |name: &str| report.values.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        let numbers = &mut self.numbers;
        (numbers.epoch, numbers.tau) = (report.epoch, report.tau);
        numbers.losses = ["loss", "arch_loss_a", "arch_loss_b"].map(value);
    }

    /// Work since the beginning of the search or training.
    fn work_done(&self) -> u64 {
        self.workload.done(self.numbers.epoch, self.iteration)
    }

    fn line(&self) -> String {
        self.numbers.line(self.workload.epochs)
    }
}

/// Numbers of an epoch that people read.
#[derive(Debug, Default)]
pub(crate) struct EpochNumbers {
    /// Epoch, from 0.
    epoch: usize,
    /// Losses: of the weight steps, and of the architecture steps on A and on B.
    losses: [Option<f64>; 3],
    /// Temperature of a search.
    tau: Option<f64>,
    /// Mean Dice of the validation.
    dice: Option<f64>,
    /// Architecture of a search.
    architecture: String,
}

impl From<&SearchRow> for EpochNumbers {
    fn from(row: &SearchRow) -> Self {
        // In the warm-up nothing is chosen.
        let is_decided = row.phase != Phase::Warmup;
        Self {
            epoch: row.epoch,
            losses: [row.loss, row.arch_loss_a, row.arch_loss_b],
            tau: Some(row.tau),
            dice: row.mean_dice,
            architecture: if is_decided { widths_line(&row.blocks) } else { "undecided".to_owned() },
        }
    }
}

impl From<&RetrainRow> for EpochNumbers {
    fn from(row: &RetrainRow) -> Self {
        Self { epoch: row.epoch, losses: [row.loss, None, None], dice: row.mean_dice, ..Self::default() }
    }
}

impl EpochNumbers {
    /// `epoch 12/40  loss 0.412  tau 4.21  Dice 0.81  16-24 | 64 | 32`
    pub(crate) fn line(&self, epochs: usize) -> String {
        let mut line = format!("epoch {}/{epochs}", self.epoch + 1);
        let mut add = |name: &str, value: Option<f64>, digits: usize| {
            let _ = value.map(|value| write!(line, "  {name} {value:.digits$}"));
        };
        for (name, loss) in ["loss", "loss A", "loss B"].into_iter().zip(self.losses) {
            add(name, loss, 3);
        }
        add("tau", self.tau, 2);
        add("Dice", self.dice, 3);
        if !self.architecture.is_empty() {
            line.push_str("  ");
            line.push_str(&self.architecture);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_the_work_stands() {
        let workload = Workload { epochs: 40, iterations_per_epoch: 10, warmup_epochs: 4, arch_steps: 1 };
        let mut status = Status { workload, ..Status::default() };
        status.iteration(&IterationReport {
            epoch: 11,
            iteration: 4,
            lr: 0.1,
            tau: Some(4.214),
            values: vec![("loss", 0.4121), ("grad_norm", 3.0), ("arch_loss_b", 0.5)],
        });
        (status.numbers.dice, status.numbers.architecture) = (Some(0.81), "16 | 32 | 16".into());
        assert_eq!(status.work_done(), 3 * 115 + 2 * 75);
        assert_eq!(workload.done(4, 0), 3 * 40);
        assert_eq!(workload.done(40, 0), 3 * 400 + 2 * 360);
        assert_eq!(status.line(), "epoch 12/40  loss 0.412  loss B 0.500  tau 4.21  Dice 0.810  16 | 32 | 16");
    }
}
