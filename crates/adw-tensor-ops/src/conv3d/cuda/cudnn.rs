//! Passes of the convolution by cuDNN, where [`ConvolutionBackend::Cudnn`](adw_cuda::device::ConvolutionBackend) selects it.
//!
//! Maps are normalised and joined before the pass, in a launch of their own. cuDNN's weight gradients of bf16 maps are rounded to bf16.

use super::maps::SourceMap;
use super::operands::{filter, plain, supports, weight_gradient};
use super::shape::ConvShape;
use super::weights::Weights;
use crate::precision::Precision;
use adw_cuda::device::{ConvPass, Convolution, CudaRuntime};
use adw_cuda::{Address, Buffer, Result, Runtime};
use std::ops::Range;

/// Description of the convolution; none for a dilated one, which cuDNN is not asked for.
fn convolution(shape: &ConvShape, channels_in: usize, channels_out: usize) -> Option<Convolution> {
    (shape.geometry.dilation == [1; 3]).then(|| Convolution {
        bf16: shape.precision == Precision::Bf16,
        batch: shape.batch,
        channels_in,
        channels_out,
        input: shape.size,
        output: shape.output(),
        kernel: shape.geometry.kernel,
        stride: shape.geometry.stride,
        padding: shape.geometry.padding,
    })
}

fn product(v: [usize; 3]) -> usize {
    v.iter().product()
}

/// Forward pass. Returns false if cuDNN does not run it.
///
/// # Safety
/// The addresses are those of maps `[batch, size, C]`, of the weights, and of room for `[batch, output size, Cout]`.
pub(super) unsafe fn forward(
    rt: &CudaRuntime,
    shape: &ConvShape,
    maps: &[SourceMap],
    weights: &Weights,
    out: Address,
) -> Result<bool> {
    let Some(c) = convolution(shape, weights.ci, weights.co) else { return Ok(false) };
    let precision = shape.precision;
    let Some(pass) = rt.cudnn_pass(ConvPass::Forward, &c)?.filter(|_| supports(maps, precision)) else {
        return Ok(false);
    };
    // SAFETY: the caller guarantees the addresses; what is allocated here has the sizes of the shapes.
    unsafe {
        let x = plain(rt, maps, c.batch, product(c.input), precision)?;
        let w = filter(rt, weights, product(c.kernel), &(0..weights.ci), precision)?;
        rt.run_cudnn(&pass, [x.address, w.address(), out])?;
    }
    Ok(true)
}

/// Gradient with respect to the input channels `wanted`. Returns false if cuDNN does not run the pass.
///
/// # Safety
/// The addresses are those of a map `[batch, output size, Cout]`, of the weights, and of room for
/// `[batch, size, wanted.len()]`.
pub(super) unsafe fn grad_input(
    rt: &CudaRuntime,
    shape: &ConvShape,
    grad_output: SourceMap,
    weights: &Weights,
    wanted: &Range<usize>,
    out: Address,
) -> Result<bool> {
    let Some(c) = convolution(shape, wanted.len(), weights.co) else { return Ok(false) };
    let precision = shape.precision;
    let Some(pass) = rt.cudnn_pass(ConvPass::GradInput, &c)?.filter(|_| supports(&[grad_output], precision)) else {
        return Ok(false);
    };
    // SAFETY: the caller guarantees the addresses; what is allocated here has the sizes of the shapes.
    unsafe {
        let y = plain(rt, &[grad_output], c.batch, product(c.output), precision)?;
        let w = filter(rt, weights, product(c.kernel), wanted, precision)?;
        rt.run_cudnn(&pass, [out, w.address(), y.address])?;
    }
    Ok(true)
}

/// Gradient with respect to the weight. Returns false if cuDNN does not run the pass.
///
/// # Safety
/// The addresses are those of maps `[batch, size, C]`, of a map `[batch, output size, Cout]`, and of room for the result.
pub(super) unsafe fn grad_weight(
    rt: &CudaRuntime,
    shape: &ConvShape,
    maps: &[SourceMap],
    grad_output: SourceMap,
    out: Address,
) -> Result<bool> {
    let ci = maps.iter().map(|m| m.channels).sum();
    let Some(c) = convolution(shape, ci, grad_output.channels) else { return Ok(false) };
    let precision = shape.precision;
    let is_supported = supports(maps, precision) && supports(&[grad_output], precision);
    let Some(pass) = rt.cudnn_pass(ConvPass::GradWeight, &c)?.filter(|_| is_supported) else {
        return Ok(false);
    };
    let dims = [c.channels_out, ci, product(c.kernel)];
    let w = rt.alloc(product(dims) * precision.element_bytes())?;
    // SAFETY: the caller guarantees the addresses; what is allocated here has the sizes of the shapes.
    unsafe {
        let x = plain(rt, maps, c.batch, product(c.input), precision)?;
        let y = plain(rt, &[grad_output], c.batch, product(c.output), precision)?;
        rt.run_cudnn(&pass, [x.address, w.address(), y.address])?;
        weight_gradient(rt, w.address(), precision, dims, out)?;
    }
    Ok(true)
}
