//! Launches of `conv3d.cu`: the three passes of a convolution, and with them those of a transposed one.

use crate::cuda::ElementType;
use crate::geometry::Conv3dGeometry;
use crate::norm_act::cuda::{Coefficients, PartialMoments};
use adw_cuda::work::{Machine, Work};
use adw_cuda::{Address, Buffer, Launch, Module, Params, Result, Runtime, blocks};
use std::ops::Range;

#[cfg(test)]
mod tests;

/// The kernels' source.
pub const MODULE: Module = adw_cuda::module!("conv3d");

/// Voxels of a block.
const BOX: usize = 128;
const MAX_TAPS: usize = 8;
/// Of all axes together; as many as one block of the weight gradient keeps in registers.
const MOST_TAPS: usize = 27;
const STAGES: usize = 3;
const GRAD_WEIGHT_CI: usize = 16;
const GRAD_WEIGHT_CO: usize = 48;
/// Shared memory that a block may have on every device since compute capability 8.0.
const MOST_SHARED: usize = 99 * 1024;

/// Returns true if the kernels support this geometry.
pub fn supports(geometry: &Conv3dGeometry) -> bool {
    let is_dense = geometry.dilation == [1; 3];
    is_dense && geometry.kernel.iter().all(|&k| k <= MAX_TAPS) && geometry.kernel.iter().product::<usize>() <= MOST_TAPS
}

/// A map `[B, voxels, C]` on the device, normalised while it is read if `norm` is there.
#[derive(Clone, Copy, Debug)]
pub struct SourceMap {
    /// Of the map.
    pub data: Address,
    /// Its channels.
    pub channels: usize,
    /// Scale and shift, `[B, C]` f32, and the slope of LeakyReLU.
    pub norm: Option<(Address, Address, f64)>,
}

impl SourceMap {
    /// A map as it is.
    pub fn plain(data: Address, channels: usize) -> Self {
        Self { data, channels, norm: None }
    }

