//! Winograd's minimal filtering for 3x3x3 and 1x3x3 kernels of stride 1: two neighbouring outputs of a three-tap filter
//! from four multiplications instead of six, along every axis, so 64 instead of 216 per 2x2x2 outputs.
//!
//! Along one axis, with inputs `x0..x3`, taps `g0..g2` and outputs `y0, y1` (F(2, 3); Lavin and Gray, CVPR 2016):
//! ```text
//! input    B^T x = [x0 - x2,  x1 + x2,  x2 - x1,  x3 - x1]
//! weight   G g   = [g0,  (g0 + g1 + g2) / 2,  (g0 - g1 + g2) / 2,  g2]
//! output   A^T m = [m0 + m1 + m2,  m1 - m2 + m3]        y = A^T [(G g) * (B^T x)]
//! gradient dg    = G^T [(A dy) * (B^T x)]               the adjoint in g: the weight gradient costs as little
//! ```
//! All coefficients are 0, 1, -1 and 1/2, so that little accuracy is lost: [`crate::conv3d`]'s tests hold it to the same
//! bound as the direct sum.
//!
//! The four *frequencies* of axis D are taken one after the other, and at each of them the sixteen of H and W at once:
//! transform the tiles of a block, multiply `[tiles x k channels]` by `[k channels x output channels]` sixteen times,
//! transform back and add to the outputs. What one frequency of D needs stays in the second-level cache for blocks of
//! about a hundred tiles, where all 64 together would not. A kernel of depth 1 is the same with a single frequency of D.

pub(super) mod correlate;
pub(super) mod grad_weight;

use super::Algorithm;
use super::tile::balanced;
use crate::simd::{Element, Simd};
use candle_core::WithDType;
use std::ops::Range;

/// Frequencies of H and W together.
const PLANE: usize = 16;
/// Elements between the planes of two frequencies beyond their contents: planes a multiple of 4 KiB apart would share
/// the same few sets of the first-level cache.
const PLANE_GAP: usize = 16;
/// Bytes that a block's transformed tiles may take, both operands together.
const BLOCK_BYTES: usize = 768 << 10;

/// One frequency of axis D.
#[derive(Clone, Copy, Debug)]
struct DepthFrequency {
    /// It reads `x[first] + sign * x[second]`, `x[first]` alone where `sign` is 0: a row of `B^T`.
    first: usize,
    second: usize,
    sign: f64,
    /// Its share in the two outputs: a column of `A^T`.
    outputs: [f64; 2],
}

const fn frequency(first: usize, second: usize, sign: f64, outputs: [f64; 2]) -> DepthFrequency {
    DepthFrequency {
        first,
        second,
        sign,
        outputs,
    }
}

/// The first that reaches an output does so with a share of 1, which the output transform relies on.
const DEPTH_3: &[DepthFrequency] = &[
    frequency(0, 2, -1.0, [1.0, 0.0]),
    frequency(1, 2, 1.0, [1.0, 1.0]),
    frequency(2, 1, -1.0, [1.0, -1.0]),
    frequency(3, 1, -1.0, [0.0, 1.0]),
];
const DEPTH_1: &[DepthFrequency] = &[frequency(0, 0, 0.0, [1.0, 0.0])];

/// What a transformed weight costs, in multiply-adds of the direct sum per frequency: it is computed, written and read.
/// Measured, and of little consequence: it decides where few voxels meet many channels.
const WEIGHT_COST: usize = 160;
/// Fewer channels than this leave the transforms more to do than the products.
const LEAST_CHANNELS: usize = 8;

/// Whether to use the transforms: whether they pay for a layer of `taps` (D, H, W), with `outputs` positions in each of `batch` samples.
fn pays(
    algorithm: Algorithm,
    taps: [usize; 3],
    batch: usize,
    outputs: [usize; 3],
    k_channels: usize,
    out_channels: usize,
) -> bool {
    if !matches!(taps, [1 | 3, 3, 3]) || algorithm == Algorithm::Direct {
        return false;
    }
    if algorithm == Algorithm::Winograd {
        return true;
    }
    if k_channels.min(out_channels) < LEAST_CHANNELS {
        return false;
    }
    let tiling = Tiling::new(taps[0], outputs);
    let tiles = batch * tiling.tiles.iter().product::<usize>();
    let direct = batch * outputs.iter().product::<usize>() * taps[0] * 9;
    (tiles + WEIGHT_COST) * tiling.num_frequencies() < direct
}

