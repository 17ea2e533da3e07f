//! Training of a discrete network from scratch.

use adw_supernet::{Architecture, Loss, Unet};
use serde::{Deserialize, Serialize};

use crate::bilevel::{StepReport, clipped_step};
use crate::checkpoint::Position;
use crate::config::RetrainConfig;
use crate::dice::{self, DiceCounts};
use crate::events::{IterationReport, OnEvent};
use crate::loop_schedule::LoopSchedule;
use crate::optim::{Ema, Optimizer};
use crate::parameters::{self, PARAMETER_GROUP, TensorGroups};
use crate::passes::network_loss_and_gradients;
use crate::ranks::{self, Ranks};
use crate::run_files::{RunFiles, RunOptions};
use crate::training_loop::{self, EpochSummary, NextBatch, TrainingTask};
use crate::{Batch, BatchSource, NamedTensors, Part, Result};

/// Figures of one epoch of a training: a line of `history.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrainRow {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Learning rate in the first iteration.
    pub lr: f64,
    /// Mean loss.
    pub loss: Option<f64>,
    /// Mean gradient norm, before clipping.
    pub grad_norm: Option<f64>,
    /// Pseudo-Dice per foreground class on patches of the fold's validation cases; of the averaged weights if there is
    /// an average. A report only: nothing is chosen by it.
    pub dice: Vec<Option<f64>>,
    /// Mean of the Dice over classes.
    pub mean_dice: Option<f64>,
    /// Seconds of this epoch (after a resume: since the resume). The one figure that is not reproducible.
    pub wall_s: f64,
}

/// Weights at the end of a training.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Weights to use: the running average if one was kept, else the last weights. The network holds them too.
    pub weights: NamedTensors,
    /// Weights of the last step.
    pub last_weights: NamedTensors,
}

/// Trains `net` in place on `loss`. Batches come from [`Part::Train`], validation from [`Part::Validation`].
///
/// A training that was killed and resumed ends with the bits of one that was not. `loss` is not part of the checkpoint:
/// name it in [`RunOptions::identity`] if runs may differ in it. The network computes in the precision of `config` from
/// then on.
///
/// # Errors
/// If a setting makes no sense or needs what the processor lacks, the source fails, training diverges, a file cannot be
/// written, the folder holds another run, or the callback stops it.
pub fn retrain(
    net: &mut Unet,
    loss: &dyn Loss,
    config: &RetrainConfig,
    options: &RunOptions,
    source: &mut dyn BatchSource,
    on_event: &mut OnEvent<'_, RetrainRow>,
) -> Result<Trained> {
    config.check()?;
    let ranks = options.ranks();
    ranks::check(ranks, config.per_sample)?;
    let device = parameters::device(net.parameters());
    net.set_precision(config.precision);
    let net = &*net;
    let settings = RetrainIdentity {
        kind: "retrain",
        architecture: net.architecture(),
        config: RetrainConfig {
            // These change files alone, not the result.
            checkpoint_every_epochs: 1,
            checkpoint_every_iterations: 0,
            ..config.clone()
        },
    };
    let (files, checkpoint) = RunFiles::open(options, &settings, &device)?;
    let named = || parameters::named(net.parameters());
    let mut task = RetrainTask {
        net,
        loss,
        config,
        ranks,
        optimizer: config.optimizer.build(named()),
        ema: config.ema.clone().map(|ema| Ema::new(named(), ema)).transpose()?,
    };
    let schedule = LoopSchedule {
        epochs: config.epochs,
        iterations_per_epoch: config.iterations_per_epoch,
        warmup_epochs: 0,
        warmup_parts: vec![],
        parts: vec![Part::Train],
        validation_part: Part::Validation,
        validation_batches: config.validation_batches,
        save_every_epochs: config.checkpoint_every_epochs,
        save_every_iterations: config.checkpoint_every_iterations,
    };
    training_loop::run(&mut task, &schedule, &files, checkpoint, ranks, source, on_event)?;
    let last_weights = parameters::values(net.parameters())?;
    if let Some(ema) = &task.ema {
        ema.store_in_parameters()?;
    }
    Ok(Trained { weights: parameters::values(net.parameters())?, last_weights })
}

