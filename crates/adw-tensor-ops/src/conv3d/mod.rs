//! 3D convolution: forward, input gradient, weight gradient.
//!
//! [`conv3d`] is the op for everyone: tensors in candle's usual order `[B, C, D, H, W]`, gradients through candle's
//! `backward`. Maps are computed and returned *channels last* (the result is a `[B, C, D, H, W]` view of memory in the
//! order `[B, D, H, W, C]`), so a chain of these ops converts nothing.
//!
//! [`forward`], [`grad_input`] and [`grad_weight`] are the parts it is made of, for networks that write their backward
//! pass out: they take `[B, D, H, W, C]` maps, several of them side by side as channels of one input, each optionally
//! normalised while it is read.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(feature = "cuda")]
mod chosen;
mod correlate;
pub mod cuda;
mod grad_weight;
#[cfg(feature = "cuda")]
pub(crate) mod on_device;
#[cfg(any(test, feature = "cudnn"))]
mod operands;
pub(crate) mod tile;
mod winograd;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::geometry::{Conv3dGeometry, num_elements};
use crate::map::{channels_first, channels_last, map_dims};
use crate::norm_act::cpu::{self as norm_cpu};
use crate::norm_act::{Moments, NormCoefficients};
use crate::raw_output::filled;
use crate::simd::{Element, InstructionSet};
use crate::storage::{cpu_slice, read, tensor, with_element};
#[cfg(feature = "cuda")]
use adw_cuda::device::CudaRuntime;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Shape, Tensor, WithDType};
use correlate::{Axis, Correlation, Tap, WeightLayout};
use serde::{Deserialize, Serialize};
#[cfg(target_arch = "x86_64")]
use std::any::TypeId;
use std::ops::Range;
use tile::{Norm, Source};

/// How a pass is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    pub(crate) set: InstructionSet,
    pub(crate) algorithm: Algorithm,
    /// What f32 maps are multiplied with instead, rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) amx: Option<amx::Amx>,
}

/// What the factors of a convolution's products are rounded to. Sums are taken in the maps' element type. On a CUDA
/// device the maps' own type says it all (bf16 maps: products on tensor cores, sums in f32), and this changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Not at all: maps and weights of f32 (and f64) are used as they are.
    #[default]
    Full,
    /// Eight significant bits, for maps of f32 on processors with a matrix unit (Intel AMX): see
    /// [`Precision::is_available`]. Layers that the unit does not suit, those with few channels above all, are computed in
    /// full. A result is off by about 0.3 % (relative L2 error). Nothing stands in for a missing unit: passes fail.
    Bf16,
}

impl Precision {
    /// Whether passes can run in it on this device. CUDA devices that programs are let onto all can.
    pub fn is_available_on(self, device: &Device) -> bool {
        device.is_cuda() || self.is_available()
    }

    /// Whether this processor, and the system it runs under, can.
    pub fn is_available(self) -> bool {
        match self {
            Self::Full => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => amx::Amx::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }
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
unsafe fn of_f32<T: Element, J, F>(job: &J) -> Option<&F> {
    let is_f32 = TypeId::of::<T>() == TypeId::of::<f32>();
    // SAFETY: with `T` being f32, both are one type.
    is_f32.then(|| unsafe { &*std::ptr::from_ref(job).cast() })
}

/// A value of a type that is known to be the other.
#[cfg(target_arch = "x86_64")]
fn same<A: 'static, B: 'static>(value: A) -> B {
    let any: Box<dyn std::any::Any> = Box::new(value);
    *any.downcast().expect("the caller has compared the types")
}

/// A map that a convolution reads.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[B, D, H, W, C]`, contiguous.
    pub map: &'a Tensor,
    /// Read `leaky(scale * x + shift)` instead of `x`.
    pub norm: Option<&'a NormCoefficients>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(map: &'a Tensor) -> Self {
        Self { map, norm: None }
    }
}

