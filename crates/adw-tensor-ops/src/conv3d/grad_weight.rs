//! The weight gradient of a convolution:
//!
//! ```text
//! dW[co][ci][kd][kh][kw] = sum over b, od, oh, ow:
//!     x[b][od sd + kd - pd][oh sh + kh - ph][ow sw + kw - pw][ci] * grad_output[b][od][oh][ow][co]
//! ```
//! Rows of the register tile are `(kw, ci)`, contiguous in the padded input panel; the sum runs over the voxels of a block,
//! and blocks add up. Blocks are split into a number of groups that depends on the shape alone, each with its own partial
//! sum; within a group, tasks take tiles. So the bits do not depend on the number of threads.

use super::tile::{
    Operands, Rows, Segment, Source, VectorShape, balanced, inside, max_rows, max_vectors, pack_panel, pack_row,
    row_blocks, rows_that_fit, run_tile, vector_shape,
};
use super::{Conv3dGeometry, Means, winograd};
#[cfg(target_arch = "x86_64")]
use super::{amx, of_f32, same};
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of the panel of input rows.
const PANEL_BYTES: usize = 256 << 10;
/// Sums of more bytes than stay in a second-level cache are read and written again as seldom as possible: in blocks of up to
const LARGE_SUM_BYTES: usize = 4 << 20;
/// so many voxels, with
const LARGE_SUM_VOXELS: usize = 256;
/// a panel of so many bytes.
const LARGE_SUM_PANEL_BYTES: usize = 768 << 10;
/// Bytes that all partial sums together may take.
const PARTIAL_BYTES: usize = 8 << 20;

pub(crate) struct GradWeight<'a, T> {
    pub(crate) means: Means,
    pub(crate) batch: usize,
    pub(crate) input: [usize; 3],
    pub(crate) output: [usize; 3],
    pub(crate) sources: &'a [Source<'a, T>],
    /// One map; the geometry's outputs.
    pub(crate) grad_output: Source<'a, T>,
    pub(crate) geometry: Conv3dGeometry,
}

impl<T: Element> GradWeight<'_, T> {
    pub(super) fn in_channels(&self) -> usize {
        self.sources.iter().map(|s| s.channels).sum()
    }

    /// Voxels of the input that `outputs` neighbouring outputs read along an axis.
    fn extent(&self, axis: usize, outputs: usize) -> usize {
        (outputs - 1) * self.geometry.stride[axis] + self.geometry.kernel[axis]
    }

    /// Rows per block along D and H: several planes only where these are few voxels, so that no sum gets long.
    fn block_rows(&self) -> [usize; 2] {
        let [od, oh, ow] = self.output;
        let row = self.extent(2, ow) * self.in_channels() * size_of::<T>();
        let taps: usize = self.geometry.kernel.iter().product();
        let sums = taps * self.in_channels() * self.grad_output.channels * size_of::<T>();
        rows_that_fit([od, oh], |[nd, nh]| {
            let bytes = self.extent(0, nd) * self.extent(1, nh) * row;
            if sums > LARGE_SUM_BYTES && nd * nh * ow <= LARGE_SUM_VOXELS {
                bytes <= LARGE_SUM_PANEL_BYTES
            } else {
                nd == 1 && bytes <= PANEL_BYTES
            }
        })
    }

    /// `[co][ci][kd][kh][kw]`
    pub(crate) fn run(&self) -> Vec<T> {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the job is one of `T`.
        if let (Some(amx), Some(job)) = (self.means.amx, unsafe { of_f32::<T, _, GradWeight<f32>>(self) })
            && amx::grad_weight::applies(job)
        {
            return same(amx::grad_weight::run(amx, job));
        }
        if winograd::grad_weight::applies(self) {
            return winograd::grad_weight::run(self);
        }
        let [kd, kh, kw] = self.geometry.kernel;
        let (ci, co) = (self.in_channels(), self.grad_output.channels);
        let VectorShape { lanes, .. } = vector_shape::<T>(self.means.set);
        let co_padded = co.next_multiple_of(lanes);
        let m = kw * ci;
        let partial_len = kd * kh * m * co_padded;
        let [od, oh, _] = self.output;
        let blocks = row_blocks(self.batch, [od, oh], self.block_rows());
        let groups = (PARTIAL_BYTES / (partial_len * size_of::<T>())).clamp(1, 16).min(blocks.len());
        let tile_splits = 8usize.div_ceil(groups);
        let tasks: Vec<(usize, &[Rows], Range<usize>)> = balanced(blocks.len(), blocks.len().div_ceil(groups))
            .enumerate()
            .flat_map(|(g, blocks_of)| {
                let blocks = &blocks[blocks_of];
                let pieces = balanced(kd * kh * m, (kd * kh * m).div_ceil(tile_splits));
                pieces.map(move |rows| (g, blocks, rows))
            })
            .collect();
        let num_groups = tasks.last().map_or(0, |t| t.0 + 1);
        // SAFETY: the tasks cover every group and every row of the partial sums, and the first block of each writes them.
        let partials = unsafe {
            filled(num_groups * partial_len, |out: SharedOut<T>| {
                tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (group, blocks, rows)| {
                    let out = out.ptr().wrapping_add(group * partial_len + rows.start * co_padded);
                    dispatch(self.means.set, RunTask { job: self, blocks, rows, co_padded, out, scratch });
                });
            })
        };
        let sums = Partials {
            taps: kd * kh * kw,
            rows: ci,
            row_pitch: ci,
            columns: co,
            column_pitch: co_padded,
            rows_are_outputs: false,
        };
        sums.join(&partials)
    }
}

