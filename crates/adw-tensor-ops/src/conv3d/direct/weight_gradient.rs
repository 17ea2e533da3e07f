//! Weight gradient by the direct sum.
//!
//! Rows of the register tile are `(tap along W, input channel)`, contiguous in the zero-padded panel of input rows; the sum
//! runs over the voxels of a block, and blocks add up. Groups of blocks have partial sums of their own; within a group,
//! tasks take rows.

use super::panel::{pack_rows, panel_row};
use crate::conv3d::job::WeightGradient;
use crate::conv3d::packing::{MapRow, VoxelBox, pack_row};
use crate::conv3d::partial_sums::PartialSums;
use crate::conv3d::partition::{RowBlock, balanced, largest_row_block, row_blocks};
use crate::conv3d::tile::{Operands, Segment, VectorShape, max_rows, max_vectors, run_tile};
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of the panel of input rows.
const PANEL_BYTES: usize = 256 << 10;
/// Sums of more bytes than this do not stay in a second-level cache: larger blocks read and write them less often.
const LARGE_SUM_BYTES: usize = 4 << 20;
/// Voxels of a block whose sums are large.
const LARGE_SUM_VOXELS: usize = 256;
/// Bytes of the panel of a block whose sums are large.
const LARGE_SUM_PANEL_BYTES: usize = 768 << 10;
/// Bytes that all partial sums together may take.
const PARTIAL_BYTES: usize = 8 << 20;
/// Largest number of partial sums.
const MAX_GROUPS: usize = 16;
/// Tasks that keep several threads busy.
const MIN_TASKS: usize = 8;

/// Computes the gradient `[co][ci][kd][kh][kw]`.
pub(in crate::conv3d) fn run<T: Element>(set: InstructionSet, job: &WeightGradient<T>) -> Vec<T> {
    let lanes = VectorShape::of::<T>(set).lanes;
    let (ci, co) = (job.in_channels(), job.out_channels());
    let sums = PartialSums {
        taps: job.kernel().iter().product(),
        rows: ci,
        row_pitch: ci,
        columns: co,
        column_pitch: co.next_multiple_of(lanes),
        rows_are_outputs: false,
    };
    let [d, h, _] = &job.axes;
    let blocks = row_blocks(job.batch, [d.num_outputs, h.num_outputs], block_rows(job));
    let num_rows = sums.taps * ci;
    let groups = (PARTIAL_BYTES / (sums.len() * size_of::<T>())).clamp(1, MAX_GROUPS).min(blocks.len());
    let splits = MIN_TASKS.div_ceil(groups);
    let tasks: Vec<(usize, &[RowBlock], Range<usize>)> = balanced(blocks.len(), blocks.len().div_ceil(groups))
        .enumerate()
        .flat_map(|(group, blocks_of)| {
            let blocks = &blocks[blocks_of];
            balanced(num_rows, num_rows.div_ceil(splits)).map(move |rows| (group, blocks, rows))
        })
        .collect();
    let num_groups = tasks.last().map_or(0, |t| t.0 + 1);
    // SAFETY: the tasks cover every group and every row of the partial sums, and the first block of each writes them.
    let partials = unsafe {
        filled(num_groups * sums.len(), |out: SharedOut<T>| {
            tasks.into_par_iter().for_each_init(Buffers::default, |buffers, (group, blocks, rows)| {
                let out = out.ptr().wrapping_add(group * sums.len() + rows.start * sums.column_pitch);
                dispatch(set, SumRows { job, blocks, rows, co_padded: sums.column_pitch, out, buffers });
            });
        })
    };
    sums.join(&partials)
}

/// Rows per block along D and H: several planes only where these are few voxels, so that no sum gets long.
fn block_rows<T>(job: &WeightGradient<T>) -> [usize; 2] {
    let [d, h, w] = &job.axes;
    let row = w.extent(w.num_outputs) * job.in_channels() * size_of::<T>();
    let taps: usize = job.kernel().iter().product();
    let sums = taps * job.in_channels() * job.out_channels() * size_of::<T>();
    largest_row_block([d.num_outputs, h.num_outputs], |[nd, nh]| {
        let bytes = d.extent(nd) * h.extent(nh) * row;
        if sums > LARGE_SUM_BYTES && nd * nh * w.num_outputs <= LARGE_SUM_VOXELS {
            bytes <= LARGE_SUM_PANEL_BYTES
        } else {
            nd == 1 && bytes <= PANEL_BYTES
        }
    })
}

/// Memory of a thread, used by one task after the other.
struct Buffers<T> {
    panel: Vec<T>,
    grad: Vec<T>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self { panel: Vec::new(), grad: Vec::new() }
    }
}

/// Rows of the sums that are contiguous in the panel: neighbouring taps along W times input channels, at one tap along D
/// and H.
struct TapRows {
    /// Tap along D and H.
    taps: [usize; 2],
    /// Offset of the first row in a row of the panel.
    in_row: usize,
    rows: Range<usize>,
}

