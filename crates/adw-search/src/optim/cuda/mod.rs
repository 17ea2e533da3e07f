//! Optimisers on a CUDA device: a few launches of `optim.cu` over all parameters.

mod launch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use adw_cuda::{Address, Buffer};
use candle_core::op::BackpropOp;
use candle_core::{DType, Storage, Tensor};
use launch::{List, SlotEntry, chunks};

use super::backend::{Clipping, OptimKernels, Scale};
use super::config::{AdamConfig, SgdConfig};
use super::slots::Update;
use crate::{Error, Result};

fn f32_address(rt: &CudaRuntime, t: &Tensor) -> Result<Address> {
    let found = (t.dtype() == DType::F32).then(|| rt.address(t)).flatten();
    found.ok_or_else(|| Error::Shape {
        what: "a tensor of an optimiser".into(),
        expected: "contiguous f32 on the CUDA device of its parameter".into(),
        got: format!("{:?} {:?} on {:?}", t.dtype(), t.shape(), t.device().location()),
    })
}

/// Entry of a weight with its gradient and state; tensors that are `None` are absent.
fn entry(
    rt: &CudaRuntime,
    weight: &Tensor,
    gradient: Option<&Tensor>,
    first: Option<&Tensor>,
    second: Option<&Tensor>,
) -> Result<SlotEntry> {
    let address = |t: Option<&Tensor>| t.map_or(Ok(Address::NONE), |t| f32_address(rt, t));
    Ok(SlotEntry {
        weight: f32_address(rt, weight)?,
        grad: address(gradient)?,
        first: address(first)?,
        second: address(second)?,
        len: weight.elem_count() as u64,
    })
}

/// Entries and chunks on the device; they are freed with this.
struct Uploaded {
    slots: DeviceBuffer,
    chunks: DeviceBuffer,
    num_chunks: usize,
    elements: usize,
}

impl Uploaded {
    fn new(rt: &CudaRuntime, entries: &[SlotEntry]) -> Result<Self> {
        let chunks = chunks(entries);
        Ok(Self {
            slots: rt.upload(entries)?,
            chunks: rt.upload(&chunks)?,
            num_chunks: chunks.len(),
            elements: entries.iter().map(|e| e.len as usize).sum(),
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

/// Address of the factor, and its memory if it was copied to the device.
fn scale_address(rt: &CudaRuntime, scale: &Scale) -> Result<(Option<DeviceBuffer>, Address)> {
    Ok(match scale {
        Scale::Known(1.0) => (None, Address::NONE),
        Scale::Known(factor) => {
            let buffer = rt.upload(&[*factor as f32])?;
            let address = buffer.address();
            (Some(buffer), address)
        }
        Scale::OnDevice(factor) => (None, f32_address(rt, factor)?),
    })
}

impl OptimKernels for CudaRuntime {
    fn sgd(&self, updates: &[Update<1>], config: &SgdConfig, lr: f64, scale: &Scale) -> Result<()> {
        let entries = updates.iter().map(|u| entry(self, &u.weight, Some(&u.gradient), Some(&u.state[0]), None));
        let uploaded = Uploaded::new(self, &entries.collect::<Result<Vec<_>>>()?)?;
        let (_memory, scale) = scale_address(self, scale)?;
        // SAFETY: all tensors of an update have the weight's shape, and their addresses have been checked.
        unsafe { launch::sgd(self, &uploaded.list(), config, lr, scale)? };
        Ok(())
    }

    /// One launch for all parameters that have had the same number of updates.
    fn adam(&self, updates: &[Update<2>], config: &AdamConfig, lr: f64, scale: &Scale) -> Result<()> {
        let mut by_steps: BTreeMap<i32, Vec<SlotEntry>> = BTreeMap::new();
        for Update { weight, gradient, state: [mean, square], steps } in updates {
            by_steps.entry(*steps).or_default().push(entry(self, weight, Some(gradient), Some(mean), Some(square))?);
        }
        let (_memory, scale) = scale_address(self, scale)?;
        for (steps, entries) in by_steps {
            let uploaded = Uploaded::new(self, &entries)?;
            // SAFETY: as in `sgd`.
            unsafe { launch::adam(self, &uploaded.list(), config, steps, lr, scale)? };
        }
        Ok(())
    }

    fn ema(&self, pairs: &[(&Tensor, &Tensor)], decay: f64) -> Result<()> {
        let entries = pairs.iter().map(|(weight, average)| entry(self, weight, None, Some(average), None));
        let uploaded = Uploaded::new(self, &entries.collect::<Result<Vec<_>>>()?)?;
        // SAFETY: as in `sgd`.
        unsafe { launch::ema(self, &uploaded.list(), decay)? };
        Ok(())
    }

    fn clip(&self, gradients: &[Option<Tensor>], max_norm: f64) -> Result<Clipping> {
        let entries = gradients.iter().flatten().map(|g| entry(self, g, Some(g), None, None));
        let uploaded = Uploaded::new(self, &entries.collect::<Result<Vec<_>>>()?)?;
        // SAFETY: as in `sgd`; the norm only reads gradients.
        let found = unsafe { launch::gradient_norm(self, &uploaded.list(), max_norm)? };
        let storage = Storage::Cuda(self.storage(found.scale, DType::F32, 1)?);
        let scale = Tensor::from_storage(storage, 1, BackpropOp::none(), false);
        let rt = Self::of(self.device())?;
        let norm = Box::new(move || Ok(rt.download::<f64>(&found.norm)?[0]));
        Ok(Clipping::OnDevice { scale, norm })
    }
}
