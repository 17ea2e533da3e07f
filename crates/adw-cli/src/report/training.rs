//! What is known of a search or training while it runs.

use std::fmt::Write;

use adw_search::{Event, IterationReport};
use serde::Serialize;
use serde_json::json;

use super::progress::{Progress, emit};

/// How much work a search or training is, in passes of the network: what makes the time left honest when later epochs
/// do more per iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Epochs and iterations in each.
    pub(crate) epochs: usize,
    pub(crate) iterations_per_epoch: usize,
    /// Epochs that train weights only.
    pub(crate) warmup_epochs: usize,
    /// Architecture steps per iteration after those.
    pub(crate) arch_steps: usize,
}

impl Work {
    /// Work done before `iteration` of `epoch`. A weight step is a forward pass, a gradient by the maps and one by the
    /// weights; an architecture step goes without the last.
    fn done(&self, epoch: usize, iteration: usize) -> u64 {
        let warmup = (epoch.min(self.warmup_epochs) * self.iterations_per_epoch) as u64;
        let all = (epoch * self.iterations_per_epoch + iteration) as u64;
        let slow = if epoch < self.warmup_epochs { 0 } else { all - warmup };
        3 * all + 2 * self.arch_steps as u64 * slow
    }
}

/// The latest numbers.
#[derive(Debug, Default)]
struct Known {
    work: Work,
    epoch: usize,
    iteration: usize,
    tau: Option<f64>,
    values: Vec<(&'static str, f64)>,
    dice: Option<f64>,
    architecture: String,
}

/// Turns the events of a search or training into a progress bar, or into lines for programs.
pub(crate) struct Reporter {
    what: &'static str,
    work: Work,
    json: bool,
    known: Known,
    progress: Option<Progress>,
}

impl Reporter {
    /// `what`: the name of the stage.
    pub(crate) fn new(what: &'static str, work: Work, json: bool) -> Self {
        let (known, progress) = (Known::default(), None);
        Self { what, work, json, known, progress }
    }

    /// Reports an event. `of_row`: the Dice and the architecture that a row of the history knows.
    pub(crate) fn event<R: Serialize>(&mut self, event: &Event<'_, R>, of_row: impl Fn(&R) -> (Option<f64>, String)) {
        match event {
            Event::Started { epoch, iteration, .. } => self.start(*epoch, *iteration),
            Event::Iteration(report) => {
                let Some(progress) = &mut self.progress else {
                    return;
                };
                self.known.iteration(report);
                progress.step(self.known.work_done(), || self.known.line());
            }
            Event::Epoch(row) => {
                let Some(progress) = &mut self.progress else {
                    return;
                };
                let (dice, architecture) = of_row(row);
                self.known.epoch(dice, architecture);
                progress.milestone("epoch", row, || self.known.line());
            }
            Event::Saved(_) => {}
        }
    }

    fn start(&mut self, epoch: usize, iteration: usize) {
        let Self { what, work, json, .. } = *self;
        self.known = Known { work, epoch, iteration, ..Known::default() };
        if json {
            let fields = json!({
                "stage": what, "epoch": epoch, "iteration": iteration,
                "epochs": work.epochs, "iterations_per_epoch": work.iterations_per_epoch,
            });
            emit("started", &fields);
        }
        let (done, all) = (self.known.work_done(), work.done(work.epochs, 0));
        self.progress = Some(Progress::new(what, done, all, json));
    }
}

impl Known {
    /// Takes up an iteration's numbers.
    fn iteration(&mut self, report: &IterationReport) {
        (self.epoch, self.iteration, self.tau) = (report.epoch, report.iteration + 1, report.tau);
        self.values.clone_from(&report.values);
    }

    /// Takes up what an epoch's end brings.
    fn epoch(&mut self, dice: Option<f64>, architecture: String) {
        self.dice = dice;
        self.architecture = architecture;
    }

    /// Work since the beginning of the run.
    fn work_done(&self) -> u64 {
        self.work.done(self.epoch, self.iteration)
    }

    /// `epoch 12/40  loss 0.412  tau 4.21  Dice 0.81  16-24 | 64 | 32`
    fn line(&self) -> String {
        let mut line = format!("epoch {}/{}", self.epoch + 1, self.work.epochs);
        let mut add = |name: &str, value: f64, digits: usize| {
            let _ = write!(line, "  {name} {value:.digits$}");
        };
        for (name, value) in &self.values {
            match *name {
                "loss" => add("loss", *value, 3),
                "arch_loss_a" => add("loss A", *value, 3),
                "arch_loss_b" => add("loss B", *value, 3),
                _ => {}
            }
        }
        if let Some(tau) = self.tau {
            add("tau", tau, 2);
        }
        if let Some(dice) = self.dice {
            add("Dice", dice, 3);
        }
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
        let work = Work { epochs: 40, iterations_per_epoch: 10, warmup_epochs: 4, arch_steps: 1 };
        let mut known = Known { work, ..Known::default() };
        known.iteration(&IterationReport {
            epoch: 11,
            iteration: 4,
            lr: 0.1,
            tau: Some(4.214),
            values: vec![("loss", 0.4121), ("grad_norm", 3.0), ("arch_loss_b", 0.5)],
        });
        known.epoch(Some(0.81), "16 | 32 | 16".into());
        assert_eq!(known.work_done(), 3 * 115 + 2 * 75);
        assert_eq!(work.done(4, 0), 3 * 40);
        assert_eq!(work.done(40, 0), 3 * 400 + 2 * 360);
        assert_eq!(known.line(), "epoch 12/40  loss 0.412  loss B 0.500  tau 4.21  Dice 0.810  16 | 32 | 16");
    }
}
