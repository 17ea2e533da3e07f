//! Forward pass and input gradient.

use super::{
    Block, InputTransform, PLANE, Tiling, load_up_to, output_transform, pack_panel, pays, store_up_to, tile_len,
    transform_tiles,
};
use crate::conv3d::correlate::{Axis, Correlation, PackedWeight, WeightForm};
use crate::conv3d::tile::{Lanes, Operands, Segment, balanced, lanes_of, max_rows, run_tile};
use crate::norm_act::cpu::{BlockMoments, block_moments};
use crate::raw_output::SharedOut;
use crate::simd::{Element, Kernel, Simd, dispatch};
use candle_core::WithDType;
use rayon::prelude::*;
use std::ops::Range;

/// Whether `job` is one that this module can do, and faster than the direct sum.
pub(in crate::conv3d) fn applies<T: Element>(job: &Correlation<T>) -> bool {
    let dense = |a: &Axis| a.step == 1 && a.out_step == 1;
    job.axes.iter().all(dense)
        && pays(
            job.means.algorithm,
            job.axes.each_ref().map(|a| a.taps.len()),
            job.batch,
            job.axes.each_ref().map(|a| a.count),
            job.k_channels(),
            job.out_channels,
        )
}

/// As [`Correlation::run`].
///
/// # Safety
/// As for [`Correlation::run`]; `job` [`applies`].
pub(in crate::conv3d) unsafe fn run<T: Element>(
    job: &Correlation<T>,
    out: SharedOut<T>,
    with_moments: bool,
) -> Vec<BlockMoments<T>> {
    let [d, h, w] = &job.axes;
    let tiling = Tiling::new(d.taps.len(), [d.count, h.count, w.count]);
    let packed = job.pack_weight(WeightForm::Frequencies(tiling.num_frequencies()));
    let k = job.k_channels();
    let blocks = tiling.blocks(job.batch, tiling.block::<T>(k, job.out_channels));
    // Layers with few voxels and many channels are split by channel as well.
    let splits = 16usize.div_ceil(blocks.len()).min(packed.blocks.len());
    let channels = balanced(packed.blocks.len(), packed.blocks.len().div_ceil(splits));
    let tasks: Vec<(&Block, Range<usize>)> =
        blocks.iter().flat_map(|b| channels.clone().map(move |c| (b, c))).collect();
    let moments: Vec<Vec<BlockMoments<T>>> = tasks
        .into_par_iter()
        .map_init(Scratch::default, |scratch, (block, channels)| {
            dispatch(
                job.means.set,
                RunBlock { job, tiling: &tiling, packed: &packed, block, channels, out, with_moments, scratch },
            )
        })
        .collect();
    moments.into_iter().flatten().collect()
}

/// `G g` along the three axes, for a row of lanes: from `[tap][lane]`, nine or 27 taps, to `[frequency][lane]`.
pub(in crate::conv3d) struct TransformWeight<'a, T> {
    pub(in crate::conv3d) taps: &'a [T],
    pub(in crate::conv3d) frequencies: &'a mut [T],
}

impl<T: Element> Kernel<T> for TransformWeight<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self) {
        let planes = if self.frequencies.len() * 9 == self.taps.len() * PLANE { 1 } else { 3 };
        let lanes = self.taps.len() / (planes * 9);
        debug_assert_eq!(lanes % S::LANES, 0, "rows are whole vectors");
        let zero = S::splat(T::ZERO);
        for lane in (0..lanes).step_by(S::LANES) {
            let mut depth = [[zero; PLANE]; 3];
            for (d, plane) in depth.iter_mut().enumerate().take(planes) {
                let tap = |h: usize, w: usize| {
                    let row = &self.taps[((d * 3 + h) * 3 + w) * lanes + lane..][..S::LANES];
                    // SAFETY: the slice is one vector long.
                    unsafe { S::load(row.as_ptr()) }
                };
                let mut rows = [[zero; 4]; 3];
                for (h, row) in rows.iter_mut().enumerate() {
                    *row = weight_transform::<S>([tap(h, 0), tap(h, 1), tap(h, 2)]);
                }
                for w in 0..4 {
                    let column = weight_transform::<S>([rows[0][w], rows[1][w], rows[2][w]]);
                    for h in 0..4 {
                        plane[h * 4 + w] = column[h];
                    }
                }
            }
            for f in 0..PLANE {
                let along = [depth[0][f], depth[1][f], depth[2][f]];
                let along = weight_transform::<S>(along);
                let along = if planes == 1 { &[depth[0][f]][..] } else { &along[..] };
                for (d, &x) in along.iter().enumerate() {
                    let row = &mut self.frequencies[(d * PLANE + f) * lanes + lane..][..S::LANES];
                    // SAFETY: the slice is one vector long.
                    unsafe { S::store(row.as_mut_ptr(), x) }
                }
            }
        }
    }
}

