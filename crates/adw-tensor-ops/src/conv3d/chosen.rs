//! The three passes on a device, by kernels of this crate or, in builds with cuDNN, by cuDNN if that is faster for the shape.
//!
//! What cuDNN cannot do on the way costs launches of their own: maps are normalised and joined before it, moments taken
//! after it. They count when the two are compared. Its weight gradients of bf16 maps are rounded to bf16.

use super::cuda::{self, SourceMap, Weights};
use crate::cuda::ElementType;
use crate::geometry::Conv3dGeometry;
use crate::norm_act::cuda::PartialMoments;
use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use adw_cuda::{Address, Result};
use std::ops::Range;

#[cfg(feature = "cudnn")]
use super::operands;
#[cfg(feature = "cudnn")]
use crate::cuda::MapShape;
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
    maps: &[SourceMap],
    batch: usize,
    size: [usize; 3],
    weights: &Weights,
    geometry: Conv3dGeometry,
    element: ElementType,
    out: Address,
    moments: bool,
) -> Result<Option<PartialMoments<DeviceBuffer>>> {
    // SAFETY: as the caller vouches.
    let own = || unsafe {
        cuda::forward(
            rt, maps, batch, size, weights, geometry, element, out, moments,
        )
    };
    #[cfg(feature = "cudnn")]
    if operands::supports(maps, element) {
        let c = convolution(batch, size, weights.ci, weights.co, geometry, element);
        let taps: usize = c.kernel.iter().product();
        let shape = MapShape {
            batch,
            voxels: c.output.iter().product(),
            channels: c.channels_out,
            element,
        };
        let job = job(Pass::Forward, c, maps, None, moments);
        return rt.convolve(&job, SOURCES, |call| {
            let Some(call) = call else { return own() };
            // SAFETY: as the caller vouches; what is made here has the sizes of the shapes.
            unsafe {
                let x = operands::plain(rt, maps, batch, size.iter().product(), element)?;
                let w = operands::filter(rt, weights, taps, &(0..weights.ci), element)?;
                call.run([x.address, w.address(), out])?;
                moments
                    .then(|| crate::norm_act::cuda::moments(rt, out, &shape))
                    .transpose()
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
    grad_output: SourceMap,
    batch: usize,
    size: [usize; 3],
    weights: &Weights,
    geometry: Conv3dGeometry,
    wanted: Range<usize>,
    element: ElementType,
    out: Address,
) -> Result<()> {
    let own = || {
        let wanted = wanted.clone();
        // SAFETY: as the caller vouches.
        unsafe {
            cuda::grad_input(
                rt,
                grad_output,
                batch,
                size,
                weights,
                geometry,
                wanted,
                element,
                out,
            )
        }
    };
    #[cfg(feature = "cudnn")]
    if operands::supports(&[grad_output], element) {
        let c = convolution(batch, size, wanted.len(), weights.co, geometry, element);
        let [taps, voxels] = [c.kernel, c.output].map(|v| v.iter().product::<usize>());
        let job = job(Pass::GradInput, c, &[], Some(&grad_output), false);
        return rt.convolve(&job, SOURCES, |call| {
            let Some(call) = call else { return own() };
            // SAFETY: as the caller vouches; what is made here has the sizes of the shapes.
            unsafe {
                let y = operands::plain(rt, &[grad_output], batch, voxels, element)?;
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
    maps: &[SourceMap],
    grad_output: SourceMap,
    batch: usize,
    size: [usize; 3],
    geometry: Conv3dGeometry,
    element: ElementType,
    out: Address,
) -> Result<()> {
    // SAFETY: as the caller vouches.
    let own =
        || unsafe { cuda::grad_weight(rt, maps, grad_output, batch, size, geometry, element, out) };
    #[cfg(feature = "cudnn")]
    if operands::supports(maps, element) && operands::supports(&[grad_output], element) {
        let ci = maps.iter().map(|m| m.channels).sum();
        let c = convolution(batch, size, ci, grad_output.channels, geometry, element);
        let [taps, inputs, outputs] =
            [c.kernel, c.input, c.output].map(|v| v.iter().product::<usize>());
        let job = job(Pass::GradWeight, c, maps, Some(&grad_output), false);
        return rt.convolve(&job, SOURCES, |call| {
            let Some(call) = call else { return own() };
            let dims = [c.channels_out, ci, taps];
            let w = rt.alloc(dims.iter().product::<usize>() * element.size())?;
            // SAFETY: as the caller vouches; what is made here has the sizes of the shapes.
            unsafe {
                let x = operands::plain(rt, maps, batch, inputs, element)?;
                let y = operands::plain(rt, &[grad_output], batch, outputs, element)?;
                call.run([x.address, w.address(), y.address])?;
                operands::weight_gradient(rt, w.address(), element, dims, out)
            }
        });
    }
    own()
}

#[cfg(feature = "cudnn")]
fn convolution(
    batch: usize,
    input: [usize; 3],
    channels_in: usize,
    channels_out: usize,
    geometry: Conv3dGeometry,
    element: ElementType,
) -> Convolution {
    Convolution {
        bf16: element == ElementType::Bf16,
        batch,
        channels_in,
        channels_out,
        input,
        output: geometry
            .output_size("conv3d", input)
            .expect("checked by the caller"),
        kernel: geometry.kernel,
        stride: geometry.stride,
        padding: geometry.padding,
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
fn job(
    pass: Pass,
    convolution: Convolution,
    maps: &[SourceMap],
    grad: Option<&SourceMap>,
    moments: bool,
) -> Job {
    let mut operands = Operands {
        gradient_normalised: grad.is_some_and(|g| g.norm.is_some()),
        moments,
        ..Operands::default()
    };
    for (i, map) in maps.iter().enumerate() {
        (operands.channels[i], operands.normalised[i]) = (map.channels, map.norm.is_some());
    }
    Job {
        pass,
        convolution,
        operands,
    }
}
