//! Partition of the outputs into tiles, and the frequencies of axis D.

use crate::conv3d::partition::balanced;
use crate::simd::Element;
use std::ops::Range;

/// Frequencies of H and W together.
pub(super) const PLANE: usize = 16;
/// Bytes that a block's transformed tiles may take, both operands together.
const BLOCK_BYTES: usize = 384 << 10;
/// Tiles of a block even where they take more memory than that: smaller blocks would stream the weights too often.
const MIN_BLOCK_TILES: usize = 48;

/// One frequency of axis D.
#[derive(Clone, Copy, Debug)]
pub(super) struct DepthFrequency {
    /// Row of `B^T`: the frequency is `x[first] + sign * x[second]`, or `x[first]` alone where `sign` is 0.
    first: usize,
    second: usize,
    sign: f64,
    /// Column of `A^T`: the frequency's share in the two outputs.
    pub(super) outputs: [f64; 2],
}

/// Planes of a tile that a frequency of D joins: `x[first] + sign * x[second]`.
pub(super) struct DepthSum<T> {
    pub(super) first: usize,
    /// Second plane and its sign.
    pub(super) second: Option<(usize, T)>,
}

impl DepthFrequency {
    /// Planes of an input tile that the frequency joins: a row of `B^T`.
    pub(super) fn input<T: Element>(&self) -> DepthSum<T> {
        DepthSum { first: self.first, second: (self.sign != 0.0).then(|| (self.second, T::from_f64(self.sign))) }
    }

    /// Planes of a tile of the output's gradient that the frequency joins: a row of `A`.
    pub(super) fn grad_output<T: Element>(&self) -> DepthSum<T> {
        match self.outputs {
            [first, second] if first != 0.0 => {
                DepthSum { first: 0, second: (second != 0.0).then(|| (1, T::from_f64(second))) }
            }
            _ => DepthSum { first: 1, second: None },
        }
    }
}

const fn frequency(first: usize, second: usize, sign: f64, outputs: [f64; 2]) -> DepthFrequency {
    DepthFrequency { first, second, sign, outputs }
}

/// Frequencies of three taps. The first that contributes to an output does so with a share of 1, which the output
/// transform relies on.
const DEPTH_3: &[DepthFrequency] = &[
    frequency(0, 2, -1.0, [1.0, 0.0]),
    frequency(1, 2, 1.0, [1.0, 1.0]),
    frequency(2, 1, -1.0, [1.0, -1.0]),
    frequency(3, 1, -1.0, [0.0, 1.0]),
];
/// The frequency of a single tap.
const DEPTH_1: &[DepthFrequency] = &[frequency(0, 0, 0.0, [1.0, 0.0])];

/// Partition of the outputs of one sample into tiles.
#[derive(Clone, Debug)]
pub(super) struct Tiling {
    pub(super) depth: &'static [DepthFrequency],
    /// Outputs of a tile along each axis.
    pub(super) tile: [usize; 3],
    /// Inputs of a tile along each axis.
    reach: [usize; 3],
    /// Tiles along each axis.
    pub(super) tiles: [usize; 3],
}

impl Tiling {
    /// Tiling of `outputs` positions for a kernel of depth 1 or 3.
    pub(super) fn new(depth_taps: usize, outputs: [usize; 3]) -> Self {
        let (depth, tile, reach) =
            if depth_taps == 3 { (DEPTH_3, [2; 3], [4; 3]) } else { (DEPTH_1, [1, 2, 2], [1, 4, 4]) };
        Self { depth, tile, reach, tiles: [0, 1, 2].map(|i| outputs[i].div_ceil(tile[i])) }
    }

    /// Number of frequencies of all axes together.
    pub(super) fn num_frequencies(&self) -> usize {
        self.depth.len() * PLANE
    }

    /// Number of inputs that `tiles` neighbouring tiles read along each axis.
    pub(super) fn input_extent(&self, tiles: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|i| (tiles[i] - 1) * self.tile[i] + self.reach[i])
    }

    /// Tiles per block along each axis, such that the operands of a block fit the cache: as little as possible is read
    /// twice, because blocks overlap, and weights are streamed as seldom as possible. A function of the shape alone.
    fn block_size<T>(&self, in_channels: usize, out_channels: usize) -> [usize; 3] {
        let per_tile = PLANE * (in_channels + out_channels) * size_of::<T>();
        let max_tiles = (BLOCK_BYTES / per_tile).max(MIN_BLOCK_TILES);
        let sizes = |axis: usize| {
            let n = self.tiles[axis];
            let mut sizes: Vec<usize> = (1..=n).map(|parts| n.div_ceil(parts)).collect();
            sizes.dedup();
            sizes
        };
        let cost = |block: [usize; 3]| {
            let blocks: usize = (0..3).map(|i| self.tiles[i].div_ceil(block[i])).product();
            blocks * (self.input_extent(block).iter().product::<usize>() + PLANE * out_channels)
        };
        let mut best = [1; 3];
        for d in sizes(0) {
            for h in sizes(1) {
                for w in sizes(2) {
                    if d * h * w <= max_tiles && cost([d, h, w]) < cost(best) {
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
