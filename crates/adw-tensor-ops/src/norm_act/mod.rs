//! Instance normalisation + affine + width gate + LeakyReLU as one op.
//!
//! Per sample and channel, with mean `mu` and variance `var` over the voxels of `y`, and a gate `m` per channel:
//! ```text
//! pre_norm   v = gamma * m (y - mu) / sqrt(m^2 var + eps) + beta       the gate in front of the normalisation
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
pub mod cuda;
#[cfg(feature = "cuda")]
mod on_device;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::map::{channels_first, channels_last, map_dims};
use crate::simd::{Element, InstructionSet};
use crate::storage::{Reader, cpu_slice, read, tensor, with_element};
#[cfg(feature = "cuda")]
use adw_cuda::device::CudaRuntime;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor, WithDType};
use cpu::{GradOutput, Normalised};
use serde::{Deserialize, Serialize};

/// Mean and population variance of a map, per sample and channel. On a CUDA device they are left as those of parts of the
/// map, which the [coefficients](NormAct::coefficients) are computed from without a pass in between.
#[derive(Clone, Debug)]
pub struct Moments(pub(crate) MomentsData);

#[derive(Clone, Debug)]
pub(crate) enum MomentsData {
    /// `[B, C]` each.
    Joined { mean: Tensor, variance: Tensor },
    /// Of parts of a map: `values [B, parts, C, 2]` (mean, sum of squared deviations) and voxel `counts [B, parts]`.
    Partial { values: Tensor, counts: Tensor },
}

impl Moments {
    pub(crate) fn joined(mean: Tensor, variance: Tensor) -> Self {
        Self(MomentsData::Joined { mean, variance })
    }

    /// Mean and variance, `[B, C]` each; none for a map on a CUDA device.
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
    /// Behind the normalisation: a gate of 0 makes the channel exactly zero, and the gate's gradient is of the size of
    /// the other gradients.
    PostNorm,
}

/// The constants of normalisation and activation.
#[derive(Clone, Copy, Debug)]
pub struct NormAct {
    /// Added to the variance; 1e-5 in the paper and nnU-Net.
    pub eps: f64,
    /// Of LeakyReLU for negative arguments; 0.01 in the paper and nnU-Net.
    pub slope: f64,
}

impl Default for NormAct {
    fn default() -> Self {
        Self { eps: 1e-5, slope: 0.01 }
    }
}

/// What normalises one map: `z = leaky(scale * y + shift)`, and what its backward pass needs.
#[derive(Clone, Debug)]
pub struct NormCoefficients {
    pub(crate) mean: Tensor,
    pub(crate) variance: Tensor,
    pub(crate) scale: Tensor,
    pub(crate) shift: Tensor,
    pub(crate) slope: f64,
    eps: f64,
}

/// Gradients of one normalised map.
#[derive(Debug)]
pub struct NormGradients {
    /// Of the raw map, `[B, D, H, W, C]`.
    pub y: Tensor,
    /// `[C]`
    pub gamma: Tensor,
    /// `[C]`
    pub beta: Tensor,
    /// Of the gate, `[C]`, if there is one.
    pub gate: Option<Tensor>,
    /// Numbers whose sum is the gradient by this map's weight in the weighted sum, `sum outer * z`: `[1]`, or on a CUDA
    /// device one per channel.
    pub weight: Tensor,
}

/// The gate of one map: a factor per channel, `[C]`, and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// `[C]`
    pub factor: &'a Tensor,
    /// In front of or behind the normalisation.
    pub position: GatePosition,
}

const OP: &str = "norm_act";

fn vector_f64(what: &'static str, t: &Tensor, channels: usize) -> Result<Vec<f64>> {
    if t.dims() != [channels] {
        return Err(Error::Shape { op: OP, what, got: t.shape().clone(), expected: format!("[{channels}]") });
    }
    Ok(t.to_dtype(DType::F64)?.to_vec1()?)
}

/// `m` and `k` (head of the module) for one channel of one sample.
fn gate_and_k(gate: Option<(&[f64], GatePosition)>, c: usize, variance: f64, eps: f64) -> (f64, f64) {
    match gate {
        None => (1.0, 1.0 / (variance + eps).sqrt()),
        Some((m, GatePosition::PostNorm)) => (m[c], 1.0 / (variance + eps).sqrt()),
        Some((m, GatePosition::PreNorm)) => (m[c], m[c] / (m[c] * m[c] * variance + eps).sqrt()),
    }
}

fn gate_f64(gate: Option<Gate>, channels: usize) -> Result<Option<(Vec<f64>, GatePosition)>> {
    gate.map(|g| Ok((vector_f64("gate", g.factor, channels)?, g.position))).transpose()
}