/// The rows `rows` of the sums, in contiguous parts.
fn tap_rows<T>(job: &WeightGradient<T>, rows: &Range<usize>) -> Vec<TapRows> {
    let [d, h, w] = &job.axes;
    let ci = job.in_channels();
    let runs = w.tap_runs();
    let mut parts = Vec::new();
    for td in 0..d.taps.len() {
        for th in 0..h.taps.len() {
            for run in &runs {
                let first = ((td * h.taps.len() + th) * w.taps.len() + run.start) * ci;
                let part = rows.start.max(first)..rows.end.min(first + run.len() * ci);
                if !part.is_empty() {
                    let in_row = w.tap_position(run.start) * ci + part.start - first;
                    parts.push(TapRows { taps: [td, th], in_row, rows: part });
                }
            }
        }
    }
    parts
}

/// Task that sums some rows over blocks of outputs.
struct SumRows<'a, T> {
    job: &'a WeightGradient<'a, T>,
    blocks: &'a [RowBlock],
    /// Range of `(kd, kh, kw, ci)`.
    rows: Range<usize>,
    co_padded: usize,
    /// `[rows][co_padded]`
    out: *mut T,
    buffers: &'a mut Buffers<T>,
}

impl<T: Element> Kernel<T> for SumRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(mut self, simd: S) {
        let parts = tap_rows(self.job, &self.rows);
        for (block_idx, block) in self.blocks.iter().enumerate() {
            let voxels = pack_rows(&mut self.buffers.panel, self.job.sources, &self.job.axes, block);
            let grad = self.pack_grad(block);
            for part in &parts {
                let segments = self.segments(block, voxels, part.taps);
                // Without a voxel inside the map, the sum is zero.
                if !segments.is_empty() || block_idx == 0 {
                    self.add(simd, part, grad, &segments, block_idx > 0);
                }
            }
        }
    }
}

impl<T: Element> SumRows<'_, T> {
    /// The block's rows of the gradient, `co_padded` elements per voxel: the map itself where it has that form, else a copy,
    /// since vector loads of the last channels must not run past the map's end.
    #[inline(always)]
    fn pack_grad(&mut self, block: &RowBlock) -> *const T {
        let Self { job, co_padded, buffers, .. } = self;
        let [d, h, w] = &job.axes;
        // A block's rows follow one another: a block of several planes consists of whole ones.
        debug_assert!(block.d.len() == 1 || block.h.len() == h.num_outputs, "part of several planes");
        let first_row = (block.batch_idx * d.num_outputs + block.d.start) * h.num_outputs + block.h.start;
        let (width, co) = (w.num_outputs, job.out_channels());
        if co == *co_padded && job.grad_output.norm.is_none() && job.grad_output.round.is_none() {
            return job.grad_output.data[first_row * width * co..].as_ptr();
        }
        buffers.grad.resize(block.d.len() * block.h.len() * width * *co_padded, T::ZERO);
        for (i, dst) in buffers.grad.chunks_exact_mut(width * *co_padded).enumerate() {
            let sources = std::slice::from_ref(&job.grad_output);
            let row = MapRow { sources, batch_idx: block.batch_idx, row: first_row + i, width };
            pack_row(dst, row, 0, *co_padded);
        }
        buffers.grad.as_ptr()
    }

    /// Rows of voxels in panel and gradient that meet at a tap along D and H.
    fn segments(&self, block: &RowBlock, voxels: VoxelBox, taps: [usize; 2]) -> Vec<Segment> {
        let axes = &self.job.axes;
        let (row_len, len) = (voxels.size[2] * self.job.in_channels(), axes[2].num_outputs);
        let segment = |(i, outputs)| {
            let row = panel_row(axes, block, voxels, outputs, taps)?;
            Some(Segment { a: row * row_len, b: i * len * self.co_padded, len })
        };
        block.rows().enumerate().filter_map(segment).collect()
    }

    /// Computes the sums of a block for a contiguous part of the rows, and adds them to those of earlier blocks if
    /// `accumulate`.
    #[inline(always)]
    fn add<S: Simd<Elem = T>>(&self, simd: S, part: &TapRows, grad: *const T, segments: &[Segment], accumulate: bool) {
        let Self { job, co_padded, .. } = *self;
        for vectors in balanced(co_padded / S::LANES, max_vectors::<S>()) {
            for tile in balanced(part.rows.len(), max_rows::<S>(vectors.len())) {
                let row = part.rows.start + tile.start - self.rows.start;
                // SAFETY: segments name packed rows of the panel and rows of the gradient, `num_outputs` voxels each; the
                // rows of `out` are this task's own, and those that the first block does not write are not read either.
                unsafe {
                    let operands = Operands {
                        a: self.buffers.panel.as_ptr().add(part.in_row + tile.start),
                        a_row: 1,
                        a_step: job.axes[2].step * job.in_channels(),
                        b: grad.add(vectors.start * S::LANES),
                        b_step: co_padded,
                        b_vector: S::LANES,
                        c: self.out.add(row * co_padded + vectors.start * S::LANES),
                        c_row: co_padded,
                        c_vector: S::LANES,
                        tail: S::LANES,
                        accumulate,
                    };
                    run_tile(simd, tile.len(), vectors.len(), &operands, segments);
                }
            }
        }
    }
}
