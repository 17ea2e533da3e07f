//! Backends: the kernels of every op, on the CPU and on CUDA devices.
//!
//! An op checks its arguments and calls the kernels that [`of`] returns for them; it contains no code for a particular device. Each
//! op's folder has the trait of its kernels (`kernels.rs`), their CPU implementation (`cpu.rs`) and their CUDA
//! implementation (`cuda/`).

use crate::conv3d::kernels::Conv3dKernels;
use crate::elementwise::kernels::ElementwiseKernels;
use crate::error::{Error, Result};
use crate::gumbel_softmax::kernels::GumbelSoftmaxKernels;
use crate::loss::kernels::DiceCeKernels;
use crate::norm_act::kernels::NormActKernels;
use adw_cuda::device::CudaRuntime;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// Kernels of every op on one kind of device.
pub(crate) trait Backend:
    Conv3dKernels + NormActKernels + DiceCeKernels + GumbelSoftmaxKernels + ElementwiseKernels
{
}

impl<T: Conv3dKernels + NormActKernels + DiceCeKernels + GumbelSoftmaxKernels + ElementwiseKernels> Backend for T {}

/// Kernels on the processor, for tensors in the host's memory.
pub(crate) struct Cpu;

/// Kernels for the device that holds `tensor`.
///
/// # Errors
/// If this build has no kernels for that device.
pub(crate) fn of(op: &'static str, tensor: &Tensor) -> Result<Arc<dyn Backend>> {
    match tensor.device() {
        Device::Cpu => Ok(Arc::new(Cpu)),
        Device::Cuda(device) => Ok(CudaRuntime::of(device)?),
        Device::Metal(_) => Err(Error::Device { op }),
    }
}
