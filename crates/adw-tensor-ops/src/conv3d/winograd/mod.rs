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

// Small matrices of vectors, indexed as in the formulas.
#![allow(clippy::needless_range_loop)]

pub(super) mod correlate;
pub(super) mod grad_weight;

use super::Algorithm;
use super::tile::{Lanes, Source, balanced, inside, overlap};
use crate::simd::{Element, Simd};
use std::ops::Range;

/// Frequencies of H and W together.
const PLANE: usize = 16;
/// Bytes that a block's transformed tiles may take, both operands together.
const BLOCK_BYTES: usize = 384 << 10;

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

impl DepthFrequency {
    /// How it reads a tile of the input: a row of `B^T`.
    fn input<T: Element>(&self) -> DepthRead<T> {
        DepthRead { first: self.first, second: (self.sign != 0.0).then(|| (self.second, T::from_f64(self.sign))) }
    }

    /// How it reads a tile of the output's gradient: a row of `A`.
    fn grad_output<T: Element>(&self) -> DepthRead<T> {
        match self.outputs {
            [first, second] if first != 0.0 => {
                DepthRead { first: 0, second: (second != 0.0).then(|| (1, T::from_f64(second))) }
            }
            _ => DepthRead { first: 1, second: None },
        }
    }
}

const fn frequency(first: usize, second: usize, sign: f64, outputs: [f64; 2]) -> DepthFrequency {
    DepthFrequency { first, second, sign, outputs }
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

/// Whether to use the transforms: whether they pay for a layer of `taps` (D, H, W), with `outputs` positions in each of
/// `batch` samples.
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
        let (depth, tile, reach) =
            if depth_taps == 3 { (DEPTH_3, [2; 3], [4; 3]) } else { (DEPTH_1, [1, 2, 2], [1, 4, 4]) };
        Self { depth, tile, reach, tiles: [0, 1, 2].map(|i| outputs[i].div_ceil(tile[i])) }
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
        let most = (BLOCK_BYTES / per_tile).max(48);
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
                        blocks.push(Block { batch_idx, tiles: [d.clone(), h.clone(), w] });
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
        [S::sub(x[0], x[2]), S::add(x[1], x[2]), S::sub(x[2], x[1]), S::sub(x[3], x[1])]
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
    [S::add(S::add(m[0], m[1]), m[2]), S::add(S::sub(m[1], m[2]), m[3])]
}

/// A zero-padded copy of the part of maps that a block's tiles read: `[vector of channels][D][H][W][lane]`.
struct Panel<T> {
    data: *const T,
    size: [usize; 3],
}

/// Copies the box of `size` voxels that begins at `first` (it may reach outside) of one sample of maps of `input` voxels.
#[inline(always)]
fn pack_panel<S: Simd>(
    buffer: &mut Vec<S::Elem>,
    sources: &[Source<S::Elem>],
    channels: &[Lanes],
    batch_idx: usize,
    input: [usize; 3],
    first: [isize; 3],
    size: [usize; 3],
) -> Panel<S::Elem> {
    let row_len = size[2] * S::LANES;
    buffer.resize(channels.len() * size[0] * size[1] * row_len, S::Elem::ZERO);
    // Voxels of a row that lie inside.
    let (before, skip, count) = overlap(first[2], size[2], input[2]);
    for d in 0..size[0] {
        for h in 0..size[1] {
            let (id, ih) = (first[0] + d as isize, first[1] + h as isize);
            let is_inside = count > 0 && inside(id, input[0]) && inside(ih, input[1]);
            for (v, lanes) in channels.iter().enumerate() {
                let row = &mut buffer[((v * size[0] + d) * size[1] + h) * row_len..][..row_len];
                if !is_inside {
                    row.fill(S::Elem::ZERO);
                    continue;
                }
                row[..before * S::LANES].fill(S::Elem::ZERO);
                row[(before + count) * S::LANES..].fill(S::Elem::ZERO);
                let source = &sources[lanes.source];
                let n = source.channels;
                let voxel = ((batch_idx * input[0] + id as usize) * input[1] + ih as usize) * input[2] + skip;
                let map = &source.data[voxel * n..(voxel + count) * n];
                let norm = source.norm.map(|of| {
                    let at = batch_idx * n + lanes.first_of_source;
                    let (scale, shift) = (&of.scale[at..][..lanes.len], &of.shift[at..][..lanes.len]);
                    (scale.as_ptr(), shift.as_ptr(), of.slope)
                });
                // SAFETY: `count` voxels of the map from `voxel` on, of which `len` channels from `first_of_source` on are
                // read, and as many of the row from `before` on are written; the norm has `len` values.
                unsafe {
                    let src = map.as_ptr().add(lanes.first_of_source);
                    let dst = row.as_mut_ptr().add(before * S::LANES);
                    copy_lanes::<S>(src, n, dst, count, lanes.len, norm);
                }
            }
        }
    }
    Panel { data: buffer.as_ptr(), size }
}