/// Batch and spatial size of channels-last maps that are read side by side, and their channels.
fn input_dims(op: &'static str, inputs: &[Input]) -> Result<(usize, [usize; 3], usize)> {
    let mut found: Option<(usize, [usize; 3])> = None;
    let mut channels = 0;
    for input in inputs {
        let (b, size, c) = map_dims(op, "input", input.map)?;
        if found.is_some_and(|f| f != (b, size)) {
            return Err(Error::Shape {
                op,
                what: "input",
                got: input.map.shape().clone(),
                expected: "batch and size of the input beside it".into(),
            });
        }
        found = Some((b, size));
        channels += c;
    }
    let (b, size) = found.ok_or(Error::Argument { op, what: "no input, expected at least one".into() })?;
    Ok((b, size, channels))
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

fn check_weight(op: &'static str, weight: &Tensor, expected: [usize; 5]) -> Result<()> {
    num_elements(op, "weight", weight.dims())?;
    if weight.dims() == expected {
        return Ok(());
    }
    Err(Error::Shape { op, what: "weight", got: weight.shape().clone(), expected: format!("{expected:?}") })
}

fn weight_channels(op: &'static str, weight: &Tensor) -> Result<usize> {
    match *weight.dims() {
        [co, _, _, _, _] => Ok(co),
        _ => Err(Error::Shape {
            op,
            what: "weight",
            got: weight.shape().clone(),
            expected: "[Cout, Cin, kD, kH, kW]".into(),
        }),
    }
}

/// `y[b, o, co] = sum over ci, k: x[b, o * stride + k - padding, ci] * weight[co, ci, k]`, and the mean and variance of
/// every channel of every sample of `y`, taken while it is written.
///
/// `inputs`: maps `[B, D, H, W, Ci]`, their channels side by side; `weight`: `[Cout, sum Ci, kD, kH, kW]`. Returns
/// `[B, D', H', W', Cout]`. No gradient is recorded.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn forward(
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Result<(Tensor, Moments)> {
    let (y, moments) = forward_impl(inputs, weight, geometry, precision, true)?;
    Ok((y, moments.expect("asked for")))
}

/// [`forward`] without the moments.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn forward_plain(
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    Ok(forward_impl(inputs, weight, geometry, precision, false)?.0)
}

fn forward_impl(
    inputs: &[Input],
    weight: &Tensor,
    geometry: Conv3dGeometry,
    precision: Precision,
    with_moments: bool,
) -> Result<(Tensor, Option<Moments>)> {
    const OP: &str = "conv3d";
    let (batch, size, ci) = input_dims(OP, inputs)?;
    let co = weight_channels(OP, weight)?;
    let [kd, kh, kw] = geometry.kernel;
    check_weight(OP, weight, [co, ci, kd, kh, kw])?;
    let out = geometry.output_size(OP, size)?;
    #[cfg(feature = "cuda")]
    if let Some(rt) = CudaRuntime::of_tensor(weight) {
        return on_device::forward(&rt, inputs, weight, geometry, with_moments);
    }
    let means = Means::of(OP, precision)?;
    with_element!(OP, weight, T => with_sources::<T, _>(OP, inputs, |sources| {
        let weight = read(OP, "weight", weight)?;
        let (y, moments) = forward_cpu(means, sources, batch, size, weight.slice::<T>()?, co, geometry, with_moments)?;
        let moments = match moments {
            None => None,
            Some(m) => Some(Moments::joined(tensor(m.mean, (batch, co))?, tensor(m.variance, (batch, co))?)),
        };
        Ok((tensor(y, (batch, out[0], out[1], out[2], co))?, moments))
    }))
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

/// The gradient of [`forward`] for the input channels `channels`, of spatial size `size`: `[B, D, H, W, len]`.
///
/// `grad_output`: `[B, D', H', W', Cout]`; `weight`: `[Cout, Cin, kD, kH, kW]`.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn grad_input(
    grad_output: Input,
    weight: &Tensor,
    geometry: Conv3dGeometry,
    size: [usize; 3],
    channels: Range<usize>,
    precision: Precision,
) -> Result<Tensor> {
    const OP: &str = "conv3d input gradient";
    let (batch, out, co) = map_dims(OP, "grad_output", grad_output.map)?;
    let [kd, kh, kw] = geometry.kernel;
    let ci = weight.dims().get(1).copied().unwrap_or(0);
    check_weight(OP, weight, [co, ci, kd, kh, kw])?;
    if geometry.output_size(OP, size)? != out {
        return Err(Error::Shape {
            op: OP,
            what: "grad_output",
            got: grad_output.map.shape().clone(),
            expected: format!("the output size of an input of {size:?}"),
        });
    }
    num_elements(OP, "gradient", &[batch, size[0], size[1], size[2], ci])?;
    if channels.is_empty() || channels.end > ci {
        return Err(Error::Argument {
            op: OP,
            what: format!("channels {channels:?}, expected a range within 0..{ci}"),
        });
    }
    #[cfg(feature = "cuda")]
    if let Some(rt) = CudaRuntime::of_tensor(weight) {
        return on_device::grad_input(&rt, grad_output, weight, geometry, size, channels);
    }
    let means = Means::of(OP, precision)?;
    with_element!(OP, weight, T => with_sources::<T, _>(OP, &[grad_output], |sources| {
        let weight = read(OP, "weight", weight)?;
        let n = channels.len();
        let data = grad_input_cpu(means, sources, batch, out, weight.slice::<T>()?, ci, geometry, size, channels.clone());
        tensor(data, (batch, size[0], size[1], size[2], n))
    }))
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

/// The gradient of [`forward`] for the weight: `[Cout, Cin, kD, kH, kW]`.
///
/// `inputs`: as in the forward pass; `grad_output`: `[B, D', H', W', Cout]`.
///
/// # Errors
/// If shapes or element types do not fit together.
pub fn grad_weight(
    inputs: &[Input],
    grad_output: Input,
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    const OP: &str = "conv3d weight gradient";
    let (batch, size, ci) = input_dims(OP, inputs)?;
    let (b, out, co) = map_dims(OP, "grad_output", grad_output.map)?;
    if b != batch || geometry.output_size(OP, size)? != out {
        return Err(Error::Shape {
            op: OP,
            what: "grad_output",
            got: grad_output.map.shape().clone(),
            expected: format!("batch {batch} and the output size of an input of {size:?}"),
        });
    }
    #[cfg(feature = "cuda")]
    if let Some(rt) = CudaRuntime::of_tensor(grad_output.map) {
        return on_device::grad_weight(&rt, inputs, grad_output, geometry);
    }
    let means = Means::of(OP, precision)?;
    let [kd, kh, kw] = geometry.kernel;
    with_element!(OP, grad_output.map, T => with_sources::<T, _>(OP, inputs, |sources| {
        with_sources::<T, _>(OP, &[grad_output], |grad| {
            let job = grad_weight::GradWeight {
                means, batch, input: size, output: out, sources, grad_output: grad[0], geometry,
            };
            let data = job.run();
            tensor(data, (co, ci, kd, kh, kw))
        })
    }))
}

/// 3D convolution with gradients: `x [B, Cin, D, H, W]`, `weight [Cout, Cin, kD, kH, kW]` to `[B, Cout, D', H', W']`.
///
/// The same as PyTorch's `conv3d` without bias and dilation, in one group. Channels-last inputs (such as this op's
/// results) are taken as they lie; others are copied once.
///
/// # Errors
/// If shapes or element types (f32 or f64, CPU) do not fit together.
///
/// ```
/// use adw_tensor_ops::{Conv3dGeometry, conv3d};
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::randn(0f32, 1., (2, 3, 8, 10, 6), &Device::Cpu)?;
/// let weight = Tensor::randn(0f32, 1., (16, 3, 3, 3, 3), &Device::Cpu)?;
/// let y = conv3d(&x, &weight, Conv3dGeometry::same([3, 3, 3], [2, 2, 2]))?;
/// assert_eq!(y.dims(), [2, 16, 4, 5, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn conv3d(x: &Tensor, weight: &Tensor, geometry: Conv3dGeometry) -> Result<Tensor> {
    let x = channels_last("conv3d", x)?;
    num_elements("conv3d", "weight", weight.dims())?;
    let y = x.apply_op2(&weight.contiguous()?, Conv3d { geometry })?;
    channels_first(&y)
}