/// `G g`
#[inline(always)]
fn weight_transform<S: Simd>(g: [S::Vector; 3]) -> [S::Vector; 4] {
    let half = S::splat(S::Elem::from_f64(0.5));
    let zero = S::splat(S::Elem::ZERO);
    let even = S::mul_add(S::add(g[0], g[2]), half, zero);
    let odd = S::mul_add(g[1], half, zero);
    [g[0], S::add(even, odd), S::sub(even, odd), g[2]]
}

struct Scratch<T> {
    panel: Vec<T>,
    inputs: Vec<T>,
    products: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { panel: Vec::new(), inputs: Vec::new(), products: Vec::new() }
    }
}

struct RunBlock<'a, T> {
    job: &'a Correlation<'a, T>,
    tiling: &'a Tiling,
    packed: &'a PackedWeight<T>,
    block: &'a Block,
    /// Of the packed weight's channel blocks.
    channels: Range<usize>,
    out: SharedOut<T>,
    with_moments: bool,
    scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for RunBlock<'_, T> {
    type Output = Vec<BlockMoments<T>>;

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self) -> Self::Output {
        let Self { job, tiling, packed, block, channels, out, with_moments, scratch } = self;
        let [d, h, w] = &job.axes;
        let k = job.k_channels();
        let channel_blocks = &packed.blocks[channels];
        let first_channel = channel_blocks.first().map_or(0, |b| b.first);
        let end_channel = channel_blocks.last().map_or(0, |b| b.first + b.count);
        let num_channels = end_channel - first_channel;
        let num_tiles = block.num_tiles();

        let lanes = lanes_of(job.sources, S::LANES);
        let origin = [0, 1, 2].map(|i| (block.tiles[i].start * tiling.tile[i]) as isize + job.axes[i].first_offset());
        let panel = pack_panel::<S>(
            &mut scratch.panel,
            job.sources,
            &lanes,
            block.batch_idx,
            [d.input, h.input, w.input],
            origin,
            tiling.input_extent(block.size()),
        );
        let tile_len = tile_len(S::LANES);
        let num_vectors: usize = channel_blocks.iter().map(|b| b.vectors).sum();
        let room = |vectors: usize| vectors * num_tiles * tile_len;
        scratch.inputs.resize(room(lanes.len()), T::ZERO);
        scratch.products.resize(room(num_vectors), T::ZERO);
        let outputs = block.outputs(tiling, [d.count, h.count, w.count]);
        // Of every block of output channels, the same at all frequencies.
        let segments = channel_blocks.iter().map(|channels| {
            let segment = |(v, lanes): (usize, &Lanes)| Segment {
                a: room(v),
                b: lanes.first * channels.vectors * packed.lanes,
                len: lanes.len,
            };
            lanes.iter().enumerate().map(segment).collect()
        });
        let segments: Vec<Vec<Segment>> = segments.collect();

        for (depth_idx, depth) in tiling.depth.iter().enumerate() {
            // SAFETY: panel and buffer were made for this block.
            unsafe {
                transform_tiles::<S, InputTransform, 4>(
                    &panel,
                    scratch.inputs.as_mut_ptr(),
                    lanes.len(),
                    block.size(),
                    tiling.tile,
                    &depth.input(),
                );
            }
            for f in 0..PLANE {
                let mut vector = 0;
                for (channels, segments) in channel_blocks.iter().zip(&segments) {
                    let width = channels.vectors * packed.lanes;
                    let weight = channels.offset + (depth_idx * PLANE + f) * k * width;
                    for tiles in balanced(num_tiles, max_rows::<S>(channels.vectors)) {
                        let at = tiles.start * tile_len + f * S::LANES;
                        // SAFETY: inside the buffers of this block and the packed weights of these channels.
                        unsafe {
                            run_tile::<S>(
                                tiles.len(),
                                channels.vectors,
                                &Operands {
                                    a: scratch.inputs.as_ptr().add(at),
                                    a_row: tile_len,
                                    a_step: 1,
                                    b: packed.data.as_ptr().add(weight),
                                    b_step: width,
                                    b_vector: S::LANES,
                                    c: scratch.products.as_mut_ptr().add(room(vector) + at),
                                    c_row: tile_len,
                                    c_vector: room(1),
                                    tail: S::LANES,
                                    accumulate: false,
                                },
                                segments,
                            );
                        }
                    }
                    vector += channels.vectors;
                }
            }
            // SAFETY: the outputs of this block's tiles and these channels are this task's alone; the first frequency of D
            // that reaches an output writes it, later ones add to it.
            unsafe {
                add_outputs::<S>(
                    scratch.products.as_ptr(),
                    block,
                    tiling,
                    depth_idx,
                    &outputs,
                    out.ptr().add(first_channel),
                    [d.output, h.output, w.output],
                    job.out_channels,
                    num_channels,
                );
            }
        }
        if !with_moments {
            return Vec::new();
        }
        let [od, oh, ow] = &outputs;
        let rows = od.clone().flat_map(|qd| {
            oh.clone().map(move |qh| {
                let row = (block.batch_idx * d.output + qd) * h.output + qh;
                out.ptr().cast_const().wrapping_add((row * w.output + ow.start) * job.out_channels + first_channel)
            })
        });
        // SAFETY: this task has just written these channels of these rows.
        vec![unsafe { block_moments(rows, ow.len(), job.out_channels, first_channel..end_channel, block.batch_idx) }]
    }
}

