//! The passes of a convolution on the CPU, and the choice of an algorithm for each of their jobs.

use super::amx::{self, Amx};
use super::bf16::{self, Bf16};
use super::job::{Axis, ConvShape, Correlation, Norm, Source, WeightGradient};
use super::kernels::{Conv3dKernels, Input, input_dims};
use super::packing::lanes_of;
use super::tile::VectorShape;
use super::{direct, winograd};
use crate::backend::Cpu;
use crate::error::Result;
use crate::geometry::Conv3dGeometry;
use crate::map::map_dims;
use crate::norm_act::Moments;
use crate::norm_act::moments::{BlockMoments, ChannelMoments, join_moments};
use crate::precision::Precision;
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, InstructionSet};
use crate::storage::{Computed, read, tensor, with_element};
use candle_core::Tensor;
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
        let config = KernelConfig::for_precision(precision);
        let (batch, input, in_channels) = input_dims(OP, inputs)?;
        let (output, out_channels) = (geometry.output_size(OP, input)?, weight.dims()[0]);
        let shape = ConvShape { batch, input, output, in_channels, out_channels, geometry };
        with_element!(OP, weight, T => with_sources::<T, _>(OP, inputs, |sources| {
            let weight = read(OP, "weight", weight)?;
            let (y, moments) = convolve(config, &shape, sources, weight.slice::<T>()?, with_moments);
            let per_channel = |v| tensor::<T>(v, (batch, out_channels));
            let moments = match moments {
                None => None,
                Some(m) => Some(Moments::joined(per_channel(m.mean)?, per_channel(m.variance)?)),
            };
            let [d, h, w] = output;
            Ok((Computed::on_host(y, (batch, d, h, w, out_channels)), moments))
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
        let config = KernelConfig::for_precision(precision);
        let (batch, output, out_channels) = map_dims(OP, "grad_output", grad_output.map)?;
        let in_channels = weight.dims()[1];
        let shape = ConvShape { batch, input: size, output, in_channels, out_channels, geometry };
        with_element!(OP, weight, T => with_sources::<T, _>(OP, &[grad_output], |grad_output| {
            let weight = read(OP, "weight", weight)?;
            let gradient = input_gradient(config, &shape, grad_output, weight.slice::<T>()?, &channels);
            Ok(Computed::on_host(gradient, (batch, size[0], size[1], size[2], channels.len())))
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
        let config = KernelConfig::for_precision(precision);
        let (batch, input, in_channels) = input_dims(OP, inputs)?;
        let (_, output, out_channels) = map_dims(OP, "grad_output", grad_output.map)?;
        let shape = ConvShape { batch, input, output, in_channels, out_channels, geometry };
        let [kd, kh, kw] = geometry.kernel;
        with_element!(OP, grad_output.map, T => with_sources::<T, _>(OP, inputs, |sources| {
            with_sources::<T, _>(OP, &[grad_output], |grad_output| {
                let gradient = weight_gradient(config, &shape, sources, grad_output[0]);
                Ok(Computed::on_host(gradient, (out_channels, in_channels, kd, kh, kw)))
            })
        }))
    }
}

/// Calls `f` with the elements of the inputs, locked for reading.
fn with_sources<T: Element, R>(
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
                Some((read(op, "scale", &n.scale)?, read(op, "shift", &n.shift)?, n.config.slope))
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
                Some(Norm { scale: scale.slice()?, shift: shift.slice()?, slope: T::from_f64(*slope) })
            }
        };
        sources.push(Source { data: map.slice()?, channels, norm, round: None });
    }
    f(&sources)
}

/// Kernels that a pass may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelConfig {
    pub(crate) instruction_set: InstructionSet,
    /// Shorter vectors, for jobs whose channels take as many of them.
    pub(crate) shorter: Option<InstructionSet>,
    pub(crate) winograd: WinogradUse,
    /// Rounding of the factors of f32 to bf16.
    pub(crate) bf16: Option<Bf16>,
}

