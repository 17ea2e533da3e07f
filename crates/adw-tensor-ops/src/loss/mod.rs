//! Soft Dice + cross-entropy, with deep supervision.
//!
//! With `p = softmax(logits)`, `t` the one-hot target and sums over voxels (and over the batch, if `batch_dice`):
//! ```text
//! dice_k = (2 sum p_k t_k + smooth) / max(sum p_k + sum t_k + smooth, 1e-8)
//! loss   = mean over voxels of -log p_target  -  mean over k >= 1 of dice_k
//! ```
//! Probabilities are never stored: both passes work from the logits.

mod cpu;
pub mod cuda;
#[cfg(feature = "cuda")]
mod on_device;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::map::{channels_last, map_dims};
use crate::storage::{cpu_slice, read, tensor, with_element};
#[cfg(feature = "cuda")]
use adw_cuda::device::CudaRuntime;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, WithDType};

/// The constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiceCe {
    /// Added to numerator and denominator; 1e-5 in nnU-Net.
    pub smooth: f64,
    /// Pool the sums over the batch (the paper) instead of averaging the Dice of each sample.
    pub batch_dice: bool,
}

impl Default for DiceCe {
    fn default() -> Self {
        Self { smooth: 1e-5, batch_dice: true }
    }
}

/// A loss and the gradient of `weight * loss` by the logits.
#[derive(Debug)]
pub struct LossAndGradient {
    /// Not multiplied by the weight.
    pub loss: f64,
    /// `[B, D, H, W, K]`
    pub grad_logits: Tensor,
}

/// A weighted sum of losses that may not have been computed yet.
#[derive(Debug)]
pub struct PendingLoss(Pending);

#[derive(Debug)]
enum Pending {
    Known(f64),
    #[cfg(feature = "cuda")]
    OnDevice(on_device::Losses),
}

impl From<f64> for PendingLoss {
    fn from(loss: f64) -> Self {
        Self(Pending::Known(loss))
    }
}

impl PendingLoss {
    /// The number. On a CUDA device this waits for everything that was launched before, so ask late.
    ///
    /// # Errors
    /// If the target holds a label that has no class and the device found it only now, or if the device fails.
    pub fn value(self) -> Result<f64> {
        match self.0 {
            Pending::Known(loss) => Ok(loss),
            #[cfg(feature = "cuda")]
            Pending::OnDevice(losses) => losses.value(),
        }
    }
}

const OP: &str = "dice_ce";

/// The target has one label per voxel of the finest logits, `[B, D, H, W]`.
///
/// # Errors
/// If it has another shape.
pub fn check_target(target: &Tensor, expected: [usize; 4]) -> Result<()> {
    if target.dims() == expected {
        return Ok(());
    }
    let (got, expected) = (target.shape().clone(), format!("{expected:?}, as the image"));
    Err(Error::Shape { op: OP, what: "target", got, expected })
}

fn check(logits: &Tensor, target: &Tensor) -> Result<(usize, [usize; 3], usize)> {
    let (batch, size, classes) = map_dims(OP, "logits", logits)?;
    check_classes(classes)?;
    check_target(target, [batch, size[0], size[1], size[2]])?;
    Ok((batch, size, classes))
}

fn check_classes(classes: usize) -> Result<()> {
    if (2..=255).contains(&classes) {
        return Ok(());
    }
    Err(Error::Argument { op: OP, what: format!("{classes} classes, expected 2 to 255 (background included)") })
}

/// The target as bytes; a label that a byte cannot hold must not wrap around to one that is a class.
fn labels(target: &Tensor, classes: usize) -> Result<Tensor> {
    if !target.dtype().is_int() {
        let what = format!("the target holds {:?}, expected integers", target.dtype());
        return Err(Error::Argument { op: OP, what });
    }
    if target.dtype() != DType::U8 {
        let values = target.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        if let Some(label) = values.into_iter().find(|v| !(0..classes as i64).contains(v)) {
            return Err(unknown_label(label, classes));
        }
    }
    Ok(target.to_dtype(DType::U8)?.contiguous()?)
}

fn unknown_label(label: i64, classes: usize) -> Error {
    let last = classes - 1;
    let what = format!("the target holds label {label}, but the logits have {classes} classes (0 to {last})");
    Error::Argument { op: OP, what }
}

impl DiceCe {
    /// Loss and gradient. `logits`: `[B, D, H, W, K]`, contiguous; `target`: `[B, D, H, W]`, integers below K.
    ///
    /// # Errors
    /// If shapes do not fit together or the target holds a label that has no class.
    pub fn loss_and_gradient(&self, logits: &Tensor, target: &Tensor, weight: f64) -> Result<LossAndGradient> {
        let (batch, _, classes) = check(logits, target)?;
        #[cfg(feature = "cuda")]
        if let Some(rt) = CudaRuntime::of_tensor(logits) {
            let (losses, mut gradients) = on_device::losses_and_gradients(&rt, *self, &[(logits, weight)], target)?;
            return Ok(LossAndGradient { loss: losses.unweighted()?[0], grad_logits: gradients.remove(0) });
        }
        let target = labels(target, classes)?;
        with_element!(OP, logits, T => {
            let (x, t) = (read(OP, "logits", logits)?, read(OP, "target", &target)?);
            let job = cpu::Job::<T>::new(x.slice()?, t.slice()?, batch, classes, *self)?;
            let sums = job.sums();
            let grad = tensor(job.gradient(&sums, weight), logits.shape())?;
            Ok(LossAndGradient { loss: job.loss(&sums), grad_logits: grad })
        })
    }

