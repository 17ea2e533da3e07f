//! The passes on a CUDA device: tensors in, launches of `norm_act.cu` out.

use super::cuda::{self, Affine, Coefficients, GradOutput, PartialMoments};
use super::{Gate, Moments, MomentsData, NormAct, NormCoefficients, NormGradients, OP};
use crate::cuda::MapShape;
use crate::error::{Error, Result};
use crate::map::map_dims;
use crate::on_device::{address, element_type, f32_address, f32_storage_address, map_address, storage_address};
use adw_cuda::Address;
use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Tensor};

/// Moments of the parts of a map.
#[derive(Clone, Debug)]
pub(crate) struct Partial {
    /// `[B, chunks, C, 2]`
    values: Tensor,
    /// `[B, chunks]`
    counts: Tensor,
    batch: usize,
    channels: usize,
}

impl Partial {
    fn on_device(&self, rt: &CudaRuntime) -> Result<PartialMoments<Address>> {
        Ok(PartialMoments {
            partial: address(OP, rt, &self.values)?,
            counts: address(OP, rt, &self.counts)?,
            chunks: self.counts.dims()[1],
        })
    }
}

impl Moments {
    pub(crate) fn partial(
        rt: &CudaRuntime,
        parts: PartialMoments<DeviceBuffer>,
        batch: usize,
        channels: usize,
    ) -> Self {
        Self(MomentsData::Partial(Partial {
            values: rt.tensor::<f32>(parts.partial, (batch, parts.chunks, channels, 2)),
            counts: rt.tensor::<f32>(parts.counts, (batch, parts.chunks)),
            batch,
            channels,
        }))
    }
}

impl NormCoefficients {
    pub(crate) fn on_device(&self, rt: &CudaRuntime) -> Result<Coefficients<Address>> {
        Ok(Coefficients {
            mean: f32_address(OP, rt, &self.mean)?,
            variance: f32_address(OP, rt, &self.variance)?,
            scale: f32_address(OP, rt, &self.scale)?,
            shift: f32_address(OP, rt, &self.shift)?,
            config: NormAct { eps: self.eps, slope: self.slope },
        })
    }
}

fn map_shape(y: &Tensor) -> Result<MapShape> {
    let (batch, size, channels) = map_dims(OP, "y", y)?;
    checked(MapShape { batch, voxels: size.iter().product(), channels, element: element_type(OP, y.dtype())? })
}

fn checked(shape: MapShape) -> Result<MapShape> {
    let channels = shape.channels;
    let most = cuda::max_channels(&shape);
    if channels > most {
        let what = format!(
            "{channels} channels, expected at most {most} on a CUDA device (more if they are a multiple of 16 bytes)"
        );
        return Err(Error::Argument { op: OP, what });
    }
    Ok(shape)
}

fn affine(rt: &CudaRuntime, gamma: &Tensor, beta: &Tensor, gate: Option<Gate>, channels: usize) -> Result<Affine> {
    let vector = |what, t: &Tensor| {
        if t.dims() != [channels] {
            let (got, expected) = (t.shape().clone(), format!("[{channels}]"));
            return Err(Error::Shape { op: OP, what, got, expected });
        }
        f32_address(OP, rt, t)
    };
    Ok(Affine {
        gamma: vector("gamma", gamma)?,
        beta: vector("beta", beta)?,
        gate: match gate {
            None => None,
            Some(g) => Some((vector("gate", g.factor)?, g.position)),
        },
    })
}

pub(super) fn moments(rt: &CudaRuntime, y: &Tensor) -> Result<Moments> {
    let shape = map_shape(y)?;
    // SAFETY: the address is that of a map of this shape.
    let parts = unsafe { cuda::moments(rt, map_address(OP, rt, y)?, &shape)? };
    Ok(Moments::partial(rt, parts, shape.batch, shape.channels))
}

pub(super) fn coefficients(
    moments: &Partial,
    config: NormAct,
    gamma: &Tensor,
    beta: &Tensor,
    gate: Option<Gate>,
) -> Result<NormCoefficients> {
    let (batch, channels) = (moments.batch, moments.channels);
    let rt = CudaRuntime::of_tensor(&moments.values).ok_or(Error::Device { op: OP })?;
    let rt = &*rt;
    let affine = affine(rt, gamma, beta, gate, channels)?;
    // SAFETY: the addresses are those of vectors of these channels.
    let c = unsafe {
        let parts = moments.on_device(rt)?;
        cuda::coefficients(rt, &parts, &affine, config, batch, channels)?
    };
    let vector = |buffer| rt.tensor::<f32>(buffer, (batch, channels));
    Ok(NormCoefficients {
        mean: vector(c.mean),
        variance: vector(c.variance),
        scale: vector(c.scale),
        shift: vector(c.shift),
        slope: config.slope,
        eps: config.eps,
    })
}

