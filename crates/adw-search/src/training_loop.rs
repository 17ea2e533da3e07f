//! The loop that searches and trainings share: epochs, batches, history, checkpoints, resuming.

use std::time::Instant;

use serde::Serialize;

use crate::checkpoint::{Checkpoint, Means, Position};
use crate::dice::DiceCounts;
use crate::events::{Event, IterationReport, OnEvent, Reaction};
use crate::run_files::RunFiles;
use crate::{Batch, BatchSource, Error, NamedTensors, Part, Request, Result};

/// What is trained.
pub(crate) trait Task {
    /// A line of the history.
    type Row: Serialize;

    /// One iteration on the batches of the agenda's parts, in their order.
    fn iterate(&mut self, at: Position, batches: &[Batch]) -> Result<IterationReport>;

    /// Counts over all batches that `next` gives.
    fn validate(&mut self, epoch: usize, next: &mut NextBatch<'_>) -> Result<DiceCounts>;

    /// The history row of an epoch that is done.
    fn row(&mut self, epoch: usize, summary: Summary<'_>) -> Result<Self::Row>;

    /// Everything that changes during the run.
    fn state(&self) -> Result<NamedTensors>;

    /// Restores what [`Task::state`] gave.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;
}

/// Gives the validation batches one by one.
pub(crate) type NextBatch<'a> = dyn FnMut() -> Result<Option<Batch>> + 'a;

/// What the loop knows about an epoch that is done.
pub(crate) struct Summary<'a> {
    pub(crate) means: &'a Means,
    pub(crate) dice: Vec<Option<f64>>,
    /// Seconds since the epoch began in this process.
    pub(crate) wall_s: f64,
}

/// Which batches a run asks for, and when it saves.
#[derive(Debug, Clone)]
pub(crate) struct Agenda {
    pub(crate) epochs: usize,
    pub(crate) iterations: usize,
    pub(crate) warmup_epochs: usize,
    /// Parts per iteration during and after the warm-up.
    pub(crate) warmup_parts: Vec<Part>,
    pub(crate) parts: Vec<Part>,
    pub(crate) validation_part: Part,
    pub(crate) validation_batches: usize,
    pub(crate) save_every_epochs: usize,
    pub(crate) save_every_iterations: usize,
}

impl Agenda {
    fn parts(&self, epoch: usize) -> &[Part] {
        if epoch < self.warmup_epochs { &self.warmup_parts } else { &self.parts }
    }

    fn iteration_requests(&self, Position { epoch, iteration }: Position) -> Vec<Request> {
        let request = |part: &Part| Request { part: *part, epoch, iteration };
        self.parts(epoch).iter().map(request).collect()
    }

    fn validation_requests(&self, epoch: usize) -> impl Iterator<Item = Request> + use<> {
        let part = self.validation_part;
        (0..self.validation_batches).map(move |iteration| Request { part, epoch, iteration })
    }

    /// All requests from `start` to the end, in order.
    fn requests_from(self, start: Position) -> impl Iterator<Item = Request> + Send + use<> {
        (start.epoch..self.epochs).flat_map(move |epoch| {
            let first = if epoch == start.epoch { start.iteration } else { 0 };
            let agenda = self.clone();
            let validation = self.validation_requests(epoch);
            (first..self.iterations)
                .flat_map(move |iteration| agenda.iteration_requests(Position { epoch, iteration }))
                .chain(validation)
        })
    }

