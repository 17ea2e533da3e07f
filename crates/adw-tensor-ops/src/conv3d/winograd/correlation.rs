//! Forward pass and input gradient by Winograd's transforms.

use super::filter::{F2, F4, Filter, PlaneFilter, is_compiled};
use super::panel::pack_panel;
use super::tiling::{TileBlock, Tiling};
use super::transform::{Input, Planes, TransformWeight, output_plane, tile_len, transform_tiles};
use crate::conv3d::job::Correlation;
use crate::conv3d::packed_weight::{ChannelBlock, PackedWeight, TapTransform};
use crate::conv3d::packing::{Lanes, VoxelBox, lanes_of};
use crate::conv3d::partition::balanced;
use crate::conv3d::tile::{Operands, Segment, max_rows, run_tile};
use crate::norm_act::moments::{BlockMoments, block_moments};
use crate::raw_output::SharedOut;
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Channels read and written from which the transforms are less work than what they save; measured. The transforms
/// of the input weigh as much for one channel as for a vector of them, the direct sum fills its vectors with channels written.
pub(in crate::conv3d) const MIN_CHANNELS: [usize; 2] = [8, 4];
/// Tasks that keep many threads busy.
const MIN_TASKS: usize = 16;

/// Writes the outputs of a correlation into `out` (`[B, D, H, W, out_channels]`), and returns the moments of the outputs
/// if `with_moments`. `tiling` is one of the job's outputs.
///
/// # Safety
/// `out` is valid for the whole output map, and nothing else accesses the outputs of the job.
pub(in crate::conv3d) unsafe fn run<T: Element>(
    set: InstructionSet,
    job: &Correlation<T>,
    tiling: &Tiling,
    out: SharedOut<T>,
    with_moments: bool,
) -> Vec<BlockMoments<T>> {
    // SAFETY: the caller guarantees that the outputs may be written.
    unsafe {
        match tiling.plane {
            PlaneFilter::Two => run_filtered::<T, F2, 4, 2>(set, job, tiling, out, with_moments),
            PlaneFilter::Four => run_filtered::<T, F4, 6, 4>(set, job, tiling, out, with_moments),
        }
    }
}

/// [`run`] with the filter of H and W.
///
/// # Safety
/// That of [`run`].
unsafe fn run_filtered<T: Element, F: Filter<N, M>, const N: usize, const M: usize>(
    set: InstructionSet,
    job: &Correlation<T>,
    tiling: &Tiling,
    out: SharedOut<T>,
    with_moments: bool,
) -> Vec<BlockMoments<T>> {
    let depths = tiling.depth.len();
    let transform = TapTransform {
        num_outputs: tiling.num_frequencies(),
        apply: |taps: &[T], frequencies: &mut [T]| {
            dispatch(set, TransformWeight { taps, frequencies, depths, filter: PhantomData::<F> });
        },
    };
    let packed = PackedWeight::transformed(set, job, &transform);
    let blocks = tiling.blocks::<T>(job.batch, job.k_channels(), job.out_channels);
    // Layers with few voxels and many channels are split by channel as well.
    let splits = MIN_TASKS.div_ceil(blocks.len()).min(packed.blocks.len());
    let channels = balanced(packed.blocks.len(), packed.blocks.len().div_ceil(splits));
    let tasks: Vec<(&TileBlock, Range<usize>)> =
        blocks.iter().flat_map(|b| channels.clone().map(move |c| (b, c))).collect();
    let moments: Vec<Option<BlockMoments<T>>> = tasks
        .into_par_iter()
        .map_init(Buffers::default, |buffers, (block, channels)| {
            let channels = &packed.blocks[channels];
            let task = CorrelateTiles { job, tiling, packed: &packed, block, channels, out, with_moments };
            dispatch(set, RunTask { task, buffers, filter: PhantomData::<F> })
        })
        .collect();
    moments.into_iter().flatten().collect()
}

/// Memory of a thread, used by one task after the other.
struct Buffers<T> {
    panel: Vec<T>,
    planes: Planes<T>,
    inputs: Vec<T>,
    products: Vec<T>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self { panel: Vec::new(), planes: Planes::default(), inputs: Vec::new(), products: Vec::new() }
    }
}

/// Task that computes the outputs of a block of tiles for some blocks of output channels.
struct CorrelateTiles<'a, T> {
    job: &'a Correlation<'a, T>,
    tiling: &'a Tiling,
    packed: &'a PackedWeight<T>,
    block: &'a TileBlock,
    channels: &'a [ChannelBlock],
    out: SharedOut<T>,
    with_moments: bool,
}