/// Partial sums of a weight gradient, each `[tap][row_pitch][column_pitch]`: rows are channels of the one map, columns of
/// the other.
#[derive(Clone, Copy)]
pub(super) struct Partials {
    pub(super) taps: usize,
    pub(super) rows: usize,
    pub(super) row_pitch: usize,
    pub(super) columns: usize,
    pub(super) column_pitch: usize,
    /// Whether rows are output channels; else columns are.
    pub(super) rows_are_outputs: bool,
}

impl Partials {
    /// Elements of one of them.
    pub(super) fn len(&self) -> usize {
        self.taps * self.row_pitch * self.column_pitch
    }

    /// Their sum in their order, in the tensor's order `[co][ci][tap]`.
    pub(super) fn join<T: Element>(&self, partials: &[T]) -> Vec<T> {
        let Self { taps, rows, columns, .. } = *self;
        // SAFETY: (row, column, tap) runs over all elements of the gradient, once each.
        unsafe {
            filled(rows * columns * taps, |out: SharedOut<T>| {
                (0..rows).into_par_iter().for_each_init(Vec::new, |by_column, row| {
                    by_column.clear();
                    by_column.resize(columns * taps, T::ZERO);
                    for tap in 0..taps {
                        let at = (tap * self.row_pitch + row) * self.column_pitch;
                        for partial in partials.chunks_exact(self.len()) {
                            let partial = &partial[at..][..columns];
                            for (sum, &x) in by_column[tap..].iter_mut().step_by(taps).zip(partial) {
                                *sum += x;
                            }
                        }
                    }
                    for (column, taps_of) in by_column.chunks_exact(taps).enumerate() {
                        let at = if self.rows_are_outputs { row * columns + column } else { column * rows + row };
                        let dst = out.ptr().add(at * taps);
                        dst.copy_from_nonoverlapping(taps_of.as_ptr(), taps);
                    }
                });
            })
        }
    }
}

struct Scratch<T> {
    panel: Vec<T>,
    grad: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { panel: Vec::new(), grad: Vec::new() }
    }
}

