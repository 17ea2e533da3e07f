//! Forward pass and input gradient.

use super::{
    Block, DepthRead, PLANE, Panel, Planes, Tiling, InputTransform, output_transform, pays,
    plane_stride, transform_tiles,
};
use crate::conv3d::correlate::{Axis, Correlation, PackedWeight, WeightForm};
use crate::conv3d::tile::{Operands, Segment, balanced, max_rows, pack_panel, run_tile};
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
    let tasks: Vec<(&Block, Range<usize>)> = blocks
        .iter()
        .flat_map(|b| channels.clone().map(move |c| (b, c)))
        .collect();
    let moments: Vec<Vec<BlockMoments<T>>> = tasks
        .into_par_iter()
        .map_init(Scratch::default, |scratch, (block, channels)| {
            dispatch(
                job.means.set,
                RunBlock {
                    job,
                    tiling: &tiling,
                    packed: &packed,
                    block,
                    channels,
                    out,
                    with_moments,
                    scratch,
                },
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
        let planes = if self.frequencies.len() * 9 == self.taps.len() * PLANE {
            1
        } else {
            3
        };
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
                let along = if planes == 1 {
                    &[depth[0][f]][..]
                } else {
                    &along[..]
                };
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
        Self {
            panel: Vec::new(),
            inputs: Vec::new(),
            products: Vec::new(),
        }
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
        let Self {
            job,
            tiling,
            packed,
            block,
            channels,
            out,
            with_moments,
            scratch,
        } = self;
        let [d, h, w] = &job.axes;
        let k = job.k_channels();
        let channel_blocks = &packed.blocks[channels];
        let first_channel = channel_blocks.first().map_or(0, |b| b.first);
        let end_channel = channel_blocks.last().map_or(0, |b| b.first + b.count);
        let num_channels = end_channel - first_channel;
        let num_tiles = block.num_tiles();

        let extent = tiling.input_extent(block.size());
        let origin = [0, 1, 2].map(|i| {
            (block.tiles[i].start * tiling.tile[i]) as isize + job.axes[i].first_offset()
        });
        // Vectors of the last voxel's last channels may reach beyond it.
        scratch
            .panel
            .resize(extent.iter().product::<usize>() * k + S::LANES, T::ZERO);
        // SAFETY: the panel has been made that long.
        unsafe {
            pack_panel(
                scratch.panel.as_mut_ptr(),
                job.sources,
                block.batch_idx,
                [d.input, h.input, w.input],
                origin,
                extent,
                true,
            );
        }
        let panel = Panel {
            data: scratch.panel.as_ptr(),
            size: [extent[1], extent[2]],
            pitch: k,
        };
        let planes_of = |buffer: &mut Vec<T>, channels: usize| {
            let pitch = channels.next_multiple_of(S::LANES);
            let stride = plane_stride(num_tiles, pitch);
            buffer.resize(PLANE * stride, T::ZERO);
            Planes {
                data: buffer.as_mut_ptr(),
                stride,
                pitch,
            }
        };
        let inputs = planes_of(&mut scratch.inputs, k);
        let products = planes_of(&mut scratch.products, num_channels);
        let outputs = block.outputs(tiling, [d.count, h.count, w.count]);

        for (depth_idx, depth) in tiling.depth.iter().enumerate() {
            let read = DepthRead {
                first: depth.first,
                second: (depth.sign != 0.0).then_some((depth.second, depth.sign)),
            };
            // SAFETY: panel and planes were made for this block.
            unsafe {
                transform_tiles::<S, InputTransform, 4>(
                    &panel,
                    &inputs,
                    block.size(),
                    tiling.tile,
                    &read,
                );
            }
            for f in 0..PLANE {
                for channels in channel_blocks {
                    let width = channels.vectors * packed.lanes;
                    let weight = channels.offset + (depth_idx * PLANE + f) * k * width;
                    for tiles in balanced(num_tiles, max_rows::<S>(channels.vectors)) {
                        // SAFETY: tiles of a plane of inputs, k channels of packed weights, tiles of a plane of products,
                        // whose channels are filled up to whole vectors.
                        unsafe {
                            let of = |planes: &Planes<T>| {
                                planes
                                    .data
                                    .add(f * planes.stride + tiles.start * planes.pitch)
                            };
                            run_tile::<S>(
                                tiles.len(),
                                channels.vectors,
                                &Operands {
                                    a: of(&inputs),
                                    a_row: inputs.pitch,
                                    a_step: 1,
                                    b: packed.data.as_ptr().add(weight),
                                    b_step: width,
                                    len: k,
                                    c: of(&products).add(channels.first - first_channel),
                                    c_row: products.pitch,
                                    tail: S::LANES,
                                    accumulate: false,
                                },
                                &[Segment { a: 0, b: 0 }],
                            );
                        }
                    }
                }
            }
            // SAFETY: the outputs of this block's tiles and these channels are this task's alone; the first frequency of D
            // that reaches an output writes it, later ones add to it.
            unsafe {
                add_outputs::<S>(
                    &products,
                    block,
                    tiling,
                    depth_idx,
                    &outputs,
                    |qd, qh, qw| {
                        let row = (block.batch_idx * d.output + d.output_at(qd)) * h.output
                            + h.output_at(qh);
                        let voxel = row * w.output + w.output_at(qw);
                        out.ptr().add(voxel * job.out_channels + first_channel)
                    },
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
                out.ptr().cast_const().wrapping_add(
                    (row * w.output + ow.start) * job.out_channels + first_channel,
                )
            })
        });
        // SAFETY: this task has just written these channels of these rows.
        vec![unsafe {
            block_moments(
                rows,
                ow.len(),
                job.out_channels,
                first_channel..end_channel,
                block.batch_idx,
            )
        }]
    }
}

