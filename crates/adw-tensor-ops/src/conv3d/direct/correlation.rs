//! Forward pass, input gradient and transposed convolution by the direct sum.
//!
//! A task takes a block of output rows: it copies the input rows that the block needs into a zero-padded panel that fits
//! the second-level cache, then runs register tiles over panel and packed weights. Channels lie innermost, so a run over
//! `neighbouring taps along W x input channels` is contiguous in the panel, and no im2col matrix is ever built.

use super::panel::{pack_rows, panel_row};
use crate::conv3d::job::Correlation;
use crate::conv3d::packed_weight::{ChannelBlock, PackedWeight};
use crate::conv3d::packing::VoxelBox;
use crate::conv3d::partition::{RowBlock, balanced, largest_row_block, row_blocks};
use crate::conv3d::tile::{Operands, Segment, max_rows, run_tile};
use crate::norm_act::moments::{BlockMoments, block_moments};
use crate::raw_output::SharedOut;
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a panel: half of a common second-level cache, the other half is for weights and output.
const PANEL_BYTES: usize = 384 << 10;
/// Bytes of packed weights that one sweep over a block's rows works with: what stays in a first-level cache.
const WEIGHT_BYTES: usize = 28 << 10;
/// Tasks that keep many threads busy.
const MIN_TASKS: usize = 16;

/// Writes the outputs of a correlation into `out` (`[B, D, H, W, out_channels]`), and returns the moments of the outputs
/// if `with_moments`.
///
/// # Safety
/// `out` is valid for the whole output map, and nothing else accesses the outputs of the job.
pub(in crate::conv3d) unsafe fn run<T: Element>(
    set: InstructionSet,
    job: &Correlation<T>,
    out: SharedOut<T>,
    with_moments: bool,
) -> Vec<BlockMoments<T>> {
    let packed = PackedWeight::new(set, job);
    let [d, h, _] = &job.axes;
    let blocks = row_blocks(job.batch, [d.num_outputs, h.num_outputs], block_rows(job));
    // Layers with few voxels and many channels are split by channel as well.
    let splits = MIN_TASKS.div_ceil(blocks.len()).min(packed.blocks.len());
    let channels = balanced(packed.blocks.len(), packed.blocks.len().div_ceil(splits));
    let tasks: Vec<(&RowBlock, Range<usize>)> =
        blocks.iter().flat_map(|rows| channels.clone().map(move |c| (rows, c))).collect();
    let moments: Vec<Vec<BlockMoments<T>>> = tasks
        .into_par_iter()
        .map_init(Vec::new, |panel, (rows, channels)| {
            let channels = &packed.blocks[channels];
            dispatch(set, CorrelateRows { job, packed: &packed, rows, channels, out, with_moments, panel })
        })
        .collect();
    moments.into_iter().flatten().collect()
}

/// Rows per task along D and H: as many as the panel holds.
fn block_rows<T>(job: &Correlation<T>) -> [usize; 2] {
    let [d, h, w] = &job.axes;
    let row = w.extent(w.num_outputs) * job.k_channels() * size_of::<T>();
    let fits = |[nd, nh]: [usize; 2]| d.extent(nd) * h.extent(nh) * row <= PANEL_BYTES;
    largest_row_block([d.num_outputs, h.num_outputs], fits)
}

/// A run of taps along W that is contiguous in the panel.
struct TapRun {
    /// Tap along D and H.
    taps: [usize; 2],
    /// Offset of the run's first element in a row of the panel.
    in_row: usize,
    /// Number of its first element among those of all taps and k channels.
    first_k: usize,
    /// Elements: taps times k channels.
    len: usize,
}

/// All runs of taps, in the order of the packed weight.
fn tap_runs<T>(job: &Correlation<T>) -> Vec<TapRun> {
    let [d, h, w] = &job.axes;
    let k = job.k_channels();
    let along_w = w.tap_runs();
    let mut runs = Vec::new();
    for td in 0..d.taps.len() {
        for th in 0..h.taps.len() {
            for run in &along_w {
                let first_tap = (td * h.taps.len() + th) * w.taps.len() + run.start;
                runs.push(TapRun {
                    taps: [td, th],
                    in_row: w.tap_position(run.start) * k,
                    first_k: first_tap * k,
                    len: run.len() * k,
                });
            }
        }
    }
    runs
}