fn borrow(gate: Option<&(Vec<f64>, GatePosition)>) -> Option<(&[f64], GatePosition)> {
    gate.map(|(m, p)| (m.as_slice(), *p))
}

impl NormCoefficients {
    /// They belong to a map of this batch and these channels.
    pub(crate) fn check(&self, op: &'static str, map: &Tensor) -> Result<()> {
        let (batch, _, channels) = map_dims(op, "map", map)?;
        for (what, t) in [("mean", &self.mean), ("scale", &self.scale), ("shift", &self.shift)] {
            // Half-precision maps have coefficients of full precision.
            let dtype = match map.dtype() {
                DType::BF16 => DType::F32,
                dtype => dtype,
            };
            if t.dims() != [batch, channels] || t.dtype() != dtype {
                let expected = format!("[{batch}, {channels}] and {dtype:?}");
                return Err(Error::Shape { op, what, got: t.shape().clone(), expected });
            }
        }
        Ok(())
    }
}

impl NormAct {
    /// Scale and shift of a map with these moments. `gamma`, `beta`: `[C]`.
    ///
    /// # Errors
    /// If shapes or element types do not fit together.
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
        let (means, variances) = match &moments.0 {
            MomentsData::Joined { mean, variance } => (mean, variance),
            MomentsData::Partial { .. } => return Err(Error::Device { op: OP }),
        };
        let (batch, channels) = means.dims2()?;
        let (gamma, beta) = (vector_f64("gamma", gamma, channels)?, vector_f64("beta", beta, channels)?);
        let gate = gate_f64(gate, channels)?;
        with_element!(OP, means, T => {
            let (mean, variance) = (read(OP, "mean", means)?, read(OP, "variance", variances)?);
            let (mean, variance) = (mean.slice::<T>()?, variance.slice::<T>()?);
            let mut scale = Vec::with_capacity(batch * channels);
            let mut shift = Vec::with_capacity(batch * channels);
            for i in 0..batch * channels {
                let c = i % channels;
                let (m, k) = gate_and_k(borrow(gate.as_ref()), c, variance[i].to_f64(), self.eps);
                let post = matches!(gate, Some((_, GatePosition::PostNorm)));
                let (a, b) = if post { (m * gamma[c] * k, m * beta[c]) } else { (gamma[c] * k, beta[c]) };
                scale.push(T::from_f64(a));
                shift.push(T::from_f64(b - a * mean[i].to_f64()));
            }
            Ok(NormCoefficients {
                mean: means.clone(),
                variance: variances.clone(),
                scale: tensor(scale, (batch, channels))?,
                shift: tensor(shift, (batch, channels))?,
                slope: self.slope,
                eps: self.eps,
            })
        })
    }
}

/// Mean and population variance of a map `[B, D, H, W, C]`.
///
/// # Errors
/// If the map is not of that shape, contiguous, f32 or f64.
pub fn moments(y: &Tensor) -> Result<Moments> {
    let (batch, _, channels) = map_dims(OP, "y", y)?;
    #[cfg(feature = "cuda")]
    if let Some(rt) = CudaRuntime::of_tensor(y) {
        return on_device::moments(&rt, y);
    }
    with_element!(OP, y, T => {
        let lock = read(OP, "y", y)?;
        let m = cpu::moments(InstructionSet::detect(), lock.slice::<T>()?, batch, channels);
        Ok(Moments::joined(tensor(m.mean, (batch, channels))?, tensor(m.variance, (batch, channels))?))
    })
}

/// A raw map and its coefficients, locked for reading.
struct Locked<'a> {
    y: Reader<'a>,
    mean: Reader<'a>,
    scale: Reader<'a>,
    shift: Reader<'a>,
    batch: usize,
    channels: usize,
    slope: f64,
}

impl<'a> Locked<'a> {
    fn new(y: &'a Tensor, n: &'a NormCoefficients) -> Result<Self> {
        let (batch, _, channels) = map_dims(OP, "y", y)?;
        n.check(OP, y)?;
        Ok(Self {
            y: read(OP, "y", y)?,
            mean: read(OP, "mean", &n.mean)?,
            scale: read(OP, "scale", &n.scale)?,
            shift: read(OP, "shift", &n.shift)?,
            batch,
            channels,
            slope: n.slope,
        })
    }

    fn map<T: Element>(&self) -> Result<Normalised<'_, T>> {
        Ok(Normalised {
            y: self.y.slice()?,
            batch: self.batch,
            channels: self.channels,
            mean: self.mean.slice()?,
            scale: self.scale.slice()?,
            shift: self.shift.slice()?,
            slope: T::from_f64(self.slope),
        })
    }
}

