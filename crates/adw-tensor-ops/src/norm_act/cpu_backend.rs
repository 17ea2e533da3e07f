//! Normalisation and activation on the processor: tensors to slices and back.

use super::cpu::{self, GradOutput, Normalised};
use super::kernels::{
    Affine, Gate, GatePosition, MapGradient, Moments, MomentsData, NormAct, NormActKernels, NormCoefficients,
    NormGradients, OP,
};
use super::moments;
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::map::{check_vector, map_dims};
use crate::simd::{Element, InstructionSet};
use crate::storage::{Computed, Reader, read, tensor, with_element};
use candle_core::{DType, Tensor, WithDType};

impl NormActKernels for Cpu {
    fn moments(&self, y: &Tensor) -> Result<Moments> {
        let (batch, _, channels) = map_dims(OP, "y", y)?;
        with_element!(OP, y, T => {
            let lock = read(OP, "y", y)?;
            let m = moments::moments(InstructionSet::detect(), lock.slice::<T>()?, batch, channels);
            Ok(Moments::joined(tensor(m.mean, (batch, channels))?, tensor(m.variance, (batch, channels))?))
        })
    }

    fn norm_coefficients(&self, config: NormAct, moments: &Moments, affine: Affine) -> Result<NormCoefficients> {
        let MomentsData::Joined { mean: means, variance: variances } = &moments.0 else {
            return Err(Error::Device { op: OP });
        };
        let (batch, channels) = means.dims2()?;
        let (gamma, beta) = (vector_f64("gamma", affine.gamma, channels)?, vector_f64("beta", affine.beta, channels)?);
        let gate = gate_f64(affine.gate, channels)?;
        with_element!(OP, means, T => {
            let (mean, variance) = (read(OP, "mean", means)?, read(OP, "variance", variances)?);
            let (mean, variance) = (mean.slice::<T>()?, variance.slice::<T>()?);
            let mut scale = Vec::with_capacity(batch * channels);
            let mut shift = Vec::with_capacity(batch * channels);
            for i in 0..batch * channels {
                let c = i % channels;
                let (m, k) = gate_and_k(borrow(gate.as_ref()), c, variance[i].to_f64(), config.eps);
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
                config,
                normalises: true,
            })
        })
    }

    fn norm_weighted_sum(&self, maps: &[(&Tensor, &NormCoefficients)], weights: Option<&Tensor>) -> Result<Computed> {
        let weights = match weights {
            Some(weights) => vector_f64("weights", weights, maps.len())?,
            None => vec![1.0; maps.len()],
        };
        let first = maps[0].0;
        let locks = maps.iter().map(|(y, n)| Locked::new(y, n)).collect::<Result<Vec<_>>>()?;
        with_element!(OP, first, T => {
            let mut views = Vec::with_capacity(maps.len());
            for (lock, weight) in locks.iter().zip(weights) {
                views.push((lock.map::<T>()?, T::from_f64(weight)));
            }
            Ok(Computed::on_host(cpu::weighted_sum(InstructionSet::detect(), &views), first.shape()))
        })
    }

    fn norm_backward(
        &self,
        y: &Tensor,
        coefficients: &NormCoefficients,
        affine: Affine,
        gradient: MapGradient,
    ) -> Result<NormGradients> {
        let (batch, size, c) = map_dims(OP, "y", y)?;
        let outer = match gradient.outer {
            None => None,
            Some((g, w)) => Some((g, vector_f64("weight", w, 1)?[0])),
        };
        let voxels = size.iter().product::<usize>() as f64;
        let (gamma, beta) = (vector_f64("gamma", affine.gamma, c)?, vector_f64("beta", affine.beta, c)?);
        let gate = gate_f64(affine.gate, c)?;
        let eps = coefficients.config.eps;
        let lock = Locked::new(y, coefficients)?;
        with_element!(OP, y, T => {
            let map = lock.map::<T>()?;
            let outer_lock = outer.map(|(g, w)| Ok::<_, Error>((read(OP, "gradient", g)?, T::from_f64(w)))).transpose()?;
            let direct_lock = gradient.direct.map(|g| read(OP, "gradient", g)).transpose()?;
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
}

fn vector_f64(what: &'static str, t: &Tensor, channels: usize) -> Result<Vec<f64>> {
    check_vector(OP, what, t, channels)?;
    Ok(t.to_dtype(DType::F64)?.to_vec1()?)
}

/// Gate `m` and factor `k` (see the formulas of [`norm_act`](crate::norm_act)) of one channel of one sample.
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

/// Raw map and its coefficients, locked for reading.
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
            slope: n.config.slope,
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
