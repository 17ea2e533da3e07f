//! Progress of a search or training.

use std::fmt::Write;

use adw_search::{ArchBatches, Event, IterationReport, Phase, RetrainConfig, SearchConfig, SearchRow};
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

/// Latest numbers of a search or training.
#[derive(Debug, Default)]
struct Status {
    workload: Workload,
    epoch: usize,
    iteration: usize,
    tau: Option<f64>,
    values: Vec<(&'static str, f64)>,
    dice: Option<f64>,
    architecture: String,
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

    /// Reports an event. `of_row` returns the Dice and the architecture of a row of the history.
    pub(crate) fn event<R: Serialize>(&mut self, event: &Event<'_, R>, of_row: impl Fn(&R) -> (Option<f64>, String)) {
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
                let (dice, architecture) = of_row(row);
                self.status.epoch(dice, architecture);
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
        self.status = Status { workload, epoch, iteration, ..Status::default() };
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
        (self.epoch, self.iteration, self.tau) = (report.epoch, report.iteration + 1, report.tau);
        self.values.clone_from(&report.values);
    }

    /// Takes over the validation's Dice and the architecture at the end of an epoch.
    fn epoch(&mut self, dice: Option<f64>, architecture: String) {
        self.dice = dice;
        self.architecture = architecture;
    }

    /// Work since the beginning of the search or training.
    fn work_done(&self) -> u64 {
        self.workload.done(self.epoch, self.iteration)
    }

    fn line(&self) -> String {
        let value = |name: &str| self.values.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        let losses = LOSSES.map(|(name, shown)| (shown, value(name)));
        epoch_line([self.epoch + 1, self.workload.epochs], losses, self.tau, self.dice, &self.architecture)
    }
}

/// Architecture after an epoch of a search, for a person: in the warm-up nothing is chosen.
pub(crate) fn found(row: &SearchRow) -> String {
    if row.phase == Phase::Warmup { "undecided".to_owned() } else { widths_line(&row.blocks) }
}

/// Losses by their names in reports of iterations and for people.
const LOSSES: [(&str, &str); 3] = [("loss", "loss"), ("arch_loss_a", "loss A"), ("arch_loss_b", "loss B")];

/// `epoch 12/40  loss 0.412  tau 4.21  Dice 0.81  16-24 | 64 | 32`
pub(crate) fn epoch_line<const N: usize>(
    [epoch, epochs]: [usize; 2],
    losses: [(&str, Option<f64>); N],
    tau: Option<f64>,
    dice: Option<f64>,
    architecture: &str,
) -> String {
    let mut line = format!("epoch {epoch}/{epochs}");
    let mut add = |name: &str, value: Option<f64>, digits: usize| {
        let _ = value.map(|value| write!(line, "  {name} {value:.digits$}"));
    };
    for (name, loss) in losses {
        add(name, loss, 3);
    }
    add("tau", tau, 2);
    add("Dice", dice, 3);
    if !architecture.is_empty() {
        line.push_str("  ");
        line.push_str(architecture);
    }
    line
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
        status.epoch(Some(0.81), "16 | 32 | 16".into());
        assert_eq!(status.work_done(), 3 * 115 + 2 * 75);
        assert_eq!(workload.done(4, 0), 3 * 40);
        assert_eq!(workload.done(40, 0), 3 * 400 + 2 * 360);
        assert_eq!(status.line(), "epoch 12/40  loss 0.412  loss B 0.500  tau 4.21  Dice 0.810  16 | 32 | 16");
    }
}
