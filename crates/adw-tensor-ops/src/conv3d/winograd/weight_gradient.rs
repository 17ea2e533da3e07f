//! Weight gradient: the adjoint of the forward pass in the weight.
//!
//! Per frequency, `[k channels x tiles] x [tiles x output channels]`, summed over all blocks; the transform to taps comes
//! once, at the end. Blocks are split into a number of groups that depends on the shape alone, each with its own partial
//! sum, so the bits do not depend on the number of threads.

use super::filter::{F2, F4, Filter, PlaneFilter, is_compiled};
use super::panel::pack_panel;
use super::tiling::{TileBlock, Tiling};
use super::transform::{Input, OutputAdjoint, Planes, TransformWeightAdjoint, tile_len, transform_tiles};
use crate::conv3d::job::WeightGradient;
use crate::conv3d::packing::{Lanes, VoxelBox, lanes_of};
use crate::conv3d::partition::balanced;
use crate::conv3d::tile::{Operands, Segment, VectorShape, max_rows, max_vectors, run_tile};
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Channels of both operands from which the transforms are less work than what they save; measured.
pub(in crate::conv3d) const MIN_CHANNELS: [usize; 2] = [4, 4];
/// Bytes that all partial sums together may take, or as many as the maps have.
const PARTIAL_BYTES: usize = 20 << 20;
/// Tasks that keep many threads busy.
const MIN_TASKS: usize = 16;

/// Computes the gradient `[co][ci][kd][kh][kw]`. `tiling` is one of the job's outputs.
pub(in crate::conv3d) fn run<T: Element>(set: InstructionSet, job: &WeightGradient<T>, tiling: &Tiling) -> Vec<T> {
    match tiling.plane {
        PlaneFilter::Two => run_filtered::<T, F2, 4, 2>(set, job, tiling),
        PlaneFilter::Four => run_filtered::<T, F4, 6, 4>(set, job, tiling),
    }
}

