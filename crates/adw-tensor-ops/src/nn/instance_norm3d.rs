use super::{check_channels, check_vector};
use crate::error::Error;
use crate::norm_act::{NormAct, norm_act};
use candle_core::Tensor;
use candle_nn::{Init, Module, VarBuilder};

/// Options of an [`InstanceNorm3d`], with the defaults of PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceNorm3dConfig {
    /// Number added to the variance; default 1e-5.
    pub eps: f64,
    /// Scale and shift every channel by learnt numbers; default false.
    pub affine: bool,
    /// Slope for negative values of a LeakyReLU that is applied in the same pass; default none (no activation).
    pub leaky_relu_slope: Option<f64>,
}

impl Default for InstanceNorm3dConfig {
    fn default() -> Self {
        Self { eps: 1e-5, affine: false, leaky_relu_slope: None }
    }
}

/// Normalisation of every channel of every sample to mean 0 and variance 1, `(x - mean) / sqrt(variance + eps) * weight + bias`:
/// PyTorch's `nn.InstanceNorm3d` without running statistics.
#[derive(Clone, Debug)]
pub struct InstanceNorm3d {
    weight: Tensor,
    bias: Tensor,
    norm: NormAct,
}

const OP: &str = "InstanceNorm3d";

impl InstanceNorm3d {
    /// Layer with these parameters, `[C]` each: ones and zeros for a layer without learnt numbers.
    ///
    /// # Errors
    /// If the shapes differ, or `eps` is not above 0.
    pub fn new(weight: Tensor, bias: Tensor, config: InstanceNorm3dConfig) -> candle_core::Result<Self> {
        check_vector(OP, "bias", &bias, weight.elem_count())?;
        check_vector(OP, "weight", &weight, bias.elem_count())?;
        if config.eps.is_nan() || config.eps <= 0.0 {
            return Err(
                Error::Argument { op: OP, what: format!("eps is {}, expected a number above 0", config.eps) }.into()
            );
        }
        // A slope of 1 is no activation.
        let norm = NormAct { eps: config.eps, slope: config.leaky_relu_slope.unwrap_or(1.0) };
        Ok(Self { weight, bias, norm })
    }

    /// Factor of every channel, `[C]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Summand of every channel, `[C]`.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }
}

impl Module for InstanceNorm3d {
    /// `x`: `[B, C, D, H, W]`; returns the same shape.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        check_channels(OP, x, self.weight.elem_count())?;
        Ok(norm_act(x, &self.weight, &self.bias, self.norm)?)
    }
}

/// [`InstanceNorm3d`] with the variables `weight` and `bias` of `vb` if `config.affine`, else without variables.
///
/// # Errors
/// If `vb` has variables of other shapes.
pub fn instance_norm3d(
    channels: usize,
    config: InstanceNorm3dConfig,
    vb: VarBuilder,
) -> candle_core::Result<InstanceNorm3d> {
    let (weight, bias) = if config.affine {
        (
            vb.get_with_hints(channels, "weight", Init::Const(1.0))?,
            vb.get_with_hints(channels, "bias", Init::Const(0.0))?,
        )
    } else {
        (Tensor::ones(channels, vb.dtype(), vb.device())?, Tensor::zeros(channels, vb.dtype(), vb.device())?)
    };
    InstanceNorm3d::new(weight, bias, config)
}