pub(super) fn weighted_sum(
    rt: &CudaRuntime,
    maps: &[(&Tensor, &NormCoefficients)],
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    if maps.len() > 3 {
        let what = format!("{} maps, expected at most three on a CUDA device", maps.len());
        return Err(Error::Argument { op: OP, what });
    }
    let first = maps[0].0;
    let shape = map_shape(first)?;
    let weights = weights.map(|w| f32_address(OP, rt, w)).transpose()?;
    let mut coefficients = Vec::with_capacity(maps.len());
    for (y, n) in maps {
        n.check(OP, y)?;
        coefficients.push((map_address(OP, rt, y)?, n.on_device(rt)?));
    }
    let maps: Vec<_> = coefficients
        .iter()
        .enumerate()
        .map(|(l, (y, n))| (*y, n, weights.map_or(Address::NONE, |w| w.offset(4 * l))))
        .collect();
    let (out, out_address) = rt.empty(first.dtype(), first.shape())?;
    // SAFETY: all maps have the first one's shape, as the caller has checked.
    unsafe { cuda::weighted_sum(rt, &maps, &shape, out_address)? };
    Ok(out)
}

pub(super) fn backward(
    rt: &CudaRuntime,
    y: &Tensor,
    coefficients: &NormCoefficients,
    gamma: &Tensor,
    beta: &Tensor,
    gate: Option<Gate>,
    outer: Option<(&Tensor, &Tensor)>,
    direct: Option<&Tensor>,
) -> Result<NormGradients> {
    let shape = map_shape(y)?;
    coefficients.check(OP, y)?;
    let affine = affine(rt, gamma, beta, gate, shape.channels)?;
    let gradient = |g: &Tensor| {
        if g.dtype() != y.dtype() {
            let (op, got) = (OP, g.dtype());
            return Err(Error::DType { op, got });
        }
        map_address(OP, rt, g)
    };
    let grad = GradOutput {
        outer: match outer {
            None => None,
            Some((_, weight)) if weight.elem_count() != 1 => {
                return Err(Error::Shape {
                    op: OP,
                    what: "weight",
                    got: weight.shape().clone(),
                    expected: "one element".into(),
                });
            }
            Some((g, weight)) => Some((gradient(g)?, f32_address(OP, rt, weight)?)),
        },
        direct: direct.map(gradient).transpose()?,
    };
    let (out, out_address) = rt.empty(y.dtype(), y.shape())?;
    // SAFETY: the gradients have the map's shape, as the caller has checked; the rest has been checked above.
    let g = unsafe {
        let n = coefficients.on_device(rt)?;
        cuda::backward(rt, map_address(OP, rt, y)?, &n, &affine, grad, &shape, out_address)?
    };
    let vector = |buffer| rt.tensor::<f32>(buffer, shape.channels);
    Ok(NormGradients {
        y: out,
        gamma: vector(g.gamma),
        beta: vector(g.beta),
        gate: g.gate.map(vector),
        weight: vector(g.outer_dot),
    })
}

/// The op as candle's custom op has it. Shapes have been checked.
pub(super) fn op(
    y: &CudaStorage,
    y_layout: &Layout,
    gamma: &CudaStorage,
    gamma_layout: &Layout,
    beta: &CudaStorage,
    beta_layout: &Layout,
    config: NormAct,
) -> Result<CudaStorage> {
    let (batch, d, h, w, channels) = y_layout.shape().dims5()?;
    let shape = checked(MapShape { batch, voxels: d * h * w, channels, element: element_type(OP, y.dtype())? })?;
    let affine = Affine {
        gamma: f32_storage_address(OP, gamma, gamma_layout)?,
        beta: f32_storage_address(OP, beta, beta_layout)?,
        gate: None,
    };
    let rt = &*CudaRuntime::of(y.device());
    let y_address = storage_address(OP, y, y_layout)?;
    let (out, out_address) = rt.empty_storage(y.dtype(), shape.len())?;
    // SAFETY: the addresses are those of tensors of these shapes.
    unsafe {
        let parts = cuda::moments(rt, y_address, &shape)?;
        let c = cuda::coefficients(rt, &parts, &affine, config, batch, channels)?;
        cuda::weighted_sum(rt, &[(y_address, &c, Address::NONE)], &shape, out_address)?;
    }
    Ok(out)
}
