//! Losses on the logits of all scales.

use crate::error::{Error, Result};
use adw_tensor_ops::loss::{DiceCe, PendingLoss, check_target, deep_supervision_weights};
use candle_core::{Tensor, Var};

/// Loss on segmentation logits at several scales (deep supervision).
///
/// Every function from logits and target to a scalar tensor is a loss, which candle differentiates:
///
/// ```
/// use adw_supernet::Loss;
/// use candle_core::{DType, Device, Tensor};
///
/// // Cross-entropy on the finest scale.
/// let cross_entropy = |logits: &[Tensor], target: &Tensor| {
///     let log_p = (&logits[0] - logits[0].exp()?.sum_keepdim(1)?.log()?.broadcast_as(logits[0].shape())?)?;
///     log_p.gather(&target.unsqueeze(1)?.contiguous()?, 1)?.mean_all()?.neg()
/// };
/// let logits = Tensor::zeros((1, 2, 4, 4, 4), DType::F32, &Device::Cpu)?;
/// let target = Tensor::zeros((1, 4, 4, 4), DType::U32, &Device::Cpu)?;
/// let (loss, grad_logits) = cross_entropy.value_and_gradients(&[logits], &target)?;
/// assert!((loss.value()? - 2f64.ln()).abs() < 1e-6);
/// assert_eq!(grad_logits[0].as_ref().map(Tensor::dims), Some(&[1, 2, 4, 4, 4][..]));
/// # Ok::<(), adw_supernet::Error>(())
/// ```
pub trait Loss {
    /// Value of the loss, and its gradient with respect to the logits of every scale; none for scales it does not
    /// depend on.
    ///
    /// `logits`: fine to coarse, each `[B, K, D, H, W]`; `target`: class indices `[B, D, H, W]` on the finest grid.
    /// Gradients have the shapes of their logits.
    ///
    /// # Errors
    /// If logits and target do not fit together.
    fn value_and_gradients(&self, logits: &[Tensor], target: &Tensor) -> Result<(PendingLoss, Vec<Option<Tensor>>)>;

    /// Returns true if the loss of a batch is the mean of the losses of its samples. A training that takes the samples one by one
    /// then needs no logits of the others.
    fn is_mean_of_samples(&self) -> bool {
        false
    }
}

/// Deep supervision as in nnU-Net: `sum_i w_i dice_ce(logits_i, target on the grid of logits_i)` with
/// [`deep_supervision_weights`].
impl Loss for DiceCe {
    fn value_and_gradients(&self, logits: &[Tensor], target: &Tensor) -> Result<(PendingLoss, Vec<Option<Tensor>>)> {
        let finest = logits.first().ok_or_else(|| Error::Input("no logits, expected at least one scale".into()))?;
        let (b, _, d, h, w) = finest.dims5()?;
        check_target(target, [b, d, h, w])?;
        let mut scales = Vec::with_capacity(logits.len());
        for (logits, weight) in logits.iter().zip(deep_supervision_weights(logits.len())) {
            if weight > 0.0 {
                scales.push((logits.permute((0, 2, 3, 4, 1))?.contiguous()?, weight));
            }
        }
        // The sum goes from coarse to fine.
        let borrowed: Vec<(&Tensor, f64)> = scales.iter().rev().map(|(logits, weight)| (logits, *weight)).collect();
        let (loss, gradients) = self.losses_and_gradients(&borrowed, target)?;
        let mut grad_logits = Vec::with_capacity(logits.len());
        for gradient in gradients.into_iter().rev() {
            grad_logits.push(Some(gradient.permute((0, 4, 1, 2, 3))?));
        }
        grad_logits.resize(logits.len(), None);
        Ok((loss, grad_logits))
    }

    fn is_mean_of_samples(&self) -> bool {
        !self.batch_dice
    }
}

impl<F> Loss for F
where
    F: Fn(&[Tensor], &Tensor) -> candle_core::Result<Tensor>,
{
    fn value_and_gradients(&self, logits: &[Tensor], target: &Tensor) -> Result<(PendingLoss, Vec<Option<Tensor>>)> {
        let vars = logits.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let loss = self(&tensors, target)?;
        let store = loss.backward()?;
        let gradients = vars.iter().map(|v| store.get(v).cloned()).collect();
        Ok((scalar(&loss)?.into(), gradients))
    }
}

fn scalar(loss: &Tensor) -> Result<f64> {
    Ok(loss.to_dtype(candle_core::DType::F64)?.to_scalar()?)
}
