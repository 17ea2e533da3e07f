//! Kernels of the optimisers, on the CPU and on CUDA devices.

use std::fmt;
use std::sync::Arc;

use adw_cuda::device::CudaRuntime;
use candle_core::{Device, Tensor};

use super::config::{AdamConfig, SgdConfig};
use super::slots::Update;
use crate::{Error, Result};

/// Factor that gradients are multiplied by in a step.
#[derive(Debug)]
pub enum Scale {
    /// A number.
    Known(f64),
    /// One f32 on the gradients' device, which the next step reads there.
    OnDevice(Tensor),
}

/// Norm of all gradients, and the factor that clips them.
pub(super) enum Clipping {
    /// On the host: the norm.
    Known(f64),
    /// On a device: the factor (one f32), and a function that waits for the norm.
    OnDevice { scale: Tensor, norm: Box<dyn FnOnce() -> Result<f64>> },
}

impl fmt::Debug for Clipping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(norm) => write!(f, "norm {norm}"),
            Self::OnDevice { .. } => f.write_str("norm on a device"),
        }
    }
}

/// Kernels on one kind of device; they update weights and state in place.
pub(super) trait OptimKernels {
    /// Step of [`Sgd`](super::Sgd); the state is the velocity.
    fn sgd(&self, updates: &[Update<1>], config: &SgdConfig, lr: f64, scale: &Scale) -> Result<()>;

    /// Step of [`Adam`](super::Adam); the state is the mean of gradients and that of their squares.
    fn adam(&self, updates: &[Update<2>], config: &AdamConfig, lr: f64, scale: &Scale) -> Result<()>;

    /// Update of [`Ema`](super::Ema) with pairs of a weight and its average.
    fn ema(&self, pairs: &[(&Tensor, &Tensor)], decay: f64) -> Result<()>;

    /// Norm of all gradients together, and the factor that clips it to `max_norm`.
    fn clip(&self, gradients: &[Option<Tensor>], max_norm: f64) -> Result<Clipping>;
}

/// Kernels on the processor.
pub(super) struct Cpu;

/// Kernels for the device that holds `tensor`.
///
/// # Errors
/// If this build has none for that device.
pub(super) fn of(tensor: &Tensor) -> Result<Arc<dyn OptimKernels>> {
    match tensor.device() {
        Device::Cpu => Ok(Arc::new(Cpu)),
        Device::Cuda(device) => Ok(CudaRuntime::of(device)?),
        Device::Metal(_) => Err(Error::Shape {
            what: "a tensor of an optimiser".into(),
            expected: "one on the CPU or a CUDA device".into(),
            got: format!("{:?}", tensor.device().location()),
        }),
    }
}
