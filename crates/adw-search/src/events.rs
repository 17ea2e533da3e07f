//! Events that a search or training reports while it runs.

use std::ops::ControlFlow;
use std::path::Path;

use crate::Error;

/// Event of a run whose history rows are `R`: [`crate::SearchRow`] or [`crate::RetrainRow`].
#[derive(Debug)]
pub enum Event<'a, R> {
    /// Start of the run at an epoch and iteration, (0, 0) unless it resumes. The first event.
    Started {
        /// First epoch, from 0.
        epoch: usize,
        /// First iteration in it, from 0.
        iteration: usize,
        /// Epochs in all.
        epochs: usize,
        /// Iterations per epoch.
        iterations_per_epoch: usize,
    },
    /// Resume from the checkpoint before the latest, because that cannot be read.
    CheckpointDamaged {
        /// Fault of the latest, with its path.
        damage: &'a Error,
        /// Checkpoint that was read instead.
        used: &'a Path,
    },
    /// End of an iteration.
    Iteration(IterationReport),
    /// Beginning of a validation batch, after the last iteration of an epoch.
    Validation {
        /// Epoch, from 0.
        epoch: usize,
        /// Validation batch, from 0.
        batch: usize,
    },
    /// End of an epoch, whose row has been appended to the history.
    Epoch(&'a R),
    /// Written checkpoint.
    Saved(&'a Path),
}

/// Figures of one iteration.
#[derive(Debug, Clone, PartialEq)]
pub struct IterationReport {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Iteration in the epoch, from 0.
    pub iteration: usize,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Temperature; in a search only.
    pub tau: Option<f64>,
    /// Losses and gradient norms by name, as their means appear in the history row: `loss`, `grad_norm` of the weights'
    /// step; in a search after its warm-up also `arch_loss_a`, `arch_loss_b`, `arch_grad_norm`.
    pub values: Vec<(&'static str, f64)>,
}

/// Way in which a callback ends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Write a checkpoint, then end with [`crate::Error::Stopped`]: for an interrupt by the user.
    AfterSaving,
    /// End with [`crate::Error::Stopped`] without a checkpoint, as a killed process would.
    Immediately,
}

/// Callback for the events of a run, which continues it or stops it.
pub type OnEvent<'a, R> = dyn FnMut(&Event<'_, R>) -> ControlFlow<Stop> + 'a;