/// Outputs of a tile that exist.
struct TileOutputs {
    first: [usize; 3],
    /// Outputs along each axis.
    count: [usize; 3],
}

/// [`CorrelateTiles`] with the memory that it works in.
struct RunTask<'a, T, F, const N: usize, const M: usize> {
    task: CorrelateTiles<'a, T>,
    buffers: &'a mut Buffers<T>,
    filter: PhantomData<F>,
}

impl<T: Element, F: Filter<N, M>, const N: usize, const M: usize> Kernel<T> for RunTask<'_, T, F, N, M> {
    type Output = Option<BlockMoments<T>>;

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) -> Self::Output {
        if const { !is_compiled::<S>(F::PLANE) } {
            unreachable!("the chooser knows which filters there are");
        }
        let Self { task, buffers: Buffers { panel, planes, inputs, products }, .. } = self;
        let CorrelateTiles { job, tiling, block, .. } = task;
        let first = block.first_output(tiling);
        let voxels = VoxelBox {
            batch_idx: block.batch_idx,
            first: [0, 1, 2].map(|i| first[i] as isize + job.axes[i].first_offset()),
            size: tiling.input_extent(block.size()),
        };
        let lanes = lanes_of(job.sources, S::LANES);
        let panel = pack_panel(simd, panel, job.sources, &lanes, job.axes.each_ref().map(|a| a.input_size), voxels);
        let num_vectors: usize = task.channels.iter().map(|b| b.vectors).sum();
        inputs.resize(lanes.len() * task.vector_len::<S>(), T::ZERO);
        products.resize(num_vectors * task.vector_len::<S>(), T::ZERO);
        let segments = task.segments::<S>(&lanes);
        for (depth_idx, depth) in tiling.depth.iter().enumerate() {
            let (block, step) = (block.size(), tiling.tile);
            transform_tiles::<S, Input<F, M>, N, N>(simd, &panel, planes, inputs, block, step, depth.input);
            task.multiply(simd, depth_idx, inputs, &segments, products);
            task.add_outputs::<S, F, N, M>(simd, depth_idx, products);
        }
        task.with_moments.then(|| task.moments())
    }
}