/// Jobs that Winograd's transforms are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "tests compare the algorithms"))]
pub(crate) enum WinogradUse {
    /// Jobs that they make cheaper.
    IfCheaper,
    /// All jobs that they support with tiles of this shape.
    IfSupported(winograd::TileShape),
    /// None.
    Never,
}

impl KernelConfig {
    /// The fastest kernels of this processor in full precision.
    pub(crate) fn fastest() -> Self {
        Self {
            instruction_set: InstructionSet::detect(),
            shorter: InstructionSet::shorter(),
            winograd: WinogradUse::IfCheaper,
            bf16: None,
        }
    }

    /// These kernels with the shorter vectors, if the channels that a job reads and writes take no more of them: half the lanes
    /// of the longer ones would be empty.
    pub(crate) fn for_channels<T: Element>(self, sources: &[Source<T>], written: usize) -> Self {
        let vectors = |set| {
            let lanes = VectorShape::of::<T>(set).lanes;
            (lanes_of(sources, lanes).len(), written.div_ceil(lanes))
        };
        match self.shorter {
            Some(set) if vectors(set) == vectors(self.instruction_set) => Self { instruction_set: set, ..self },
            _ => self,
        }
    }

    /// The fastest kernels of this processor in `precision`.
    fn for_precision(precision: Precision) -> Self {
        let bf16 = match precision {
            Precision::Full => None,
            Precision::Bf16 => Some(Bf16::detect()),
        };
        Self { bf16, ..Self::fastest() }
    }

    /// Winograd's transforms where they are cheaper, else the direct sum.
    fn choose<T: Element>(
        self,
        axes: &[Axis; 3],
        batch: usize,
        channels: [usize; 2],
        min_channels: [usize; 2],
    ) -> Algorithm {
        let tiling = match self.winograd {
            WinogradUse::Never => None,
            _ if !winograd::supports(axes) => None,
            WinogradUse::IfCheaper => {
                winograd::cheapest::<T>(self.instruction_set, axes, batch, channels, min_channels)
            }
            WinogradUse::IfSupported(shape) => winograd::tiling::<T>(self.instruction_set, axes, shape),
        };
        tiling.map_or(Algorithm::Direct, Algorithm::Winograd)
    }
}

/// Algorithm of a job in full precision.
enum Algorithm {
    Direct,
    Winograd(winograd::Tiling),
}

/// A function with the arguments of [`correlate`], but for the unit in place of the configuration.
type CorrelateOnAmx<T> = unsafe fn(Amx, &Correlation<T>, SharedOut<T>, bool) -> Vec<BlockMoments<T>>;

/// Kernels of jobs in bf16.
pub(crate) struct Bf16Kernels<T> {
    /// Correlation on the matrix unit.
    correlate: CorrelateOnAmx<T>,
    /// Weight gradient on the matrix unit.
    weight_gradient: fn(Amx, &WeightGradient<T>) -> Vec<T>,
    /// Rounding of factors, for processors without the unit.
    round: fn(&mut [T]),
}

/// An element type of a convolution's maps and weights.
pub(crate) trait ConvElement: Element {
    /// Kernels in bf16, for types that are rounded to it.
    const BF16: Option<&'static Bf16Kernels<Self>> = None;
}

impl ConvElement for f64 {}

impl ConvElement for f32 {
    const BF16: Option<&'static Bf16Kernels<Self>> = Some(&Bf16Kernels {
        correlate: amx::correlation::run,
        weight_gradient: amx::weight_gradient::run,
        round: bf16::round,
    });
}