/// [`run`] with the filter of H and W.
fn run_filtered<T: Element, F: Filter<N, M>, const N: usize, const M: usize>(
    set: InstructionSet,
    job: &WeightGradient<T>,
    tiling: &Tiling,
) -> Vec<T> {
    let (ci, co) = (job.in_channels(), job.out_channels());
    let lanes = VectorShape::of::<T>(set).lanes;
    let shape = SumShape {
        ci,
        co_padded: co.next_multiple_of(lanes),
        depths: tiling.depth.len(),
        plane: tiling.plane_frequencies(),
    };
    let blocks = tiling.blocks::<T>(job.batch, ci, co);
    let map_elements = job.batch
        * (job.input_size().iter().product::<usize>() * ci + job.output_size().iter().product::<usize>() * co);
    let partial_bytes = PARTIAL_BYTES.max(map_elements * size_of::<T>());
    let tasks = split::<T>(&shape, partial_bytes, blocks.len(), lanes_of(job.sources, lanes).len());
    let num_groups = tasks.last().map_or(0, |t| t.group + 1);
    // SAFETY: the tasks cover every group, frequency and input channel of the partial sums, and the first block of each
    // writes them.
    let partials = unsafe {
        filled(num_groups * shape.len(), |out: SharedOut<T>| {
            tasks.into_par_iter().for_each_init(Buffers::default, |buffers, task| {
                let sums = out.ptr().wrapping_add(task.group * shape.len());
                let blocks = &blocks[task.blocks.clone()];
                dispatch(set, SumBlocks { job, tiling, shape, blocks, task, sums, buffers, filter: PhantomData::<F> });
            });
        })
    };
    let taps = job.kernel().iter().product::<usize>();
    // SAFETY: (co, ci, tap) runs over all elements of the gradient, once each.
    unsafe {
        filled(co * ci * taps, |out: SharedOut<T>| {
            (0..ci).into_par_iter().for_each_init(
                || (Vec::new(), Vec::new()),
                |(sum, by_tap), ci_idx| {
                    sum.resize(shape.frequencies() * shape.co_padded, T::ZERO);
                    by_tap.resize(taps * shape.co_padded, T::ZERO);
                    dispatch(set, Reduce { partials: &partials, shape, ci_idx, sum, by_tap, filter: PhantomData::<F> });
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

/// Shape of a partial sum, `[frequency][ci][co_padded]`.
#[derive(Clone, Copy)]
struct SumShape {
    ci: usize,
    co_padded: usize,
    /// Frequencies of D.
    depths: usize,
    /// Frequencies of H and W.
    plane: usize,
}

impl SumShape {
    /// Frequencies of all axes.
    fn frequencies(&self) -> usize {
        self.depths * self.plane
    }

    /// Elements of a partial sum.
    fn len(&self) -> usize {
        self.frequencies() * self.ci * self.co_padded
    }
}

/// Part of the partial sums that one task computes.
struct SumTask {
    /// Index of the partial sum.
    group: usize,
    /// Blocks that it is summed over.
    blocks: Range<usize>,
    /// Frequencies of D.
    depths: Range<usize>,
    /// Vectors of input channels.
    rows: Range<usize>,
}

/// Splits the sums over `num_blocks` blocks at all frequencies of D and `num_lanes` vectors of input channels into tasks whose
/// partial sums take about `bytes`.
fn split<T>(shape: &SumShape, bytes: usize, num_blocks: usize, num_lanes: usize) -> Vec<SumTask> {
    let depths = shape.depths;
    let groups = (bytes / (shape.len() * size_of::<T>())).clamp(1, MIN_TASKS).min(num_blocks);
    // Every task copies the voxels of its blocks, so it is cheaper to split the blocks.
    let depth_splits = if groups * 2 < MIN_TASKS { depths } else { 1 };
    let row_splits = MIN_TASKS.div_ceil(groups * depth_splits).min(num_lanes);
    let mut tasks = Vec::new();
    for (group, blocks) in balanced(num_blocks, num_blocks.div_ceil(groups)).enumerate() {
        for depths in balanced(depths, depths.div_ceil(depth_splits)) {
            for rows in balanced(num_lanes, num_lanes.div_ceil(row_splits)) {
                tasks.push(SumTask { group, blocks: blocks.clone(), depths: depths.clone(), rows });
            }
        }
    }
    tasks
}

/// Memory of a thread, used by one task after the other.
struct Buffers<T> {
    panel: Vec<T>,
    grad_panel: Vec<T>,
    planes: Planes<T>,
    inputs: Vec<T>,
    grads: Vec<T>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self {
            panel: Vec::new(),
            grad_panel: Vec::new(),
            planes: Planes::default(),
            inputs: Vec::new(),
            grads: Vec::new(),
        }
    }
}

/// Kernel of a [`SumTask`].
struct SumBlocks<'a, T, F, const N: usize, const M: usize> {
    job: &'a WeightGradient<'a, T>,
    tiling: &'a Tiling,
    shape: SumShape,
    blocks: &'a [TileBlock],
    task: SumTask,
    /// The group's partial sum.
    sums: *mut T,
    buffers: &'a mut Buffers<T>,
    filter: PhantomData<F>,
}

impl<T: Element, F: Filter<N, M>, const N: usize, const M: usize> Kernel<T> for SumBlocks<'_, T, F, N, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        if const { !is_compiled::<S>(F::PLANE) } {
            unreachable!("the chooser knows which filters there are");
        }
        let Self { job, tiling, shape, blocks, task, sums, buffers, .. } = self;
        let Buffers { panel, grad_panel, planes, inputs, grads } = buffers;
        let grad_output = std::slice::from_ref(&job.grad_output);
        let input_lanes = &lanes_of(job.sources, S::LANES)[task.rows];
        let grad_lanes = lanes_of(grad_output, S::LANES);
        for (block_idx, block) in blocks.iter().enumerate() {
            let (batch_idx, size) = (block.batch_idx, block.size());
            let first = block.first_output(tiling).map(|i| i as isize);
            let voxels = VoxelBox {
                batch_idx,
                first: [0, 1, 2].map(|i| first[i] + job.axes[i].first_offset()),
                size: tiling.input_extent(size),
            };
            let panel = pack_panel(simd, panel, job.sources, input_lanes, job.input_size(), voxels);
            let outputs = VoxelBox { batch_idx, first, size: [0, 1, 2].map(|i| size[i] * tiling.tile[i]) };
            let grad_panel = pack_panel(simd, grad_panel, grad_output, &grad_lanes, job.output_size(), outputs);
            let vector_len = block.num_tiles() * tile_len(N * N, S::LANES);
            inputs.resize(input_lanes.len() * vector_len, T::ZERO);
            grads.resize(grad_lanes.len() * vector_len, T::ZERO);
            for depth_idx in task.depths.clone() {
                let depth = &tiling.depth[depth_idx];
                let step = tiling.tile;
                transform_tiles::<S, Input<F, M>, N, N>(simd, &panel, planes, inputs, size, step, depth.input);
                transform_tiles::<S, OutputAdjoint<F>, M, N>(
                    simd,
                    &grad_panel,
                    planes,
                    grads,
                    size,
                    step,
                    depth.output,
                );
                let tiles = TransformedTiles {
                    inputs,
                    grads,
                    vector_len,
                    tile_len: tile_len(N * N, S::LANES),
                    accumulate: block_idx > 0,
                };
                let plane_len = shape.ci * shape.co_padded;
                for f in 0..shape.plane {
                    let sum = sums.wrapping_add((depth_idx * shape.plane + f) * plane_len);
                    // SAFETY: the sums of these frequencies and input channels are this task's own.
                    unsafe { tiles.add(simd, f, input_lanes, shape.co_padded, sum) }
                }
            }
        }
    }
}

/// The transformed tiles of a block, `[vector of channels][tile][frequency of H and W][lane]`, whose product over tiles is
/// part of a sum.
struct TransformedTiles<'a, T> {
    inputs: &'a [T],
    grads: &'a [T],
    /// Elements from vector to vector of channels.
    vector_len: usize,
    /// Elements from tile to tile.
    tile_len: usize,
    /// Add to the sums instead of overwriting them.
    accumulate: bool,
}