    fn save_is_due(&self, at: Position) -> bool {
        let every = |n: usize, count: usize| n > 0 && count.is_multiple_of(n);
        let new_epoch = at.iteration == 0 && every(self.save_every_epochs, at.epoch);
        let done = at.epoch * self.iterations + at.iteration;
        new_epoch || at.epoch == self.epochs || every(self.save_every_iterations, done)
    }
}

/// Runs `task` from `checkpoint` (or the start) to the end of `agenda`.
pub(crate) fn run<T: Task>(
    task: &mut T,
    agenda: &Agenda,
    files: &RunFiles,
    checkpoint: Option<Checkpoint>,
    source: &mut dyn BatchSource,
    on_event: &mut OnEvent<'_, T::Row>,
) -> Result<()> {
    let (mut at, mut means) = (Position::default(), Means::default());
    if let Some(checkpoint) = checkpoint {
        task.load_state(&checkpoint.tensors)?;
        (at, means) = (checkpoint.position, checkpoint.means);
    }
    let announced = source.announce(Box::new(agenda.clone().requests_from(at)));
    announced.map_err(|source| Error::Batch {
        request: Request { part: agenda.parts(at.epoch)[0], epoch: at.epoch, iteration: at.iteration },
        source,
    })?;
    let mut run = Run { agenda, files, on_event };
    run.tell(
        task,
        at,
        &means,
        &Event::Started {
            epoch: at.epoch,
            iteration: at.iteration,
            epochs: agenda.epochs,
            iterations_per_epoch: agenda.iterations,
        },
    )?;
    while at.epoch < agenda.epochs {
        let started = Instant::now();
        while at.iteration < agenda.iterations {
            let requests = agenda.iteration_requests(at);
            let batches = requests.into_iter().map(|r| fetch(source, r)).collect::<Result<Vec<_>>>()?;
            let report = task.iterate(at, &batches)?;
            check_finite(&report)?;
            means.add(&report.values);
            at.iteration += 1;
            // At the end of an epoch the checkpoint waits for the validation.
            if at.iteration < agenda.iterations {
                run.save_if_due(task, at, &means)?;
            }
            run.tell(task, at, &means, &Event::Iteration(report))?;
        }
        let mut requests = agenda.validation_requests(at.epoch);
        let counts = task.validate(at.epoch, &mut || requests.next().map(|r| fetch(source, r)).transpose())?;
        let summary = Summary { means: &means, dice: counts.dice(), wall_s: started.elapsed().as_secs_f64() };
        let row = task.row(at.epoch, summary)?;
        files.append(&row)?;
        at = Position { epoch: at.epoch + 1, iteration: 0 };
        means = Means::default();
        run.save_if_due(task, at, &means)?;
        run.tell(task, at, &means, &Event::Epoch(&row))?;
    }
    Ok(())
}

struct Run<'r, 'e, R> {
    agenda: &'r Agenda,
    files: &'r RunFiles,
    on_event: &'r mut OnEvent<'e, R>,
}

impl<R> Run<'_, '_, R> {
    /// Tells the caller and does what it answers. A run that is through cannot be stopped any more.
    fn tell<T: Task<Row = R>>(&mut self, task: &T, at: Position, means: &Means, event: &Event<'_, R>) -> Result<()> {
        let reaction = (self.on_event)(event);
        if reaction == Reaction::Continue || at.epoch >= self.agenda.epochs {
            return Ok(());
        }
        if reaction == Reaction::SaveAndStop {
            self.files.save(|| checkpoint(task, at, means))?;
        }
        Err(Error::Stopped { epoch: at.epoch, iteration: at.iteration })
    }

    fn save_if_due<T: Task<Row = R>>(&mut self, task: &T, at: Position, means: &Means) -> Result<()> {
        if !self.agenda.save_is_due(at) {
            return Ok(());
        }
        match self.files.save(|| checkpoint(task, at, means))? {
            Some(path) => self.tell(task, at, means, &Event::Saved(path)),
            None => Ok(()),
        }
    }
}

fn checkpoint<T: Task>(task: &T, position: Position, means: &Means) -> Result<Checkpoint> {
    Ok(Checkpoint { position, means: means.clone(), tensors: task.state()? })
}

fn fetch(source: &mut dyn BatchSource, request: Request) -> Result<Batch> {
    source.batch(request).map_err(|source| Error::Batch { request, source })
}

/// Stops a run that has diverged before its state is saved.
fn check_finite(report: &IterationReport) -> Result<()> {
    match report.values.iter().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some(&(what, value)) => Err(Error::NotFinite { what, value, epoch: report.epoch, iteration: report.iteration }),
    }
}

#[cfg(test)]
mod tests;
