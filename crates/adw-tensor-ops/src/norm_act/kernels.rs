//! Kernels of normalisation and activation, and their arguments.

use crate::error::{Error, Result};
use crate::map::map_dims;
use crate::storage::Computed;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// Name of the op in errors.
pub(crate) const OP: &str = "norm_act";

/// Mean and population variance of a map, per sample and channel.
///
/// On a CUDA device these are left as moments of parts of the map; the [coefficients](NormAct::coefficients) are computed
/// from them without a pass in between.
#[derive(Clone, Debug)]
pub struct Moments(pub(crate) MomentsData);

#[derive(Clone, Debug)]
pub(crate) enum MomentsData {
    /// Moments of the whole map, `[B, C]` each.
    Joined { mean: Tensor, variance: Tensor },
    /// Moments of parts of the map: `values [B, parts, C, 2]` (mean, sum of squared deviations), voxels `counts [B, parts]`.
    Partial { values: Tensor, counts: Tensor },
}

impl Moments {
    pub(crate) fn joined(mean: Tensor, variance: Tensor) -> Self {
        Self(MomentsData::Joined { mean, variance })
    }

    /// Mean and variance, `[B, C]` each; `None` for a map on a CUDA device.
    pub fn mean_and_variance(&self) -> Option<(&Tensor, &Tensor)> {
        match &self.0 {
            MomentsData::Joined { mean, variance } => Some((mean, variance)),
            MomentsData::Partial { .. } => None,
        }
    }
}

/// Position of the width gate relative to the instance normalisation; `pre_norm` and `post_norm` in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatePosition {
    /// In front of the normalisation, as published. The normalisation undoes the gate but for its eps, see the head of
    /// this module.
    PreNorm,
    /// after the normalisation: a gate of 0 makes the channel exactly zero, and the gate's gradient is of the size of
    /// the other gradients.
    PostNorm,
}

/// Constants of normalisation and activation.
#[derive(Clone, Copy, Debug)]
pub struct NormAct {
    /// Number added to the variance; 1e-5 in the paper and nnU-Net.
    pub eps: f64,
    /// Slope of LeakyReLU for negative arguments; 0.01 in the paper and nnU-Net.
    pub slope: f64,
}

impl Default for NormAct {
    fn default() -> Self {
        Self { eps: 1e-5, slope: 0.01 }
    }
}

/// Coefficients that normalise one map, `z = leaky(scale * y + shift)`, and what its backward pass needs. `[B, C]` each.
#[derive(Clone, Debug)]
pub struct NormCoefficients {
    pub(crate) mean: Tensor,
    pub(crate) variance: Tensor,
    pub(crate) scale: Tensor,
    pub(crate) shift: Tensor,
    pub(crate) config: NormAct,
    /// False if the activation alone is applied, which has no backward pass.
    pub(crate) normalises: bool,
}

impl NormAct {
    /// Coefficients that apply the activation alone: scale 1, shift 0. [`backward`](super::backward) refuses them.
    ///
    /// # Errors
    /// If `map` has another rank than 5, or tensors cannot be made on its device.
    pub fn without_normalization(self, map: &Tensor) -> Result<NormCoefficients> {
        let (batch, _, channels) = map_dims(OP, "map", map)?;
        let all = |value: f64| Tensor::full(value, (batch, channels), map.device())?.to_dtype(coefficient_dtype(map));
        let [mean, variance, scale, shift] = [all(0.0)?, all(1.0)?, all(1.0)?, all(0.0)?];
        Ok(NormCoefficients { mean, variance, scale, shift, config: self, normalises: false })
    }
}

/// Element type of the coefficients of a map: half-precision maps have coefficients of full precision.
fn coefficient_dtype(map: &Tensor) -> DType {
    match map.dtype() {
        DType::BF16 => DType::F32,
        dtype => dtype,
    }
}

impl NormCoefficients {
    /// Checks that the coefficients belong to a map of this batch and these channels.
    pub(crate) fn check(&self, op: &'static str, map: &Tensor) -> Result<()> {
        let (batch, _, channels) = map_dims(op, "map", map)?;
        for (what, t) in [("mean", &self.mean), ("scale", &self.scale), ("shift", &self.shift)] {
            let dtype = coefficient_dtype(map);
            if t.dims() != [batch, channels] || t.dtype() != dtype {
                let expected = format!("[{batch}, {channels}] and {dtype:?}");
                return Err(Error::Shape { op, what, got: t.shape().clone(), expected });
            }
        }
        Ok(())
    }
}

/// Gradients of one normalised map.
#[derive(Debug)]
pub struct NormGradients {
    /// Gradient with respect to the raw map, `[B, D, H, W, C]`.
    pub y: Tensor,
    /// Gradient with respect to gamma, `[C]`.
    pub gamma: Tensor,
    /// Gradient with respect to beta, `[C]`.
    pub beta: Tensor,
    /// Gradient with respect to the gate, `[C]`, if there is one.
    pub gate: Option<Tensor>,
    /// Partial sums of the gradient with respect to this map's weight in the weighted sum, `sum outer * z`: `[1]` on the CPU,
    /// one per channel on a CUDA device.
    pub weight: Tensor,
}

/// Width gate of one map.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Factor per channel, `[C]`.
    pub factor: &'a Tensor,
    /// Position in front of or after the normalisation.
    pub position: GatePosition,
}

/// Parameters that are applied to a normalised map: gamma and beta, `[C]` each, and the width gate.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) gamma: &'a Tensor,
    pub(crate) beta: &'a Tensor,
    pub(crate) gate: Option<Gate<'a>>,
}

/// Gradient that reaches a normalised map: `weight * outer + direct`, at least one of them.
#[derive(Clone, Copy)]
pub(crate) struct MapGradient<'a> {
    /// Gradient of a weighted sum of maps, and this map's weight in the sum (one element).
    pub(crate) outer: Option<(&'a Tensor, &'a Tensor)>,
    /// Gradient from every other reader of the map.
    pub(crate) direct: Option<&'a Tensor>,
}

/// Kernels on one kind of device. Shapes of maps have been checked, vectors are checked by the kernels.
pub(crate) trait NormActKernels {
    /// Moments of a map `[B, D, H, W, C]`.
    fn moments(&self, y: &Tensor) -> Result<Moments>;

    /// Coefficients of a map with these moments.
    fn norm_coefficients(&self, config: NormAct, moments: &Moments, affine: Affine) -> Result<NormCoefficients>;

    /// Sum of the normalised maps times their weights (`[maps]`; 1 each without).
    fn norm_weighted_sum(&self, maps: &[(&Tensor, &NormCoefficients)], weights: Option<&Tensor>) -> Result<Computed>;

    /// Backward pass of one normalised map.
    fn norm_backward(
        &self,
        y: &Tensor,
        coefficients: &NormCoefficients,
        affine: Affine,
        gradient: MapGradient,
    ) -> Result<NormGradients>;
}
