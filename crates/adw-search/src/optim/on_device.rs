//! Steps on a CUDA device: tensors in, a few launches of `optim.cu` over all parameters out.

use std::sync::Arc;

use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use adw_cuda::{Address, Buffer};
use candle_core::{DType, Tensor};

use super::cuda::{self, GradientNorm, List, Slot, chunks};
use super::{AdamConfig, Scale, SgdConfig};
use crate::{Error, Result};

/// What a step reads and writes of one parameter.
pub(super) struct Entry {
    pub(super) weight: Tensor,
    pub(super) grad: Option<Tensor>,
    pub(super) first: Option<Tensor>,
    pub(super) second: Option<Tensor>,
}

fn f32_address(rt: &CudaRuntime, t: Option<&Tensor>) -> Result<Address> {
    let Some(t) = t else {
        return Ok(Address::NONE);
    };
    let found = (t.dtype() == DType::F32).then(|| rt.address(t)).flatten();
    found.ok_or_else(|| Error::Shape {
        what: "a tensor of an optimiser".into(),
        expected: "contiguous f32 on the CUDA device of its parameter".into(),
        got: format!("{:?} {:?} on {:?}", t.dtype(), t.shape(), t.device().location()),
    })
}

/// Slots and chunks on the device; they live as long as this.
struct Uploaded {
    slots: DeviceBuffer,
    chunks: DeviceBuffer,
    num_chunks: usize,
    elements: usize,
}

impl Uploaded {
    fn new(rt: &CudaRuntime, entries: &[Entry]) -> Result<Self> {
        let slots = entries
            .iter()
            .map(|e| {
                Ok(Slot {
                    weight: f32_address(rt, Some(&e.weight))?,
                    grad: f32_address(rt, e.grad.as_ref())?,
                    first: f32_address(rt, e.first.as_ref())?,
                    second: f32_address(rt, e.second.as_ref())?,
                    len: e.weight.elem_count() as u64,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let chunks = chunks(&slots);
        Ok(Self {
            slots: rt.upload(&slots)?,
            chunks: rt.upload(&chunks)?,
            num_chunks: chunks.len(),
            elements: entries.iter().map(|e| e.weight.elem_count()).sum(),
        })
    }

    fn list(&self) -> List {
        List {
            slots: self.slots.address(),
            chunks: self.chunks.address(),
            num_chunks: self.num_chunks,
            elements: self.elements,
        }
    }
}

/// The factor's place on the device.
fn scale(rt: &CudaRuntime, scale: &Scale) -> Result<(Option<DeviceBuffer>, Address)> {
    Ok(match scale {
        Scale::Known(1.0) => (None, Address::NONE),
        Scale::Known(factor) => {
            let buffer = rt.upload(&[*factor as f32])?;
            let address = buffer.address();
            (Some(buffer), address)
        }
        Scale::OnDevice(clipping) => (None, clipping.norm.scale.address()),
    })
}

pub(super) fn sgd(rt: &CudaRuntime, entries: &[Entry], config: &SgdConfig, lr: f64, factor: &Scale) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let (uploaded, (_kept, factor)) = (Uploaded::new(rt, entries)?, scale(rt, factor)?);
    // SAFETY: the entries' tensors have been checked, and a gradient's shape is that of its parameter.
    unsafe { cuda::sgd(rt, &uploaded.list(), config, lr, factor)? };
    Ok(())
}

/// `steps` counts the updates of these parameters, this one included.
pub(super) fn adam(
    rt: &CudaRuntime,
    entries: &[Entry],
    config: &AdamConfig,
    steps: i32,
    lr: f64,
    factor: &Scale,
) -> Result<()> {
    let (uploaded, (_kept, factor)) = (Uploaded::new(rt, entries)?, scale(rt, factor)?);
    // SAFETY: as in `sgd`.
    unsafe { cuda::adam(rt, &uploaded.list(), config, steps, lr, factor)? };
    Ok(())
}

pub(super) fn ema(rt: &CudaRuntime, entries: &[Entry], decay: f64) -> Result<()> {
    let uploaded = Uploaded::new(rt, entries)?;
    // SAFETY: as in `sgd`.
    unsafe { cuda::ema(rt, &uploaded.list(), decay)? };
    Ok(())
}

/// Norm and factor of gradients that lie on a device, still there.
pub struct Clipping {
    rt: Arc<CudaRuntime>,
    norm: GradientNorm<DeviceBuffer>,
}

impl std::fmt::Debug for Clipping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clipping(on a CUDA device)")
    }
}

impl Clipping {
    /// The norm, once the device has it.
    pub(super) fn norm(&self) -> Result<f64> {
        Ok(self.rt.download::<f64>(&self.norm.norm)?[0])
    }
}

/// Norm of all gradients, left on the device.
pub(super) fn clip(rt: Arc<CudaRuntime>, gradients: &[&Tensor], max_norm: f64) -> Result<Clipping> {
    let entries: Vec<_> = gradients
        .iter()
        .map(|g| Entry { weight: (*g).clone(), grad: Some((*g).clone()), first: None, second: None })
        .collect();
    let uploaded = Uploaded::new(&rt, &entries)?;
    // SAFETY: as in `sgd`; the norm only reads gradients.
    let norm = unsafe { cuda::gradient_norm(&*rt, &uploaded.list(), max_norm)? };
    Ok(Clipping { rt, norm })
}
