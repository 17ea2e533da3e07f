//! The one loop behind forward convolution, input gradient and transposed convolution.
//!
//! Per axis, output `q` (written at `q * out_step + out_offset`) reads input `q * step + offset` for every tap, and
//! taps have consecutive offsets. A strided input gradient is one such loop per residue of the input position; a
//! transposed convolution is the input gradient of a convolution.
//!
//! A task takes a block of output rows: it copies the input rows that the block needs into a zero-padded panel that
//! fits the second-level cache (normalising them on the way, so that the normalised map never exists in memory), then
//! runs register tiles over panel and packed weights. Channels lie innermost, so a run over `taps along W x input
//! channels` is contiguous in the panel, and no im2col matrix is ever built.

use super::Means;
use super::tile::{
    Operands, Rows, Segment, Source, VectorShape, balanced, inside, max_rows, pack_panel, row_blocks, rows_that_fit,
    run_tile, vector_shape,
};
use super::winograd::{self, correlate::TransformWeight};
#[cfg(target_arch = "x86_64")]
use super::{amx, of_f32, same};
use crate::norm_act::cpu::{BlockMoments, block_moments};
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a panel: half of a common second-level cache, the other half is for weights and output.
const PANEL_BYTES: usize = 384 << 10;
/// Bytes of packed weights that one sweep over a block's rows works with: what stays in a first-level cache.
const WEIGHT_BYTES: usize = 28 << 10;

/// Input channels that one packing job takes.
const K_CHUNK: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap {
    pub(crate) offset: isize,
    /// Index of the kernel element along this axis.
    pub(crate) weight: usize,
}

/// One axis of a correlation.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    pub(crate) step: usize,
    /// Consecutive ascending offsets; may be empty, then the outputs are zero.
    pub(crate) taps: Vec<Tap>,
    pub(crate) count: usize,
    pub(crate) output: usize,
    pub(crate) out_step: usize,
    pub(crate) out_offset: usize,
}

impl Axis {
    pub(super) fn first_offset(&self) -> isize {
        self.taps.first().map_or(0, |t| t.offset)
    }

    /// Input positions from the first to the last that `outputs` neighbouring outputs read.
    pub(super) fn extent(&self, outputs: usize) -> usize {
        (outputs - 1) * self.step + self.taps.len().max(1)
    }

    pub(super) fn output_at(&self, q: usize) -> usize {
        q * self.out_step + self.out_offset
    }
}

/// How the elements `[k channel][lane channel][tap]` lie in a weight tensor, in elements.
#[derive(Clone, Copy)]
pub(crate) struct WeightLayout {
    pub(crate) base: usize,
    pub(crate) k_stride: usize,
    pub(crate) lane_stride: usize,
    pub(crate) tap_strides: [usize; 3],
}

pub(crate) struct Correlation<'a, T> {
    pub(crate) means: Means,
    pub(crate) batch: usize,
    pub(crate) axes: [Axis; 3],
    pub(crate) sources: &'a [Source<'a, T>],
    pub(crate) out_channels: usize,
    pub(crate) weight: &'a [T],
    pub(crate) layout: WeightLayout,
}

/// Output channels `first..first + count`, `vectors` wide when packed.
#[derive(Clone, Debug)]
pub(super) struct ChannelBlock {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) vectors: usize,
    /// Of its packed weights.
    pub(super) offset: usize,
}

/// What a packed weight holds per pair of channels.
#[derive(Clone, Copy)]
pub(super) enum WeightForm {
    /// Its taps, as they are.
    Taps,
    /// So many frequencies, see [`winograd`].
    Frequencies(usize),
}

/// Packed as `[block][tap d][tap h][tap w][k channel][lane]`, or with frequencies in the taps' place; lanes without a
/// channel are zero.
pub(super) struct PackedWeight<T> {
    pub(super) data: Vec<T>,
    pub(super) blocks: Vec<ChannelBlock>,
    pub(super) lanes: usize,
}

