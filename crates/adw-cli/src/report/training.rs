//! What is known of a search or training while it runs.

use std::fmt::Write;

use adw_search::IterationReport;
use serde_json::json;

use super::progress::{Progress, emit};

/// The latest numbers.
#[derive(Debug, Default)]
pub(crate) struct Known {
    epochs: usize,
    iterations_per_epoch: usize,
    epoch: usize,
    iteration: usize,
    tau: Option<f64>,
    values: Vec<(&'static str, f64)>,
    dice: Option<f64>,
    architecture: String,
}

/// Begins to report on work that starts, or goes on, at `[epoch, iteration]` of `[epochs, iterations per epoch]`.
pub(crate) fn start(
    what: &str,
    at: [usize; 2],
    of: [usize; 2],
    known: &mut Known,
    json: bool,
) -> Progress {
    let ([epoch, iteration], [epochs, iterations_per_epoch]) = (at, of);
    *known = Known {
        epochs,
        iterations_per_epoch,
        epoch,
        iteration,
        ..Known::default()
    };
    if json {
        let fields = json!({
            "stage": what, "epoch": epoch, "iteration": iteration,
            "epochs": epochs, "iterations_per_epoch": iterations_per_epoch,
        });
        emit("started", &fields);
    }
    Progress::new(
        what,
        known.steps_done(),
        (epochs * iterations_per_epoch) as u64,
        json,
    )
}

impl Known {
    /// Takes up an iteration's numbers.
    pub(crate) fn iteration(&mut self, report: &IterationReport) {
        (self.epoch, self.iteration, self.tau) = (report.epoch, report.iteration + 1, report.tau);
        self.values.clone_from(&report.values);
    }

    /// Takes up what an epoch's end brings.
    pub(crate) fn epoch(&mut self, dice: Option<f64>, architecture: String) {
        self.dice = dice;
        self.architecture = architecture;
    }

    /// Iterations since the beginning.
    pub(crate) fn steps_done(&self) -> u64 {
        (self.epoch * self.iterations_per_epoch + self.iteration) as u64
    }

    /// `epoch 12/40  loss 0.412  tau 4.21  Dice 0.81  16-24 | 64 | 32`
    pub(crate) fn line(&self) -> String {
        let mut line = format!("epoch {}/{}", self.epoch + 1, self.epochs);
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
        let mut known = Known {
            epochs: 40,
            iterations_per_epoch: 10,
            ..Known::default()
        };
        known.iteration(&IterationReport {
            epoch: 11,
            iteration: 4,
            lr: 0.1,
            tau: Some(4.214),
            values: vec![("loss", 0.4121), ("grad_norm", 3.0), ("arch_loss_b", 0.5)],
        });
        known.epoch(Some(0.81), "16 | 32 | 16".into());
        assert_eq!(known.steps_done(), 115);
        assert_eq!(
            known.line(),
            "epoch 12/40  loss 0.412  loss B 0.500  tau 4.21  Dice 0.810  16 | 32 | 16"
        );
    }
}