    /// A map that is normalised while it is read.
    pub fn normalised<B: Buffer>(data: Address, channels: usize, c: &Coefficients<B>) -> Self {
        Self { data, channels, norm: Some((c.scale.address(), c.shift.address(), c.config.slope)) }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Source {
    data: Address,
    scale: Address,
    shift: Address,
    channels: u32,
    slope: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Sources {
    maps: [Source; 2],
    channels: u32,
    in_pieces: u32,
}

impl Sources {
    pub(super) fn new(maps: &[SourceMap], element: ElementType) -> Self {
        assert!((1..=2).contains(&maps.len()), "{} maps, expected one or two", maps.len());
        let source = |m: &SourceMap| {
            let (scale, shift, slope) = m.norm.unwrap_or_default();
            Source { data: m.data, scale, shift, channels: m.channels as u32, slope: slope as f32 }
        };
        Self {
            maps: [source(&maps[0]), source(maps.last().expect("checked above"))],
            channels: maps.iter().map(|m| m.channels as u32).sum(),
            in_pieces: u32::from(maps.iter().all(|m| m.channels.is_multiple_of(element.piece()))),
        }
    }
}

/// Bytes of `voxels` voxels of all maps, and of what normalises them.
pub(super) fn maps_bytes(maps: &[SourceMap], batch: usize, voxels: usize, element: ElementType) -> usize {
    let of_map = |m: &SourceMap| {
        let norm = if m.norm.is_some() { 2 * 4 } else { 0 };
        batch * m.channels * (voxels * element.size() + norm)
    };
    maps.iter().map(of_map).sum()
}

/// Positions of an axis of `size` that some of `taps` consecutive offsets from `first` on reach, `step` apart per output.
fn reached(first: i32, taps: usize, step: usize, count: usize, size: usize) -> usize {
    let (first, size) = (first as isize, size as isize);
    let (taps, step, count) = (taps as isize, step as isize, count as isize);
    if count == 0 || taps == 0 {
        return 0;
    }
    let within = |from: isize, to: isize| to.min(size) - from.max(0);
    if taps >= step {
        return within(first, first + step * (count - 1) + taps).max(0) as usize;
    }
    let outputs = (0..count).map(|o| within(first + o * step, first + o * step + taps).max(0));
    outputs.sum::<isize>() as usize
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Tiling {
    log_size: [i32; 3],
    tiles: [i32; 3],
    count: [i32; 3],
    step: [i32; 3],
    first: [i32; 3],
    region: [i32; 3],
    map: [i32; 3],
}

impl Tiling {
    /// The box with the least to load (each has its products, and its region), of the largest boxes whose region fits
    /// into shared memory; `shared` says what a block takes of that.
    fn new(
        count: [usize; 3],
        step: [usize; 3],
        first: [i32; 3],
        reach: [usize; 3],
        map: [usize; 3],
        shared: impl Fn(usize) -> usize,
    ) -> Self {
        const LOG: usize = BOX.ilog2() as usize;
        let region = |log: [usize; 3]| [0, 1, 2].map(|i| ((1usize << log[i]) - 1) * step[i] + reach[i]);
        let boxes = |all: usize| (0..=all).flat_map(move |d| (0..=all - d).map(move |h| [d, h, all - d - h]));
        let best = (LOG - 2..=LOG)
            .flat_map(boxes)
            .min_by_key(|&log| {
                let tiles: usize = (0..3).map(|i| count[i].div_ceil(1 << log[i])).product();
                let voxels: usize = region(log).iter().product();
                let smaller = LOG - log.iter().sum::<usize>();
                (shared(voxels).saturating_sub(MOST_SHARED), smaller, tiles * (voxels + 4 * BOX))
            })
            .expect("there are boxes");
        let int = |v: [usize; 3]| v.map(|v| v as i32);
        assert!(
            region(best).iter().all(|&r| r < 1024),
            "a place in the region has ten bits per axis: {:?}",
            region(best)
        );
        Self {
            log_size: int(best),
            tiles: int([0, 1, 2].map(|i| count[i].div_ceil(1 << best[i]))),
            count: int(count),
            step: int(step),
            first,
            region: int(region(best)),
            map: int(map),
        }
    }

    /// Of a box.
    fn positions(&self) -> usize {
        1 << self.log_size.iter().sum::<i32>()
    }

    fn num_tiles(&self) -> usize {
        self.tiles.iter().map(|&t| t as usize).product()
    }

    fn region_voxels(&self) -> usize {
        self.region.iter().map(|&r| r as usize).product()
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct PackParams {
    weight: Address,
    out: Address,
    dims: [u32; 3],
    num: [u32; 3],
    strides: [u32; 3],
    base: u32,
}
// SAFETY: plain numbers, laid out as in conv3d.cu.
unsafe impl Params for PackParams {}

/// Elements `base + strides . [i, j, k]` as an array of `dims`, whose elements from `num` on are 0.
pub(super) struct Order {
    pub(super) dims: [usize; 3],
    pub(super) num: [usize; 3],
    pub(super) strides: [usize; 3],
    pub(super) base: usize,
}

/// Weights, or gradients of weights, in another order and perhaps of another element type; bf16 to bf16 there is not.
///
/// The caller vouches for both addresses.
pub(super) unsafe fn pack<R: Runtime>(
    rt: &R,
    from: (Address, ElementType),
    to: (Address, ElementType),
    order: &Order,
) -> Result<()> {
    let len: usize = order.dims.iter().product();
    let read: usize = order.num.iter().product();
    let int = |v: [usize; 3]| v.map(|v| v as u32);
    // SAFETY: as the caller vouches.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: match (from.1, to.1) {
                (ElementType::F32, ElementType::F32) => "conv_pack_f32",
                (ElementType::F32, ElementType::Bf16) => "conv_pack_bf16",
                (ElementType::Bf16, _) => "conv_unpack_bf16",
            },
            grid: [blocks(len, 256), 1, 1],
            threads: 256,
            shared: 0,
            work: Work::new(read * from.1.size() + len * to.1.size(), 0),
            params: PackParams {
                weight: from.0,
                out: to.0,
                dims: int(order.dims),
                num: int(order.num),
                strides: int(order.strides),
                base: order.base as u32,
            },
        })
    }
}

/// Weights `[taps, rows, columns]` in the order the product reads them.
struct Packed<B> {
    data: B,
    rows: usize,
    columns: usize,
    /// Output channels of a block.
    tile: usize,
}

/// Weights of a convolution, `[Cout, Cin, kD, kH, kW]` f32.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Of the weights.
    pub data: Address,
    /// Output channels.
    pub co: usize,
    /// Input channels.
    pub ci: usize,
}

/// What the passes of a convolution have in common.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Samples.
    pub batch: usize,
    /// Of the input: D, H, W.
    pub size: [usize; 3],
    /// Kernel, stride and padding.
    pub geometry: Conv3dGeometry,
    /// Of all maps.
    pub element: ElementType,
}

