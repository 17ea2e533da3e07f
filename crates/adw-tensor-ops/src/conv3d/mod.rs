//! 3D convolution: forward, input gradient, weight gradient.
//!
//! [`conv3d`] is the op for everyone: tensors in candle's usual order `[B, C, D, H, W]`, gradients through candle's
//! `backward`. Maps are computed and returned *channels last* (the result is a `[B, C, D, H, W]` view of memory in the
//! order `[B, D, H, W, C]`), so a chain of these ops converts nothing.
//!
//! [`forward`], [`grad_input`] and [`grad_weight`] are the parts it is made of, for networks that write their backward
//! pass out: they take `[B, D, H, W, C]` maps, several of them side by side as channels of one input, each optionally
//! normalised while it is read.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "amx/absent.rs"]
pub(crate) mod amx;
pub(crate) mod bf16;
mod cpu;
pub(crate) mod cuda;
mod direct;
mod job;
pub(crate) mod kernels;
mod packed_weight;
mod packing;
mod partial_sums;
mod partition;
pub(crate) mod tile;
mod winograd;

#[cfg(test)]
mod tests;

use crate::autograd::record2;
use crate::backend;
use crate::error::{Error, Result};
use crate::geometry::{Conv3dGeometry, num_elements};
use crate::map::{channels_first, channels_last, map_dims};
use crate::norm_act::Moments;
use crate::precision::Precision;
use crate::storage::Computed;
use candle_core::Tensor;
use kernels::input_dims;
use std::ops::Range;

pub use kernels::Input;

fn check_weight(op: &'static str, weight: &Tensor, expected: [usize; 5]) -> Result<()> {
    num_elements(op, "weight", weight.dims())?;
    if weight.dims() == expected {
        return Ok(());
    }
    Err(Error::Shape { op, what: "weight", got: weight.shape().clone(), expected: format!("{expected:?}") })
}

/// Output channels of a weight `[Cout, ci, kD, kH, kW]`.
fn weight_channels(op: &'static str, weight: &Tensor, ci: usize, kernel: [usize; 3]) -> Result<usize> {
    num_elements(op, "weight", weight.dims())?;
    let [kd, kh, kw] = kernel;
    match *weight.dims() {
        [co, i, d, h, w] if i == ci && [d, h, w] == kernel => Ok(co),
        _ => Err(Error::Shape {
            op,
            what: "weight",
            got: weight.shape().clone(),
            expected: format!("[Cout, {ci}, {kd}, {kh}, {kw}]"),
        }),
    }
}

/// `y[b, o, co] = sum over ci, k: x[b, o * stride + k * dilation - padding, ci] * weight[co, ci, k]`, and the mean and variance of
/// every channel of every sample of `y`, taken while it is written.
///
/// `inputs`: maps `[B, D, H, W, Ci]`, their channels side by side; `weight`: `[Cout, sum Ci, kD, kH, kW]`. Returns
/// `[B, D', H', W', Cout]`. No gradient is recorded.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn forward(
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Result<(Tensor, Moments)> {
    let (y, moments) = compute(inputs, weight, geometry, precision, true)?;
    Ok((y.into_tensor(), moments.expect("kernels return the moments that they are asked for")))
}

/// [`forward`] without the moments.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn forward_plain(
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    Ok(compute(inputs, weight, geometry, precision, false)?.0.into_tensor())
}

/// Checks the arguments of [`forward`] and runs its kernel.
fn compute(
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    precision: Precision,
    with_moments: bool,
) -> Result<(Computed, Option<Moments>)> {
    const OP: &str = "conv3d";
    let (batch, size, ci) = input_dims(OP, inputs)?;
    let co = weight_channels(OP, weight, ci, geometry.kernel)?;
    let [d, h, w] = geometry.output_size(OP, size)?;
    geometry.check_padded(OP, size, ci.max(co))?;
    num_elements(OP, "output", &[batch, d, h, w, co])?;
    backend::of(OP, weight)?.conv3d(inputs, weight, geometry, precision, with_moments)
}

/// The gradient of [`forward`] for the input channels `channels`, of spatial size `size`: `[B, D, H, W, len]`.
///
/// `grad_output`: `[B, D', H', W', Cout]`; `weight`: `[Cout, Cin, kD, kH, kW]`.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn grad_input(
    grad_output: Input,
    weight: &Tensor,
    geometry: Conv3dGeometry,
    size: [usize; 3],
    channels: Range<usize>,
    precision: Precision,
) -> Result<Tensor> {
    Ok(compute_grad_input(grad_output, weight, geometry, size, channels, precision)?.into_tensor())
}

