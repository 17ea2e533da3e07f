//! Passes of the convolution on the processor.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::correlate::{Axis, Correlation, Tap, WeightLayout};
use super::grad_weight;
use super::kernels::{Conv3dKernels, Input, input_dims};
use super::tile::{Norm, Source};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::geometry::{Conv3dGeometry, num_elements};
use crate::map::map_dims;
use crate::norm_act::Moments;
use crate::norm_act::cpu as norm_cpu;
use crate::precision::Precision;
use crate::raw_output::filled;
use crate::simd::{Element, InstructionSet};
use crate::storage::{Computed, read, tensor, with_element};
use candle_core::Tensor;
#[cfg(target_arch = "x86_64")]
use std::any::TypeId;
use std::ops::Range;

impl Conv3dKernels for Cpu {
    fn conv3d(
        &self,
        inputs: &[Input],
        weight: &Tensor,
        geometry: Conv3dGeometry,
        precision: Precision,
        with_moments: bool,
    ) -> Result<(Computed, Option<Moments>)> {
        const OP: &str = "conv3d";
        let (batch, size, _) = input_dims(OP, inputs)?;
        let (out, co) = (geometry.output_size(OP, size)?, weight.dims()[0]);
        let means = Means::of(OP, precision)?;
        with_element!(OP, weight, T => with_sources::<T, _>(OP, inputs, |sources| {
            let weight = read(OP, "weight", weight)?;
            let (y, moments) = forward_cpu(means, sources, batch, size, weight.slice::<T>()?, co, geometry, with_moments)?;
            let moments = match moments {
                None => None,
                Some(m) => Some(Moments::joined(tensor(m.mean, (batch, co))?, tensor(m.variance, (batch, co))?)),
            };
            Ok((Computed::on_host(y, (batch, out[0], out[1], out[2], co)), moments))
        }))
    }

    fn conv3d_grad_input(
        &self,
        grad_output: Input,
        weight: &Tensor,
        geometry: Conv3dGeometry,
        precision: Precision,
        size: [usize; 3],
        channels: Range<usize>,
    ) -> Result<Computed> {
        const OP: &str = "conv3d input gradient";
        let (batch, out, _) = map_dims(OP, "grad_output", grad_output.map)?;
        let ci = weight.dims()[1];
        let means = Means::of(OP, precision)?;
        with_element!(OP, weight, T => with_sources::<T, _>(OP, &[grad_output], |sources| {
            let (weight, n) = (read(OP, "weight", weight)?, channels.len());
            let data = grad_input_cpu(means, sources, batch, out, weight.slice::<T>()?, ci, geometry, size, channels);
            Ok(Computed::on_host(data, (batch, size[0], size[1], size[2], n)))
        }))
    }

    fn conv3d_grad_weight(
        &self,
        inputs: &[Input],
        grad_output: Input,
        geometry: Conv3dGeometry,
        precision: Precision,
    ) -> Result<Computed> {
        const OP: &str = "conv3d weight gradient";
        let (batch, input, ci) = input_dims(OP, inputs)?;
        let (_, output, co) = map_dims(OP, "grad_output", grad_output.map)?;
        let means = Means::of(OP, precision)?;
        let [kd, kh, kw] = geometry.kernel;
        with_element!(OP, grad_output.map, T => with_sources::<T, _>(OP, inputs, |sources| {
            with_sources::<T, _>(OP, &[grad_output], |grad| {
                let grad_output = grad[0];
                let job = grad_weight::GradWeight { means, batch, input, output, sources, grad_output, geometry };
                Ok(Computed::on_host(job.run(), (co, ci, kd, kh, kw)))
            })
        }))
    }
}

/// Returns true if the processor has a matrix unit for bf16 that this process may use.
pub(crate) fn has_matrix_unit() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::Amx::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// How a pass is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    pub(crate) set: InstructionSet,
    pub(crate) algorithm: Algorithm,
    /// What f32 maps are multiplied with instead, rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) amx: Option<amx::Amx>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// Tests ask for one of the two.
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Algorithm {
    /// The one of the two that has less to do.
    Fastest,
    /// The sum as it stands, see [`correlate`] and [`grad_weight`].
    Direct,
    /// See [`winograd`]; where it cannot be had, the direct sum.
    Winograd,
}

impl Means {
    /// What this processor does best.
    pub(crate) fn best() -> Self {
        Self {
            set: InstructionSet::detect(),
            algorithm: Algorithm::Fastest,
            #[cfg(target_arch = "x86_64")]
            amx: None,
        }
    }

    /// What it does best in this precision.
    fn of(op: &'static str, precision: Precision) -> Result<Self> {
        if !precision.is_available() {
            return Err(Error::Argument {
                op,
                what: "this processor has no matrix unit for bf16 (Intel AMX), expected full precision".into(),
            });
        }
        Ok(Self {
            #[cfg(target_arch = "x86_64")]
            amx: match precision {
                Precision::Full => None,
                Precision::Bf16 => amx::Amx::detect(),
            },
            ..Self::best()
        })
    }
}