impl Layer {
    /// Size of the output.
    ///
    /// # Panics
    /// If [`supports`] is false or the kernel does not fit the input: callers have checked.
    pub(super) fn output(&self) -> [usize; 3] {
        let geometry = &self.geometry;
        assert!(supports(geometry), "{geometry:?} is not supported");
        geometry.output_size("conv3d", self.size).expect("checked by the caller")
    }
}

/// The widest tile that wastes least.
fn column_tile(columns: usize) -> usize {
    [96, 48, 16].into_iter().min_by_key(|&n| columns.next_multiple_of(n) + 256 / n).expect("there are tiles")
}

/// Input channels (or output channels, in the input gradient) of one slice of the products.
fn slice(element: ElementType) -> usize {
    64 / element.size()
}

impl Weights {
    /// For the forward pass: rows are input channels, columns output channels; for the input gradient the other way
    /// round, for input channels `wanted` only.
    unsafe fn pack<R: Runtime>(
        &self,
        rt: &R,
        taps: usize,
        wanted: Option<&Range<usize>>,
        element: ElementType,
    ) -> Result<Packed<R::Buffer>> {
        let (num_rows, num_columns) = match wanted {
            None => (self.ci, self.co),
            Some(range) => (self.co, range.len()),
        };
        let tile = column_tile(num_columns);
        let (rows, columns) = (num_rows.next_multiple_of(slice(element)), num_columns.next_multiple_of(tile));
        let data = rt.alloc(taps * rows * columns * element.size())?;
        let (row_stride, column_stride) = match wanted {
            None => (taps, self.ci * taps),
            Some(_) => (self.ci * taps, taps),
        };
        let order = Order {
            dims: [taps, rows, columns],
            num: [taps, num_rows, num_columns],
            strides: [1, row_stride, column_stride],
            base: wanted.map_or(0, |r| r.start * taps),
        };
        // SAFETY: `data` has room for the result; the caller vouches for the weights.
        unsafe {
            let (from, to) = (self.data, data.address());
            pack(rt, (from, ElementType::F32), (to, element), &order)?;
        }
        Ok(Packed { data, rows, columns, tile })
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
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
    tap_offset: [[i32; MAX_TAPS]; 3],
    tap_weight: [[i32; MAX_TAPS]; 3],
    channels_out: u32,
    weight_rows: u32,
    weight_columns: u32,
    _unused: u32,
}
// SAFETY: plain numbers, laid out as in conv3d.cu; 21 + 12 + 48 + 4 words after the addresses leave an odd number, which
// `_unused` and the alignment of `Sources` account for.
unsafe impl Params for CorrelateParams {}

/// Along one axis: which taps there are, where they read and which weights they take.
struct Axis {
    step: usize,
    /// `(offset from step * position, index of the weight)`
    taps: Vec<(i32, usize)>,
    count: usize,
    out_step: usize,
    out_offset: usize,
}

/// Sums over taps; the caller vouches for every address.
unsafe fn correlate<R: Runtime>(
    rt: &R,
    maps: &[SourceMap],
    batch: usize,
    input: [usize; 3],
    output: [usize; 3],
    axes: &[Axis; 3],
    kernel: [usize; 3],
    weights: &Packed<R::Buffer>,
    channels_out: usize,
    element: ElementType,
    out: Address,
    moments: bool,
) -> Result<Option<PartialMoments<R::Buffer>>> {
    let piece = element.piece();
    let row_bytes = (slice(element) + piece) * element.size();
    let first = [0, 1, 2].map(|i| axes[i].taps.iter().map(|t| t.0).min().unwrap_or(0));
    let reach = [0, 1, 2].map(|i| {
        let last = axes[i].taps.iter().map(|t| t.0).max().unwrap_or(0);
        (last - first[i]) as usize + 1
    });
    let (n, size) = (weights.tile, element.size());
    let shared = |region_voxels: usize| {
        let tables = BOX * 4 + MOST_TAPS * 8 + region_voxels * 4;
        let stages = STAGES * slice(element) * (n + piece) * size;
        let region = (region_voxels * row_bytes).max(BOX * (n + piece) * size);
        tables.next_multiple_of(16) + stages + region
    };
    let tiling =
        Tiling::new([0, 1, 2].map(|i| axes[i].count), [0, 1, 2].map(|i| axes[i].step), first, reach, input, shared);
    let tap_stride = [kernel[1] * kernel[2], kernel[2], 1];
    let (mut tap_offset, mut tap_weight) = ([[0; MAX_TAPS]; 3], [[0; MAX_TAPS]; 3]);
    for i in 0..3 {
        for (t, &(offset, weight)) in axes[i].taps.iter().enumerate() {
            tap_offset[i][t] = offset - first[i];
            tap_weight[i][t] = (weight * tap_stride[i]) as i32;
        }
    }
    let partial =
        if moments { Some(PartialMoments::alloc(rt, batch, tiling.num_tiles(), channels_out)?) } else { None };
    let product = |f: &dyn Fn(usize) -> usize| (0..3).map(f).product::<usize>();
    let taps = product(&|i| axes[i].taps.len());
    let outputs = product(&|i| axes[i].count);
    let voxels_read = product(&|i| {
        let a = &axes[i];
        reached(first[i], a.taps.len(), a.step, a.count, input[i])
    });
    let channels_in: usize = maps.iter().map(|m| m.channels).sum();
    let products = taps * channels_in * channels_out;
    let work = Work::new(
        maps_bytes(maps, batch, voxels_read, element)
            + (products + batch * outputs * channels_out) * element.size()
            + partial.as_ref().map_or(0, |p| p.bytes(batch, channels_out)),
        2 * products * outputs * batch,
    )
    .on_tensor_cores(element == ElementType::Bf16);
    let ints = |f: &dyn Fn(&Axis) -> usize| [0, 1, 2].map(|i| f(&axes[i]) as i32);
    let params = CorrelateParams {
        sources: Sources::new(maps, element),
        weight: weights.data.address(),
        out,
        partial: partial.as_ref().map_or(Address::NONE, |p| p.partial.address()),
        counts: partial.as_ref().map_or(Address::NONE, |p| p.counts.address()),
        tiling,
        output: output.map(|n| n as i32),
        out_step: ints(&|a| a.out_step),
        out_offset: ints(&|a| a.out_offset),
        num_taps: ints(&|a| a.taps.len()),
        tap_offset,
        tap_weight,
        channels_out: channels_out as u32,
        weight_rows: weights.rows as u32,
        weight_columns: weights.columns as u32,
        _unused: 0,
    };
    // SAFETY: as the caller vouches.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: match (element, n) {
                (ElementType::F32, 16) => "conv_correlate_f32_n16",
                (ElementType::F32, 48) => "conv_correlate_f32_n48",
                (ElementType::F32, _) => "conv_correlate_f32_n96",
                (ElementType::Bf16, 16) => "conv_correlate_bf16_n16",
                (ElementType::Bf16, 48) => "conv_correlate_bf16_n48",
                (ElementType::Bf16, _) => "conv_correlate_bf16_n96",
            },
            grid: [tiling.num_tiles() as u32, blocks(weights.columns, n), batch as u32],
            threads: 128,
            shared: shared(tiling.region_voxels()) as u32,
            work,
            params,
        })?;
    }
    Ok(partial)
}