struct RunTask<'a, T> {
    job: &'a GradWeight<'a, T>,
    blocks: &'a [Rows],
    /// Of `(kd, kh, kw, ci)`.
    rows: Range<usize>,
    co_padded: usize,
    /// `[rows][co_padded]`
    out: *mut T,
    scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for RunTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self) {
        let Self { job, blocks, rows, co_padded, out, scratch } = self;
        let [_, kh, kw] = job.geometry.kernel;
        let [sd, sh, sw] = job.geometry.stride;
        let [pd, ph, pw] = job.geometry.padding;
        let [od, oh, ow] = job.output;
        let (ci, co) = (job.in_channels(), job.grad_output.channels);
        let m = kw * ci;
        let panel_w = job.extent(2, ow);
        let row_len = panel_w * ci;
        let mut segments = Vec::new();
        for (block_idx, block) in blocks.iter().enumerate() {
            let (nd, nh) = (block.d.len(), block.h.len());
            let (panel_d, panel_h) = (job.extent(0, nd), job.extent(1, nh));
            let id0 = (block.d.start * sd) as isize - pd as isize;
            let ih0 = (block.h.start * sh) as isize - ph as isize;
            scratch.panel.resize(panel_d * panel_h * row_len, T::ZERO);
            // SAFETY: the panel has panel_d * panel_h rows of row_len elements.
            unsafe {
                pack_panel(
                    scratch.panel.as_mut_ptr(),
                    job.sources,
                    block.batch_idx,
                    job.input,
                    [id0, ih0, -(pw as isize)],
                    [panel_d, panel_h, panel_w],
                );
            }
            // Rows of the gradient that belong to a block follow one another: blocks of several planes are of whole ones.
            let first_row = (block.batch_idx * od + block.d.start) * oh + block.h.start;
            debug_assert!(nd == 1 || nh == oh, "part of several planes");
            // Vector loads of the last channels must not run past the map's end: odd channel counts are padded.
            let grad: *const T = if co == co_padded && job.grad_output.norm.is_none() {
                job.grad_output.data[first_row * ow * co..].as_ptr()
            } else {
                scratch.grad.resize(nd * nh * ow * co_padded, T::ZERO);
                for q in 0..nd * nh {
                    // SAFETY: scratch.grad has nd * nh rows of ow voxels, co_padded elements each.
                    unsafe {
                        let dst = scratch.grad.as_mut_ptr().add(q * ow * co_padded);
                        pack_row(dst, &[job.grad_output], block.batch_idx, first_row + q, ow, 0, ow, co_padded);
                    }
                }
                scratch.grad.as_ptr()
            };
            for tap in rows.start / m..rows.end.div_ceil(m) {
                let (z, y) = (tap / kh, tap % kh);
                segments.clear();
                for q in 0..nd * nh {
                    let (d, h) = (q / nh * sd + z, q % nh * sh + y);
                    if inside(id0 + d as isize, job.input[0]) && inside(ih0 + h as isize, job.input[1]) {
                        segments.push(Segment { a: (d * panel_h + h) * row_len, b: q * ow * co_padded, len: ow });
                    }
                }
                if segments.is_empty() && block_idx > 0 {
                    continue;
                }
                let first = rows.start.max(tap * m);
                let last = rows.end.min((tap + 1) * m);
                for vectors in balanced(co_padded / S::LANES, max_vectors::<S>()) {
                    for tile in balanced(last - first, max_rows::<S>(vectors.len())) {
                        let row = first + tile.start;
                        let c = (row - rows.start) * co_padded + vectors.start * S::LANES;
                        // SAFETY: segments name packed rows of the panel and rows of the gradient, `ow` voxels each; the rows
                        // of `out` are this task's own, and what the first block does not write it does not read either.
                        unsafe {
                            run_tile::<S>(
                                tile.len(),
                                vectors.len(),
                                &Operands {
                                    a: scratch.panel.as_ptr().add(row - tap * m),
                                    a_row: 1,
                                    a_step: sw * ci,
                                    b: grad.add(vectors.start * S::LANES),
                                    b_step: co_padded,
                                    b_vector: S::LANES,
                                    c: out.add(c),
                                    c_row: co_padded,
                                    c_vector: S::LANES,
                                    tail: S::LANES,
                                    accumulate: block_idx > 0,
                                },
                                &segments,
                            );
                        }
                    }
                }
            }
        }
    }
}
