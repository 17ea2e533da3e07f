//! The passes on a CUDA device: tensors in, launches of `conv3d.cu` out.

use super::chosen;
use super::cuda::{self, Layer, SourceMap, Weights};
use super::{Input, Moments, input_dims};
use crate::error::{Error, Result};
use crate::geometry::Conv3dGeometry;
use crate::map::map_dims;
use crate::on_device::{element_type, f32_address, f32_storage_address, map_address, storage_address};
use adw_cuda::device::CudaRuntime;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Tensor};
use std::ops::Range;

fn check(op: &'static str, geometry: Conv3dGeometry, batch: usize, num_maps: usize) -> Result<()> {
    let refuse = |what: String| Err(Error::Argument { op, what });
    if !cuda::supports(&geometry) {
        return refuse(format!(
            "kernel {:?}, expected at most 8 along an axis and 27 in all on a CUDA device",
            geometry.kernel
        ));
    }
    if batch > 65535 {
        return refuse(format!("batch {batch}, expected at most 65535 on a CUDA device"));
    }
    if num_maps > 2 {
        return refuse(format!("{num_maps} inputs, expected one or two on a CUDA device"));
    }
    Ok(())
}

/// A map as the kernels read it. All maps of a pass have one element type.
fn source(op: &'static str, rt: &CudaRuntime, input: Input, like: &Tensor) -> Result<SourceMap> {
    let (_, _, channels) = map_dims(op, "input", input.map)?;
    if input.map.dtype() != like.dtype() {
        let got = input.map.dtype();
        return Err(Error::DType { op, got });
    }
    let data = map_address(op, rt, input.map)?;
    Ok(match input.norm {
        None => SourceMap::plain(data, channels),
        Some(n) => {
            n.check(op, input.map)?;
            SourceMap::normalised(data, channels, &n.on_device(rt)?)
        }
    })
}

fn sources(op: &'static str, rt: &CudaRuntime, inputs: &[Input]) -> Result<Vec<SourceMap>> {
    inputs.iter().map(|i| source(op, rt, *i, inputs[0].map)).collect()
}

fn weights(op: &'static str, rt: &CudaRuntime, weight: &Tensor) -> Result<Weights> {
    let dims = weight.dims();
    Ok(Weights { data: f32_address(op, rt, weight)?, co: dims[0], ci: dims[1] })
}

/// Shapes have been checked.
pub(super) fn forward(
    rt: &CudaRuntime,
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    with_moments: bool,
) -> Result<(Tensor, Option<Moments>)> {
    const OP: &str = "conv3d";
    let (batch, size, _) = input_dims(OP, inputs)?;
    check(OP, geometry, batch, inputs.len())?;
    let (maps, weights) = (sources(OP, rt, inputs)?, weights(OP, rt, weight)?);
    let layer = Layer { batch, size, geometry, element: element_type(OP, inputs[0].map.dtype())? };
    let [d, h, w] = geometry.output_size(OP, size)?;
    let (out, out_address) = rt.empty(inputs[0].map.dtype(), (batch, d, h, w, weights.co))?;
    // SAFETY: the addresses are those of tensors of these shapes.
    let parts = unsafe { chosen::forward(rt, &layer, &maps, &weights, out_address, with_moments)? };
    let moments = parts.map(|p| Moments::partial(rt, p, batch, weights.co));
    Ok((out, moments))
}

/// Shapes have been checked.
pub(super) fn grad_input(
    rt: &CudaRuntime,
    grad_output: Input,
    weight: &Tensor,
    geometry: Conv3dGeometry,
    size: [usize; 3],
    channels: Range<usize>,
) -> Result<Tensor> {
    const OP: &str = "conv3d input gradient";
    let (batch, _, _) = map_dims(OP, "grad_output", grad_output.map)?;
    check(OP, geometry, batch, 1)?;
    let grad = source(OP, rt, grad_output, grad_output.map)?;
    let weights = weights(OP, rt, weight)?;
    let layer = Layer { batch, size, geometry, element: element_type(OP, grad_output.map.dtype())? };
    let shape = (batch, size[0], size[1], size[2], channels.len());
    let (out, out_address) = rt.empty(grad_output.map.dtype(), shape)?;
    // SAFETY: the addresses are those of tensors of these shapes.
    unsafe {
        chosen::grad_input(rt, &layer, grad, &weights, channels, out_address)?;
    }
    Ok(out)
}

/// Shapes have been checked.
pub(super) fn grad_weight(
    rt: &CudaRuntime,
    inputs: &[Input],
    grad_output: Input,
    geometry: Conv3dGeometry,
) -> Result<Tensor> {
    const OP: &str = "conv3d weight gradient";
    let (batch, size, ci) = input_dims(OP, inputs)?;
    check(OP, geometry, batch, inputs.len())?;
    let (maps, grad) = (sources(OP, rt, inputs)?, source(OP, rt, grad_output, inputs[0].map)?);
    let layer = Layer { batch, size, geometry, element: element_type(OP, grad_output.map.dtype())? };
    let [kd, kh, kw] = geometry.kernel;
    let shape = (grad.channels, ci, kd, kh, kw);
    let (out, out_address) = rt.empty(candle_core::DType::F32, shape)?;
    // SAFETY: the addresses are those of tensors of these shapes.
    unsafe {
        chosen::grad_weight(rt, &layer, &maps, grad, out_address)?;
    }
    Ok(out)
}

/// The two passes that candle's custom ops have.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    /// [`forward`] of one map.
    Conv3d,
    /// [`grad_input`]: the forward pass of a transposed convolution.
    ConvTranspose3d,
}

/// A pass of `x`, whose output has this size. Shapes have been checked.
pub(crate) fn op(
    which: Op,
    x: &CudaStorage,
    x_layout: &Layout,
    weight: &CudaStorage,
    weight_layout: &Layout,
    geometry: Conv3dGeometry,
    output: [usize; 3],
) -> Result<CudaStorage> {
    let name = match which {
        Op::Conv3d => "conv3d",
        Op::ConvTranspose3d => "conv_transpose3d",
    };
    let (batch, d, h, w, channels) = x_layout.shape().dims5()?;
    check(name, geometry, batch, 1)?;
    let weights = Weights {
        data: f32_storage_address(name, weight, weight_layout)?,
        co: weight_layout.dims()[0],
        ci: weight_layout.dims()[1],
    };
    let map = SourceMap::plain(storage_address(name, x, x_layout)?, channels);
    let layer = Layer {
        batch,
        size: match which {
            Op::Conv3d => [d, h, w],
            Op::ConvTranspose3d => output,
        },
        geometry,
        element: element_type(name, x.dtype())?,
    };
    let channels_out = match which {
        Op::Conv3d => weights.co,
        Op::ConvTranspose3d => weights.ci,
    };
    let rt = &*CudaRuntime::of(x.device());
    let len = batch * output.iter().product::<usize>() * channels_out;
    let (out, to) = rt.empty_storage(x.dtype(), len)?;
    // SAFETY: the addresses are those of tensors of these shapes.
    unsafe {
        match which {
            Op::Conv3d => {
                let maps = [map];
                chosen::forward(rt, &layer, &maps, &weights, to, false)?;
            }
            Op::ConvTranspose3d => {
                let all = 0..channels_out;
                chosen::grad_input(rt, &layer, map, &weights, all, to)?;
            }
        }
    }
    Ok(out)
}
