//! Weight gradient: the adjoint of the forward pass in the weight.
//!
//! Per frequency, `[k channels x tiles] x [tiles x output channels]`, summed over all blocks; the transform to taps comes
//! once, at the end. Blocks are split into a number of groups that depends on the shape alone, each with its own partial
//! sum, so the bits do not depend on the number of threads.

use super::{Block, InputTransform, OutputAdjoint, PLANE, Tiling, pack_panel, pays, tile_len, transform_tiles};
use crate::conv3d::grad_weight::GradWeight;
use crate::conv3d::tile::{Operands, Segment, balanced, lanes_of, max_rows, max_vectors, run_tile, vector_shape};
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, Kernel, Simd, dispatch};
use candle_core::WithDType;
use rayon::prelude::*;
use std::ops::Range;

/// Bytes that all partial sums together may take.
const PARTIAL_BYTES: usize = 20 << 20;
/// Bytes of sums that one task may work on: what stays in the second-level cache beside a block.
const TASK_BYTES: usize = 1280 << 10;
/// Tasks that keep many threads busy.
const LEAST_TASKS: usize = 16;

/// Whether `job` is one that this module can do, and faster than the direct sum.
pub(in crate::conv3d) fn applies<T: Element>(job: &GradWeight<T>) -> bool {
    job.geometry.stride == [1; 3]
        && pays(
            job.means.algorithm,
            job.geometry.kernel,
            job.batch,
            job.output,
            job.in_channels(),
            job.grad_output.channels,
        )
}

/// As [`GradWeight::run`]; `job` [`applies`].
pub(in crate::conv3d) fn run<T: Element>(job: &GradWeight<T>) -> Vec<T> {
    let tiling = Tiling::new(job.geometry.kernel[0], job.output);
    let (ci, co) = (job.in_channels(), job.grad_output.channels);
    let lanes = vector_shape::<T>(job.means.set).lanes;
    let shape = Shape { ci, co_padded: co.next_multiple_of(lanes), frequencies: tiling.num_frequencies() };
    let blocks = tiling.blocks(job.batch, tiling.block::<T>(ci, co));
    let sum_bytes = shape.sum_len() * size_of::<T>();
    let groups = (PARTIAL_BYTES / sum_bytes).clamp(1, LEAST_TASKS).min(blocks.len());
    let depths = tiling.depth.len();
    let depth_splits = if groups * 2 < LEAST_TASKS || sum_bytes > TASK_BYTES { depths } else { 1 };
    let num_lanes = lanes_of(job.sources, lanes).len();
    let row_splits = LEAST_TASKS.div_ceil(groups * depth_splits).min(num_lanes);
    let mut tasks = Vec::new();
    for (group, blocks_of) in balanced(blocks.len(), blocks.len().div_ceil(groups)).enumerate() {
        for depth in balanced(depths, depths.div_ceil(depth_splits)) {
            for rows in balanced(num_lanes, num_lanes.div_ceil(row_splits)) {
                tasks.push((group, blocks_of.clone(), depth.clone(), rows));
            }
        }
    }
    let num_groups = tasks.last().map_or(0, |t| t.0 + 1);
    // SAFETY: the tasks cover every group, frequency and input channel of the partial sums, and the first block of each
    // writes them.
    let partials = unsafe {
        filled(num_groups * shape.sum_len(), |out: SharedOut<T>| {
            tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (group, blocks_of, depths, rows)| {
                let task = SumBlocks {
                    job,
                    tiling: &tiling,
                    shape,
                    blocks: &blocks[blocks_of],
                    depths,
                    rows,
                    sums: out.ptr().wrapping_add(group * shape.sum_len()),
                    scratch,
                };
                dispatch(job.means.set, task);
            });
        })
    };
    let taps = job.geometry.kernel.iter().product::<usize>();
    // SAFETY: (co, ci, tap) runs over all elements of the gradient, once each.
    unsafe {
        filled(co * ci * taps, |out: SharedOut<T>| {
            (0..ci).into_par_iter().for_each_init(
                || (Vec::new(), Vec::new()),
                |(sum, by_tap), ci_idx| {
                    sum.resize(shape.frequencies * shape.co_padded, T::ZERO);
                    by_tap.resize(taps * shape.co_padded, T::ZERO);
                    let reduce = Reduce { partials: &partials, shape, ci_idx, sum, by_tap };
                    dispatch(job.means.set, reduce);
                    for co_idx in 0..co {
                        let dst = out.ptr().add((co_idx * ci + ci_idx) * taps);
                        for tap in 0..taps {
                            dst.add(tap).write(by_tap[tap * shape.co_padded + co_idx]);
                        }
                    }
                },
            );
        })
    }
}

