//! Order of the batches and checkpoints of a run.

use crate::checkpoint::Position;
use crate::{BatchRequest, Part};

/// Batches of every iteration and validation of a run, and the points at which it writes checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct LoopSchedule {
    pub(crate) epochs: usize,
    pub(crate) iterations_per_epoch: usize,
    pub(crate) warmup_epochs: usize,
    /// Part of every batch of an iteration during the warm-up.
    pub(crate) warmup_parts: Vec<Part>,
    /// Part of every batch of an iteration after the warm-up.
    pub(crate) parts: Vec<Part>,
    pub(crate) validation_part: Part,
    pub(crate) validation_batches: usize,
    /// Epochs from one checkpoint to the next; 0 for a checkpoint after the last epoch alone.
    pub(crate) save_every_epochs: usize,
    /// Iterations, counted over the run, from one checkpoint to the next; 0 for none between epochs.
    pub(crate) save_every_iterations: usize,
}

impl LoopSchedule {
    /// Parts of the batches of each iteration of `epoch`.
    pub(crate) fn parts(&self, epoch: usize) -> &[Part] {
        if epoch < self.warmup_epochs { &self.warmup_parts } else { &self.parts }
    }

    /// Requests of one iteration, in the order of its parts.
    pub(crate) fn iteration_requests(&self, Position { epoch, iteration }: Position) -> Vec<BatchRequest> {
        let request = |part: &Part| BatchRequest { part: *part, epoch, iteration };
        self.parts(epoch).iter().map(request).collect()
    }

    /// Requests of the validation after `epoch`.
    pub(crate) fn validation_requests(&self, epoch: usize) -> impl Iterator<Item = BatchRequest> + use<> {
        let part = self.validation_part;
        (0..self.validation_batches).map(move |iteration| BatchRequest { part, epoch, iteration })
    }

    /// All requests from `start` to the end of the run, in order.
    pub(crate) fn requests_from(self, start: Position) -> impl Iterator<Item = BatchRequest> + Send + use<> {
        (start.epoch..self.epochs).flat_map(move |epoch| {
            let first = if epoch == start.epoch { start.iteration } else { 0 };
            let schedule = self.clone();
            let validation = self.validation_requests(epoch);
            (first..self.iterations_per_epoch)
                .flat_map(move |iteration| schedule.iteration_requests(Position { epoch, iteration }))
                .chain(validation)
        })
    }

    /// Returns true if a checkpoint is to be written when `at` is the next iteration.
    pub(crate) fn save_is_due(&self, at: Position) -> bool {
        let every = |n: usize, count: usize| n > 0 && count.is_multiple_of(n);
        let new_epoch = at.iteration == 0 && every(self.save_every_epochs, at.epoch);
        let done = at.epoch * self.iterations_per_epoch + at.iteration;
        new_epoch || at.epoch == self.epochs || every(self.save_every_iterations, done)
    }
}
