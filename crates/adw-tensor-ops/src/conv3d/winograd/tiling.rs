//! Partition of the outputs into tiles.

use super::filter::{DEPTH_1, DEPTH_2, DEPTH_4, DepthFrequency, PlaneFilter, is_compiled};
use crate::conv3d::partition::balanced;
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use std::ops::Range;

/// Bytes that a block may take: the voxels that it reads, and its transformed tiles of both operands.
const BLOCK_BYTES: usize = 256 << 10;
/// Tiles of a block even where they take more memory than that: smaller blocks would stream the weights too often.
const MIN_BLOCK_TILES: usize = 32;
/// Cost of beginning a row of voxels in a block, in voxels read.
const ROW_COST: usize = 16;

/// Tiles, by their outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conv3d) struct TileShape {
    depth: usize,
    plane: PlaneFilter,
}

impl TileShape {
    /// Shapes of tiles for a kernel of depth 1 or 3, for maps of `T` in an instruction set.
    pub(in crate::conv3d) fn available<T: Element>(set: InstructionSet, depth_taps: usize) -> Vec<Self> {
        struct HasLargeTiles;
        impl<T: Element> Kernel<T> for HasLargeTiles {
            type Output = bool;
            #[inline(always)]
            fn run<S: Simd<Elem = T>>(self, _: S) -> bool {
                is_compiled::<S>(PlaneFilter::Four)
            }
        }
        let depths: &[usize] = if depth_taps == 1 { &[1] } else { &[2, 4] };
        let has_large_tiles = dispatch::<T, _>(set, HasLargeTiles);
        let planes: &[_] = if has_large_tiles { &[PlaneFilter::Two, PlaneFilter::Four] } else { &[PlaneFilter::Two] };
        depths.iter().flat_map(|&depth| planes.iter().map(move |&plane| Self { depth, plane })).collect()
    }
}

/// Partition of the outputs of one sample into tiles.
#[derive(Clone, Debug)]
pub(in crate::conv3d) struct Tiling {
    pub(super) depth: &'static [DepthFrequency],
    pub(super) plane: PlaneFilter,
    /// Outputs of a tile along each axis.
    pub(super) tile: [usize; 3],
    /// Inputs of a tile along each axis.
    reach: [usize; 3],
    /// Tiles along each axis.
    pub(super) tiles: [usize; 3],
}

impl Tiling {
    /// Tiling of `outputs` positions by tiles of a shape.
    pub(super) fn new(shape: TileShape, outputs: [usize; 3]) -> Self {
        let depth = match shape.depth {
            1 => DEPTH_1,
            2 => DEPTH_2,
            _ => DEPTH_4,
        };
        let side = match shape.plane {
            PlaneFilter::Two => 2,
            PlaneFilter::Four => 4,
        };
        let tile = [shape.depth, side, side];
        Self {
            depth,
            plane: shape.plane,
            tile,
            reach: [depth.len(), side + 2, side + 2],
            tiles: [0, 1, 2].map(|i| outputs[i].div_ceil(tile[i])),
        }
    }

    /// Number of frequencies of H and W together.
    pub(super) fn plane_frequencies(&self) -> usize {
        self.reach[1] * self.reach[2]
    }

    /// Number of frequencies of all axes together.
    pub(super) fn num_frequencies(&self) -> usize {
        self.depth.len() * self.plane_frequencies()
    }

    /// Number of inputs that `tiles` neighbouring tiles read along each axis.
    pub(super) fn input_extent(&self, tiles: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|i| (tiles[i] - 1) * self.tile[i] + self.reach[i])
    }

    /// Tiles per block along each axis, such that the operands of a block fit the cache: as little as possible is read
    /// twice, because blocks overlap, and weights are streamed as seldom as possible. A function of the shape alone.
    fn block_size<T>(&self, in_channels: usize, out_channels: usize) -> [usize; 3] {
        let per_tile = self.plane_frequencies() * (in_channels + out_channels) * size_of::<T>();
        let fits = |block: [usize; 3]| {
            let tiles: usize = block.iter().product();
            let voxels: usize = self.input_extent(block).iter().product();
            tiles <= MIN_BLOCK_TILES || voxels * in_channels * size_of::<T>() + tiles * per_tile <= BLOCK_BYTES
        };
        let sizes = |axis: usize| {
            let n = self.tiles[axis];
            let mut sizes: Vec<usize> = (1..=n).map(|parts| n.div_ceil(parts)).collect();
            sizes.dedup();
            sizes
        };
        let cost = |block: [usize; 3]| {
            let blocks: usize = (0..3).map(|i| self.tiles[i].div_ceil(block[i])).product();
            let [d, h, w] = self.input_extent(block);
            blocks * (d * h * (w + ROW_COST) + self.plane_frequencies() * out_channels)
        };
        let mut best = [1; 3];
        for d in sizes(0) {
            for h in sizes(1) {
                for w in sizes(2) {
                    if fits([d, h, w]) && cost([d, h, w]) < cost(best) {
                        best = [d, h, w];
                    }
                }
            }
        }
        best
    }

    /// All blocks of a batch, for maps of `T` with these channels.
    pub(super) fn blocks<T>(&self, batch: usize, in_channels: usize, out_channels: usize) -> Vec<TileBlock> {
        let size = self.block_size::<T>(in_channels, out_channels);
        let ranges = |axis: usize| balanced(self.tiles[axis], size[axis]);
        let mut blocks = Vec::new();
        for batch_idx in 0..batch {
            for d in ranges(0) {
                for h in ranges(1) {
                    for w in ranges(2) {
                        blocks.push(TileBlock { batch_idx, tiles: [d.clone(), h.clone(), w] });
                    }
                }
            }
        }
        blocks
    }
}

/// Neighbouring tiles of one sample.
#[derive(Clone, Debug)]
pub(super) struct TileBlock {
    pub(super) batch_idx: usize,
    pub(super) tiles: [Range<usize>; 3],
}

impl TileBlock {
    /// Tiles along each axis.
    pub(super) fn size(&self) -> [usize; 3] {
        self.tiles.each_ref().map(Range::len)
    }

    pub(super) fn num_tiles(&self) -> usize {
        self.size().iter().product()
    }

    /// First output of the block along each axis.
    pub(super) fn first_output(&self, tiling: &Tiling) -> [usize; 3] {
        [0, 1, 2].map(|i| self.tiles[i].start * tiling.tile[i])
    }

    /// Outputs of the block, of `num_outputs` along each axis.
    pub(super) fn outputs(&self, tiling: &Tiling, num_outputs: [usize; 3]) -> [Range<usize>; 3] {
        [0, 1, 2].map(|i| {
            let t = &self.tiles[i];
            t.start * tiling.tile[i]..(t.end * tiling.tile[i]).min(num_outputs[i])
        })
    }
}
