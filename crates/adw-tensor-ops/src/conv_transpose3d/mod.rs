//! Transposed 3D convolution with kernel = stride: the U-Net's upsampling. Every input voxel becomes a block of
//! `stride` output voxels, and blocks do not overlap.
//!
//! It is the input gradient of a strided convolution, so all passes are those of [`conv3d`](crate::conv3d()).

#[cfg(test)]
mod tests;

use crate::conv3d::{self, Input, Precision};
use crate::error::{Error, Result};
use crate::geometry::{Conv3dGeometry, num_elements};
use crate::map::{channels_first, channels_last, map_dims};
use crate::storage::{cpu_slice, with_element};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, WithDType};

fn stride_of(op: &'static str, weight: &Tensor) -> Result<[usize; 3]> {
    match *weight.dims() {
        [_, _, d, h, w] => Ok([d, h, w]),
        _ => Err(Error::Shape {
            op,
            what: "weight",
            got: weight.shape().clone(),
            expected: "[Cin, Cout, sD, sH, sW]".into(),
        }),
    }
}

fn upsampled(size: [usize; 3], stride: [usize; 3]) -> [usize; 3] {
    [0, 1, 2].map(|i| size[i].saturating_mul(stride[i]))
}

/// `y[b, i * stride + k, co] = sum over ci: x[b, i, ci] * weight[ci, co, k]`.
///
/// `x`: `[B, D, H, W, Cin]`; `weight`: `[Cin, Cout, sD, sH, sW]`. Returns `[B, D sD, H sH, W sW, Cout]`. No gradient is
/// recorded.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn forward(x: Input, weight: &Tensor) -> Result<Tensor> {
    const OP: &str = "conv_transpose3d";
    let stride = stride_of(OP, weight)?;
    let (_, size, ci) = map_dims(OP, "x", x.map)?;
    let co = weight.dims()[1];
    if weight.dims()[0] != ci {
        let expected = format!("[{ci}, Cout, sD, sH, sW]");
        return Err(Error::Shape { op: OP, what: "weight", got: weight.shape().clone(), expected });
    }
    conv3d::grad_input(
        x,
        weight,
        Conv3dGeometry::non_overlapping(stride),
        upsampled(size, stride),
        0..co,
        Precision::Full,
    )
}

/// The gradient of [`forward`] for its input: `[B, D, H, W, Cin]`.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn grad_input(grad_output: &Tensor, weight: &Tensor) -> Result<Tensor> {
    const OP: &str = "conv_transpose3d input gradient";
    let stride = stride_of(OP, weight)?;
    let (_, size, _) = map_dims(OP, "grad_output", grad_output)?;
    if [0, 1, 2].iter().any(|&i| stride[i] == 0 || !size[i].is_multiple_of(stride[i])) {
        let expected = format!("a multiple of the stride {stride:?} on every axis");
        let got = grad_output.shape().clone();
        return Err(Error::Shape { op: OP, what: "grad_output", got, expected });
    }
    conv3d::forward_plain(&[grad_output.into()], weight, Conv3dGeometry::non_overlapping(stride), Precision::Full)
}

/// The gradient of [`forward`] for its weight: `[Cin, Cout, sD, sH, sW]`.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn grad_weight(x: Input, grad_output: &Tensor, stride: [usize; 3]) -> Result<Tensor> {
    const OP: &str = "conv_transpose3d weight gradient";
    let (_, size, _) = map_dims(OP, "x", x.map)?;
    let (_, grad_size, _) = map_dims(OP, "grad_output", grad_output)?;
    if grad_size != upsampled(size, stride) {
        let expected = format!("size {:?}, the input's times the stride", upsampled(size, stride));
        let got = grad_output.shape().clone();
        return Err(Error::Shape { op: OP, what: "grad_output", got, expected });
    }
    conv3d::grad_weight(&[grad_output.into()], x, Conv3dGeometry::non_overlapping(stride), Precision::Full)
}

/// Transposed convolution with gradients: `x [B, Cin, D, H, W]`, `weight [Cin, Cout, sD, sH, sW]` to
/// `[B, Cout, D sD, H sH, W sW]`. The same as PyTorch's `conv_transpose3d` with stride = kernel size.
///
/// # Errors
/// If shapes or element types (f32 or f64, CPU) do not fit together.
pub fn conv_transpose3d(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    stride_of("conv_transpose3d", weight)?;
    let x = channels_last("conv_transpose3d", x)?;
    num_elements("conv_transpose3d", "weight", weight.dims())?;
    channels_first(&x.apply_op2(&weight.contiguous()?, ConvTranspose3d)?)
}

struct ConvTranspose3d;

/// Stride, output size and output channels.
fn op_shapes(x: &Layout, weight: &Layout) -> Result<([usize; 3], [usize; 3], usize)> {
    let (_, d, h, w, ci) = x.shape().dims5()?;
    let (wi, co, sd, sh, sw) = weight.shape().dims5()?;
    if wi != ci {
        return Err(Error::Shape {
            op: "conv_transpose3d",
            what: "weight",
            got: weight.shape().clone(),
            expected: format!("[{ci}, Cout, sD, sH, sW]"),
        });
    }
    let stride = [sd, sh, sw];
    Ok((stride, upsampled([d, h, w], stride), co))
}

impl CustomOp2 for ConvTranspose3d {
    fn name(&self) -> &'static str {
        "conv_transpose3d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        const OP: &str = "conv_transpose3d";
        let (b, d, h, w, ci) = x_layout.shape().dims5()?;
        let size = [d, h, w];
        let (stride, out, co) = op_shapes(x_layout, weight_layout)?;
        let storage = with_element!(OP, x, T => {
            let source = conv3d::tile::Source { data: cpu_slice::<T>(OP, x, x_layout)?, channels: ci, norm: None };
            let y = conv3d::grad_input_cpu(
                conv3d::Means::best(),
                &[source],
                b,
                size,
                cpu_slice::<T>(OP, weight, weight_layout)?,
                co,
                Conv3dGeometry::non_overlapping(stride),
                out,
                0..co,
            );
            Ok(T::to_cpu_storage_owned(y))
        })?;
        Ok((storage, (b, out[0], out[1], out[2], co).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let (stride, out, co) = op_shapes(x_layout, weight_layout)?;
        let geometry = Conv3dGeometry::non_overlapping(stride);
        let y = conv3d::on_device::op(
            conv3d::on_device::Op::ConvTranspose3d,
            x,
            x_layout,
            weight,
            weight_layout,
            geometry,
            out,
        )?;
        Ok((y, (x_layout.dims()[0], out[0], out[1], out[2], co).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad_y: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad_y = grad_y.contiguous()?;
        let stride = stride_of("conv_transpose3d", weight)?;
        Ok((Some(grad_input(&grad_y, weight)?), Some(grad_weight(x.into(), &grad_y, stride)?)))
    }
}