impl<T: Element> CorrelateTiles<'_, T> {
    /// Elements of one vector of channels of the block's transformed tiles.
    #[inline(always)]
    fn vector_len<S: Simd<Elem = T>>(&self) -> usize {
        self.block.num_tiles() * self.tile_len::<S>()
    }

    /// Elements from tile to tile.
    #[inline(always)]
    fn tile_len<S: Simd<Elem = T>>(&self) -> usize {
        tile_len(self.tiling.plane_frequencies(), S::LANES)
    }

    /// The output channels of the task.
    fn out_channels(&self) -> Range<usize> {
        let first = self.channels.first().map_or(0, |b| b.first);
        first..self.channels.last().map_or(0, |b| b.first + b.count)
    }

    /// Outputs of the block along each axis.
    fn outputs(&self) -> [Range<usize>; 3] {
        self.block.outputs(self.tiling, self.job.axes.each_ref().map(|a| a.num_outputs))
    }

    /// Runs of input channels, for every block of output channels; the same at all frequencies.
    #[inline(always)]
    fn segments<S: Simd<Elem = T>>(&self, lanes: &[Lanes]) -> Vec<Vec<Segment>> {
        let of_block = |channels: &ChannelBlock| {
            let segment = |(v, lanes): (usize, &Lanes)| Segment {
                a: v * self.vector_len::<S>(),
                b: lanes.first * channels.vectors * self.packed.lanes,
                len: lanes.len,
            };
            lanes.iter().enumerate().map(segment).collect()
        };
        self.channels.iter().map(of_block).collect()
    }

    /// Multiplies the transformed tiles by the transformed weights, at all frequencies of H and W and one of D.
    #[inline(always)]
    fn multiply<S: Simd<Elem = T>>(
        &self,
        simd: S,
        depth_idx: usize,
        inputs: &[T],
        segments: &[Vec<Segment>],
        products: &mut [T],
    ) {
        let k = self.job.k_channels();
        let (tile_len, vector_len) = (self.tile_len::<S>(), self.vector_len::<S>());
        let frequencies = self.tiling.plane_frequencies();
        for f in 0..frequencies {
            let mut vector = 0;
            for (channels, segments) in self.channels.iter().zip(segments) {
                let width = channels.vectors * self.packed.lanes;
                let weight = channels.offset + (depth_idx * frequencies + f) * k * width;
                for tiles in balanced(self.block.num_tiles(), max_rows::<S>(channels.vectors)) {
                    let at = tiles.start * tile_len + f * S::LANES;
                    // SAFETY: inside the buffers of this block and the packed weights of these channels.
                    unsafe {
                        let operands = Operands {
                            a: inputs.as_ptr().add(at),
                            a_row: tile_len,
                            a_step: 1,
                            b: self.packed.data.as_ptr().add(weight),
                            b_step: width,
                            b_vector: S::LANES,
                            c: products.as_mut_ptr().add(vector * vector_len + at),
                            c_row: tile_len,
                            c_vector: vector_len,
                            tail: S::LANES,
                            accumulate: false,
                        };
                        run_tile(simd, tiles.len(), channels.vectors, &operands, segments);
                    }
                }
                vector += channels.vectors;
            }
        }
    }

    /// Transforms the products of one frequency of D back along H and W, and adds them to the outputs that it contributes
    /// to. `products`: `[vector of channels][tile][frequency][lane]`.
    #[inline(always)]
    fn add_outputs<S: Simd<Elem = T>, F: Filter<N, M>, const N: usize, const M: usize>(
        &self,
        simd: S,
        depth_idx: usize,
        products: &[T],
    ) {
        let channels = self.out_channels();
        let [od, oh, ow] = self.outputs();
        let tile = self.tiling.tile;
        let (tile_len, vector_len) = (self.tile_len::<S>(), self.vector_len::<S>());
        let mut first = 0;
        for d in od.clone().step_by(tile[0]) {
            for h in oh.clone().step_by(tile[1]) {
                for w in ow.clone().step_by(tile[2]) {
                    let outputs = TileOutputs {
                        first: [d, h, w],
                        count: [(od.end - d).min(tile[0]), (oh.end - h).min(tile[1]), (ow.end - w).min(tile[2])],
                    };
                    for (v, channel) in channels.clone().step_by(S::LANES).enumerate() {
                        let y = output_plane::<S, F, N, M>(simd, &products[v * vector_len + first..][..tile_len]);
                        let lanes = (channels.end - channel).min(S::LANES);
                        self.add_tile(simd, depth_idx, &outputs, channel..channel + lanes, &y);
                    }
                    first += tile_len;
                }
            }
        }
    }

    /// Adds the share of one frequency of D in a tile's outputs, for a vector of channels.
    #[inline(always)]
    fn add_tile<S: Simd<Elem = T>, const M: usize>(
        &self,
        simd: S,
        depth_idx: usize,
        outputs: &TileOutputs,
        channels: Range<usize>,
        y: &[[S::Vector; M]; M],
    ) {
        let [d, h, w] = &self.job.axes;
        let pitch = self.job.out_channels;
        let [od, oh, ow] = outputs.first;
        for &(plane, share) in self.tiling.depth[depth_idx].output {
            if plane >= outputs.count[0] {
                break;
            }
            // The outputs have no value yet when the first frequency contributes to them.
            let is_first = depth_idx == plane.min(1);
            let share = simd.splat(T::from_f64(share));
            for (i, y) in y.iter().enumerate().take(outputs.count[1]) {
                let row = (self.block.batch_idx * d.output_size + od + plane) * h.output_size + oh + i;
                let voxel = row * w.output_size + ow;
                for (j, &y) in y.iter().enumerate().take(outputs.count[2]) {
                    // SAFETY: the outputs of this block's tiles and these channels are this task's alone.
                    unsafe {
                        let p = self.out.ptr().add((voxel + j) * pitch + channels.start);
                        let before = if is_first { simd.splat(T::ZERO) } else { simd.load_up_to(p, channels.len()) };
                        simd.store_up_to(p, simd.mul_add(y, share, before), channels.len());
                    }
                }
            }
        }
    }

    /// Moments of the task's outputs.
    #[inline(always)]
    fn moments(&self) -> BlockMoments<T> {
        let [d, h, w] = &self.job.axes;
        let [od, oh, ow] = self.outputs();
        let (channels, pitch) = (self.out_channels(), self.job.out_channels);
        let rows = od.flat_map(|qd| {
            let (out, first_channel) = (self.out.ptr().cast_const(), channels.start);
            let (plane, start, width) =
                ((self.block.batch_idx * d.output_size + qd) * h.output_size, ow.start, w.output_size);
            oh.clone().map(move |qh| out.wrapping_add(((plane + qh) * width + start) * pitch + first_channel))
        });
        // SAFETY: this task has just written these channels of these rows.
        unsafe { block_moments(rows, ow.len(), pitch, channels.clone(), self.block.batch_idx) }
    }
}