/// Copies `len` lanes of `count` voxels, `pitch` elements apart, to vectors in a row, normalised by `(scale, shift, slope)`.
///
/// # Safety
/// All that is valid for reading, `dst` for writing `count` vectors.
#[inline(always)]
unsafe fn copy_lanes<S: Simd>(
    src: *const S::Elem,
    pitch: usize,
    dst: *mut S::Elem,
    count: usize,
    len: usize,
    norm: Option<(*const S::Elem, *const S::Elem, S::Elem)>,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match norm {
            None => {
                for i in 0..count {
                    let x = load_up_to::<S>(src.add(i * pitch), len);
                    S::store(dst.add(i * S::LANES), x);
                }
            }
            Some((scale, shift, slope)) => {
                let (scale, shift) = (S::load_first(scale, len), S::load_first(shift, len));
                let slope = S::splat(slope);
                for i in 0..count {
                    let x = load_up_to::<S>(src.add(i * pitch), len);
                    let y = S::leaky(S::mul_add(x, scale, shift), slope);
                    S::store(dst.add(i * S::LANES), y);
                }
            }
        }
    }
}

/// The first `n <= LANES` elements, by a plain load if that is all of them.
///
/// # Safety
/// They are valid for reading.
#[inline(always)]
unsafe fn load_up_to<S: Simd>(p: *const S::Elem, n: usize) -> S::Vector {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { S::load(p) } else { S::load_first(p, n) } }
}

/// Writes the first `n <= LANES` elements, by a plain store if that is all of them.
///
/// # Safety
/// They are valid for writing.
#[inline(always)]
unsafe fn store_up_to<S: Simd>(p: *mut S::Elem, x: S::Vector, n: usize) {
    // SAFETY: as the caller vouches.
    unsafe {
        if n == S::LANES {
            S::store(p, x);
        } else {
            S::store_first(p, x, n);
        }
    }
}

/// Which planes of a tile's voxels a frequency of D joins, and how.
struct DepthRead<T> {
    first: usize,
    /// `second` and its sign, if there are two.
    second: Option<(usize, T)>,
}

/// Tiles at one frequency of D lie as `[vector of channels][tile][frequency of H and W][lane]`: what is transformed
/// together lies together.
const fn tile_len(lanes: usize) -> usize {
    // One vector more than there are frequencies: at a distance of a power of two, all tiles would fall into the same few
    // sets of the first-level cache.
    (PLANE + 1) * lanes
}

/// Transforms every tile of a block: one or two planes of `N` x `N` voxels, joined along D, become 4 x 4 frequencies by
/// `A` along H and W. Tiles begin `step` voxels apart.
///
/// # Safety
/// The panel holds the voxels that the block's tiles read, for `num_vectors` vectors of channels, and `out` has room for
/// as many times the block's tiles.
#[inline(always)]
unsafe fn transform_tiles<S: Simd, A: AxisTransform<N>, const N: usize>(
    panel: &Panel<S::Elem>,
    out: *mut S::Elem,
    num_vectors: usize,
    block: [usize; 3],
    step: [usize; 3],
    depth: &DepthRead<S::Elem>,
) {
    let [_, panel_h, panel_w] = panel.size;
    let row = panel_w * S::LANES;
    let zero = S::splat(S::Elem::ZERO);
    let sign = S::splat(depth.second.map_or(S::Elem::ZERO, |s| s.1));
    let mut out = out;
    for v in 0..num_vectors {
        for d in 0..block[0] {
            for h in 0..block[1] {
                for w in 0..block[2] {
                    let at = |plane: usize| {
                        ((v * panel.size[0] + d * step[0] + plane) * panel_h + h * step[1]) * row
                            + w * step[2] * S::LANES
                    };
                    let mut x = [[zero; N]; N];
                    // SAFETY: voxels and the place of this tile, as the caller vouches.
                    unsafe {
                        let first = panel.data.add(at(depth.first));
                        for i in 0..N {
                            for j in 0..N {
                                x[i][j] = S::load(first.add(i * row + j * S::LANES));
                            }
                        }
                        if let Some((second, _)) = depth.second {
                            let second = panel.data.add(at(second));
                            for i in 0..N {
                                for j in 0..N {
                                    let other = S::load(second.add(i * row + j * S::LANES));
                                    x[i][j] = S::mul_add(other, sign, x[i][j]);
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
                        for i in 0..4 {
                            let line = A::apply::<S>(columns[i]);
                            for j in 0..4 {
                                S::store(out.add((i * 4 + j) * S::LANES), line[j]);
                            }
                        }
                        out = out.add(tile_len(S::LANES));
                    }
                }
            }
        }
    }
}
