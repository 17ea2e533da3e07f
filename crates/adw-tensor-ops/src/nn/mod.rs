//! Layers in the style of candle-nn: a config, a constructor that takes a [`VarBuilder`], and [`Module`].
//!
//! | layer | constructors | matches PyTorch's |
//! |---|---|---|
//! | [`Conv3d`] | [`conv3d()`], [`conv3d_no_bias`] | `nn.Conv3d` with zero padding |
//! | [`ConvTranspose3d`] | [`conv_transpose3d()`], [`conv_transpose3d_no_bias`] | `nn.ConvTranspose3d` |
//! | [`InstanceNorm3d`] | [`instance_norm3d()`] | `nn.InstanceNorm3d` without running statistics, optionally with LeakyReLU |
//!
//! Parameters have PyTorch's names (`weight`, `bias`), shapes and initial distributions, so weights that PyTorch saved as
//! safetensors load by [`VarBuilder::from_mmaped_safetensors`](candle_nn::VarBuilder::from_mmaped_safetensors). Maps are
//! `[B, C, D, H, W]`; kernels, strides, paddings and dilations are `[usize; 3]` in D, H, W. Gradients are candle's.
//!
//! ```
//! use adw_tensor_ops::nn::{Conv3dConfig, InstanceNorm3dConfig, conv3d, instance_norm3d};
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Module, VarBuilder, VarMap};
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let conv = conv3d(1, 8, [3; 3], Conv3dConfig { padding: [1; 3], ..Default::default() }, vb.pp("conv"))?;
//! let norm = InstanceNorm3dConfig { affine: true, leaky_relu_slope: Some(0.01), ..Default::default() };
//! let norm = instance_norm3d(8, norm, vb.pp("norm"))?;
//! let x = Tensor::randn(0f32, 1., (2, 1, 6, 8, 8), &Device::Cpu)?;
//! let y = norm.forward(&conv.forward(&x)?)?;
//! assert_eq!(y.dims(), [2, 8, 6, 8, 8]);
//! assert_eq!(variables.all_vars().len(), 4);
//! # Ok::<(), candle_core::Error>(())
//! ```

#![allow(clippy::needless_pass_by_value, reason = "constructors take a VarBuilder by value, as candle-nn's do")]

mod conv3d;
mod conv_transpose3d;
mod instance_norm3d;

#[cfg(test)]
mod tests;

pub use conv_transpose3d::{ConvTranspose3d, ConvTranspose3dConfig, conv_transpose3d, conv_transpose3d_no_bias};
pub use conv3d::{Conv3d, Conv3dConfig, conv3d, conv3d_no_bias};
pub use instance_norm3d::{InstanceNorm3d, InstanceNorm3dConfig, instance_norm3d};

use crate::error::{Error, Result};
use crate::map::{channels_first, check_vector};
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

#[cfg(doc)]
use candle_nn::Module;

/// Spatial size of a kernel `[_, _, kD, kH, kW]`.
fn kernel_size(op: &'static str, weight: &Tensor, expected: &str) -> Result<[usize; 3]> {
    match *weight.dims() {
        [_, _, d, h, w] => Ok([d, h, w]),
        _ => Err(Error::Shape { op, what: "weight", got: weight.shape().clone(), expected: expected.into() }),
    }
}

fn check_channels(op: &'static str, x: &Tensor, channels: usize) -> Result<()> {
    if x.rank() == 5 && x.dims()[1] == channels {
        return Ok(());
    }
    Err(Error::Shape { op, what: "x", got: x.shape().clone(), expected: format!("[B, {channels}, D, H, W]") })
}

fn check_groups(op: &'static str, groups: usize, channels: &[usize]) -> Result<()> {
    if groups > 0 && channels.iter().all(|c| c.is_multiple_of(groups)) {
        return Ok(());
    }
    let what = format!("groups is {groups}, expected a divisor of the numbers of channels {channels:?}");
    Err(Error::Argument { op, what })
}

/// Weight of the given shape from `vb`, and a bias if `num_biases` is given. New ones are uniform within
/// `1 / sqrt(fan in)`, where the fan in is the product of all dimensions of the weight but the first, as in PyTorch.
fn weight_and_bias(
    shape: [usize; 5],
    num_biases: Option<usize>,
    vb: &VarBuilder,
) -> candle_core::Result<(Tensor, Option<Tensor>)> {
    let fan_in: usize = shape[1..].iter().product();
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    let init = Init::Uniform { lo: -bound, up: bound };
    let weight = vb.get_with_hints(&shape[..], "weight", init)?;
    let bias = num_biases.map(|n| vb.get_with_hints(n, "bias", init)).transpose()?;
    Ok((weight, bias))
}

/// Applies `op` to every group of channels of `x` with its part of `weight`'s first dimension, puts the results side by side,
/// and adds the bias.
fn in_groups(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    groups: usize,
    op: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let y = if groups == 1 {
        op(x, weight)?
    } else {
        let parts = x.chunk(groups, 1)?.into_iter().zip(weight.chunk(groups, 0)?);
        // The ops' results lie channels last in memory; joined as such they need no copy in front of the next op.
        let parts = parts.map(|(x, w)| Ok(op(&x, &w)?.permute((0, 2, 3, 4, 1))?)).collect::<Result<Vec<_>>>()?;
        channels_first(&Tensor::cat(&parts, 4)?)?
    };
    match bias {
        None => Ok(y),
        Some(bias) => channels_first(&y.permute((0, 2, 3, 4, 1))?.broadcast_add(bias)?),
    }
}