/// Task that computes a block of output rows for some blocks of output channels.
struct CorrelateRows<'a, T> {
    job: &'a Correlation<'a, T>,
    packed: &'a PackedWeight<T>,
    rows: &'a RowBlock,
    channels: &'a [ChannelBlock],
    out: SharedOut<T>,
    with_moments: bool,
    panel: &'a mut Vec<T>,
}

impl<T: Element> Kernel<T> for CorrelateRows<'_, T> {
    type Output = Vec<BlockMoments<T>>;

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) -> Self::Output {
        let voxels = pack_rows(self.panel, self.job.sources, &self.job.axes, self.rows);
        let runs = tap_runs(self.job);
        let mut moments = Vec::new();
        for block in self.channels {
            self.correlate(simd, voxels, &runs, block);
            if self.with_moments {
                moments.push(self.moments(block));
            }
        }
        moments
    }
}

impl<T: Element> CorrelateRows<'_, T> {
    /// Computes the rows for one block of output channels, a group of taps at a time whose weights stay in the first-level
    /// cache for all rows.
    #[inline(always)]
    fn correlate<S: Simd<Elem = T>>(&self, simd: S, voxels: VoxelBox, runs: &[TapRun], block: &ChannelBlock) {
        let Self { job, packed, rows, out, .. } = self;
        let w = &job.axes[2];
        let k = job.k_channels();
        let row_len = voxels.size[2] * k;
        let width = block.vectors * packed.lanes;
        let run_len = runs.first().map_or(0, |r| r.len);
        let group = (WEIGHT_BYTES / (run_len * width * size_of::<T>()).max(1)).clamp(1, runs.len().max(1));
        let mut segments = Vec::with_capacity(runs.len());
        // True for rows that an earlier group of taps has written.
        let mut is_written = vec![false; rows.d.len() * rows.h.len()];
        for first_run in (0..runs.len().max(1)).step_by(group) {
            let is_last_group = first_run + group >= runs.len();
            for (is_written, (qd, qh)) in is_written.iter_mut().zip(rows.rows()) {
                segments.clear();
                for run in &runs[first_run..(first_run + group).min(runs.len())] {
                    if let Some(row) = panel_row(&job.axes, rows, voxels, (qd, qh), run.taps) {
                        segments.push(Segment { a: row * row_len + run.in_row, b: run.first_k * width, len: run.len });
                    }
                }
                if segments.is_empty() && (*is_written || !is_last_group) {
                    continue;
                }
                let accumulate = std::mem::replace(is_written, true);
                let out_row = self.output_row(qd, qh);
                for outputs in balanced(w.num_outputs, max_rows::<S>(block.vectors)) {
                    let at = (out_row + w.output_position(outputs.start)) * job.out_channels + block.first;
                    // SAFETY: panel and packed weights were laid out for these segments; the output rows of this task's
                    // blocks belong to it alone.
                    unsafe {
                        let operands = Operands {
                            a: self.panel.as_ptr().add(outputs.start * w.step * k),
                            a_row: w.step * k,
                            a_step: 1,
                            b: packed.data.as_ptr().add(block.offset),
                            b_step: width,
                            b_vector: S::LANES,
                            c: out.ptr().add(at),
                            c_row: w.output_step * job.out_channels,
                            c_vector: S::LANES,
                            tail: block.count - (block.vectors - 1) * packed.lanes,
                            accumulate,
                        };
                        run_tile(simd, outputs.len(), block.vectors, &operands, &segments);
                    }
                }
            }
        }
    }

    /// Index of the first voxel of an output row.
    fn output_row(&self, qd: usize, qh: usize) -> usize {
        let [d, h, w] = &self.job.axes;
        ((self.rows.batch_idx * d.output_size + d.output_position(qd)) * h.output_size + h.output_position(qh))
            * w.output_size
    }

    /// Moments of one block of output channels.
    #[inline(always)]
    fn moments(&self, block: &ChannelBlock) -> BlockMoments<T> {
        let pitch = self.job.out_channels;
        // Only this block's channels are read: other tasks may be writing the rest.
        let starts = self
            .rows
            .rows()
            .map(|(qd, qh)| self.out.ptr().cast_const().wrapping_add(self.output_row(qd, qh) * pitch + block.first));
        let channels = block.first..block.first + block.count;
        // SAFETY: this task has just written these channels of these rows.
        unsafe { block_moments(starts, self.job.axes[2].output_size, pitch, channels, self.rows.batch_idx) }
    }
}