impl<T: Element> Correlation<'_, T> {
    pub(super) fn k_channels(&self) -> usize {
        self.sources.iter().map(|s| s.channels).sum()
    }

    /// Where the taps `[D][H][W]` lie behind the first element of a pair of channels.
    pub(super) fn tap_offsets(&self) -> Vec<usize> {
        let [sd, sh, sw] = self.layout.tap_strides;
        let [d, h, w] = &self.axes;
        let mut offsets = Vec::new();
        for td in &d.taps {
            for th in &h.taps {
                for tw in &w.taps {
                    offsets.push(td.weight * sd + th.weight * sh + tw.weight * sw);
                }
            }
        }
        offsets
    }

    /// Packs the weight as it is, or transformed by `winograd`.
    pub(super) fn pack_weight(&self, form: WeightForm) -> PackedWeight<T> {
        let VectorShape { lanes, max_vectors } = vector_shape::<T>(self.means.set);
        let taps = self.axes.each_ref().map(|a| a.taps.len());
        let (k, num_taps) = (self.k_channels(), taps[0] * taps[1] * taps[2]);
        let rows = match form {
            WeightForm::Taps => num_taps,
            WeightForm::Frequencies(n) => n,
        };
        let mut blocks = Vec::new();
        let mut offset = 0;
        for r in balanced(self.out_channels.div_ceil(lanes), max_vectors) {
            let first = r.start * lanes;
            let count = (r.end * lanes).min(self.out_channels) - first;
            blocks.push(ChannelBlock { first, count, vectors: r.len(), offset });
            offset += rows * k * r.len() * lanes;
        }
        let layout = self.layout;
        let tap_offsets = self.tap_offsets();
        let jobs: Vec<(&ChannelBlock, usize)> =
            blocks.iter().flat_map(|b| (0..k.div_ceil(K_CHUNK)).map(move |i| (b, i * K_CHUNK))).collect();
        // SAFETY: the jobs cover every block and k channel, and each writes all rows and lanes of its own.
        let data = unsafe {
            filled(offset, |out: SharedOut<T>| {
                jobs.par_iter().for_each_init(
                    || (Vec::new(), Vec::new()),
                    |(by_lane, transformed), &(block, k0)| {
                        let width = block.vectors * lanes;
                        for kc in k0..(k0 + K_CHUNK).min(k) {
                            // By way of a small buffer: written straight to the packed order, the taps of one weight would
                            // lie many pages apart, in the same few sets of the cache.
                            by_lane.clear();
                            by_lane.resize(num_taps * width, T::ZERO);
                            for lane in 0..block.count {
                                let lane_offset = (block.first + lane) * layout.lane_stride;
                                let src = &self.weight[layout.base + kc * layout.k_stride + lane_offset..];
                                for (row, &tap) in by_lane.chunks_exact_mut(width).zip(&tap_offsets) {
                                    row[lane] = src[tap];
                                }
                            }
                            let packed: &[T] = match form {
                                WeightForm::Taps => by_lane,
                                WeightForm::Frequencies(n) => {
                                    transformed.resize(n * width, T::ZERO);
                                    let kernel = TransformWeight { taps: by_lane, frequencies: transformed };
                                    dispatch(self.means.set, kernel);
                                    transformed
                                }
                            };
                            for (t, row) in packed.chunks_exact(width).enumerate() {
                                // SAFETY: inside the block's packed weights; no other job writes this k channel.
                                let dst = out.ptr().add(block.offset + (t * k + kc) * width);
                                dst.copy_from_nonoverlapping(row.as_ptr(), width);
                            }
                        }
                    },
                );
            })
        };
        PackedWeight { data, blocks, lanes }
    }

    /// Rows per task along D and H: as many as the panel holds.
    fn block_rows(&self) -> [usize; 2] {
        let [d, h, w] = &self.axes;
        let row = w.extent(w.count) * self.k_channels() * size_of::<T>();
        rows_that_fit([d.count, h.count], |[nd, nh]| d.extent(nd) * h.extent(nh) * row <= PANEL_BYTES)
    }

    /// Writes the outputs of this correlation into `out` (`[B, D, H, W, out_channels]`), and returns the moments of what
    /// it wrote if `with_moments`.
    ///
    /// # Safety
    /// `out` is valid for the whole output map, and nobody else accesses the positions that the axes name.
    pub(crate) unsafe fn run(&self, out: SharedOut<T>, with_moments: bool) -> Vec<BlockMoments<T>> {
        let [d, h, w] = &self.axes;
        if self.batch * d.count * h.count * w.count == 0 {
            return Vec::new();
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the job is one of `T`.
        if let (Some(amx), Some(job)) = (self.means.amx, unsafe { of_f32::<T, _, Correlation<f32>>(self) })
            && amx::correlate::applies(job)
        {
            // SAFETY: as the caller vouches; T is f32.
            return same(unsafe { amx::correlate::run(amx, job, out.cast(), with_moments) });
        }
        if winograd::correlate::applies(self) {
            // SAFETY: as the caller vouches.
            return unsafe { winograd::correlate::run(self, out, with_moments) };
        }
        let packed = self.pack_weight(WeightForm::Taps);
        let blocks = row_blocks(self.batch, [d.count, h.count], self.block_rows());
        // Layers with few voxels and many channels are split by channel as well.
        let splits = 16usize.div_ceil(blocks.len()).min(packed.blocks.len());
        let channels = balanced(packed.blocks.len(), packed.blocks.len().div_ceil(splits));
        let tasks: Vec<(&Rows, Range<usize>)> =
            blocks.iter().flat_map(|rows| channels.clone().map(move |c| (rows, c))).collect();
        let moments: Vec<Vec<BlockMoments<T>>> = tasks
            .into_par_iter()
            .map_init(Vec::new, |panel, (rows, channels)| {
                dispatch(
                    self.means.set,
                    RunTask { job: self, packed: &packed, rows, channels, out, with_moments, panel },
                )
            })
            .collect();
        moments.into_iter().flatten().collect()
    }
}

