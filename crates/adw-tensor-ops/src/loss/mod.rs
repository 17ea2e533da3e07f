//! Soft Dice + cross-entropy, with deep supervision.
//!
//! With `p = softmax(logits)`, `t` the one-hot target and sums over voxels (and over the batch, if `batch_dice`):
//! ```text
//! dice_k = (2 sum p_k t_k + smooth) / max(sum p_k + sum t_k + smooth, 1e-8)
//! loss   = mean over voxels of -log p_target  -  mean over k >= 1 of dice_k
//! ```
//! Gradients take the memory of the probabilities, which are computed once.

mod cpu;
mod cuda;
pub(crate) mod kernels;
mod target;

#[cfg(test)]
mod tests;

use crate::autograd::record1;
use crate::backend;
use crate::error::{Error, Result};
use crate::map::channels_last;
use crate::storage::Computed;
use candle_core::{DType, Tensor};
use kernels::{OP, ScaleLosses};
use target::{check, check_scale, labels};

pub use kernels::DiceCe;
pub use target::{check_target, resize_target};

/// Weighted sum of losses, which a device may still be computing.
#[derive(Debug)]
pub struct PendingLoss {
    losses: ScaleLosses,
    weights: Vec<f64>,
}

impl From<f64> for PendingLoss {
    fn from(loss: f64) -> Self {
        Self { losses: ScaleLosses::Known(vec![loss]), weights: vec![1.0] }
    }
}

impl PendingLoss {
    /// Value of the sum. On a CUDA device this waits for everything that was launched before: call it late.
    ///
    /// # Errors
    /// If the target holds a label that has no class and the device found it only now, or if the device fails.
    pub fn value(self) -> Result<f64> {
        let losses = self.losses.values()?;
        Ok(losses.iter().zip(&self.weights).fold(0.0, |sum, (loss, weight)| sum + weight * loss))
    }
}

impl DiceCe {
    /// `sum_i w_i loss_i` over scales of deep supervision, and its gradient with respect to every scale's logits.
    /// `scales`: logits `[B, D, H, W, K]`, contiguous, and their weight above 0; `target`: `[B, D, H, W]` on a grid
    /// from which every scale's comes by [`resize_target`].
    ///
    /// # Errors
    /// If shapes do not fit together, the target holds a label that has no class, there is no scale, or one is finer than the
    /// target. On a CUDA device an unknown label may be reported by [`PendingLoss::value`] only.
    pub fn losses_and_gradients(
        &self,
        scales: &[(&Tensor, f64)],
        target: &Tensor,
    ) -> Result<(PendingLoss, Vec<Tensor>)> {
        let Some((first, _)) = scales.first() else {
            return Err(Error::Argument { op: OP, what: "no logits, expected at least one scale".into() });
        };
        for (logits, _) in scales {
            check_scale(logits, target)?;
        }
        let (losses, gradients) = backend::of(OP, first)?.dice_ce(*self, scales, target)?;
        Ok((PendingLoss { losses, weights: scales.iter().map(|s| s.1).collect() }, gradients))
    }

    /// Loss without gradient. `logits`: `[B, D, H, W, K]`, contiguous; `target`: `[B, D, H, W]`, integers below K.
    ///
    /// # Errors
    /// If shapes do not fit together or the target holds a label that has no class.
    pub fn loss(&self, logits: &Tensor, target: &Tensor) -> Result<f64> {
        check(logits, target)?;
        backend::of(OP, logits)?.dice_ce_loss(*self, logits, target)
    }
}

/// Weights of deep supervision: `1, 1/2, 1/4, ...`, the coarsest left out (unless it is the only one), scaled to sum 1: nnU-Net's weights.
///
/// ```
/// assert_eq!(adw_tensor_ops::loss::deep_supervision_weights(4), [4. / 7., 2. / 7., 1. / 7., 0.]);
/// assert_eq!(adw_tensor_ops::loss::deep_supervision_weights(1), [1.]);
/// ```
pub fn deep_supervision_weights(outputs: usize) -> Vec<f64> {
    let mut w: Vec<f64> = (0..outputs).map(|i| 0.5f64.powi(i as i32)).collect();
    if outputs > 1 {
        w[outputs - 1] = 0.0;
    }
    let sum: f64 = w.iter().sum();
    w.into_iter().map(|w| w / sum).collect()
}

/// Soft Dice + cross-entropy with gradients: `logits [B, K, D, H, W]`, `target [B, D, H, W]` of integers, to a scalar.
///
/// # Errors
/// If shapes do not fit together or the target holds a label that has no class.
pub fn dice_ce(logits: &Tensor, target: &Tensor, config: DiceCe) -> Result<Tensor> {
    let logits = channels_last(OP, logits)?;
    let (_, _, classes) = check(&logits, target)?;
    let target = labels(target, classes)?;
    let loss = Computed::scalar(config.loss(&logits, &target)?, &logits)?;
    record1(OP, &logits, loss, move |[logits], gradient| {
        let weight = gradient.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok([config.losses_and_gradients(&[(logits, weight)], &target)?.1.remove(0)])
    })
}

/// Loss of deep supervision, `sum_i w_i dice_ce(outputs[i], target on the grid of outputs[i])`, outputs fine to coarse, with
/// [`deep_supervision_weights`].
///
/// # Errors
/// As [`dice_ce`], or if there is no output.
pub fn deep_supervision_loss(outputs: &[Tensor], target: &Tensor, config: DiceCe) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    if let Some(finest) = outputs.first() {
        let (b, _, d, h, w) = finest.dims5()?;
        check_target(target, [b, d, h, w])?;
    }
    for (output, w) in outputs.iter().zip(deep_supervision_weights(outputs.len())) {
        if w > 0.0 {
            let (_, _, d, h, w_size) = output.dims5()?;
            let loss = (dice_ce(output, &resize_target(target, [d, h, w_size])?, config)? * w)?;
            sum = Some(match sum {
                None => loss,
                Some(s) => (s + loss)?,
            });
        }
    }
    sum.ok_or(Error::Argument { op: OP, what: "no outputs, expected at least one".into() })
}
