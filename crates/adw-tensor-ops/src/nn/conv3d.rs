use super::{check_channels, check_groups, check_vector, in_groups, kernel_size, weight_and_bias};
use crate::geometry::Conv3dGeometry;
use candle_core::Tensor;
use candle_nn::{Module, VarBuilder};

/// Options of a [`Conv3d`], with the defaults of PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dConfig {
    /// Distance of neighbouring output voxels, in input voxels; default 1.
    pub stride: [usize; 3],
    /// Zeros added before and after the input; default 0.
    pub padding: [usize; 3],
    /// Distance of neighbouring kernel elements, in input voxels; default 1.
    pub dilation: [usize; 3],
    /// Number of groups of channels: each group of outputs sees its group of inputs only. Default 1.
    pub groups: usize,
}

impl Default for Conv3dConfig {
    fn default() -> Self {
        Self { stride: [1; 3], padding: [0; 3], dilation: [1; 3], groups: 1 }
    }
}

/// 3D convolution, `y = conv3d(x, weight) + bias`: PyTorch's `nn.Conv3d` with zero padding.
#[derive(Clone, Debug)]
pub struct Conv3d {
    weight: Tensor,
    bias: Option<Tensor>,
    geometry: Conv3dGeometry,
    groups: usize,
}

const OP: &str = "Conv3d";

impl Conv3d {
    /// Layer with these parameters: `weight [Cout, Cin / groups, kD, kH, kW]`, `bias [Cout]`.
    ///
    /// # Errors
    /// If the shapes do not fit together or `groups` does not divide the output channels.
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv3dConfig) -> candle_core::Result<Self> {
        let kernel = kernel_size(OP, &weight, "[Cout, Cin / groups, kD, kH, kW]")?;
        if let Some(bias) = &bias {
            check_vector(OP, "bias", bias, weight.dims()[0])?;
        }
        check_groups(OP, config.groups, &weight.dims()[..1])?;
        let Conv3dConfig { stride, padding, dilation, groups } = config;
        Ok(Self { weight, bias, geometry: Conv3dGeometry { kernel, stride, padding, dilation }, groups })
    }

    /// `[Cout, Cin / groups, kD, kH, kW]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[Cout]`, if the layer has a bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Conv3d {
    /// `x`: `[B, Cin, D, H, W]`; returns `[B, Cout, D', H', W']` with
    /// `D' = floor((D + 2 padding - dilation (kernel - 1) - 1) / stride) + 1`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        check_channels(OP, x, self.weight.dims()[1] * self.groups)?;
        let conv = |x: &Tensor, w: &Tensor| crate::conv3d(x, w, self.geometry);
        Ok(in_groups(x, &self.weight, self.bias.as_ref(), self.groups, conv)?)
    }
}

/// [`Conv3d`] with the variables `weight` and `bias` of `vb`.
///
/// # Errors
/// If `groups` does not divide both numbers of channels, or `vb` has variables of other shapes.
pub fn conv3d(
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 3],
    config: Conv3dConfig,
    vb: VarBuilder,
) -> candle_core::Result<Conv3d> {
    build([in_channels, out_channels], kernel, config, Some(out_channels), &vb)
}

/// [`Conv3d`] with the variable `weight` of `vb` and no bias.
///
/// # Errors
/// If `groups` does not divide both numbers of channels, or `vb` has a variable of another shape.
pub fn conv3d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 3],
    config: Conv3dConfig,
    vb: VarBuilder,
) -> candle_core::Result<Conv3d> {
    build([in_channels, out_channels], kernel, config, None, &vb)
}

fn build(
    channels: [usize; 2],
    [kd, kh, kw]: [usize; 3],
    config: Conv3dConfig,
    num_biases: Option<usize>,
    vb: &VarBuilder,
) -> candle_core::Result<Conv3d> {
    check_groups(OP, config.groups, &channels)?;
    let [ci, co] = channels;
    let (weight, bias) = weight_and_bias([co, ci / config.groups, kd, kh, kw], num_biases, vb)?;
    Conv3d::new(weight, bias, config)
}
