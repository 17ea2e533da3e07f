//! The loss on a CUDA device: tensors in, launches of `loss.cu` out.

mod launch;

#[cfg(test)]
mod tests;

use super::kernels::{DiceCe, DiceCeKernels, OP, ScaleLosses};
use super::target::{check_classes, labels, unknown_label};
use crate::cuda::tensors::{address, check_voxels, empty, precision_of};
use crate::error::{Error, Result};
use crate::map::map_dims;
use adw_cuda::device::CudaRuntime;
use candle_core::{Device, Tensor};
use launch::{MAX_SCALES, Scale, Target, loss_and_gradients};

impl DiceCeKernels for CudaRuntime {
    fn dice_ce(
        &self,
        config: DiceCe,
        scales: &[(&Tensor, f64)],
        target: &Tensor,
    ) -> Result<(ScaleLosses, Vec<Tensor>)> {
        if scales.len() > MAX_SCALES {
            let what = format!("{} scales, expected at most {MAX_SCALES} on a CUDA device", scales.len());
            return Err(Error::Argument { op: OP, what });
        }
        let first = scales[0].0;
        let (_, _, classes) = map_dims(OP, "logits", first)?;
        check_classes(classes)?;
        let &[batch, d, h, w] = target.dims() else {
            let (got, expected) = (target.shape().clone(), "[B, D, H, W]".into());
            return Err(Error::Shape { op: OP, what: "target", got, expected });
        };
        let precision = precision_of(OP, first)?;
        let (mut list, mut gradients) = (Vec::new(), Vec::new());
        for &(logits, weight) in scales {
            let (n, size, k) = map_dims(OP, "logits", logits)?;
            check_voxels(OP, size)?;
            if (n, k, logits.dtype()) != (batch, classes, first.dtype()) {
                let expected = format!("batch {batch}, {classes} classes and {:?}, as the rest", first.dtype());
                return Err(Error::Shape { op: OP, what: "logits", got: logits.shape().clone(), expected });
            }
            let (gradient, grad) = empty(self, logits.dtype(), logits.shape())?;
            list.push(Scale { logits: address(OP, self, logits)?, grad, size, weight });
            gradients.push(gradient.into_tensor());
        }
        let target = labels(target, classes)?.to_device(&Device::Cuda(self.device().clone()))?;
        check_voxels(OP, [d, h, w])?;
        let finest = Target { data: address(OP, self, &target)?, size: [d, h, w] };
        // SAFETY: the addresses are those of tensors of these shapes.
        let losses = unsafe { loss_and_gradients(self, config, &list, finest, batch, classes, precision)? };
        let rt = CudaRuntime::of(self.device())?;
        let wait = move || {
            if let Some(&status) = rt.download::<u32>(&losses.status)?.iter().find(|&&status| status > 0) {
                return Err(unknown_label(i64::from(status) - 1, classes));
            }
            let values = rt.download::<f32>(&losses.loss)?;
            Ok(values.into_iter().map(f64::from).collect())
        };
        Ok((ScaleLosses::Pending(Box::new(wait)), gradients))
    }

    /// Computes the gradient too: there is no kernel without, since evaluation computes no losses.
    fn dice_ce_loss(&self, config: DiceCe, logits: &Tensor, target: &Tensor) -> Result<f64> {
        let (losses, _) = self.dice_ce(config, &[(logits, 1.0)], target)?;
        Ok(losses.values()?[0])
    }
}