/// Of the sums, `[frequency][ci][co_padded]`.
#[derive(Clone, Copy)]
struct Shape {
    ci: usize,
    co_padded: usize,
    frequencies: usize,
}

impl Shape {
    fn sum_len(&self) -> usize {
        self.frequencies * self.ci * self.co_padded
    }
}

struct Scratch<T> {
    panel: Vec<T>,
    inputs: Vec<T>,
    grads: Vec<T>,
    grad_panel: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { panel: Vec::new(), inputs: Vec::new(), grads: Vec::new(), grad_panel: Vec::new() }
    }
}

struct SumBlocks<'a, T> {
    job: &'a GradWeight<'a, T>,
    tiling: &'a Tiling,
    shape: Shape,
    blocks: &'a [Block],
    /// Frequencies of D.
    depths: Range<usize>,
    /// Vectors of input channels.
    rows: Range<usize>,
    /// This group's sums.
    sums: *mut T,
    scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for SumBlocks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self) {
        let Self { job, tiling, shape, blocks, depths, rows, sums, scratch } = self;
        let inputs = lanes_of(job.sources, S::LANES);
        let inputs = &inputs[rows];
        let grads = lanes_of(&[job.grad_output], S::LANES);
        let tile_len = tile_len(S::LANES);
        for (block_idx, block) in blocks.iter().enumerate() {
            let start = [0, 1, 2].map(|i| (block.tiles[i].start * tiling.tile[i]) as isize);
            let origin = [0, 1, 2].map(|i| start[i] - job.geometry.padding[i] as isize);
            let size = block.size();
            let panel = pack_panel::<S>(
                &mut scratch.panel,
                job.sources,
                inputs,
                block.batch_idx,
                job.input,
                origin,
                tiling.input_extent(size),
            );
            let grad_panel = pack_panel::<S>(
                &mut scratch.grad_panel,
                &[job.grad_output],
                &grads,
                block.batch_idx,
                job.output,
                start,
                [0, 1, 2].map(|i| size[i] * tiling.tile[i]),
            );
            let room = |vectors: usize| vectors * block.num_tiles() * tile_len;
            scratch.inputs.resize(room(inputs.len()), T::ZERO);
            scratch.grads.resize(room(grads.len()), T::ZERO);
            let all_tiles = [Segment { a: 0, b: 0, len: block.num_tiles() }];
            for depth_idx in depths.clone() {
                let depth = &tiling.depth[depth_idx];
                // SAFETY: panels and buffers were made for this block.
                unsafe {
                    transform_tiles::<S, InputTransform, 4>(
                        &panel,
                        scratch.inputs.as_mut_ptr(),
                        inputs.len(),
                        size,
                        tiling.tile,
                        &depth.input(),
                    );
                    transform_tiles::<S, OutputAdjoint, 2>(
                        &grad_panel,
                        scratch.grads.as_mut_ptr(),
                        grads.len(),
                        size,
                        tiling.tile,
                        &depth.grad_output(),
                    );
                }
                for f in 0..PLANE {
                    let sum = (depth_idx * PLANE + f) * shape.ci * shape.co_padded;
                    for vectors in balanced(grads.len(), max_vectors::<S>()) {
                        for (v, lanes) in inputs.iter().enumerate() {
                            for rows in balanced(lanes.len, max_rows::<S>(vectors.len())) {
                                let row = lanes.first + rows.start;
                                // SAFETY: inside the buffers of this block; the sums of these rows are this task's own.
                                unsafe {
                                    let a = room(v) + f * S::LANES + rows.start;
                                    let b = room(vectors.start) + f * S::LANES;
                                    let c = row * shape.co_padded + vectors.start * S::LANES;
                                    run_tile::<S>(
                                        rows.len(),
                                        vectors.len(),
                                        &Operands {
                                            a: scratch.inputs.as_ptr().add(a),
                                            a_row: 1,
                                            a_step: tile_len,
                                            b: scratch.grads.as_ptr().add(b),
                                            b_step: tile_len,
                                            b_vector: room(1),
                                            c: sums.add(sum + c),
                                            c_row: shape.co_padded,
                                            c_vector: S::LANES,
                                            tail: S::LANES,
                                            accumulate: block_idx > 0,
                                        },
                                        &all_tiles,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Adds up the groups' sums of one input channel, in their order, and transforms them: `G^T` along every axis.
struct Reduce<'a, T> {
    partials: &'a [T],
    shape: Shape,
    ci_idx: usize,
    /// `[frequency][co_padded]`
    sum: &'a mut [T],
    /// `[tap][co_padded]`
    by_tap: &'a mut [T],
}

impl<T: Element> Kernel<T> for Reduce<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self) {
        let Shape { ci, co_padded, .. } = self.shape;
        for (f, sum) in self.sum.chunks_exact_mut(co_padded).enumerate() {
            for (group, partial) in self.partials.chunks_exact(self.shape.sum_len()).enumerate() {
                let partial = &partial[(f * ci + self.ci_idx) * co_padded..][..co_padded];
                if group == 0 {
                    sum.copy_from_slice(partial);
                } else {
                    for (s, &x) in sum.iter_mut().zip(partial) {
                        *s += x;
                    }
                }
            }
        }
        let depths = self.shape.frequencies / PLANE;
        let zero = S::splat(T::ZERO);
        for lane in (0..co_padded).step_by(S::LANES) {
            let mut plane = [[[zero; 3]; 3]; 4];
            for (d, plane) in plane.iter_mut().enumerate().take(depths) {
                let at = |h: usize, w: usize| {
                    let row = (d * PLANE + h * 4 + w) * co_padded + lane;
                    let row = &self.sum[row..][..S::LANES];
                    // SAFETY: the slice is one vector long.
                    unsafe { S::load(row.as_ptr()) }
                };
                let mut rows = [[zero; 3]; 4];
                for (h, row) in rows.iter_mut().enumerate() {
                    *row = weight_transform_adjoint::<S>([at(h, 0), at(h, 1), at(h, 2), at(h, 3)]);
                }
                for w in 0..3 {
                    let column = weight_transform_adjoint::<S>([rows[0][w], rows[1][w], rows[2][w], rows[3][w]]);
                    for h in 0..3 {
                        plane[h][w] = column[h];
                    }
                }
            }
            for h in 0..3 {
                for w in 0..3 {
                    let along =
                        weight_transform_adjoint::<S>([plane[0][h][w], plane[1][h][w], plane[2][h][w], plane[3][h][w]]);
                    let along = if depths == 1 { &[plane[0][h][w]][..] } else { &along[..] };
                    for (d, &x) in along.iter().enumerate() {
                        let row = ((d * 3 + h) * 3 + w) * co_padded + lane;
                        let row = &mut self.by_tap[row..][..S::LANES];
                        // SAFETY: the slice is one vector long.
                        unsafe { S::store(row.as_mut_ptr(), x) }
                    }
                }
            }
        }
    }
}

/// `G^T f`
#[inline(always)]
fn weight_transform_adjoint<S: Simd>(f: [S::Vector; 4]) -> [S::Vector; 3] {
    let half = S::splat(S::Elem::from_f64(0.5));
    let zero = S::splat(S::Elem::ZERO);
    let even = S::mul_add(S::add(f[1], f[2]), half, zero);
    let odd = S::mul_add(S::sub(f[1], f[2]), half, zero);
    [S::add(f[0], even), odd, S::add(even, f[3])]
}