    /// `sum_i w_i loss_i` over scales of deep supervision, and the gradient by every scale's logits. `scales`: logits
    /// `[B, D, H, W, K]`, contiguous, and their weight above 0; `target`: `[B, D, H, W]` on a grid from which every
    /// scale's comes by [`resize_target`].
    ///
    /// # Errors
    /// As [`Self::loss_and_gradient`]; on a CUDA device an unknown label may come to light only with
    /// [`PendingLoss::value`].
    pub fn losses_and_gradients(
        &self,
        scales: &[(&Tensor, f64)],
        target: &Tensor,
    ) -> Result<(PendingLoss, Vec<Tensor>)> {
        #[cfg(feature = "cuda")]
        if let Some(rt) = scales.first().and_then(|s| CudaRuntime::of_tensor(s.0)) {
            let (losses, gradients) = on_device::losses_and_gradients(&rt, *self, scales, target)?;
            return Ok((PendingLoss(Pending::OnDevice(losses)), gradients));
        }
        let (mut loss, mut gradients) = (0.0, Vec::with_capacity(scales.len()));
        for &(logits, weight) in scales {
            let (_, size, _) = map_dims(OP, "logits", logits)?;
            let part = self.loss_and_gradient(logits, &resize_target(target, size)?, weight)?;
            loss += weight * part.loss;
            gradients.push(part.grad_logits);
        }
        Ok((PendingLoss(Pending::Known(loss)), gradients))
    }

    /// The loss alone.
    ///
    /// # Errors
    /// As [`Self::loss_and_gradient`].
    pub fn loss(&self, logits: &Tensor, target: &Tensor) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            // The kernels are made for both; evaluation does not compute losses.
            return Ok(self.loss_and_gradient(logits, target, 1.0)?.loss);
        }
        let (batch, _, classes) = check(logits, target)?;
        let target = labels(target, classes)?;
        with_element!(OP, logits, T => {
            let (x, t) = (read(OP, "logits", logits)?, read(OP, "target", &target)?);
            let job = cpu::Job::<T>::new(x.slice()?, t.slice()?, batch, classes, *self)?;
            Ok(job.loss(&job.sums()))
        })
    }
}

/// `1, 1/2, 1/4, ...`, the coarsest left out (unless it is the only one), scaled to sum 1: nnU-Net's weights.
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

/// `target` `[B, D, H, W]` on a grid of `size`: voxel `floor(i * size_in / size_out)` per axis, PyTorch's `nearest`.
///
/// # Errors
/// If the target is not of that shape.
pub fn resize_target(target: &Tensor, size: [usize; 3]) -> Result<Tensor> {
    let (_, d, h, w) = target.dims4()?;
    let mut t = target.clone();
    for (axis, (from, to)) in [d, h, w].into_iter().zip(size).enumerate() {
        if from != to {
            let index: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
            t = t.index_select(&Tensor::from_vec(index, to, t.device())?, axis + 1)?;
        }
    }
    Ok(t.contiguous()?)
}

/// Soft Dice + cross-entropy with gradients: `logits [B, K, D, H, W]`, `target [B, D, H, W]` of integers, to a scalar.
///
/// # Errors
/// If shapes do not fit together or the target holds a label that has no class.
pub fn dice_ce(logits: &Tensor, target: &Tensor, config: DiceCe) -> Result<Tensor> {
    let logits = channels_last(OP, logits)?;
    let (_, _, classes) = check(&logits, target)?;
    let target = labels(target, classes)?;
    Ok(logits.apply_op1(DiceCeOp { config, target })?)
}

/// `sum_i w_i dice_ce(outputs[i], target on the grid of outputs[i])`, outputs fine to coarse, with
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

struct DiceCeOp {
    config: DiceCe,
    target: Tensor,
}

impl CustomOp1 for DiceCeOp {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let target = read(OP, "target", &self.target)?;
        let storage = with_element!(OP, x, T => {
            let job = cpu::Job::<T>::new(cpu_slice(OP, x, layout)?, target.slice()?, dims[0], dims[4], self.config)?;
            Ok(T::to_cpu_storage_owned(vec![T::from_f64(job.loss(&job.sums()))]))
        })?;
        Ok((storage, ().into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        Ok((on_device::op(x, layout, &self.target, self.config)?, ().into()))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let weight = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok(Some(self.config.loss_and_gradient(logits, &self.target, weight)?.grad_logits))
    }
}