/// Transforms the products of one frequency of D back along H and W, and adds them to the outputs that it reaches.
///
/// # Safety
/// `products` holds `[vector of channels][tile][frequency][lane]`; `out` points to a map of `size` voxels, `pitch` elements
/// each, of which nobody else accesses the first `num_channels` of the voxels `outputs`.
#[inline(always)]
unsafe fn add_outputs<S: Simd>(
    products: *const S::Elem,
    block: &Block,
    tiling: &Tiling,
    depth_idx: usize,
    outputs: &[Range<usize>; 3],
    out: *mut S::Elem,
    size: [usize; 3],
    pitch: usize,
    num_channels: usize,
) {
    let zero = S::splat(S::Elem::ZERO);
    let shares = tiling.depth[depth_idx].outputs;
    let tile_len = tile_len(S::LANES);
    let num_tiles = block.num_tiles();
    let mut tile_idx = 0;
    for td in block.tiles[0].clone() {
        for th in block.tiles[1].clone() {
            for tw in block.tiles[2].clone() {
                let (qd, qh, qw) = (td * tiling.tile[0], th * 2, tw * 2);
                let rows = (outputs[1].end - qh).min(2);
                let columns = (outputs[2].end - qw).min(2);
                let planes = tiling.tile[0].min(outputs[0].end - qd);
                for (v, c) in (0..num_channels).step_by(S::LANES).enumerate() {
                    let lanes = (num_channels - c).min(S::LANES);
                    let mut m = [[zero; 4]; 4];
                    // SAFETY: a tile of the products; outputs as the caller vouches.
                    unsafe {
                        let product = products.add((v * num_tiles + tile_idx) * tile_len);
                        for i in 0..4 {
                            for j in 0..4 {
                                m[i][j] = S::load(product.add((i * 4 + j) * S::LANES));
                            }
                        }
                        let mut half = [[zero; 4]; 2];
                        for j in 0..4 {
                            let column = output_transform::<S>([m[0][j], m[1][j], m[2][j], m[3][j]]);
                            half[0][j] = column[0];
                            half[1][j] = column[1];
                        }
                        let y = [output_transform::<S>(half[0]), output_transform::<S>(half[1])];
                        for plane in 0..planes {
                            if shares[plane] == 0.0 {
                                continue;
                            }
                            // The first frequency that reaches an output finds nothing there.
                            let is_first = depth_idx == plane;
                            let share = S::splat(S::Elem::from_f64(shares[plane]));
                            for i in 0..rows {
                                let voxel =
                                    ((block.batch_idx * size[0] + qd + plane) * size[1] + qh + i) * size[2] + qw;
                                for j in 0..columns {
                                    let p = out.add((voxel + j) * pitch + c);
                                    let y = y[i][j];
                                    let sum =
                                        if is_first { y } else { S::mul_add(y, share, load_up_to::<S>(p, lanes)) };
                                    store_up_to::<S>(p, sum, lanes);
                                }
                            }
                        }
                    }
                }
                tile_idx += 1;
            }
        }
    }
}