/// How outputs are cut into tiles.
#[derive(Clone, Debug)]
struct Tiling {
    depth: &'static [DepthFrequency],
    /// Outputs of a tile.
    tile: [usize; 3],
    /// Inputs of a tile.
    reach: [usize; 3],
    /// Tiles along each axis.
    tiles: [usize; 3],
}

impl Tiling {
    fn new(depth_taps: usize, outputs: [usize; 3]) -> Self {
        let (depth, tile, reach) = if depth_taps == 3 {
            (DEPTH_3, [2; 3], [4; 3])
        } else {
            (DEPTH_1, [1, 2, 2], [1, 4, 4])
        };
        Self {
            depth,
            tile,
            reach,
            tiles: [0, 1, 2].map(|i| outputs[i].div_ceil(tile[i])),
        }
    }

    fn num_frequencies(&self) -> usize {
        self.depth.len() * PLANE
    }

    /// Inputs that `tiles` neighbouring tiles read.
    fn input_extent(&self, tiles: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|i| (tiles[i] - 1) * self.tile[i] + self.reach[i])
    }

    /// Tiles per block along each axis, such that the operands of a block fit the cache: as little as possible is read
    /// twice, because blocks overlap, and weights are streamed as seldom as possible. A function of the shape alone.
    fn block<T>(&self, k_channels: usize, out_channels: usize) -> [usize; 3] {
        let per_tile = PLANE * (k_channels + out_channels) * size_of::<T>();
        let most = (BLOCK_BYTES / per_tile).max(16);
        let sizes = |axis: usize| {
            let n = self.tiles[axis];
            let mut sizes: Vec<usize> = (1..=n).map(|parts| n.div_ceil(parts)).collect();
            sizes.dedup();
            sizes
        };
        let cost = |block: [usize; 3]| {
            let blocks: usize = (0..3)
                .map(|i| self.tiles[i].div_ceil(block[i]))
                .product();
            blocks * (self.input_extent(block).iter().product::<usize>() + PLANE * out_channels)
        };
        let mut best = [1; 3];
        for d in sizes(0) {
            for h in sizes(1) {
                for w in sizes(2) {
                    if d * h * w <= most && cost([d, h, w]) < cost(best) {
                        best = [d, h, w];
                    }
                }
            }
        }
        best
    }

    /// All blocks of a batch.
    fn blocks(&self, batch: usize, block: [usize; 3]) -> Vec<Block> {
        let ranges = |axis: usize| balanced(self.tiles[axis], block[axis]);
        let mut blocks = Vec::new();
        for batch_idx in 0..batch {
            for d in ranges(0) {
                for h in ranges(1) {
                    for w in ranges(2) {
                        blocks.push(Block {
                            batch_idx,
                            tiles: [d.clone(), h.clone(), w],
                        });
                    }
                }
            }
        }
        blocks
    }
}

/// Neighbouring tiles of one sample.
#[derive(Clone, Debug)]
struct Block {
    batch_idx: usize,
    tiles: [Range<usize>; 3],
}

impl Block {
    fn size(&self) -> [usize; 3] {
        self.tiles.each_ref().map(Range::len)
    }

    fn num_tiles(&self) -> usize {
        self.size().iter().product()
    }

    /// The outputs of its tiles that exist.
    fn outputs(&self, tiling: &Tiling, count: [usize; 3]) -> [Range<usize>; 3] {
        [0, 1, 2].map(|i| {
            let t = &self.tiles[i];
            t.start * tiling.tile[i]..(t.end * tiling.tile[i]).min(count[i])
        })
    }
}

/// What [`transform_tiles`] does along H and W. A trait rather than a function passed along: a call through a function value
/// would leave the instruction set behind.
trait AxisTransform<const N: usize> {
    fn apply<S: Simd>(x: [S::Vector; N]) -> [S::Vector; 4];
}

/// `B^T x`
struct InputTransform;

impl AxisTransform<4> for InputTransform {
    #[inline(always)]
    fn apply<S: Simd>(x: [S::Vector; 4]) -> [S::Vector; 4] {
        [
            S::sub(x[0], x[2]),
            S::add(x[1], x[2]),
            S::sub(x[2], x[1]),
            S::sub(x[3], x[1]),
        ]
    }
}

