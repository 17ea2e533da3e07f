//! Launches of the correlation: the forward pass of a convolution, and its input gradient.

use super::maps::{SourceMap, Sources, maps_bytes};
use super::shape::{BOX, ConvShape, MAX_AXIS_TAPS, MAX_TAPS, MODULE};
use super::tiling::{Tiling, reached};
use super::weights::{Packed, Weights, slice};
use crate::norm_act::cuda::operands::PartialMoments;
use crate::precision::Precision;
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Result, Runtime, blocks, params};
use std::ops::Range;

/// Slices of weights that are on their way to shared memory at a time.
const STAGES: usize = 3;

params! {
    struct CorrelateParams {
        sources: Sources,
        weight: Address,
        out: Address,
        partial: Address,
        counts: Address,
        tiling: Tiling,
        output: [i32; 3],
        out_step: [i32; 3],
        out_offset: [i32; 3],
        num_taps: [i32; 3],
        tap_offset: [[i32; MAX_AXIS_TAPS]; 3],
        tap_weight: [[i32; MAX_AXIS_TAPS]; 3],
        channels_out: u32,
        weight_rows: u32,
        weight_columns: u32,
    }
}

/// Taps of a correlation along one axis.
struct TapAxis {
    /// Input positions between neighbouring outputs.
    step: usize,
    /// Per tap: offset from `step * position`, and index of the weight.
    taps: Vec<(i32, usize)>,
    /// Number of outputs.
    count: usize,
    /// Positions of the result between neighbouring outputs, and position of the first.
    out_step: usize,
    out_offset: usize,
}

impl TapAxis {
    fn first(&self) -> i32 {
        self.taps.iter().map(|t| t.0).min().unwrap_or(0)
    }

    /// Input positions from the first tap to the last.
    fn reach(&self) -> usize {
        let last = self.taps.iter().map(|t| t.0).max().unwrap_or(0);
        (last - self.first()) as usize + 1
    }
}

/// Sum over taps and input channels, written to some positions of the result.
struct Correlation<'a, B> {
    maps: &'a [SourceMap],
    batch: usize,
    /// Spatial size of the maps.
    input: [usize; 3],
    /// Spatial size of the result.
    output: [usize; 3],
    axes: [TapAxis; 3],
    /// Size of the convolution's kernel.
    kernel: [usize; 3],
    weights: &'a Packed<B>,
    channels_out: usize,
    precision: Precision,
    /// Address of the result.
    out: Address,
}

impl<B: Buffer> Correlation<'_, B> {
    fn per_axis<T>(&self, f: impl Fn(&TapAxis) -> T) -> [T; 3] {
        self.axes.each_ref().map(f)
    }

    /// Bytes of shared memory of a block that reads a region of so many voxels.
    fn shared_bytes(&self, region_voxels: usize) -> usize {
        let (n, size, piece) = (self.weights.tile, self.precision.element_bytes(), self.precision.piece_len());
        let row_bytes = (slice(self.precision) + piece) * size;
        let tables = BOX * 4 + MAX_TAPS * 8 + region_voxels * 4;
        let stages = STAGES * slice(self.precision) * (n + piece) * size;
        let region = (region_voxels * row_bytes).max(BOX * (n + piece) * size);
        tables.next_multiple_of(16) + stages + region
    }

    fn tiling(&self) -> Tiling {
        let (count, step) = (self.per_axis(|a| a.count), self.per_axis(|a| a.step));
        let (first, reach) = (self.per_axis(TapAxis::first), self.per_axis(TapAxis::reach));
        Tiling::new(count, step, first, reach, self.input, |region_voxels| self.shared_bytes(region_voxels))
    }

    fn work(&self, moments_bytes: usize) -> Work {
        let taps: usize = self.axes.iter().map(|a| a.taps.len()).product();
        let outputs: usize = self.axes.iter().map(|a| a.count).product();
        let reach = |a: &TapAxis| if a.taps.is_empty() { 0 } else { a.reach() };
        let axes = self.axes.iter().zip(self.input);
        let voxels_read = axes.map(|(a, size)| reached(a.first(), reach(a), a.step, a.count, size)).product();
        let channels_in: usize = self.maps.iter().map(|m| m.channels).sum();
        let products = taps * channels_in * self.channels_out;
        let elements = products + self.batch * outputs * self.channels_out;
        let maps = maps_bytes(self.maps, self.batch, voxels_read, self.precision);
        let bytes = maps + elements * self.precision.element_bytes() + moments_bytes;
        Work::new(bytes, 2 * products * outputs * self.batch).on_tensor_cores(self.precision == Precision::Bf16)
    }

    /// Launches the correlation; returns moments of every box of the result if `with_moments`.
    ///
    /// # Safety
    /// All addresses are valid for the shapes.
    unsafe fn launch<R: Runtime<Buffer = B>>(&self, rt: &R, with_moments: bool) -> Result<Option<PartialMoments<B>>> {
        let tiling = self.tiling();
        let tap_stride = [self.kernel[1] * self.kernel[2], self.kernel[2], 1];
        let (mut tap_offset, mut tap_weight) = ([[0; MAX_AXIS_TAPS]; 3], [[0; MAX_AXIS_TAPS]; 3]);
        for (i, axis) in self.axes.iter().enumerate() {
            for (t, &(offset, weight)) in axis.taps.iter().enumerate() {
                tap_offset[i][t] = offset - axis.first();
                tap_weight[i][t] = (weight * tap_stride[i]) as i32;
            }
        }
        let (batch, channels_out) = (self.batch, self.channels_out);
        let alloc = || PartialMoments::alloc(rt, batch, tiling.num_tiles(), channels_out);
        let partial = with_moments.then(alloc).transpose()?;
        let int = |v: [usize; 3]| v.map(|n| n as i32);
        let params = CorrelateParams {
            sources: Sources::new(self.maps, self.precision),
            weight: self.weights.data.address(),
            out: self.out,
            partial: partial.as_ref().map_or(Address::NONE, |p| p.partial.address()),
            counts: partial.as_ref().map_or(Address::NONE, |p| p.counts.address()),
            tiling,
            output: int(self.output),
            out_step: int(self.per_axis(|a| a.out_step)),
            out_offset: int(self.per_axis(|a| a.out_offset)),
            num_taps: int(self.per_axis(|a| a.taps.len())),
            tap_offset,
            tap_weight,
            channels_out: channels_out as u32,
            weight_rows: self.weights.rows as u32,
            weight_columns: self.weights.columns as u32,
        };
        let n = self.weights.tile;
        // SAFETY: the caller guarantees the addresses; the moments have room for every box.
        unsafe {
            rt.launch(&Launch {
                module: MODULE,
                kernel: match (self.precision, n) {
                    (Precision::Full, 16) => "conv_correlate_f32_n16",
                    (Precision::Full, 48) => "conv_correlate_f32_n48",
                    (Precision::Full, _) => "conv_correlate_f32_n96",
                    (Precision::Bf16, 16) => "conv_correlate_bf16_n16",
                    (Precision::Bf16, 48) => "conv_correlate_bf16_n48",
                    (Precision::Bf16, _) => "conv_correlate_bf16_n96",
                },
                grid: [tiling.num_tiles() as u32, blocks(self.weights.columns, n), batch as u32],
                threads: 128,
                shared: self.shared_bytes(tiling.region_voxels()) as u32,
                work: self.work(partial.as_ref().map_or(0, |p| p.bytes(batch, channels_out))),
                params,
            })?;
        }
        Ok(partial)
    }
}

