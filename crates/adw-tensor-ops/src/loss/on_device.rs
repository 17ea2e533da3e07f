//! The loss on a CUDA device: tensors in, launches of `loss.cu` out.

use super::cuda::{self, MAX_SCALES, Scale, Target};
use super::{DiceCe, OP, check_classes, labels, unknown_label};
use crate::error::{Error, Result};
use crate::map::map_dims;
use crate::on_device::{address, element_type, storage_address};
use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Device, Layout, Tensor};
use std::sync::Arc;

/// Losses of several scales that lie on the device.
pub(super) struct Losses {
    rt: Arc<CudaRuntime>,
    buffers: cuda::Losses<DeviceBuffer>,
    weights: Vec<f64>,
    classes: usize,
}

impl std::fmt::Debug for Losses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Losses(weights {:?})", self.weights)
    }
}

impl Losses {
    /// The sum of the losses times their weights.
    pub(super) fn value(self) -> Result<f64> {
        let losses = self.unweighted()?;
        Ok(losses.iter().zip(&self.weights).map(|(l, w)| l * w).sum())
    }

    /// The loss of every scale.
    pub(super) fn unweighted(&self) -> Result<Vec<f64>> {
        for status in self.rt.download::<u32>(&self.buffers.status)? {
            if status > 0 {
                return Err(unknown_label(i64::from(status) - 1, self.classes));
            }
        }
        let losses = self.rt.download::<f32>(&self.buffers.loss)?;
        Ok(losses.into_iter().map(f64::from).collect())
    }
}

/// The target as bytes on the device of `rt`.
fn on_device(rt: &CudaRuntime, target: &Tensor, classes: usize) -> Result<Tensor> {
    let labels = labels(target, classes)?;
    Ok(labels.to_device(&Device::Cuda(rt.device().clone()))?)
}

pub(super) fn losses_and_gradients(
    rt: &Arc<CudaRuntime>,
    config: DiceCe,
    scales: &[(&Tensor, f64)],
    target: &Tensor,
) -> Result<(Losses, Vec<Tensor>)> {
    if scales.len() > MAX_SCALES {
        let what = format!("{} scales, expected at most {MAX_SCALES} on a CUDA device", scales.len());
        return Err(Error::Argument { op: OP, what });
    }
    let first = scales[0].0;
    let (batch, _, classes) = map_dims(OP, "logits", first)?;
    check_classes(classes)?;
    let &[b, d, h, w] = target.dims() else {
        return Err(Error::Shape {
            op: OP,
            what: "target",
            got: target.shape().clone(),
            expected: "[B, D, H, W]".into(),
        });
    };
    let element = element_type(OP, first.dtype())?;
    let (mut list, mut gradients) = (Vec::new(), Vec::new());
    for &(logits, weight) in scales {
        let (n, size, k) = map_dims(OP, "logits", logits)?;
        if (n, k, logits.dtype()) != (b, classes, first.dtype()) {
            return Err(Error::Shape {
                op: OP,
                what: "logits",
                got: logits.shape().clone(),
                expected: format!("batch {b}, {classes} classes and {:?}, as the rest", first.dtype()),
            });
        }
        let (grad, grad_address) = rt.empty(logits.dtype(), logits.shape())?;
        list.push(Scale { logits: address(OP, rt, logits)?, grad: grad_address, size, weight });
        gradients.push(grad);
    }
    let target = on_device(rt, target, classes)?;
    let target_data = Target { data: address(OP, rt, &target)?, size: [d, h, w] };
    // SAFETY: the addresses are those of tensors of these shapes.
    let buffers = unsafe { cuda::loss_and_gradients(&**rt, config, &list, target_data, batch, classes, element)? };
    let losses = Losses { rt: rt.clone(), buffers, weights: scales.iter().map(|s| s.1).collect(), classes };
    Ok((losses, gradients))
}

/// The loss of one scale as candle's custom op has it. Shapes have been checked.
pub(super) fn op(x: &CudaStorage, layout: &Layout, target: &Tensor, config: DiceCe) -> Result<CudaStorage> {
    let (batch, d, h, w, classes) = layout.shape().dims5()?;
    let rt = CudaRuntime::of(x.device());
    let target = on_device(&rt, target, classes)?;
    let (_unused, grad) = rt.empty_storage(x.dtype(), layout.shape().elem_count())?;
    let scale = Scale { logits: storage_address(OP, x, layout)?, grad, size: [d, h, w], weight: 1.0 };
    let target_data = Target { data: address(OP, &rt, &target)?, size: [d, h, w] };
    let element = element_type(OP, x.dtype())?;
    // SAFETY: the addresses are those of tensors of these shapes.
    let losses = unsafe { cuda::loss_and_gradients(&*rt, config, &[scale], target_data, batch, classes, element)? };
    for status in rt.download::<u32>(&losses.status)? {
        if status > 0 {
            return Err(unknown_label(i64::from(status) - 1, classes));
        }
    }
    Ok(rt.storage::<f32>(losses.loss, 1))
}
