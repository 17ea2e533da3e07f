//! Backends: the kernels of every op, on the CPU and on CUDA devices.
//!
//! An op checks its arguments and calls the kernels that [`of`] returns for them; it never asks where a tensor lies. Each
//! op's folder has the trait of its kernels (`kernels.rs`), their CPU implementation (`cpu.rs`) and their CUDA
//! implementation (`cuda/`).

use crate::conv3d::kernels::Conv3dKernels;
use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// Kernels of every op on one kind of device.
pub(crate) trait Backend: Conv3dKernels {}

impl<T: Conv3dKernels> Backend for T {}

/// Kernels on the processor, for tensors in the host's memory.
pub(crate) struct Cpu;

/// Kernels for the device that holds `tensor`.
///
/// # Errors
/// If this build has no kernels for that device.
pub(crate) fn of(op: &'static str, tensor: &Tensor) -> Result<Arc<dyn Backend>> {
    match tensor.device() {
        Device::Cpu => Ok(Arc::new(Cpu)),
        _ => Err(Error::Device { op }),
    }
}