struct RunTask<'a, T> {
    job: &'a Correlation<'a, T>,
    packed: &'a PackedWeight<T>,
    rows: &'a Rows,
    /// Of the packed weight's blocks.
    channels: Range<usize>,
    out: SharedOut<T>,
    with_moments: bool,
    panel: &'a mut Vec<T>,
}

impl<T: Element> Kernel<T> for RunTask<'_, T> {
    type Output = Vec<BlockMoments<T>>;

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self) -> Self::Output {
        let Self { job, packed, rows, channels, out, with_moments, panel } = self;
        let [d, h, w] = &job.axes;
        let k = job.k_channels();
        let (panel_d, panel_h, panel_w) = (d.extent(rows.d.len()), h.extent(rows.h.len()), w.extent(w.count));
        let (d0, h0) =
            ((rows.d.start * d.step) as isize + d.first_offset(), (rows.h.start * h.step) as isize + h.first_offset());
        let row_len = panel_w * k;
        panel.resize(panel_d * panel_h * row_len, T::ZERO);
        // SAFETY: the panel has panel_d * panel_h rows of row_len elements.
        unsafe {
            pack_panel(
                panel.as_mut_ptr(),
                job.sources,
                rows.batch_idx,
                [d.input, h.input, w.input],
                [d0, h0, w.first_offset()],
                [panel_d, panel_h, panel_w],
            );
        }

        let run_len = w.taps.len() * k;
        let num_taps = if w.taps.is_empty() { 0 } else { d.taps.len() * h.taps.len() };
        let mut moments = Vec::new();
        let mut segments = Vec::with_capacity(num_taps);
        for block in &packed.blocks[channels] {
            let width = block.vectors * packed.lanes;
            let group = (WEIGHT_BYTES / (run_len * width * size_of::<T>()).max(1)).clamp(1, num_taps.max(1));
            // Whether a row has been written by an earlier group of taps.
            let mut started = vec![false; rows.d.len() * rows.h.len()];
            for group_start in (0..num_taps.max(1)).step_by(group) {
                let is_last_group = group_start + group >= num_taps;
                for (row, (qd, qh)) in rows.d.clone().flat_map(|qd| rows.h.clone().map(move |qh| (qd, qh))).enumerate()
                {
                    segments.clear();
                    for t in group_start..(group_start + group).min(num_taps) {
                        let (td, th) = (t / h.taps.len(), t % h.taps.len());
                        let (pd, ph) = ((qd - rows.d.start) * d.step + td, (qh - rows.h.start) * h.step + th);
                        if inside(d0 + pd as isize, d.input) && inside(h0 + ph as isize, h.input) {
                            segments.push(Segment {
                                a: (pd * panel_h + ph) * row_len,
                                b: t * run_len * width,
                                len: run_len,
                            });
                        }
                    }
                    if segments.is_empty() && (started[row] || !is_last_group) {
                        continue;
                    }
                    let accumulate = std::mem::replace(&mut started[row], true);
                    let out_row =
                        ((rows.batch_idx * d.output + d.output_at(qd)) * h.output + h.output_at(qh)) * w.output;
                    for voxels in balanced(w.count, max_rows::<S>(block.vectors)) {
                        let at = (out_row + w.output_at(voxels.start)) * job.out_channels + block.first;
                        // SAFETY: panel and packed weights were laid out for these segments; the output rows of this
                        // task's blocks belong to it alone.
                        unsafe {
                            run_tile::<S>(
                                voxels.len(),
                                block.vectors,
                                &Operands {
                                    a: panel.as_ptr().add(voxels.start * w.step * k),
                                    a_row: w.step * k,
                                    a_step: 1,
                                    b: packed.data.as_ptr().add(block.offset),
                                    b_step: width,
                                    b_vector: S::LANES,
                                    c: out.ptr().add(at),
                                    c_row: w.out_step * job.out_channels,
                                    c_vector: S::LANES,
                                    tail: block.count - (block.vectors - 1) * packed.lanes,
                                    accumulate,
                                },
                                &segments,
                            );
                        }
                    }
                }
            }
            if with_moments {
                let starts = rows.d.clone().flat_map(|qd| {
                    rows.h.clone().map(move |qh| {
                        let row = (rows.batch_idx * d.output + d.output_at(qd)) * h.output + h.output_at(qh);
                        // Only this block's channels are looked at: other tasks may be writing the rest.
                        out.ptr().cast_const().wrapping_add(row * w.output * job.out_channels + block.first)
                    })
                });
                // SAFETY: this task has just written these channels of these rows.
                moments.push(unsafe {
                    let channels = block.first..block.first + block.count;
                    block_moments(starts, w.output, job.out_channels, channels, rows.batch_idx)
                });
            }
        }
        moments
    }
}
