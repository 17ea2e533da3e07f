//! Moments and coefficients as tensors, and as kernels read them.

use super::super::kernels::{Moments, MomentsData, NormCoefficients, OP};
use super::operands::{Coefficients, PartialMoments};
use crate::cuda::tensors::{f32_address, f32_tensor};
use crate::error::Result;
use adw_cuda::Address;
use adw_cuda::device::{CudaRuntime, DeviceBuffer};

/// Moments of parts of a map as tensors.
pub(crate) fn partial_moments(
    rt: &CudaRuntime,
    parts: PartialMoments<DeviceBuffer>,
    batch: usize,
    channels: usize,
) -> Result<Moments> {
    let values = f32_tensor(rt, parts.partial, (batch, parts.chunks, channels, 2))?;
    let counts = f32_tensor(rt, parts.counts, (batch, parts.chunks))?;
    Ok(Moments(MomentsData::Partial { values, counts }))
}

/// Addresses of a map's coefficients.
pub(crate) fn coefficients(rt: &CudaRuntime, n: &NormCoefficients) -> Result<Coefficients<Address>> {
    let vector = |t| f32_address(OP, rt, t);
    let (mean, variance, scale, shift) = (vector(&n.mean)?, vector(&n.variance)?, vector(&n.scale)?, vector(&n.shift)?);
    Ok(Coefficients { mean, variance, scale, shift, config: n.config })
}