/// `sum_l weights[l] * z_l` over maps of one shape: the depth sink, in one pass over the raw maps. `weights`: `[maps]`; 1
/// each if there are none.
///
/// # Errors
/// If there is no map, or shapes or element types do not fit together.
pub fn weighted_sum(maps: &[(&Tensor, &NormCoefficients)], weights: Option<&Tensor>) -> Result<Tensor> {
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
    }
    #[cfg(feature = "cuda")]
    if let Some(rt) = CudaRuntime::of_tensor(first) {
        return on_device::weighted_sum(&rt, maps, weights);
    }
    let weights = match weights {
        Some(weights) => vector_f64("weights", weights, maps.len())?,
        None => vec![1.0; maps.len()],
    };
    let locks = maps.iter().map(|(y, n)| Locked::new(y, n)).collect::<Result<Vec<_>>>()?;
    with_element!(OP, first, T => {
        let mut views = Vec::with_capacity(maps.len());
        for (lock, weight) in locks.iter().zip(weights) {
            views.push((lock.map::<T>()?, T::from_f64(weight)));
        }
        tensor(cpu::weighted_sum(InstructionSet::detect(), &views), first.shape())
    })
}

/// The backward pass of one normalised map. The gradient of z is `weight * outer + direct`: `outer` is the gradient of a
/// weighted sum that z takes part in with that weight (a tensor of one element), `direct` what else reads z; one of them
/// must be there.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn backward(
    y: &Tensor,
    coefficients: &NormCoefficients,
    gamma: &Tensor,
    beta: &Tensor,
    gate: Option<Gate>,
    outer: Option<(&Tensor, &Tensor)>,
    direct: Option<&Tensor>,
) -> Result<NormGradients> {
    let (batch, size, c) = map_dims(OP, "y", y)?;
    for g in outer.iter().map(|o| o.0).chain(direct) {
        if g.dims() != y.dims() {
            let expected = format!("{:?}, as the map", y.shape());
            return Err(Error::Shape { op: OP, what: "gradient", got: g.shape().clone(), expected });
        }
    }
    if outer.is_none() && direct.is_none() {
        return Err(Error::Argument { op: OP, what: "no gradient, expected `outer` or `direct`".into() });
    }
    #[cfg(feature = "cuda")]
    if let Some(rt) = CudaRuntime::of_tensor(y) {
        return on_device::backward(&rt, y, coefficients, gamma, beta, gate, outer, direct);
    }
    let outer = match outer {
        None => None,
        Some((g, w)) => Some((g, vector_f64("weight", w, 1)?[0])),
    };
    let voxels = size.iter().product::<usize>() as f64;
    let (gamma, beta) = (vector_f64("gamma", gamma, c)?, vector_f64("beta", beta, c)?);
    let gate = gate_f64(gate, c)?;
    let eps = coefficients.eps;
    let lock = Locked::new(y, coefficients)?;
    with_element!(OP, y, T => {
        let map = lock.map::<T>()?;
        let outer_lock = outer.map(|(g, w)| Ok::<_, Error>((read(OP, "gradient", g)?, T::from_f64(w)))).transpose()?;
        let direct_lock = direct.map(|g| read(OP, "gradient", g)).transpose()?;
        let grad = GradOutput {
            outer: outer_lock.as_ref().map(|(g, w)| Ok::<_, Error>((g.slice::<T>()?, *w))).transpose()?,
            direct: direct_lock.as_ref().map(|g| g.slice::<T>()).transpose()?,
        };
        let set = InstructionSet::detect();
        let sums = cpu::grad_sums(set, &map, grad);
        let variance = read(OP, "variance", &coefficients.variance)?;
        let variance = variance.slice::<T>()?;
        let (mut grad_gamma, mut grad_beta, mut grad_gate) = (vec![0.0; c], vec![0.0; c], vec![0.0; c]);
        let (mut offset, mut factor) = (Vec::with_capacity(batch * c), Vec::with_capacity(batch * c));
        for (i, var) in variance.iter().enumerate() {
            let (ch, var) = (i % c, var.to_f64());
            let (m, k) = gate_and_k(borrow(gate.as_ref()), ch, var, eps);
            let (s1, s2) = (sums.grad[i], sums.grad_centred[i]);
            match gate {
                Some((_, GatePosition::PostNorm)) => {
                    grad_gamma[ch] += m * k * s2;
                    grad_beta[ch] += m * s1;
                    grad_gate[ch] += gamma[ch] * k * s2 + beta[ch] * s1;
                }
                Some((_, GatePosition::PreNorm)) => {
                    grad_gamma[ch] += k * s2;
                    grad_beta[ch] += s1;
                    grad_gate[ch] += gamma[ch] * eps * (m * m * var + eps).powf(-1.5) * s2;
                }
                None => {
                    grad_gamma[ch] += k * s2;
                    grad_beta[ch] += s1;
                }
            }
            offset.push(T::from_f64(s1 / voxels));
            factor.push(T::from_f64(k * k * s2 / voxels));
        }
        let grad_y = cpu::grad_input(set, &map, grad, &offset, &factor);
        let vector = |v: Vec<f64>| {
            let n = v.len();
            tensor(v.into_iter().map(T::from_f64).collect::<Vec<T>>(), n)
        };
        Ok(NormGradients {
            y: tensor(grad_y, y.shape())?,
            gamma: vector(grad_gamma)?,
            beta: vector(grad_beta)?,
            gate: gate.is_some().then(|| vector(grad_gate)).transpose()?,
            weight: vector(vec![sums.outer_dot])?,
        })
    })
}