impl<T: Element> TransformedTiles<'_, T> {
    /// Computes the sums `[ci][co_padded]` of one frequency, for the input channels `lanes`.
    ///
    /// # Safety
    /// `sums` is valid for writing the rows of those channels, and nothing else accesses them; with `accumulate` they have
    /// been written.
    #[inline(always)]
    unsafe fn add<S: Simd<Elem = T>>(
        &self,
        simd: S,
        frequency: usize,
        lanes: &[Lanes],
        co_padded: usize,
        sums: *mut T,
    ) {
        let Self { vector_len, tile_len, .. } = *self;
        let all_tiles = [Segment { a: 0, b: 0, len: vector_len / tile_len }];
        for vectors in balanced(co_padded / S::LANES, max_vectors::<S>()) {
            for (v, lanes) in lanes.iter().enumerate() {
                for rows in balanced(lanes.len, max_rows::<S>(vectors.len())) {
                    // SAFETY: inside the transformed tiles; the caller guarantees that the sums may be written.
                    unsafe {
                        let operands = Operands {
                            a: self.inputs.as_ptr().add(v * vector_len + frequency * S::LANES + rows.start),
                            a_row: 1,
                            a_step: tile_len,
                            b: self.grads.as_ptr().add(vectors.start * vector_len + frequency * S::LANES),
                            b_step: tile_len,
                            b_vector: vector_len,
                            c: sums.add((lanes.first + rows.start) * co_padded + vectors.start * S::LANES),
                            c_row: co_padded,
                            c_vector: S::LANES,
                            tail: S::LANES,
                            accumulate: self.accumulate,
                        };
                        run_tile(simd, rows.len(), vectors.len(), &operands, &all_tiles);
                    }
                }
            }
        }
    }
}

/// Adds the partial sums of one input channel, in their order, and transforms them to taps.
struct Reduce<'a, T, F, const N: usize, const M: usize> {
    partials: &'a [T],
    shape: SumShape,
    ci_idx: usize,
    /// `[frequency][co_padded]`
    sum: &'a mut [T],
    /// `[tap][co_padded]`
    by_tap: &'a mut [T],
    filter: PhantomData<F>,
}

impl<T: Element, F: Filter<N, M>, const N: usize, const M: usize> Kernel<T> for Reduce<'_, T, F, N, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        if const { !is_compiled::<S>(F::PLANE) } {
            unreachable!("the chooser knows which filters there are");
        }
        let SumShape { ci, co_padded, depths, .. } = self.shape;
        for (f, sum) in self.sum.chunks_exact_mut(co_padded).enumerate() {
            for (group, partial) in self.partials.chunks_exact(self.shape.len()).enumerate() {
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
        TransformWeightAdjoint { frequencies: self.sum, taps: self.by_tap, depths, filter: self.filter }.run(simd);
    }
}
