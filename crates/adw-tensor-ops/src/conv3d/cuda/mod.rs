//! Passes of the convolution on a CUDA device: tensors in, launches of `conv3d.cu` or calls of cuDNN out.

mod correlate;
mod cudnn;
mod grad_weight;
pub(crate) mod maps;
mod operands;
mod shape;
mod tiling;
pub(crate) mod weights;

#[cfg(test)]
mod launch_tests;
#[cfg(test)]
mod tests;

use super::kernels::{Conv3dKernels, Input, input_dims};
use crate::cuda::MapShape;
use crate::cuda::tensors::{check_voxels, empty, f32_address, map_address, precision_of};
use crate::error::{Error, Result};
use crate::geometry::Conv3dGeometry;
use crate::map::map_dims;
use crate::norm_act::Moments;
use crate::norm_act::cuda::forward::moments;
use crate::norm_act::cuda::tensors::{coefficients, partial_moments};
use crate::precision::Precision;
use crate::storage::Computed;
use adw_cuda::device::CudaRuntime;
use candle_core::{DType, Tensor};
use maps::SourceMap;
use shape::{ConvShape, supports};
use std::ops::Range;
use weights::Weights;

/// Shape of a pass over `inputs`, or an error if the kernels do not support it.
fn conv_shape(
    op: &'static str,
    map: &Tensor,
    num_maps: usize,
    size: [usize; 3],
    geometry: Conv3dGeometry,
) -> Result<ConvShape> {
    let refuse = |what: String| Err(Error::Argument { op, what });
    let batch = map.dims()[0];
    if !supports(&geometry) {
        return refuse(format!(
            "kernel {:?}, stride {:?} and dilation {:?}, expected on a CUDA device a kernel of at most 8 along an axis and 27 \
             in all, strides of at most 32, and dilation only with stride 1 and a dilated kernel of at most 5 along an axis",
            geometry.kernel, geometry.stride, geometry.dilation
        ));
    }
    if batch > 65535 {
        return refuse(format!("batch {batch}, expected at most 65535 on a CUDA device"));
    }
    if num_maps > 2 {
        return refuse(format!("{num_maps} inputs, expected one or two on a CUDA device"));
    }
    check_voxels(op, size)?;
    check_voxels(op, geometry.output_size(op, size)?)?;
    Ok(ConvShape { batch, size, geometry, precision: precision_of(op, map)? })
}

/// Map as the kernels read it. All maps of a pass have the element type of `like`.
fn source(op: &'static str, rt: &CudaRuntime, input: Input, like: &Tensor) -> Result<SourceMap> {
    let (_, _, channels) = map_dims(op, "input", input.map)?;
    if input.map.dtype() != like.dtype() {
        return Err(Error::dtype(op, input.map.dtype(), "that of the other maps"));
    }
    let data = map_address(op, rt, input.map)?;
    Ok(match input.norm {
        None => SourceMap::plain(data, channels),
        Some(n) => {
            n.check(op, input.map)?;
            SourceMap::normalised(data, channels, &coefficients(rt, n)?)
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

impl Conv3dKernels for CudaRuntime {
    fn conv3d(
        &self,
        inputs: &[Input],
        weight: &Tensor,
        geometry: Conv3dGeometry,
        _: Precision,
        with_moments: bool,
    ) -> Result<(Computed, Option<Moments>)> {
        const OP: &str = "conv3d";
        let (batch, size, _) = input_dims(OP, inputs)?;
        let shape = conv_shape(OP, inputs[0].map, inputs.len(), size, geometry)?;
        let (maps, weights) = (sources(OP, self, inputs)?, weights(OP, self, weight)?);
        let [d, h, w] = geometry.output_size(OP, size)?;
        let (y, out) = empty(self, inputs[0].map.dtype(), (batch, d, h, w, weights.co))?;
        // SAFETY: the addresses are those of tensors of these shapes.
        let parts = unsafe {
            if cudnn::forward(self, &shape, &maps, &weights, out)? {
                let (precision, channels) = (shape.precision, weights.co);
                let shape = MapShape { batch, voxels: d * h * w, channels, precision };
                with_moments.then(|| moments(self, out, &shape)).transpose()?
            } else {
                correlate::forward(self, &shape, &maps, &weights, out, with_moments)?
            }
        };
        let moments = parts.map(|p| partial_moments(self, p, batch, weights.co)).transpose()?;
        Ok((y, moments))
    }

    fn conv3d_grad_input(
        &self,
        grad_output: Input,
        weight: &Tensor,
        geometry: Conv3dGeometry,
        _: Precision,
        size: [usize; 3],
        channels: Range<usize>,
    ) -> Result<Computed> {
        const OP: &str = "conv3d input gradient";
        let shape = conv_shape(OP, grad_output.map, 1, size, geometry)?;
        let grad = source(OP, self, grad_output, grad_output.map)?;
        let weights = weights(OP, self, weight)?;
        let dims = (shape.batch, size[0], size[1], size[2], channels.len());
        let (gradient, out) = empty(self, grad_output.map.dtype(), dims)?;
        // SAFETY: the addresses are those of tensors of these shapes.
        unsafe {
            if !cudnn::grad_input(self, &shape, grad, &weights, &channels, out)? {
                correlate::grad_input(self, &shape, grad, &weights, channels, out)?;
            }
        }
        Ok(gradient)
    }

    fn conv3d_grad_weight(
        &self,
        inputs: &[Input],
        grad_output: Input,
        geometry: Conv3dGeometry,
        _: Precision,
    ) -> Result<Computed> {
        const OP: &str = "conv3d weight gradient";
        let (_, size, ci) = input_dims(OP, inputs)?;
        let shape = conv_shape(OP, inputs[0].map, inputs.len(), size, geometry)?;
        let (maps, grad) = (sources(OP, self, inputs)?, source(OP, self, grad_output, inputs[0].map)?);
        let [kd, kh, kw] = geometry.kernel;
        let (gradient, out) = empty(self, DType::F32, (grad.channels, ci, kd, kh, kw))?;
        // SAFETY: the addresses are those of tensors of these shapes.
        unsafe {
            if !cudnn::grad_weight(self, &shape, &maps, grad, out)? {
                grad_weight::grad_weight(self, &shape, &maps, grad, out)?;
            }
        }
        Ok(gradient)
    }
}