/// Runs one step of a training: forward and backward, sample by sample if there are `ranks`, gradients clipped to the norm `clip`,
/// optimiser step.
///
/// # Errors
/// If the batch does not fit the network or the loss, or a device fails.
pub fn training_step(
    net: &Unet,
    optimizer: &mut dyn Optimizer,
    loss: &dyn Loss,
    batch: &Batch,
    lr: f64,
    clip: f64,
    ranks: Option<&dyn Ranks>,
) -> Result<StepReport> {
    let (loss, gradients) = network_loss_and_gradients(net, loss, batch, ranks)?;
    clipped_step(optimizer, &gradients, lr, clip, loss)
}

/// Settings that a checkpoint must agree with.
#[derive(Serialize)]
struct RetrainIdentity<'a> {
    kind: &'static str,
    architecture: &'a Architecture,
    config: RetrainConfig,
}

struct RetrainTask<'a> {
    net: &'a Unet,
    loss: &'a dyn Loss,
    config: &'a RetrainConfig,
    ranks: &'a dyn Ranks,
    optimizer: Box<dyn Optimizer>,
    ema: Option<Ema>,
}

impl RetrainTask<'_> {
    fn lr(&self, Position { epoch, iteration }: Position) -> f64 {
        let c = self.config;
        c.lr.at(epoch, iteration, c.epochs, c.iterations_per_epoch)
    }
}

impl TrainingTask for RetrainTask<'_> {
    type HistoryRow = RetrainRow;

    fn iterate(&mut self, at: Position, batches: &[Batch]) -> Result<IterationReport> {
        let lr = self.lr(at);
        let ranks = self.config.per_sample.then_some(self.ranks);
        let (optimizer, clip) = (&mut *self.optimizer, self.config.clip);
        let step = training_step(self.net, optimizer, self.loss, &batches[0], lr, clip, ranks)?;
        if let Some(ema) = &mut self.ema {
            ema.update()?;
        }
        let values = vec![("loss", step.loss), ("grad_norm", step.grad_norm)];
        Ok(IterationReport { epoch: at.epoch, iteration: at.iteration, lr, tau: None, values })
    }

    fn validate(&mut self, _: usize, next: &mut NextBatch<'_>) -> Result<DiceCounts> {
        let net = self.net;
        let mut count = || {
            let mut counts = DiceCounts::default();
            while let Some(batch) = next()? {
                counts.add(&net.predict(&batch.x)?, &batch.target)?;
            }
            Ok(counts)
        };
        let counts = match &self.ema {
            Some(ema) if self.config.validation_batches > 0 => ema.with_average(count),
            _ => count(),
        };
        counts?.of_all(self.ranks)
    }

    fn row(&mut self, epoch: usize, summary: EpochSummary<'_>) -> Result<RetrainRow> {
        Ok(RetrainRow {
            epoch,
            lr: self.lr(Position { epoch, iteration: 0 }),
            loss: summary.means.get("loss"),
            grad_norm: summary.means.get("grad_norm"),
            mean_dice: dice::mean(&summary.dice),
            dice: summary.dice,
            wall_s: summary.wall_s,
        })
    }

    fn state(&self) -> Result<NamedTensors> {
        let mut groups = TensorGroups::default();
        groups.insert(PARAMETER_GROUP, parameters::values(self.net.parameters())?);
        groups.insert("optimizer", self.optimizer.state()?);
        if let Some(ema) = &self.ema {
            groups.insert("ema", ema.state()?);
        }
        Ok(groups.0)
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        parameters::set(self.net.parameters(), &TensorGroups::get(state, PARAMETER_GROUP))?;
        self.optimizer.load_state(&TensorGroups::get(state, "optimizer"))?;
        match &mut self.ema {
            Some(ema) => ema.load_state(&TensorGroups::get(state, "ema")),
            None => Ok(()),
        }
    }
}
