//! Normalisation and activation on a CUDA device: tensors in, launches of `norm_act.cu` out.

mod backward;
pub(crate) mod forward;
pub(crate) mod operands;
pub(crate) mod tensors;

#[cfg(test)]
mod tests;

use super::kernels::{
    Affine, MapGradient, Moments, MomentsData, NormAct, NormActKernels, NormCoefficients, NormGradients, OP,
};
use crate::cuda::MapShape;
use crate::cuda::tensors::{address, check_voxels, empty, f32_address, f32_tensor, map_address, precision_of};
use crate::error::{Error, Result};
use crate::map::{check_vector, map_dims};
use crate::storage::Computed;
use adw_cuda::Address;
use adw_cuda::device::CudaRuntime;
use backward::GradAddresses;
use candle_core::Tensor;
use operands::{AffineAddresses, PartialMoments, max_channels};

fn map_shape(y: &Tensor) -> Result<MapShape> {
    let (batch, size, channels) = map_dims(OP, "y", y)?;
    check_voxels(OP, size)?;
    let shape = MapShape { batch, voxels: size.iter().product(), channels, precision: precision_of(OP, y)? };
    let max = max_channels(&shape);
    if channels > max {
        let what = format!(
            "{channels} channels, expected at most {max} on a CUDA device (more if they are a multiple of 16 bytes)"
        );
        return Err(Error::Argument { op: OP, what });
    }
    Ok(shape)
}

fn affine_addresses(rt: &CudaRuntime, affine: Affine, channels: usize) -> Result<AffineAddresses> {
    let vector = |what, t: &Tensor| {
        check_vector(OP, what, t, channels)?;
        f32_address(OP, rt, t)
    };
    Ok(AffineAddresses {
        gamma: vector("gamma", affine.gamma)?,
        beta: vector("beta", affine.beta)?,
        gate: match affine.gate {
            None => None,
            Some(g) => Some((vector("gate", g.factor)?, g.position)),
        },
    })
}

impl NormActKernels for CudaRuntime {
    fn moments(&self, y: &Tensor) -> Result<Moments> {
        let shape = map_shape(y)?;
        // SAFETY: the address is that of a map of this shape.
        let parts = unsafe { forward::moments(self, map_address(OP, self, y)?, &shape)? };
        tensors::partial_moments(self, parts, shape.batch, shape.channels)
    }

    fn norm_coefficients(&self, config: NormAct, moments: &Moments, affine: Affine) -> Result<NormCoefficients> {
        let MomentsData::Partial { values, counts } = &moments.0 else {
            return Err(Error::Device { op: OP });
        };
        let (batch, chunks, channels, _) = values.dims4()?;
        let affine = affine_addresses(self, affine, channels)?;
        let parts = PartialMoments { partial: address(OP, self, values)?, counts: address(OP, self, counts)?, chunks };
        // SAFETY: the addresses are those of vectors of these channels.
        let c = unsafe { forward::coefficients(self, &parts, &affine, config, batch, channels)? };
        let vector = |buffer| f32_tensor(self, buffer, (batch, channels));
        Ok(NormCoefficients {
            mean: vector(c.mean)?,
            variance: vector(c.variance)?,
            scale: vector(c.scale)?,
            shift: vector(c.shift)?,
            config,
            normalises: true,
        })
    }

    fn norm_weighted_sum(&self, maps: &[(&Tensor, &NormCoefficients)], weights: Option<&Tensor>) -> Result<Computed> {
        if maps.len() > 3 {
            let what = format!("{} maps, expected at most three on a CUDA device", maps.len());
            return Err(Error::Argument { op: OP, what });
        }
        let first = maps[0].0;
        let shape = map_shape(first)?;
        let weights = weights.map(|w| f32_address(OP, self, w)).transpose()?;
        let mut coefficients = Vec::with_capacity(maps.len());
        for (y, n) in maps {
            n.check(OP, y)?;
            coefficients.push((map_address(OP, self, y)?, tensors::coefficients(self, n)?));
        }
        let maps: Vec<_> = coefficients
            .iter()
            .enumerate()
            .map(|(l, (y, n))| (*y, n, weights.map_or(Address::NONE, |w| w.offset(4 * l))))
            .collect();
        let (sum, out) = empty(self, first.dtype(), first.shape())?;
        // SAFETY: all maps have the shape of the first one, as the op has checked.
        unsafe { forward::weighted_sum(self, &maps, &shape, out)? };
        Ok(sum)
    }

    fn norm_backward(
        &self,
        y: &Tensor,
        coefficients: &NormCoefficients,
        affine: Affine,
        gradient: MapGradient,
    ) -> Result<NormGradients> {
        let shape = map_shape(y)?;
        coefficients.check(OP, y)?;
        let affine = affine_addresses(self, affine, shape.channels)?;
        let like_y = |g: &Tensor| {
            if g.dtype() != y.dtype() {
                return Err(Error::dtype(OP, g.dtype(), "that of the map"));
            }
            map_address(OP, self, g)
        };
        let grad = GradAddresses {
            outer: match gradient.outer {
                None => None,
                Some((_, weight)) if weight.elem_count() != 1 => {
                    let (got, expected) = (weight.shape().clone(), "one element".into());
                    return Err(Error::Shape { op: OP, what: "weight", got, expected });
                }
                Some((g, weight)) => Some((like_y(g)?, f32_address(OP, self, weight)?)),
            },
            direct: gradient.direct.map(like_y).transpose()?,
        };
        let (grad_y, out) = empty(self, y.dtype(), y.shape())?;
        let coefficients = tensors::coefficients(self, coefficients)?;
        // SAFETY: the gradients have the map's shape, as the op has checked; the vectors have been checked above.
        let g =
            unsafe { backward::backward(self, map_address(OP, self, y)?, &coefficients, &affine, grad, &shape, out)? };
        let vector = |buffer| f32_tensor(self, buffer, shape.channels);
        Ok(NormGradients {
            y: grad_y.into_tensor(),
            gamma: vector(g.gamma)?,
            beta: vector(g.beta)?,
            gate: g.gate.map(vector).transpose()?,
            weight: vector(g.outer_dot)?,
        })
    }
}
