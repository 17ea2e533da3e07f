//! The three passes on a device, by kernels of this crate or, in builds with cuDNN, by cuDNN if that is faster for the shape.
//!
//! What cuDNN cannot do on the way costs launches of their own: maps are normalised and joined before it, moments taken
//! after it. They count when the two are compared. Its weight gradients of bf16 maps are rounded to bf16.

use super::cuda::{self, Layer, SourceMap, Weights};
use crate::norm_act::cuda::PartialMoments;
use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use adw_cuda::{Address, Result};
use std::ops::Range;

#[cfg(feature = "cudnn")]
use super::operands;
#[cfg(feature = "cudnn")]
use crate::cuda::{ElementType, MapShape};
#[cfg(feature = "cudnn")]
use crate::geometry::Conv3dGeometry;
#[cfg(feature = "cudnn")]
use adw_cuda::convolutions::{Job, Operands};
#[cfg(feature = "cudnn")]
use adw_cuda::cudnn::{Convolution, Pass};
#[cfg(feature = "cudnn")]
use adw_cuda::{Buffer, Runtime};

/// [`cuda::forward`].
///
/// # Safety
/// As there.
///
/// # Errors
/// As there.
pub(super) unsafe fn forward(
    rt: &CudaRuntime,
    layer: &Layer,
    maps: &[SourceMap],
    weights: &Weights,
    out: Address,
    moments: bool,
) -> Result<Option<PartialMoments<DeviceBuffer>>> {
    // SAFETY: as the caller vouches.
    let own = || unsafe { cuda::forward(rt, layer, maps, weights, out, moments) };
    #[cfg(feature = "cudnn")]
    if operands::supports(maps, layer.element) {
        let (c, element) = (convolution(layer, weights.ci, weights.co), layer.element);
        let [taps, inputs] = [c.kernel, c.input].map(|v| v.iter().product::<usize>());
        let shape = MapShape { batch: c.batch, voxels: c.output.iter().product(), channels: c.channels_out, element };
        let job = job(Pass::Forward, c, maps, None, moments);
        return rt.convolve(&job, SOURCES, |call| {
            let Some(call) = call else { return own() };
            // SAFETY: as the caller vouches; what is made here has the sizes of the shapes.
            unsafe {
                let x = operands::plain(rt, maps, c.batch, inputs, element)?;
                let w = operands::filter(rt, weights, taps, &(0..weights.ci), element)?;
                call.run([x.address, w.address(), out])?;
                moments.then(|| crate::norm_act::cuda::moments(rt, out, &shape)).transpose()
            }
        });
    }
    own()
}

/// [`cuda::grad_input`].
///
/// # Safety
/// As there.
///
/// # Errors
/// As there.
pub(super) unsafe fn grad_input(
    rt: &CudaRuntime,
    layer: &Layer,
    grad_output: SourceMap,
    weights: &Weights,
    wanted: Range<usize>,
    out: Address,
) -> Result<()> {
    // SAFETY: as the caller vouches.
    let own = || unsafe { cuda::grad_input(rt, layer, grad_output, weights, wanted.clone(), out) };
    #[cfg(feature = "cudnn")]
    if operands::supports(&[grad_output], layer.element) {
        let (c, element) = (convolution(layer, wanted.len(), weights.co), layer.element);
        let [taps, voxels] = [c.kernel, c.output].map(|v| v.iter().product::<usize>());
        let job = job(Pass::GradInput, c, &[], Some(&grad_output), false);
        return rt.convolve(&job, SOURCES, |call| {
            let Some(call) = call else { return own() };
            // SAFETY: as the caller vouches; what is made here has the sizes of the shapes.
            unsafe {
                let y = operands::plain(rt, &[grad_output], c.batch, voxels, element)?;
                let w = operands::filter(rt, weights, taps, &wanted, element)?;
                call.run([out, w.address(), y.address])
            }
        });
    }
    own()
}

/// [`cuda::grad_weight`].
///
/// # Safety
/// As there.
///
/// # Errors
/// As there.
pub(super) unsafe fn grad_weight(
    rt: &CudaRuntime,
    layer: &Layer,
    maps: &[SourceMap],
    grad_output: SourceMap,
    out: Address,
) -> Result<()> {
    // SAFETY: as the caller vouches.
    let own = || unsafe { cuda::grad_weight(rt, layer, maps, grad_output, out) };
    #[cfg(feature = "cudnn")]
    if operands::supports(maps, layer.element) && operands::supports(&[grad_output], layer.element) {
        let ci = maps.iter().map(|m| m.channels).sum();
        let (c, element) = (convolution(layer, ci, grad_output.channels), layer.element);
        let [taps, inputs, outputs] = [c.kernel, c.input, c.output].map(|v| v.iter().product::<usize>());
        let job = job(Pass::GradWeight, c, maps, Some(&grad_output), false);
        return rt.convolve(&job, SOURCES, |call| {
            let Some(call) = call else { return own() };
            let dims = [c.channels_out, ci, taps];
            let w = rt.alloc(dims.iter().product::<usize>() * element.size())?;
            // SAFETY: as the caller vouches; what is made here has the sizes of the shapes.
            unsafe {
                let x = operands::plain(rt, maps, c.batch, inputs, element)?;
                let y = operands::plain(rt, &[grad_output], c.batch, outputs, element)?;
                call.run([x.address, w.address(), y.address])?;
                operands::weight_gradient(rt, w.address(), element, dims, out)
            }
        });
    }
    own()
}

#[cfg(feature = "cudnn")]
fn convolution(layer: &Layer, channels_in: usize, channels_out: usize) -> Convolution {
    let Conv3dGeometry { kernel, stride, padding } = layer.geometry;
    Convolution {
        bf16: layer.element == ElementType::Bf16,
        batch: layer.batch,
        channels_in,
        channels_out,
        input: layer.size,
        output: layer.output(),
        kernel,
        stride,
        padding,
    }
}

/// What the times of our own way depend on, and of the way to cuDNN and back.
#[cfg(feature = "cudnn")]
const SOURCES: &[&str] = &[
    cuda::MODULE.source,
    include_str!("cuda.rs"),
    include_str!("operands.rs"),
    include_str!("chosen.rs"),
    crate::norm_act::cuda::MODULE.source,
    include_str!("../norm_act/cuda.rs"),
];

#[cfg(feature = "cudnn")]
fn job(pass: Pass, convolution: Convolution, maps: &[SourceMap], grad: Option<&SourceMap>, moments: bool) -> Job {
    let mut operands =
        Operands { gradient_normalised: grad.is_some_and(|g| g.norm.is_some()), moments, ..Operands::default() };
    for (i, map) in maps.iter().enumerate() {
        (operands.channels[i], operands.normalised[i]) = (map.channels, map.norm.is_some());
    }
    Job { pass, convolution, operands }
}