/// Checks the arguments of [`grad_input`] and runs its kernel.
pub(crate) fn compute_grad_input(
    grad_output: Input,
    weight: &Tensor,
    geometry: Conv3dGeometry,
    size: [usize; 3],
    channels: Range<usize>,
    precision: Precision,
) -> Result<Computed> {
    const OP: &str = "conv3d input gradient";
    let (batch, out, co) = map_dims(OP, "grad_output", grad_output.map)?;
    let [kd, kh, kw] = geometry.kernel;
    let ci = weight.dims().get(1).copied().unwrap_or(0);
    check_weight(OP, weight, [co, ci, kd, kh, kw])?;
    if geometry.output_size(OP, size)? != out {
        return Err(Error::Shape {
            op: OP,
            what: "grad_output",
            got: grad_output.map.shape().clone(),
            expected: format!("the output size of an input of {size:?}"),
        });
    }
    geometry.check_padded(OP, size, ci.max(co))?;
    num_elements(OP, "gradient", &[batch, size[0], size[1], size[2], ci])?;
    if channels.is_empty() || channels.end > ci {
        return Err(Error::Argument {
            op: OP,
            what: format!("channels {channels:?}, expected a range within 0..{ci}"),
        });
    }
    backend::of(OP, weight)?.conv3d_grad_input(grad_output, weight, geometry, precision, size, channels)
}

/// The gradient of [`forward`] for the weight: `[Cout, Cin, kD, kH, kW]`.
///
/// `inputs`: as in the forward pass; `grad_output`: `[B, D', H', W', Cout]`.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn grad_weight(
    inputs: &[Input],
    grad_output: Input,
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    const OP: &str = "conv3d weight gradient";
    let (batch, size, ci) = input_dims(OP, inputs)?;
    let (b, out, co) = map_dims(OP, "grad_output", grad_output.map)?;
    if b != batch || geometry.output_size(OP, size)? != out {
        return Err(Error::Shape {
            op: OP,
            what: "grad_output",
            got: grad_output.map.shape().clone(),
            expected: format!("batch {batch} and the output size of an input of {size:?}"),
        });
    }
    geometry.check_padded(OP, size, ci.max(co))?;
    let kernels = backend::of(OP, grad_output.map)?;
    Ok(kernels.conv3d_grad_weight(inputs, grad_output, geometry, precision)?.into_tensor())
}

/// 3D convolution with gradients: `x [B, Cin, D, H, W]`, `weight [Cout, Cin, kD, kH, kW]` to `[B, Cout, D', H', W']`.
///
/// The same as PyTorch's `conv3d` without bias, in one group. Channels-last inputs (such as this op's
/// results) are taken as they lie; others are copied once.
///
/// # Errors
/// If shapes or element types do not fit together.
///
/// ```
/// use adw_tensor_ops::{Conv3dGeometry, conv3d};
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::randn(0f32, 1., (2, 3, 8, 10, 6), &Device::Cpu)?;
/// let weight = Tensor::randn(0f32, 1., (16, 3, 3, 3, 3), &Device::Cpu)?;
/// let y = conv3d(&x, &weight, Conv3dGeometry::same([3, 3, 3], [2, 2, 2]))?;
/// assert_eq!(y.dims(), [2, 16, 4, 5, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn conv3d(x: &Tensor, weight: &Tensor, geometry: Conv3dGeometry) -> Result<Tensor> {
    let x = channels_last("conv3d", x)?;
    num_elements("conv3d", "weight", weight.dims())?;
    let weight = weight.contiguous()?;
    let (y, _) = compute(&[Input::from(&x)], &weight, geometry, Precision::Full, false)?;
    let y = record2("conv3d", [&x, &weight], y, move |[x, weight], grad_y| {
        let (_, size, channels) = map_dims("conv3d", "x", x)?;
        let grad_x = || grad_input(grad_y.into(), weight, geometry, size, 0..channels, Precision::Full);
        let grad_weight = || grad_weight(&[Input::from(x)], grad_y.into(), geometry, Precision::Full);
        Ok([x.track_op().then(grad_x).transpose()?, weight.track_op().then(grad_weight).transpose()?])
    })?;
    channels_first(&y)
}