/// `A y`
struct OutputAdjoint;

impl AxisTransform<2> for OutputAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(y: [S::Vector; 2]) -> [S::Vector; 4] {
        [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), y[1]]
    }
}

/// `A^T m`
#[inline(always)]
fn output_transform<S: Simd>(m: [S::Vector; 4]) -> [S::Vector; 2] {
    [
        S::add(S::add(m[0], m[1]), m[2]),
        S::add(S::sub(m[1], m[2]), m[3]),
    ]
}

/// A zero-padded copy of the part of a map that a block's tiles read.
struct Panel<T> {
    data: *const T,
    /// Of H and W, in voxels.
    size: [usize; 2],
    /// Elements from voxel to voxel.
    pitch: usize,
}

/// Tiles at one frequency of D: `[frequency of H and W][tile][channel]`.
struct Planes<T> {
    data: *mut T,
    /// Elements from plane to plane.
    stride: usize,
    /// Elements from tile to tile: the channels, filled up to whole vectors.
    pitch: usize,
}

/// Elements that [`Planes`] of so many tiles need.
fn plane_stride(num_tiles: usize, pitch: usize) -> usize {
    num_tiles * pitch + PLANE_GAP
}

/// Which voxels one frequency of D reads of a tile, and how.
struct DepthRead {
    first: usize,
    /// `second` and its sign, if there are two.
    second: Option<(usize, f64)>,
}

/// Transforms every tile of a block: `N` x `N` voxels become 4 x 4 frequencies by `A` along H and W, after one or
/// two planes of voxels have been joined along D. Tiles begin `step` voxels apart.
///
/// # Safety
/// The panel holds the voxels that the block's tiles read and `LANES` readable elements behind them; the planes hold
/// `num_tiles` tiles.
#[inline(always)]
unsafe fn transform_tiles<S: Simd, A: AxisTransform<N>, const N: usize>(
    panel: &Panel<S::Elem>,
    planes: &Planes<S::Elem>,
    block: [usize; 3],
    step: [usize; 3],
    depth: &DepthRead,
) {
    let [panel_h, panel_w] = panel.size;
    let row = panel_w * panel.pitch;
    let zero = S::splat(S::Elem::ZERO);
    let sign = S::splat(S::Elem::from_f64(depth.second.map_or(0.0, |s| s.1)));
    let mut tile_idx = 0;
    for d in 0..block[0] {
        for h in 0..block[1] {
            for w in 0..block[2] {
                let at = |plane: usize| {
                    ((d * step[0] + plane) * panel_h + h * step[1]) * row
                        + w * step[2] * panel.pitch
                };
                for c in (0..planes.pitch).step_by(S::LANES) {
                    let mut x = [[zero; N]; N];
                    // SAFETY: voxels of this tile, and a tile of the planes, as the caller vouches.
                    unsafe {
                        let first = panel.data.add(at(depth.first) + c);
                        for (i, x) in x.iter_mut().enumerate() {
                            for (j, x) in x.iter_mut().enumerate() {
                                *x = S::load(first.add(i * row + j * panel.pitch));
                            }
                        }
                        if let Some((second, _)) = depth.second {
                            let second = panel.data.add(at(second) + c);
                            for (i, x) in x.iter_mut().enumerate() {
                                for (j, x) in x.iter_mut().enumerate() {
                                    let other = S::load(second.add(i * row + j * panel.pitch));
                                    *x = S::mul_add(other, sign, *x);
                                }
                            }
                        }
                        let mut columns = [[zero; N]; 4];
                        for j in 0..N {
                            let mut column = [zero; N];
                            for i in 0..N {
                                column[i] = x[i][j];
                            }
                            let column = A::apply::<S>(column);
                            for i in 0..4 {
                                columns[i][j] = column[i];
                            }
                        }
                        let out = planes.data.add(tile_idx * planes.pitch + c);
                        for i in 0..4 {
                            let line = A::apply::<S>(columns[i]);
                            for j in 0..4 {
                                S::store(out.add((i * 4 + j) * planes.stride), line[j]);
                            }
                        }
                    }
                }
                tile_idx += 1;
            }
        }
    }
}