/// Runs a correlation in the configuration's precision.
///
/// # Safety
/// `out` is valid for the whole output map, and nothing else accesses the outputs of the job.
unsafe fn correlate<T: ConvElement>(
    config: KernelConfig,
    job: &Correlation<T>,
    out: SharedOut<T>,
    with_moments: bool,
) -> Vec<BlockMoments<T>> {
    if job.is_empty() {
        return Vec::new();
    }
    let (sources, rounded);
    let job = match (config.bf16, T::BF16) {
        (Some(bf16), Some(kernels)) if bf16::suits_correlation(job) => match bf16 {
            // SAFETY: the caller guarantees that the outputs may be written.
            Bf16::MatrixUnit(amx) => return unsafe { (kernels.correlate)(amx, job, out, with_moments) },
            Bf16::Rounded => {
                sources = bf16::rounded(job.sources, kernels.round);
                rounded = Correlation {
                    sources: &sources,
                    round_weight: Some(kernels.round),
                    axes: job.axes.clone(),
                    ..*job
                };
                &rounded
            }
        },
        _ => job,
    };
    let config = config.for_channels(job.sources, job.out_channels);
    let set = config.instruction_set;
    let channels = [job.k_channels(), job.out_channels];
    // SAFETY: the caller guarantees that the outputs may be written.
    unsafe {
        match config.choose::<T>(&job.axes, job.batch, channels, winograd::correlation::MIN_CHANNELS) {
            Algorithm::Direct => direct::correlation::run(set, job, out, with_moments),
            Algorithm::Winograd(tiling) => winograd::correlation::run(set, job, &tiling, out, with_moments),
        }
    }
}

/// Computes the convolution `[B, D', H', W', Cout]` of `sources`, and its moments if `with_moments`.
pub(crate) fn convolve<T: ConvElement>(
    config: KernelConfig,
    shape: &ConvShape,
    sources: &[Source<T>],
    weight: &[T],
    with_moments: bool,
) -> (Vec<T>, Option<ChannelMoments<T>>) {
    let ConvShape { batch, output, out_channels, .. } = *shape;
    let job = Correlation::forward(shape, sources, weight);
    let mut moments = None;
    // SAFETY: the axes of the forward pass name every output.
    let y = unsafe {
        filled(batch * output.iter().product::<usize>() * out_channels, |out| {
            let blocks = correlate(config, &job, out, with_moments);
            moments = with_moments.then(|| join_moments(&blocks, batch, out_channels));
        })
    };
    (y, moments)
}

/// Computes the gradient `[B, D, H, W, len]` of the input channels `channels`.
pub(crate) fn input_gradient<T: ConvElement>(
    config: KernelConfig,
    shape: &ConvShape,
    grad_output: &[Source<T>],
    weight: &[T],
    channels: &Range<usize>,
) -> Vec<T> {
    // SAFETY: the residues of the three axes together name every position of the input.
    unsafe {
        filled(shape.batch * shape.input.iter().product::<usize>() * channels.len(), |out| {
            for job in Correlation::grad_input(shape, grad_output, weight, channels) {
                correlate(config, &job, out, false);
            }
        })
    }
}

/// Computes the gradient `[Cout, Cin, kD, kH, kW]` of the weight.
pub(crate) fn weight_gradient<T: ConvElement>(
    config: KernelConfig,
    shape: &ConvShape,
    sources: &[Source<T>],
    grad_output: Source<T>,
) -> Vec<T> {
    let mut job = WeightGradient::new(shape, sources, grad_output);
    let rounded;
    match (config.bf16, T::BF16) {
        (Some(bf16), Some(kernels)) if bf16::suits_weight_gradient(&job) => match bf16 {
            Bf16::MatrixUnit(amx) => return (kernels.weight_gradient)(amx, &job),
            Bf16::Rounded => {
                rounded = bf16::rounded(sources, kernels.round);
                let grad_output = Source { round: Some(kernels.round), ..grad_output };
                job = WeightGradient::new(shape, &rounded, grad_output);
            }
        },
        _ => {}
    }
    let config = config.for_channels(job.sources, job.out_channels());
    let channels = [job.in_channels(), job.out_channels()];
    match config.choose::<T>(&job.axes, job.batch, channels, winograd::weight_gradient::MIN_CHANNELS) {
        Algorithm::Direct => direct::weight_gradient::run(config.instruction_set, &job),
        Algorithm::Winograd(tiling) => winograd::weight_gradient::run(config.instruction_set, &job, &tiling),
    }
}