struct Conv3d {
    geometry: Conv3dGeometry,
}

impl Conv3d {
    /// Output size and channels.
    fn output(&self, x: &Layout, weight: &Layout) -> Result<([usize; 3], usize)> {
        const OP: &str = "conv3d";
        let (_, d, h, w, ci) = x.shape().dims5()?;
        let (co, wi, kd, kh, kw) = weight.shape().dims5()?;
        if wi != ci || [kd, kh, kw] != self.geometry.kernel {
            let [kd, kh, kw] = self.geometry.kernel;
            return Err(Error::Shape {
                op: OP,
                what: "weight",
                got: weight.shape().clone(),
                expected: format!("[Cout, {ci}, {kd}, {kh}, {kw}]"),
            });
        }
        Ok((self.geometry.output_size(OP, [d, h, w])?, co))
    }
}

impl CustomOp2 for Conv3d {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        const OP: &str = "conv3d";
        let (b, d, h, w, ci) = x_layout.shape().dims5()?;
        let (out, co) = self.output(x_layout, weight_layout)?;
        let storage = with_element!(OP, x, T => {
            let source = Source { data: cpu_slice::<T>(OP, x, x_layout)?, channels: ci, norm: None };
            let weight = cpu_slice::<T>(OP, weight, weight_layout)?;
            let (y, _) = forward_cpu(Means::best(), &[source], b, [d, h, w], weight, co, self.geometry, false)?;
            Ok(T::to_cpu_storage_owned(y))
        })?;
        Ok((storage, (b, out[0], out[1], out[2], co).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let (out, co) = self.output(x_layout, weight_layout)?;
        let y = on_device::op(on_device::Op::Conv3d, x, x_layout, weight, weight_layout, self.geometry, out)?;
        Ok((y, (x_layout.dims()[0], out[0], out[1], out[2], co).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad_y: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad_y = grad_y.contiguous()?;
        let (_, size, c) = map_dims("conv3d", "x", x)?;
        let grad_x = grad_input((&grad_y).into(), weight, self.geometry, size, 0..c, Precision::Full)?;
        let grad_weight = grad_weight(&[Input::from(x)], (&grad_y).into(), self.geometry, Precision::Full)?;
        Ok((Some(grad_x), Some(grad_weight)))
    }
}