/// A job on maps of `T` as what it is if `T` is f32.
///
/// # Safety
/// `F` is `J` with f32 in the place of `T`.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn of_f32<T: Element, J, F>(job: &J) -> Option<&F> {
    let is_f32 = TypeId::of::<T>() == TypeId::of::<f32>();
    // SAFETY: with `T` being f32, both are one type.
    is_f32.then(|| unsafe { &*std::ptr::from_ref(job).cast() })
}

/// A value of a type that is known to be the other.
#[cfg(target_arch = "x86_64")]
pub(super) fn same<A: 'static, B: 'static>(value: A) -> B {
    let any: Box<dyn std::any::Any> = Box::new(value);
    *any.downcast().expect("the caller has compared the types")
}

/// Runs `f` with the inputs as slices.
pub(crate) fn with_sources<T: Element, R>(
    op: &'static str,
    inputs: &[Input],
    f: impl FnOnce(&[Source<T>]) -> Result<R>,
) -> Result<R> {
    let mut locks = Vec::with_capacity(inputs.len());
    for input in inputs {
        let norm = match input.norm {
            None => None,
            Some(n) => {
                n.check(op, input.map)?;
                Some((read(op, "scale", &n.scale)?, read(op, "shift", &n.shift)?, n.slope))
            }
        };
        locks.push((read(op, "input", input.map)?, norm));
    }
    let mut sources = Vec::with_capacity(inputs.len());
    for ((map, norm), input) in locks.iter().zip(inputs) {
        let (_, _, channels) = map_dims(op, "input", input.map)?;
        let norm = match norm {
            None => None,
            Some((scale, shift, slope)) => {
                let (scale, shift) = (scale.slice::<T>()?, shift.slice::<T>()?);
                Some(Norm { scale, shift, slope: T::from_f64(*slope) })
            }
        };
        sources.push(Source { data: map.slice()?, channels, norm });
    }
    f(&sources)
}

pub(crate) fn forward_cpu<T: Element>(
    means: Means,
    sources: &[Source<T>],
    batch: usize,
    size: [usize; 3],
    weight: &[T],
    co: usize,
    geometry: Conv3dGeometry,
    with_moments: bool,
) -> Result<(Vec<T>, Option<norm_cpu::Moments<T>>)> {
    let out = geometry.output_size("conv3d", size)?;
    let elements = num_elements("conv3d", "output", &[batch, out[0], out[1], out[2], co])?;
    let [_, kh, kw] = geometry.kernel;
    let taps = geometry.kernel.iter().product::<usize>();
    let ci: usize = sources.iter().map(|s| s.channels).sum();
    let axes = [0, 1, 2].map(|i| Axis {
        input: size[i],
        step: geometry.stride[i],
        taps: (0..geometry.kernel[i])
            .map(|k| Tap { offset: k as isize - geometry.padding[i] as isize, weight: k })
            .collect(),
        count: out[i],
        output: out[i],
        out_step: 1,
        out_offset: 0,
    });
    let layout = WeightLayout { base: 0, k_stride: taps, lane_stride: ci * taps, tap_strides: [kh * kw, kw, 1] };
    let job = Correlation { means, batch, axes, sources, out_channels: co, weight, layout };
    let mut moments = None;
    // SAFETY: with output step 1, the correlation writes every element.
    let y = unsafe {
        filled(elements, |o| {
            let blocks = job.run(o, with_moments);
            moments = with_moments.then(|| norm_cpu::join_moments(&blocks, batch, co));
        })
    };
    Ok((y, moments))
}

pub(crate) fn grad_input_cpu<T: Element>(
    means: Means,
    sources: &[Source<T>],
    batch: usize,
    out: [usize; 3],
    weight: &[T],
    ci: usize,
    geometry: Conv3dGeometry,
    size: [usize; 3],
    channels: Range<usize>,
) -> Vec<T> {
    let [_, kh, kw] = geometry.kernel;
    let taps = geometry.kernel.iter().product::<usize>();
    let layout = WeightLayout {
        base: channels.start * taps,
        k_stride: ci * taps,
        lane_stride: taps,
        tap_strides: [kh * kw, kw, 1],
    };
    // Input positions i = residue + stride q. Output o reaches i through tap k iff o = q + (residue + padding - k) / stride.
    let axis = |i: usize, residue: usize| {
        let (s, p) = (geometry.stride[i], geometry.padding[i]);
        Axis {
            input: out[i],
            step: 1,
            taps: (0..geometry.kernel[i])
                .rev()
                .filter(|k| (residue + p + s * geometry.kernel[i] - k).is_multiple_of(s))
                .map(|k| Tap { offset: (residue as isize + p as isize - k as isize) / s as isize, weight: k })
                .collect(),
            count: size[i].saturating_sub(residue).div_ceil(s),
            output: size[i],
            out_step: s,
            out_offset: residue,
        }
    };
    // SAFETY: the residues of the three axes together name every position of the input.
    unsafe {
        filled(batch * size[0] * size[1] * size[2] * channels.len(), |o| {
            for rd in 0..geometry.stride[0] {
                for rh in 0..geometry.stride[1] {
                    for rw in 0..geometry.stride[2] {
                        let axes = [axis(0, rd), axis(1, rh), axis(2, rw)];
                        let job =
                            Correlation { means, batch, axes, sources, out_channels: channels.len(), weight, layout };
                        job.run(o, false);
                    }
                }
            }
        })
    }
}