/// Transforms the products of one frequency of D back along H and W, and adds them to the outputs that it reaches.
///
/// # Safety
/// `at` gives the address of every output in `outputs`, whose first channels `0..num_channels` nobody else accesses; its
/// neighbour along W is `w_step` elements further.
#[inline(always)]
unsafe fn add_outputs<S: Simd>(
    products: &Planes<S::Elem>,
    block: &Block,
    tiling: &Tiling,
    depth_idx: usize,
    outputs: &[Range<usize>; 3],
    at: impl Fn(usize, usize, usize) -> *mut S::Elem,
    w_step: usize,
    num_channels: usize,
) {
    let zero = S::splat(S::Elem::ZERO);
    let shares = tiling.depth[depth_idx].outputs;
    // The first frequency that reaches an output finds nothing there.
    let is_first = |plane: usize| depth_idx == plane;
    let mut tile_idx = 0;
    for td in block.tiles[0].clone() {
        for th in block.tiles[1].clone() {
            for tw in block.tiles[2].clone() {
                let (qd, qh, qw) = (td * tiling.tile[0], th * 2, tw * 2);
                let rows = (outputs[1].end - qh).min(2);
                let columns = (outputs[2].end - qw).min(2);
                for c in (0..num_channels).step_by(S::LANES) {
                    let lanes = (num_channels - c).min(S::LANES);
                    let mut m = [[zero; 4]; 4];
                    // SAFETY: a tile of the products; outputs as the caller vouches.
                    unsafe {
                        let product = products.data.add(tile_idx * products.pitch + c);
                        for (i, m) in m.iter_mut().enumerate() {
                            for (j, m) in m.iter_mut().enumerate() {
                                *m = S::load(product.add((i * 4 + j) * products.stride));
                            }
                        }
                        let mut half = [[zero; 4]; 2];
                        for j in 0..4 {
                            let column = output_transform::<S>([m[0][j], m[1][j], m[2][j], m[3][j]]);
                            half[0][j] = column[0];
                            half[1][j] = column[1];
                        }
                        let y = [
                            output_transform::<S>(half[0]),
                            output_transform::<S>(half[1]),
                        ];
                        for plane in 0..tiling.tile[0].min(outputs[0].end - qd) {
                            let share = shares[plane];
                            if share == 0.0 {
                                continue;
                            }
                            let share = S::splat(S::Elem::from_f64(share));
                            for (i, y) in y.iter().enumerate().take(rows) {
                                let row = at(qd + plane, qh + i, qw).add(c);
                                for (j, &y) in y.iter().enumerate().take(columns) {
                                    let p = row.add(j * w_step);
                                    if lanes == S::LANES {
                                        let v = if is_first(plane) {
                                            y
                                        } else {
                                            S::mul_add(y, share, S::load(p))
                                        };
                                        S::store(p, v);
                                    } else {
                                        let v = if is_first(plane) {
                                            y
                                        } else {
                                            S::mul_add(y, share, S::load_first(p, lanes))
                                        };
                                        S::store_first(p, v, lanes);
                                    }
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
