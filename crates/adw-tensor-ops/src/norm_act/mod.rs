//! Instance normalisation + affine + width gate + LeakyReLU as one op.
//!
//! Per sample and channel, with mean `mu` and variance `var` over the voxels of `y`, and a gate `m` per channel:
//! ```text
//! pre_norm   v = gamma * m (y - mu) / sqrt(m^2 var + eps) + beta       the gate before the normalisation
//! post_norm  v = m * (gamma * (y - mu) / sqrt(var + eps) + beta)       the gate behind it
//! z = v if v > 0 else slope * v
//! ```
//! In both positions `v = scale * y + shift` with two numbers per sample and channel, so the gate costs nothing per
//! voxel, forward or backward: with `k = m / sqrt(m^2 var + eps)` (pre) or `1 / sqrt(var + eps)` (post), and `g_v` the
//! gradient of v,
//! ```text
//! grad y = scale * (g_v - mean(g_v) - k^2 (y - mu) mean(g_v (y - mu)))
//! pre_norm:  grad m = gamma eps / (m^2 var + eps)^(3/2) * sum g_v (y - mu)
//! ```
//! Under `pre_norm` what reaches `m` is only what eps leaves over; the closed form above computes that residue
//! directly, where differentiating product and normalisation one after the other would cancel most digits.

pub(crate) mod cpu;
mod cpu_backend;
pub(crate) mod cuda;
pub(crate) mod kernels;
pub(crate) mod moments;

#[cfg(test)]
mod tests;

use crate::autograd::record3;
use crate::backend;
use crate::error::{Error, Result};
use crate::map::{channels_first, channels_last, map_dims};
use crate::storage::Computed;
use candle_core::Tensor;
use kernels::{Affine, MapGradient, MomentsData, OP};

pub use kernels::{Gate, GatePosition, Moments, NormAct, NormCoefficients, NormGradients};

impl NormAct {
    /// Scale and shift of a map with these moments. `gamma`, `beta`: `[C]`.
    ///
    /// # Errors
    /// If shapes or element types do not fit together, or `eps` is not positive.
    pub fn coefficients(
        &self,
        moments: &Moments,
        gamma: &Tensor,
        beta: &Tensor,
        gate: Option<Gate>,
    ) -> Result<NormCoefficients> {
        if self.eps.is_nan() || self.eps <= 0.0 {
            return Err(Error::Argument { op: OP, what: format!("eps is {}, expected a positive number", self.eps) });
        }
        let (MomentsData::Joined { mean: on_device, .. } | MomentsData::Partial { values: on_device, .. }) = &moments.0;
        backend::of(OP, on_device)?.norm_coefficients(*self, moments, Affine { gamma, beta, gate })
    }
}

/// Mean and population variance of a map `[B, D, H, W, C]`.
///
/// # Errors
/// If the map has another rank, is not contiguous, or has an element type that its device does not support.
pub fn moments(y: &Tensor) -> Result<Moments> {
    map_dims(OP, "y", y)?;
    backend::of(OP, y)?.moments(y)
}

/// `sum_l weights[l] * z_l` over normalised, activated maps `z_l` of one shape, which reads each raw map once. `weights`: `[maps]`;
/// `None`: 1 each.
///
/// # Errors
/// If there is no map, or shapes or element types do not fit together.
pub fn weighted_sum(maps: &[(&Tensor, &NormCoefficients)], weights: Option<&Tensor>) -> Result<Tensor> {
    Ok(compute(maps, weights)?.into_tensor())
}

/// Checks the arguments of [`weighted_sum`] and runs its kernel.
fn compute(maps: &[(&Tensor, &NormCoefficients)], weights: Option<&Tensor>) -> Result<Computed> {
    let Some((first, _)) = maps.first() else {
        return Err(Error::Argument { op: OP, what: "no map to sum, expected at least one".into() });
    };
    if let Some(weights) = weights.filter(|w| w.dims() != [maps.len()]) {
        return Err(Error::Shape {
            op: OP,
            what: "weights",
            got: weights.shape().clone(),
            expected: format!("[{}], one weight per map", maps.len()),
        });
    }
    for (y, _) in maps {
        if y.dims() != first.dims() {
            let expected = format!("{:?}, as the first map", first.shape());
            return Err(Error::Shape { op: OP, what: "map", got: y.shape().clone(), expected });
        }
        if y.dtype() != first.dtype() {
            return Err(Error::dtype(OP, y.dtype(), "that of the first map"));
        }
    }
    backend::of(OP, first)?.norm_weighted_sum(maps, weights)
}

/// The backward pass of one normalised map. The gradient of z is `weight * outer + direct`: `outer` is the gradient of a
/// weighted sum that z takes part in with that weight (a tensor of one element), `direct` what else reads z; one of them
/// must be there. `gamma`, `beta` and `gate` are those of which [`NormAct::coefficients`] made the coefficients.
///
/// # Errors
/// If shapes or element types do not fit together, or the coefficients are those of the activation alone.
pub fn backward(
    y: &Tensor,
    coefficients: &NormCoefficients,
    gamma: &Tensor,
    beta: &Tensor,
    gate: Option<Gate>,
    outer: Option<(&Tensor, &Tensor)>,
    direct: Option<&Tensor>,
) -> Result<NormGradients> {
    map_dims(OP, "y", y)?;
    for g in outer.iter().map(|o| o.0).chain(direct) {
        if g.dims() != y.dims() {
            let expected = format!("{:?}, as the map", y.shape());
            return Err(Error::Shape { op: OP, what: "gradient", got: g.shape().clone(), expected });
        }
    }
    if outer.is_none() && direct.is_none() {
        return Err(Error::Argument { op: OP, what: "no gradient, expected `outer` or `direct`".into() });
    }
    if !coefficients.normalises {
        let what = "coefficients of the activation alone, expected those of a normalisation".into();
        return Err(Error::Argument { op: OP, what });
    }
    let (affine, gradient) = (Affine { gamma, beta, gate }, MapGradient { outer, direct });
    backend::of(OP, y)?.norm_backward(y, coefficients, affine, gradient)
}

/// Instance normalisation, affine and LeakyReLU with gradients: `x [B, C, D, H, W]`, `gamma` and `beta` `[C]`.
///
/// `leaky(gamma * (x - mean) / sqrt(variance + eps) + beta)`, mean and population variance over the voxels of each
/// sample and channel: PyTorch's `leaky_relu(instance_norm(x, weight=gamma, bias=beta, eps), slope)`. A gate behind the
/// normalisation is `norm_act(x, gate * gamma, gate * beta)`, see [`width_mask`](crate::width_mask).
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn norm_act(x: &Tensor, gamma: &Tensor, beta: &Tensor, config: NormAct) -> Result<Tensor> {
    let x = channels_last(OP, x)?;
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let coefficients = config.coefficients(&moments(&x)?, &gamma, &beta, None)?;
    let z = compute(&[(&x, &coefficients)], None)?;
    let z = record3(OP, [&x, &gamma, &beta], z, move |[x, gamma, beta], grad_z| {
        let g = backward(x, &coefficients, gamma, beta, None, None, Some(grad_z))?;
        Ok([g.y, g.gamma, g.beta])
    })?;
    channels_first(&z)
}
