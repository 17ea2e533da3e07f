//! The loop that searches and trainings share: epochs, batches, history, checkpoints, resuming.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use crate::checkpoint::{Checkpoint, Position, RunningMeans};
use crate::dice::DiceCounts;
use crate::events::{Event, IterationReport, OnEvent, Stop};
use crate::loop_schedule::LoopSchedule;
use crate::ranks::{Ranks, agree};
use crate::run_files::RunFiles;
use crate::{Batch, BatchRequest, BatchSource, Error, NamedTensors, Result};

/// Steps, validation and state of a search or training; the loop supplies order, files and events.
pub(crate) trait TrainingTask {
    /// A line of the history.
    type HistoryRow: Serialize;

    /// One iteration on the batches of the schedule's parts, in their order.
    fn iterate(&mut self, at: Position, batches: &[Batch]) -> Result<IterationReport>;

    /// Counts over all batches that `next` gives.
    fn validate(&mut self, epoch: usize, next: &mut NextBatch<'_>) -> Result<DiceCounts>;

    /// History row of a finished epoch.
    fn row(&mut self, epoch: usize, summary: EpochSummary<'_>) -> Result<Self::HistoryRow>;

    /// Everything that changes during the run.
    fn state(&self) -> Result<NamedTensors>;

    /// Restores a state that [`TrainingTask::state`] returned.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;
}

/// Returns the validation batches one by one, then none.
pub(crate) type NextBatch<'a> = dyn FnMut() -> Result<Option<Batch>> + 'a;

/// Figures of a finished epoch that the loop collects.
pub(crate) struct EpochSummary<'a> {
    pub(crate) means: &'a RunningMeans,
    /// Pseudo-Dice per foreground class.
    pub(crate) dice: Vec<Option<f64>>,
    /// Seconds since the epoch began in this process.
    pub(crate) wall_s: f64,
}

/// Runs `task` from `checkpoint` (or the start) to the end of `schedule`.
///
/// # Errors
/// If the source or the task fails, a reported value is not finite, a file cannot be written, or the callback stops the
/// run before its end.
pub(crate) fn run<T: TrainingTask>(
    task: &mut T,
    schedule: &LoopSchedule,
    files: &RunFiles,
    checkpoint: Option<Checkpoint>,
    ranks: &dyn Ranks,
    source: &mut dyn BatchSource,
    on_event: &mut OnEvent<'_, T::HistoryRow>,
) -> Result<()> {
    let (mut at, mut means) = (Position::default(), RunningMeans::default());
    if let Some(checkpoint) = checkpoint {
        task.load_state(&checkpoint.tensors)?;
        (at, means) = (checkpoint.position, checkpoint.means);
    }
    let announced = source.announce(Box::new(schedule.clone().requests_from(at)));
    announced.map_err(|source| Error::Batch {
        request: BatchRequest { part: schedule.parts(at.epoch)[0], epoch: at.epoch, iteration: at.iteration },
        source,
    })?;
    let mut output = LoopOutput { schedule, files, ranks, on_event };
    let started = Event::Started {
        epoch: at.epoch,
        iteration: at.iteration,
        epochs: schedule.epochs,
        iterations_per_epoch: schedule.iterations_per_epoch,
    };
    output.emit(task, at, &means, Some(started))?;
    let damage = files.damage().map(|(damage, used)| Event::CheckpointDamaged { damage, used });
    output.emit(task, at, &means, damage)?;
    while at.epoch < schedule.epochs {
        let started = Instant::now();
        while at.iteration < schedule.iterations_per_epoch {
            let requests = schedule.iteration_requests(at);
            let batches = requests.iter().map(|r| fetch(source, *r)).collect::<Result<Vec<_>>>()?;
            let report = task.iterate(at, &batches)?;
            if let Some(&(what, value)) = report.values.iter().find(|(_, value)| !value.is_finite()) {
                let mut cases: Vec<String> = requests.iter().flat_map(|r| source.cases(*r)).collect();
                cases.sort();
                cases.dedup();
                let Position { epoch, iteration } = at;
                return Err(Error::NotFinite { what, value, epoch, iteration, cases, kept: files.kept() });
            }
            means.add(&report.values);
            at.iteration += 1;
            // At the end of an epoch the checkpoint waits for the validation.
            if at.iteration < schedule.iterations_per_epoch {
                output.save_if_due(task, at, &means)?;
            }
            output.emit(task, at, &means, Some(Event::Iteration(report)))?;
        }
        let mut requests = schedule.validation_requests(at.epoch);
        let mut stop = None;
        // The ranks take turns: each returns the batches that are its own.
        let counts = task.validate(at.epoch, &mut || {
            for request in requests.by_ref() {
                let turn = request.iteration % ranks.size();
                let event = Event::Validation { epoch: at.epoch, batch: request.iteration };
                if turn == 0
                    && let ControlFlow::Break(how) = agree(ranks, (output.on_event)(&event))?
                {
                    // Saved below, when the task holds its own parameters again.
                    stop = Some(how);
                    return Err(stopped(at));
                }
                let batch = fetch(source, request)?;
                if turn == ranks.rank() {
                    return Ok(Some(batch));
                }
            }
            Ok(None)
        });
        if let Some(how) = stop {
            return output.stop(task, at, &means, how);
        }
        let counts = counts?;
        let summary = EpochSummary { means: &means, dice: counts.dice(), wall_s: started.elapsed().as_secs_f64() };
        let row = task.row(at.epoch, summary)?;
        files.append(&row)?;
        at = Position { epoch: at.epoch + 1, iteration: 0 };
        means = RunningMeans::default();
        output.save_if_due(task, at, &means)?;
        output.emit(task, at, &means, Some(Event::Epoch(&row)))?;
    }
    Ok(())
}

/// Checkpoints and events of a run in progress.
struct LoopOutput<'r, 'e, R> {
    schedule: &'r LoopSchedule,
    files: &'r RunFiles,
    ranks: &'r dyn Ranks,
    on_event: &'r mut OnEvent<'e, R>,
}

impl<R> LoopOutput<'_, '_, R> {
    /// Calls the callback, if there is an event on this rank, and ends the run if the callback of any rank stops it. Stopping a
    /// run whose last epoch is done has no effect.
    fn emit<T: TrainingTask<HistoryRow = R>>(
        &mut self,
        task: &T,
        at: Position,
        means: &RunningMeans,
        event: Option<Event<'_, R>>,
    ) -> Result<()> {
        let own = event.map_or(ControlFlow::Continue(()), |event| (self.on_event)(&event));
        match agree(self.ranks, own)? {
            ControlFlow::Break(how) if at.epoch < self.schedule.epochs => self.stop(task, at, means, how),
            _ => Ok(()),
        }
    }

    /// Ends a run before its end.
    fn stop<T: TrainingTask>(&self, task: &T, at: Position, means: &RunningMeans, how: Stop) -> Result<()> {
        if how == Stop::AfterSaving {
            self.files.save(|| checkpoint(task, at, means))?;
        }
        Err(stopped(at))
    }

    fn save_if_due<T: TrainingTask<HistoryRow = R>>(
        &mut self,
        task: &T,
        at: Position,
        means: &RunningMeans,
    ) -> Result<()> {
        if !self.schedule.save_is_due(at) {
            return Ok(());
        }
        let saved = self.files.save(|| checkpoint(task, at, means))?;
        self.emit(task, at, means, saved.map(Event::Saved))
    }
}

fn stopped(Position { epoch, iteration }: Position) -> Error {
    Error::Stopped { epoch, iteration }
}

fn checkpoint<T: TrainingTask>(task: &T, position: Position, means: &RunningMeans) -> Result<Checkpoint> {
    Ok(Checkpoint { position, means: means.clone(), tensors: task.state()? })
}

fn fetch(source: &mut dyn BatchSource, request: BatchRequest) -> Result<Batch> {
    source.batch(request).map_err(|source| Error::Batch { request, source })
}

#[cfg(test)]
mod tests;