/// `y = conv(x, W)` of maps whose channels lie side by side, and the moments of every box of `y` if asked for.
///
/// # Safety
/// The addresses are those of maps `[batch, size, C]`, of the weights, and of room for `[batch, output size, Cout]`.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// If [`supports`] is false or the kernel does not fit the input: callers have checked.
pub unsafe fn forward<R: Runtime>(
    rt: &R,
    layer: &Layer,
    maps: &[SourceMap],
    weights: &Weights,
    out: Address,
    moments: bool,
) -> Result<Option<PartialMoments<R::Buffer>>> {
    let Layer { batch, size, geometry, element } = *layer;
    let output = layer.output();
    let axes = [0, 1, 2].map(|i| Axis {
        step: geometry.stride[i],
        taps: (0..geometry.kernel[i]).map(|k| (k as i32 - geometry.padding[i] as i32, k)).collect(),
        count: output[i],
        out_step: 1,
        out_offset: 0,
    });
    // SAFETY: as the caller vouches.
    unsafe {
        let packed = weights.pack(rt, geometry.kernel.iter().product(), None, element)?;
        correlate(rt, maps, batch, size, output, &axes, geometry.kernel, &packed, weights.co, element, out, moments)
    }
}

/// The gradient of [`forward`] for input channels `wanted`, and the forward pass of a transposed convolution: positions
/// of the input fall into classes by their residue modulo the stride, each a sum over taps of its own.
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
pub unsafe fn grad_input<R: Runtime>(
    rt: &R,
    layer: &Layer,
    grad_output: SourceMap,
    weights: &Weights,
    wanted: Range<usize>,
    out: Address,
) -> Result<()> {
    let Layer { batch, size, geometry, element } = *layer;
    let output = layer.output();
    let [kernel, stride, padding] = [geometry.kernel, geometry.stride, geometry.padding];
    // Output o reaches input i = residue + stride q through tap k iff o = q + (residue + padding - k) / stride.
    let axis = |i: usize, residue: usize| Axis {
        step: 1,
        taps: (0..kernel[i])
            .filter(|k| (residue + padding[i] + stride[i] * kernel[i] - k).is_multiple_of(stride[i]))
            .map(|k| ((residue as i32 + padding[i] as i32 - k as i32) / stride[i] as i32, k))
            .collect(),
        count: size[i].saturating_sub(residue).div_ceil(stride[i]),
        out_step: stride[i],
        out_offset: residue,
    };
    // SAFETY: as the caller vouches.
    let packed = unsafe { weights.pack(rt, kernel.iter().product(), Some(&wanted), element)? };
    for rd in 0..stride[0].min(size[0]) {
        for rh in 0..stride[1].min(size[1]) {
            for rw in 0..stride[2].min(size[2]) {
                let axes = [axis(0, rd), axis(1, rh), axis(2, rw)];
                // SAFETY: as the caller vouches.
                unsafe {
                    correlate(
                        rt,
                        &[grad_output],
                        batch,
                        output,
                        size,
                        &axes,
                        kernel,
                        &packed,
                        wanted.len(),
                        element,
                        out,
                        false,
                    )?;
                }
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
#[repr(C)]
struct GradWeightParams {
    sources: Sources,
    grad: Sources,
    partial: Address,
    tiling: Tiling,
    kernel: [i32; 3],
    batch: u32,
    parts: u32,
    buffers: u32,
}
// SAFETY: plain numbers, laid out as in conv3d.cu.
unsafe impl Params for GradWeightParams {}

#[derive(Clone, Copy)]
#[repr(C)]
struct GradWeightFinishParams {
    partial: Address,
    out: Address,
    parts: u32,
    taps: u32,
    ci: u32,
    co: u32,
}
// SAFETY: plain numbers, laid out as in conv3d.cu.
unsafe impl Params for GradWeightFinishParams {}

/// Into how many shares the boxes are split: what takes an H100 least time, with one block resident on each of its
/// multiprocessors, products at half of its peak, and every share's sums written and read once. A function of shapes only,
/// and so is the order of sums.
fn splits(blocks_per_share: usize, boxes: usize, positions: usize, share_bytes: usize, element: ElementType) -> usize {
    const MULTIPROCESSORS: usize = 132;
    let work = |bytes, operations| {
        Work::new(bytes, operations).on_tensor_cores(element == ElementType::Bf16).floor(&Machine::H100)
    };
    let products = 2 * positions * MOST_TAPS * GRAD_WEIGHT_CI * GRAD_WEIGHT_CO;
    let box_seconds = work(0, products) * (2 * MULTIPROCESSORS) as f64;
    let seconds = |splits: usize| {
        let waves = (blocks_per_share * splits).div_ceil(MULTIPROCESSORS);
        (waves * boxes.div_ceil(splits)) as f64 * box_seconds + work(2 * splits * share_bytes, 0)
    };
    (1..=boxes.min(2 * MULTIPROCESSORS)).min_by(|&a, &b| seconds(a).total_cmp(&seconds(b))).unwrap_or(1)
}

/// The gradient of [`forward`] for the weight, `[Cout, Cin, kD, kH, kW]` f32.
///
/// # Safety
/// The addresses are those of maps `[batch, size, C]`, of a map `[batch, output size, Cout]`, and of room for the result.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// As [`forward`].
pub unsafe fn grad_weight<R: Runtime>(
    rt: &R,
    layer: &Layer,
    maps: &[SourceMap],
    grad_output: SourceMap,
    out: Address,
) -> Result<()> {
    let Layer { batch, size, geometry, element } = *layer;
    let output = layer.output();
    let piece = element.piece();
    let row_bytes = (GRAD_WEIGHT_CI + piece) * element.size();
    let first = geometry.padding.map(|p| -(p as i32));
    let shared = |buffers: usize, region_voxels: usize| {
        let tables = BOX * 4 + (BOX + region_voxels) * 8;
        let gradients = BOX * (GRAD_WEIGHT_CO + piece) * element.size();
        tables.next_multiple_of(16) + buffers * (gradients + region_voxels * row_bytes)
    };
    let tiling =
        Tiling::new(output, geometry.stride, first, geometry.kernel, size, |region_voxels| shared(1, region_voxels));
    let (sources, grad) = (Sources::new(maps, element), Sources::new(&[grad_output], element));
    let (ci, co) = (sources.channels as usize, grad_output.channels);
    let taps: usize = geometry.kernel.iter().product();
    let parts = (MOST_TAPS / taps).min(tiling.positions() / 16);
    let (ci_tiles, co_tiles) = (blocks(ci, GRAD_WEIGHT_CI), blocks(co, GRAD_WEIGHT_CO));
    let share_bytes = parts * taps * ci * co * 4;
    let boxes = tiling.num_tiles() * batch;
    let splits = splits((ci_tiles * co_tiles) as usize, boxes, tiling.positions(), share_bytes, element);
    let partial = rt.alloc(splits * share_bytes)?;
    let outputs: usize = output.iter().product();
    let voxels_read = (0..3)
        .map(|i| {
            let (taps, step) = (geometry.kernel[i], geometry.stride[i]);
            reached(first[i], taps, step, output[i], size[i])
        })
        .product();
    let work = Work::new(
        maps_bytes(maps, batch, voxels_read, element)
            + maps_bytes(&[grad_output], batch, outputs, element)
            + splits * share_bytes,
        2 * taps * ci * co * outputs * batch,
    )
    .on_tensor_cores(element == ElementType::Bf16);
    let fits = |buffers| shared(buffers, tiling.region_voxels()) <= MOST_SHARED;
    let buffers = if fits(2) { 2 } else { 1 };
    let shared = shared(buffers, tiling.region_voxels());
    // SAFETY: `partial` has room for every share; the caller vouches for the rest.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: match element {
                ElementType::F32 => "conv_grad_weight_f32",
                ElementType::Bf16 => "conv_grad_weight_bf16",
            },
            grid: [ci_tiles, co_tiles, splits as u32],
            threads: 288,
            shared: shared as u32,
            work,
            params: GradWeightParams {
                sources,
                grad,
                partial: partial.address(),
                tiling,
                kernel: geometry.kernel.map(|k| k as i32),
                batch: batch as u32,
                parts: parts as u32,
                buffers: buffers as u32,
            },
        })?;
        rt.launch(&Launch {
            module: MODULE,
            kernel: "conv_grad_weight_finish",
            grid: [blocks(taps * ci * co, 256), 1, 1],
            threads: 256,
            shared: 0,
            work: Work::new((splits * parts + 1) * taps * ci * co * 4, splits * parts * taps * ci * co),
            params: GradWeightFinishParams {
                partial: partial.address(),
                out,
                parts: (splits * parts) as u32,
                taps: taps as u32,
                ci: ci as u32,
                co: co as u32,
            },
        })
    }
}
