//! One iteration of the bilevel search: architecture steps, then a weight step.

use adw_supernet::{GumbelSample, Loss, Role, Supernet};
use candle_core::Tensor;

use crate::config::{ArchBatches, Half, SearchConfig};
use crate::optim::{self, Optimizer, OptimizerConfig};
use crate::passes::supernet_loss_and_gradients;
use crate::ranks::Ranks;
use crate::{Batch, CostPenalty, Result, parameters};

/// Optimisers of a search. Both hold all parameters of the network; each updates those of its role.
pub struct BilevelOptimizers {
    /// Optimiser of alpha and beta.
    pub arch: Box<dyn Optimizer>,
    /// Optimiser of the weights.
    pub weights: Box<dyn Optimizer>,
}

impl BilevelOptimizers {
    /// Builds the optimisers that `config` names, for the parameters of `net`.
    pub fn new(net: &Supernet, config: &SearchConfig) -> Self {
        let arch = OptimizerConfig::Adam(config.arch_optimizer.clone());
        Self {
            arch: arch.build(parameters::named(net.parameters())),
            weights: config.optimizer.build(parameters::named(net.parameters())),
        }
    }
}

/// Figures of one optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Loss before the step, without the cost penalty.
    pub loss: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Settings of one iteration.
#[derive(Clone)]
pub struct BilevelSettings<'a> {
    /// Loss of all steps.
    pub loss: &'a dyn Loss,
    /// Learning rate of alpha and beta.
    pub arch_lr: f64,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Temperature of the cost penalty; that of the passes is in their samples.
    pub tau: f64,
    /// Batch that the weights are trained on.
    pub weights_on: Half,
    /// Batches that the architecture is updated on.
    pub arch_batches: ArchBatches,
    /// Cost term of the architecture steps.
    pub penalty: Option<CostPenalty>,
    /// Processes that share each batch, sample by sample; none: passes of the whole batch.
    pub ranks: Option<&'a dyn Ranks>,
}

/// Batches of one iteration.
#[derive(Debug, Clone, Copy)]
pub struct HalfBatches<'a> {
    /// Batch of half A.
    pub a: &'a Batch,
    /// Batch of half B.
    pub b: &'a Batch,
}

impl HalfBatches<'_> {
    fn of(&self, half: Half) -> &Batch {
        match half {
            Half::A => self.a,
            Half::B => self.b,
        }
    }
}

/// Figures of a [`bilevel_step`], pass by pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BilevelReport {
    /// Architecture step on A, if done.
    pub arch_a: Option<StepReport>,
    /// Architecture step on B.
    pub arch_b: StepReport,
    /// Weight step.
    pub weights: StepReport,
}

/// Runs one iteration after the warm-up: a step of alpha and beta on a batch of A, one on a batch of B, and a step of
/// the weights on the batch of `weights_on`. `sample(pass)` gives the noise of passes 0 (arch, A), 1 (arch, B) and 2
/// (weights).
///
/// # Errors
/// If a batch does not fit the network or the loss, or a device fails.
pub fn bilevel_step(
    net: &Supernet,
    optimizers: &mut BilevelOptimizers,
    settings: &BilevelSettings<'_>,
    batches: HalfBatches<'_>,
    sample: &mut dyn FnMut(usize) -> Result<GumbelSample>,
) -> Result<BilevelReport> {
    let arch_a = match settings.arch_batches {
        ArchBatches::AAndB => Some(arch_step(net, optimizers, settings, batches.a, &sample(0)?)?),
        ArchBatches::BOnly => None,
    };
    let arch_b = arch_step(net, optimizers, settings, batches.b, &sample(1)?)?;
    let weights = weight_step(net, optimizers, settings, batches.of(settings.weights_on), &sample(2)?)?;
    Ok(BilevelReport { arch_a, arch_b, weights })
}

/// Runs one step of alpha and beta.
///
/// # Errors
/// As [`bilevel_step`].
pub fn arch_step(
    net: &Supernet,
    optimizers: &mut BilevelOptimizers,
    settings: &BilevelSettings<'_>,
    batch: &Batch,
    sample: &GumbelSample,
) -> Result<StepReport> {
    let (loss, mut gradients) =
        supernet_loss_and_gradients(net, settings.loss, batch, sample, Role::Architecture, settings.ranks)?;
    if let Some(penalty) = &settings.penalty {
        let (_, pull) = penalty.value_and_gradients(net, settings.tau)?;
        for (gradient, pull) in gradients.iter_mut().zip(pull) {
            *gradient = match (gradient.take(), pull) {
                (Some(g), Some(p)) => Some((g + p)?),
                (one, other) => one.or(other),
            };
        }
    }
    clipped_step(&mut *optimizers.arch, &gradients, settings.arch_lr, settings.clip, loss)
}

/// Runs one step of the weights.
///
/// # Errors
/// As [`bilevel_step`].
pub fn weight_step(
    net: &Supernet,
    optimizers: &mut BilevelOptimizers,
    settings: &BilevelSettings<'_>,
    batch: &Batch,
    sample: &GumbelSample,
) -> Result<StepReport> {
    let (loss, gradients) =
        supernet_loss_and_gradients(net, settings.loss, batch, sample, Role::Weight, settings.ranks)?;
    clipped_step(&mut *optimizers.weights, &gradients, settings.lr, settings.clip, loss)
}

/// Clips the gradients and steps. Where loss or norm is not finite, the parameters stay and the report says so.
pub(crate) fn clipped_step(
    optimizer: &mut dyn Optimizer,
    gradients: &[Option<Tensor>],
    lr: f64,
    clip: f64,
    loss: f64,
) -> Result<StepReport> {
    let grad_norm = optim::clip(gradients, clip, |scale| {
        if loss.is_finite() {
            optimizer.step_scaled(gradients, lr, scale)?;
        }
        Ok(())
    })?;
    Ok(StepReport { loss, grad_norm })
}