/// Forward pass `y = conv(x, W)` of maps whose channels lie side by side, and the moments of every box of `y` if
/// `with_moments`.
///
/// # Safety
/// The addresses are those of maps `[batch, size, C]`, of the weights, and of room for `[batch, output size, Cout]`.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// If the geometry is not supported or the kernel does not fit the input: callers have checked.
pub(super) unsafe fn forward<R: Runtime>(
    rt: &R,
    shape: &ConvShape,
    maps: &[SourceMap],
    weights: &Weights,
    out: Address,
    with_moments: bool,
) -> Result<Option<PartialMoments<R::Buffer>>> {
    let ConvShape { batch, size, geometry, precision } = *shape;
    let output = shape.output();
    let axes = [0, 1, 2].map(|i| TapAxis {
        step: geometry.stride[i],
        taps: (0..geometry.kernel[i]).map(|k| (geometry.tap_offset(i, k) as i32, k)).collect(),
        count: output[i],
        out_step: 1,
        out_offset: 0,
    });
    // SAFETY: the caller guarantees the addresses.
    unsafe {
        let packed = weights.pack(rt, geometry.kernel.iter().product(), None, precision)?;
        let (weights, channels_out, kernel) = (&packed, weights.co, geometry.kernel);
        Correlation { maps, batch, input: size, output, axes, kernel, weights, channels_out, precision, out }
            .launch(rt, with_moments)
    }
}

/// Gradient of [`forward`] by the input channels `wanted`, and the forward pass of a transposed convolution: positions of
/// the input fall into classes by their residue modulo the stride, each a sum over taps of its own.
///
/// # Safety
/// The addresses are those of a map `[batch, output size, Cout]`, of the weights, and of room for
/// `[batch, size, wanted.len()]`.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// As [`forward`].
pub(super) unsafe fn grad_input<R: Runtime>(
    rt: &R,
    shape: &ConvShape,
    grad_output: SourceMap,
    weights: &Weights,
    wanted: Range<usize>,
    out: Address,
) -> Result<()> {
    let ConvShape { batch, size, geometry, precision } = *shape;
    let input = shape.output();
    let [kernel, stride] = [geometry.kernel, geometry.stride];
    let axis = |i: usize, residue: usize| TapAxis {
        step: 1,
        taps: (0..kernel[i]).filter_map(|k| Some((geometry.transposed_tap_offset(i, residue, k)? as i32, k))).collect(),
        count: size[i].saturating_sub(residue).div_ceil(stride[i]),
        out_step: stride[i],
        out_offset: residue,
    };
    // SAFETY: the caller guarantees the addresses.
    let packed = unsafe { weights.pack(rt, kernel.iter().product(), Some(&wanted), precision)? };
    let (maps, weights, output, channels_out) = (&[grad_output], &packed, size, wanted.len());
    for rd in 0..stride[0].min(size[0]) {
        for rh in 0..stride[1].min(size[1]) {
            for rw in 0..stride[2].min(size[2]) {
                let axes = [axis(0, rd), axis(1, rh), axis(2, rw)];
                let class =
                    Correlation { maps, batch, input, output, axes, kernel, weights, channels_out, precision, out };
                // SAFETY: the caller guarantees the addresses.
                unsafe { class.launch(rt, false)? };
            }
        }
    }
    Ok(())
}
