use super::{check_channels, check_groups, check_vector, in_groups, kernel_size, weight_and_bias};
use crate::conv_transpose3d::with_geometry;
use crate::geometry::Conv3dGeometry;
use candle_core::Tensor;
use candle_nn::{Module, VarBuilder};

/// Options of a [`ConvTranspose3d`], with the defaults of PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose3dConfig {
    /// Distance of the outputs of neighbouring input voxels, in output voxels; default 1.
    pub stride: [usize; 3],
    /// Output voxels that are cut off at either end; default 0.
    pub padding: [usize; 3],
    /// Voxels by which the output is longer at its end, less than the stride or less than the dilation; default 0.
    pub output_padding: [usize; 3],
    /// Distance of neighbouring kernel elements, in output voxels; default 1.
    pub dilation: [usize; 3],
    /// Number of groups of channels: each group of outputs sees its group of inputs only. Default 1.
    pub groups: usize,
}

impl Default for ConvTranspose3dConfig {
    fn default() -> Self {
        Self { stride: [1; 3], padding: [0; 3], output_padding: [0; 3], dilation: [1; 3], groups: 1 }
    }
}

/// Transposed 3D convolution, the input gradient of a [`Conv3d`](super::Conv3d), plus bias: PyTorch's `nn.ConvTranspose3d`.
#[derive(Clone, Debug)]
pub struct ConvTranspose3d {
    weight: Tensor,
    bias: Option<Tensor>,
    geometry: Conv3dGeometry,
    output_padding: [usize; 3],
    groups: usize,
}

const OP: &str = "ConvTranspose3d";

impl ConvTranspose3d {
    /// Layer with these parameters: `weight [Cin, Cout / groups, kD, kH, kW]`, `bias [Cout]`.
    ///
    /// # Errors
    /// If the shapes do not fit together or `groups` does not divide the input channels.
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: ConvTranspose3dConfig) -> candle_core::Result<Self> {
        let kernel = kernel_size(OP, &weight, "[Cin, Cout / groups, kD, kH, kW]")?;
        if let Some(bias) = &bias {
            check_vector(OP, "bias", bias, weight.dims()[1] * config.groups)?;
        }
        check_groups(OP, config.groups, &weight.dims()[..1])?;
        let ConvTranspose3dConfig { stride, padding, output_padding, dilation, groups } = config;
        let geometry = Conv3dGeometry { kernel, stride, padding, dilation };
        Ok(Self { weight, bias, geometry, output_padding, groups })
    }

    /// `[Cin, Cout / groups, kD, kH, kW]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[Cout]`, if the layer has a bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for ConvTranspose3d {
    /// `x`: `[B, Cin, D, H, W]`; returns `[B, Cout, D', H', W']` with
    /// `D' = (D - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        check_channels(OP, x, self.weight.dims()[0])?;
        let conv = |x: &Tensor, w: &Tensor| with_geometry(x, w, self.geometry, self.output_padding);
        Ok(in_groups(x, &self.weight, self.bias.as_ref(), self.groups, conv)?)
    }
}

/// [`ConvTranspose3d`] with the variables `weight` and `bias` of `vb`.
///
/// # Errors
/// If `groups` does not divide both numbers of channels, or `vb` has variables of other shapes.
pub fn conv_transpose3d(
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 3],
    config: ConvTranspose3dConfig,
    vb: VarBuilder,
) -> candle_core::Result<ConvTranspose3d> {
    build([in_channels, out_channels], kernel, config, Some(out_channels), &vb)
}

/// [`ConvTranspose3d`] with the variable `weight` of `vb` and no bias.
///
/// # Errors
/// If `groups` does not divide both numbers of channels, or `vb` has a variable of another shape.
pub fn conv_transpose3d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 3],
    config: ConvTranspose3dConfig,
    vb: VarBuilder,
) -> candle_core::Result<ConvTranspose3d> {
    build([in_channels, out_channels], kernel, config, None, &vb)
}

fn build(
    channels: [usize; 2],
    [kd, kh, kw]: [usize; 3],
    config: ConvTranspose3dConfig,
    num_biases: Option<usize>,
    vb: &VarBuilder,
) -> candle_core::Result<ConvTranspose3d> {
    check_groups(OP, config.groups, &channels)?;
    let [ci, co] = channels;
    let (weight, bias) = weight_and_bias([ci, co / config.groups, kd, kh, kw], num_biases, vb)?;
    ConvTranspose3d::new(weight, bias, config)
}
