//! Transposed 3D convolution: the input gradient of a strided convolution, so all passes are those of
//! [`conv3d`](crate::conv3d()).
//!
//! [`forward`], [`grad_input`] and [`grad_weight`] are the U-Net's upsampling, kernel = stride: every input voxel becomes a
//! block of `stride` output voxels, and blocks do not overlap. [`with_geometry`] takes any kernel, stride and padding.

#[cfg(test)]
mod tests;

use crate::Precision;
use crate::autograd::record2;
use crate::conv3d::{self, Input};
use crate::error::{Error, Result};
use crate::geometry::{Conv3dGeometry, num_elements};
use crate::map::{channels_first, channels_last, map_dims};
use candle_core::Tensor;

const OP: &str = "conv_transpose3d";

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
    let stride = stride_of(OP, weight)?;
    let (_, size, ci) = map_dims(OP, "x", x.map)?;
    let co = weight.dims()[1];
    if weight.dims()[0] != ci {
        let expected = format!("[{ci}, Cout, sD, sH, sW]");
        return Err(Error::Shape { op: OP, what: "weight", got: weight.shape().clone(), expected });
    }
    let geometry = Conv3dGeometry::non_overlapping(stride);
    conv3d::grad_input(x, weight, geometry, upsampled(size, stride), 0..co, Precision::Full)
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
/// If shapes or element types do not fit together.
pub fn conv_transpose3d(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    with_geometry(x, weight, Conv3dGeometry::non_overlapping(stride_of(OP, weight)?), [0; 3])
}

/// Transposed convolution with gradients for any geometry: `x [B, Cin, D, H, W]`, `weight [Cin, Cout, kD, kH, kW]` to
/// `[B, Cout, D', H', W']` of the size that [`Conv3dGeometry::transposed_size`] returns. The same as PyTorch's
/// `conv_transpose3d` without bias, in one group.
///
/// # Errors
/// If shapes or element types do not fit together, or the output padding is smaller than neither stride nor dilation.
///
/// ```
/// use adw_tensor_ops::{Conv3dGeometry, conv_transpose3d};
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::randn(0f32, 1., (1, 8, 4, 5, 6), &Device::Cpu)?;
/// let weight = Tensor::randn(0f32, 1., (8, 3, 3, 3, 3), &Device::Cpu)?;
/// let y = conv_transpose3d::with_geometry(&x, &weight, Conv3dGeometry::same([3; 3], [2; 3]), [1; 3])?;
/// assert_eq!(y.dims(), [1, 3, 8, 10, 12]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_geometry(
    x: &Tensor,
    weight: &Tensor,
    geometry: Conv3dGeometry,
    output_padding: [usize; 3],
) -> Result<Tensor> {
    let x = channels_last(OP, x)?;
    num_elements(OP, "weight", weight.dims())?;
    let (_, size, ci) = map_dims(OP, "x", &x)?;
    let [kd, kh, kw] = geometry.kernel;
    let co = match *weight.dims() {
        [wi, co, d, h, w] if wi == ci && [d, h, w] == geometry.kernel => co,
        _ => {
            let expected = format!("[{ci}, Cout, {kd}, {kh}, {kw}]");
            return Err(Error::Shape { op: OP, what: "weight", got: weight.shape().clone(), expected });
        }
    };
    let out = geometry.transposed_size(OP, size, output_padding)?;
    // Whole strides of output padding are what voxels of 0 behind the input would reach.
    let zeros = [0, 1, 2].map(|i| output_padding[i] / geometry.stride[i]);
    let x = (0..3).try_fold(x, |x, i| if zeros[i] == 0 { Ok(x) } else { x.pad_with_zeros(i + 1, 0, zeros[i]) })?;
    let weight = weight.contiguous()?;
    let y = conv3d::compute_grad_input((&x).into(), &weight, geometry, out, 0..co, Precision::Full)?;
    let y = record2(OP, [&x, &weight], y, move |[x, weight], grad_y| {
        let grad_x = || conv3d::forward_plain(&[grad_y.into()], weight, geometry, Precision::Full);
        let grad_weight = || conv3d::grad_weight(&[grad_y.into()], x.into(), geometry, Precision::Full);
        Ok([x.track_op().then(grad_x).transpose()?, weight.track_op().then(grad_weight).transpose()?])
    })?;
    channels_first(&y)
}
