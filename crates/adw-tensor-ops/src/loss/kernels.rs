//! Kernels of the loss, and their results.

use crate::error::Result;
use candle_core::Tensor;
use std::fmt;

/// Name of the op in errors.
pub(super) const OP: &str = "dice_ce";

/// Constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiceCe {
    /// Number added to numerator and denominator of the Dice; 1e-5 in nnU-Net.
    pub smooth: f64,
    /// Pools the sums over the batch (the paper) instead of averaging the Dice of each sample.
    pub batch_dice: bool,
}

impl Default for DiceCe {
    fn default() -> Self {
        Self { smooth: 1e-5, batch_dice: true }
    }
}

/// Losses of several scales, which a device may still be computing.
pub(crate) enum ScaleLosses {
    Known(Vec<f64>),
    /// Function that waits for the device.
    Pending(Box<dyn FnOnce() -> Result<Vec<f64>>>),
}

impl ScaleLosses {
    /// Loss of every scale, not multiplied by its weight.
    ///
    /// # Errors
    /// If the target holds a label that has no class and the device found it only now, or if the device fails.
    pub(crate) fn values(self) -> Result<Vec<f64>> {
        match self {
            Self::Known(values) => Ok(values),
            Self::Pending(wait) => wait(),
        }
    }
}

impl fmt::Debug for ScaleLosses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(values) => write!(f, "{values:?}"),
            Self::Pending(_) => f.write_str("pending"),
        }
    }
}

/// Kernels on one kind of device.
pub(crate) trait DiceCeKernels {
    /// Loss of every scale of deep supervision, and the gradients of `sum_i weight_i loss_i` by the logits.
    ///
    /// `scales`: logits `[B, D, H, W, K]`, contiguous, at least one, and their weights. `target`: integers `[B, D, H, W]` on a
    /// grid from which every scale's comes by [`super::resize_target`].
    fn dice_ce(&self, config: DiceCe, scales: &[(&Tensor, f64)], target: &Tensor)
    -> Result<(ScaleLosses, Vec<Tensor>)>;

    /// Loss of one scale, without gradient. `target` has the size of the logits.
    fn dice_ce_loss(&self, config: DiceCe, logits: &Tensor, target: &Tensor) -> Result<f64>;
}