/// Instance normalisation, affine and LeakyReLU with gradients: `x [B, C, D, H, W]`, `gamma` and `beta` `[C]`.
///
/// `leaky(gamma * (x - mean) / sqrt(variance + eps) + beta)`, mean and population variance over the voxels of each
/// sample and channel: PyTorch's `leaky_relu(instance_norm(x, weight=gamma, bias=beta, eps), slope)`. A gate behind the
/// normalisation is `norm_act(x, gate * gamma, gate * beta)`, see [`width_mask`](crate::width_mask).
///
/// # Errors
/// If shapes or element types (f32 or f64, CPU) do not fit together.
pub fn norm_act(x: &Tensor, gamma: &Tensor, beta: &Tensor, config: NormAct) -> Result<Tensor> {
    let x = channels_last(OP, x)?;
    channels_first(&x.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, NormActOp(config))?)
}

struct NormActOp(NormAct);

/// Batch and channels.
fn op_shapes(y: &Layout, gamma: &Layout, beta: &Layout) -> Result<(usize, usize)> {
    let (batch, _, _, _, channels) = y.shape().dims5()?;
    for (what, l) in [("gamma", gamma), ("beta", beta)] {
        if l.dims() != [channels] {
            return Err(Error::Shape { op: OP, what, got: l.shape().clone(), expected: format!("[{channels}]") });
        }
    }
    Ok((batch, channels))
}

impl CustomOp3 for NormActOp {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels) = op_shapes(y_layout, gamma_layout, beta_layout)?;
        let set = InstructionSet::detect();
        let storage = with_element!(OP, y, T => {
            let y = cpu_slice::<T>(OP, y, y_layout)?;
            let (gamma, beta) = (cpu_slice::<T>(OP, gamma, gamma_layout)?, cpu_slice::<T>(OP, beta, beta_layout)?);
            let m = cpu::moments(set, y, batch, channels);
            let moments = Moments::joined(tensor(m.mean, (batch, channels))?, tensor(m.variance, (batch, channels))?);
            let n = self.0.coefficients(&moments, &tensor(gamma.to_vec(), channels)?, &tensor(beta.to_vec(), channels)?, None)?;
            let (mean, scale, shift) = (read(OP, "mean", &n.mean)?, read(OP, "scale", &n.scale)?, read(OP, "shift", &n.shift)?);
            let (mean, scale, shift) = (mean.slice()?, scale.slice()?, shift.slice()?);
            let map = Normalised { y, batch, channels, mean, scale, shift, slope: T::from_f64(n.slope) };
            Ok(T::to_cpu_storage_owned(cpu::apply(set, &map)))
        })?;
        Ok((storage, y_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &candle_core::CudaStorage,
        y_layout: &Layout,
        gamma: &candle_core::CudaStorage,
        gamma_layout: &Layout,
        beta: &candle_core::CudaStorage,
        beta_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        op_shapes(y_layout, gamma_layout, beta_layout)?;
        let z = on_device::op(y, y_layout, gamma, gamma_layout, beta, beta_layout, self.0)?;
        Ok((z, y_layout.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _z: &Tensor,
        grad_z: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let n = self.0.coefficients(&moments(y)?, gamma, beta, None)?;
        let g = backward(y, &n, gamma, beta, None, None, Some(&grad_z.contiguous()?))?;
        Ok((Some(g.y), Some(g.gamma), Some(g.beta)))
    }
}
