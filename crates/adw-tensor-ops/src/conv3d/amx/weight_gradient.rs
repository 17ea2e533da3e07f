//! Weight gradient in bf16, for stride 1.
//!
//! Per tap, `[output channels x positions] x [positions x input channels]`, positions running over the planes of a block with
//! the width of the padded input, so that a tap is a shift of the input; the gradient is zero where the padding is.
//!
//! The gradient is copied channel by channel. The input is copied in pairs of neighbouring positions, once in pairs that
//! begin at even and once in such that begin at odd ones: a shift by any number of positions then begins with a whole pair,
//! and every row of every tile is a line of the cache. Positions are taken in pieces of which both operands stay in the
//! first-level cache for the taps of a plane. Blocks are split into a number of groups that depends on the shape alone, each
//! with its own partial sum.

use super::unit::{Amx, ByteSegment, DEPTH, Line, Product, ROWS};
use super::vectors::{Channels, channels, round};
use crate::conv3d::bf16::suits_weight_gradient;
use crate::conv3d::job::{Axis, WeightGradient};
use crate::conv3d::packing::{Overlap, VoxelBox, is_inside, overlap};
use crate::conv3d::partial_sums::PartialSums;
use crate::conv3d::partition::{RowBlock, balanced, cheapest_row_block, row_blocks};
use crate::raw_output::{SharedOut, filled};
use rayon::prelude::*;
use std::arch::x86_64::{
    __m512i, _mm512_cvtepu16_epi32, _mm512_load_si512, _mm512_mask_storeu_epi32, _mm512_maskz_expand_epi32,
    _mm512_or_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_store_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

/// Bytes of both copies of a block.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes that all partial sums together may take.
const PARTIAL_BYTES: usize = 12 << 20;
/// Tasks that keep many threads busy.
const MIN_TASKS: usize = 16;
/// Steps of a piece: two tiles of each operand take 4 KiB per step.
const PIECE: usize = 8;

/// 16 sums that lie in one line of the cache.
#[repr(C, align(64))]
struct Sums([f32; ROWS]);

/// Computes the gradient `[co][ci][kd][kh][kw]`. The job [suits](suits_weight_gradient) the unit.
pub(in crate::conv3d) fn run(amx: Amx, job: &WeightGradient<f32>) -> Vec<f32> {
    debug_assert!(suits_weight_gradient(job), "the chooser has checked that");
    let [kd, kh, kw] = job.kernel();
    let (ci, co) = (job.in_channels(), job.out_channels());
    let [od, oh, _] = job.output_size();
    let partials = PartialSums {
        taps: kd * kh * kw,
        rows: co,
        row_pitch: co.next_multiple_of(ROWS),
        columns: ci,
        column_pitch: ci.next_multiple_of(ROWS),
        rows_are_outputs: true,
    };
    let blocks = row_blocks(job.batch, [od, oh], block_rows(job));
    let groups = (PARTIAL_BYTES / (partials.len() * size_of::<f32>())).clamp(1, MIN_TASKS).min(blocks.len());
    let row_pairs = co.div_ceil(2 * ROWS);
    let splits = MIN_TASKS.div_ceil(groups).min(row_pairs);
    let mut tasks = Vec::new();
    for (group, blocks_of) in balanced(blocks.len(), blocks.len().div_ceil(groups)).enumerate() {
        for pairs in balanced(row_pairs, row_pairs.div_ceil(splits)) {
            let rows = pairs.start * 2 * ROWS..(pairs.end * 2 * ROWS).min(partials.row_pitch);
            tasks.push((group, blocks_of.clone(), rows));
        }
    }
    let num_groups = tasks.last().map_or(0, |t| t.0 + 1);
    let num_sums = num_groups * partials.len();
    // SAFETY: the tasks cover every group and every row of the partial sums, and the first block of each writes them.
    let sums = unsafe {
        filled(num_sums / ROWS, |out: SharedOut<Sums>| {
            let out: SharedOut<f32> = out.cast();
            tasks.into_par_iter().for_each_init(Buffers::default, |buffers, (group, blocks_of, rows)| {
                let sums = out.ptr().wrapping_add(group * partials.len());
                for (i, block) in blocks[blocks_of].iter().enumerate() {
                    // `amx` is the proof that the processor has all instructions that this is compiled for.
                    add_block(amx, job, block, &rows, &partials, sums, i > 0, buffers);
                }
            });
        })
    };
    // SAFETY: whole lines of sums, as many as were made.
    partials.join(unsafe { std::slice::from_raw_parts(sums.as_ptr().cast::<f32>(), num_sums) })
}

/// Output rows per block along D and H.
fn block_rows(job: &WeightGradient<f32>) -> [usize; 2] {
    let [kd, kh, kw] = job.kernel();
    let [od, oh, ow] = job.output_size();
    let (ci, co) = (job.in_channels(), job.out_channels());
    let width = ow + kw - 1;
    let bytes = |[nd, nh]: [usize; 2]| 2 * width * (2 * (nd + kd - 1) * (nh + kh - 1) * ci + nd * nh * co);
    // Blocks overlap, and every block's sums are read and written.
    let cost = |[nd, nh]: [usize; 2]| od.div_ceil(nd) * oh.div_ceil(nh) * ((nd + kd - 1) * (nh + kh - 1) + 16);
    cheapest_row_block([od, oh], |block| bytes(block) <= BLOCK_BYTES, cost)
}

/// Memory of a thread, used by one task after the other.
#[derive(Default)]
struct Buffers {
    /// `[tile of input channels][parity][D][pair of positions]`, 16 channels each
    input: Vec<Line>,
    /// `[output channel][D][step]`, 32 positions each
    grad: Vec<Line>,
    /// One plane of the gradient, in pairs of positions.
    pairs: Vec<Line>,
}

/// Copies of a block: the planes of the input, and the positions that the unit multiplies.
struct BlockShape {
    /// Planes, rows and positions of a row that the block reads.
    size: [usize; 3],
    /// Steps of 32 positions in a plane of the gradient.
    steps: usize,
    /// Lines of one parity of a plane: a whole number of pairs, so that taps along D keep the parity, and room for the pair
    /// that begins at the last position, which the next plane's first line must not overwrite.
    plane: usize,
    /// Lines of one parity: as far as the last step of the last tap reads.
    pitch: usize,
}

impl BlockShape {
    fn new(job: &WeightGradient<f32>, block: &RowBlock) -> Self {
        let [kd, kh, kw] = job.kernel();
        let (nd, nh) = (block.d.len(), block.h.len());
        let size = [nd + kd - 1, nh + kh - 1, job.output_size()[2] + kw - 1];
        let steps = (nh * size[2]).div_ceil(DEPTH);
        let plane = size[1] * size[2] / 2 + 1;
        let pitch = (size[0] - 1) * plane + (plane + 1).max(kh * size[2] / 2 + 1 + steps * ROWS);
        Self { size, steps, plane, pitch }
    }

    /// Every tap and its first line of the input, those of one parity together.
    fn taps(&self, [kd, kh, kw]: [usize; 3]) -> Vec<(usize, usize)> {
        let mut taps = Vec::with_capacity(kd * kh * kw);
        for td in 0..kd {
            for parity in [0, 1] {
                for t in 0..kh * kw {
                    let position = t / kw * self.size[2] + t % kw;
                    if position % 2 == parity {
                        taps.push((td * kh * kw + t, line_of(position, self.pitch) + td * self.plane));
                    }
                }
            }
        }
        taps
    }

    /// Segments of the sum over `planes` planes of the gradient, and pieces of them: some segments and their steps. A piece
    /// is a part of a plane, or several planes.
    fn pieces(&self, planes: usize) -> (Vec<ByteSegment>, Vec<(Range<usize>, usize)>) {
        const LINE: usize = size_of::<Line>();
        let Self { steps, plane, .. } = *self;
        let segment =
            |d: usize, step: usize| ByteSegment { a: (d * steps + step) * LINE, b: (d * plane + step * ROWS) * LINE };
        if steps < PIECE {
            let pieces = balanced(planes, PIECE / steps).map(|planes| (planes, steps)).collect();
            return ((0..planes).map(|d| segment(d, 0)).collect(), pieces);
        }
        let (mut segments, mut pieces) = (Vec::new(), Vec::new());
        for d in 0..planes {
            for piece in balanced(steps, PIECE) {
                pieces.push((segments.len()..segments.len() + 1, piece.len()));
                segments.push(segment(d, piece.start));
            }
        }
        (segments, pieces)
    }
}

/// Computes the sums of a block for the output channels `rows`, and adds them to those of earlier blocks if `accumulate`.
///
/// # Safety
/// `sums` is valid for the rows `rows` of a partial sum, and nothing else accesses them; with `accumulate` they have been
/// written.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_block(
    amx: Amx,
    job: &WeightGradient<f32>,
    block: &RowBlock,
    rows: &Range<usize>,
    partials: &PartialSums,
    sums: *mut f32,
    accumulate: bool,
    buffers: &mut Buffers,
) {
    const LINE: usize = size_of::<Line>();
    let shape = BlockShape::new(job, block);
    let pitch = shape.pitch;
    pack_input(job, block, &shape, &mut buffers.input);
    let grad_pitch = pack_grad(job, block, rows, &shape, buffers);
    let taps = shape.taps(job.kernel());
    let (segments, pieces) = shape.pieces(block.d.len());
    let (row_tiles, column_tiles) = (rows.len() / ROWS, partials.column_pitch / ROWS);
    let unit = amx.configure();
    for row in (0..row_tiles).step_by(2) {
        for column in (0..column_tiles).step_by(2) {
            for (i, (segments_of, steps)) in pieces.iter().enumerate() {
                for &(tap, line) in &taps {
                    let at =
                        (tap * partials.row_pitch + rows.start + row * ROWS) * partials.column_pitch + column * ROWS;
                    // SAFETY: the gradient has whole steps in every plane; the input has lines up to the last step of the
                    // last tap; the sums' rows and columns are filled up to whole tiles.
                    unsafe {
                        let product = Product {
                            a: buffers.grad[row * ROWS * grad_pitch..].as_ptr().cast(),
                            a_row: grad_pitch * LINE,
                            a_tile: ROWS * grad_pitch * LINE,
                            b: buffers.input[column * 2 * pitch + line..].as_ptr(),
                            b_tile: 2 * pitch * LINE,
                            segments: &segments[segments_of.clone()],
                            steps: *steps,
                            sums: sums.add(at),
                            sum_bytes: partials.column_pitch * size_of::<f32>(),
                            accumulate: accumulate || i > 0,
                        };
                        unit.multiply((row_tiles - row).min(2), (column_tiles - column).min(2), &product);
                    }
                }
            }
        }
    }
}

/// Line of the pair that begins at a position, see [`pack_pairs`].
fn line_of(position: usize, pitch: usize) -> usize {
    (position + 1) % 2 * pitch + position.div_ceil(2)
}

/// Copies a block's input in pairs of positions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_input(job: &WeightGradient<f32>, block: &RowBlock, shape: &BlockShape, out: &mut Vec<Line>) {
    let BlockShape { size, plane, pitch, .. } = *shape;
    out.resize(job.in_channels().div_ceil(ROWS) * 2 * pitch, Line::ZERO);
    let [first_d, first_h, first_w] = job.axes.each_ref().map(Axis::first_offset);
    for c in channels(job.sources, block.batch_idx) {
        let tile = c.lanes.first / ROWS;
        for d in 0..size[0] {
            let voxels = VoxelBox {
                batch_idx: block.batch_idx,
                first: [(block.d.start + d) as isize + first_d, block.h.start as isize + first_h, first_w],
                size: [1, size[1], size[2]],
            };
            pack_pairs(&c, job.input_size(), voxels, 2 * plane, pitch, &mut out[tile * 2 * pitch + d * plane..]);
        }
    }
}

/// Copies a block's gradient channel by channel, rows as far apart as in the copy of the input, zero behind their end;
/// returns the lines from channel to channel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_grad(
    job: &WeightGradient<f32>,
    block: &RowBlock,
    rows: &Range<usize>,
    shape: &BlockShape,
    buffers: &mut Buffers,
) -> usize {
    let (nd, nh, steps) = (block.d.len(), block.h.len(), shape.steps);
    // An odd number of lines keeps channels apart in the cache.
    let pitch = (nd * steps) | 1;
    let pairs_pitch = steps * ROWS + 1;
    buffers.grad.resize(rows.len() * pitch, Line::ZERO);
    buffers.pairs.resize(2 * pairs_pitch, Line::ZERO);
    for c in channels(std::slice::from_ref(&job.grad_output), block.batch_idx) {
        if !rows.contains(&c.lanes.first) {
            continue;
        }
        let out = &mut buffers.grad[(c.lanes.first - rows.start) * pitch..];
        for d in 0..nd {
            let voxels = VoxelBox {
                batch_idx: block.batch_idx,
                first: [(block.d.start + d) as isize, block.h.start as isize, 0],
                size: [1, nh, shape.size[2]],
            };
            let pairs = &mut buffers.pairs;
            pack_pairs(&c, job.output_size(), voxels, steps * DEPTH, pairs_pitch, pairs);
            let even = &pairs[line_of(0, pairs_pitch)..];
            for (step, lines) in even.chunks_exact(ROWS).take(steps).enumerate() {
                let mut x = [_mm512_setzero_si512(); ROWS];
                for (x, line) in x.iter_mut().zip(lines) {
                    // SAFETY: a line is 64 bytes long, and aligned.
                    *x = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
                }
                for (lane, x) in transpose(&x).into_iter().enumerate() {
                    let line = &mut out[lane * pitch + d * steps + step];
                    // SAFETY: a line is 64 bytes long, and aligned.
                    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), x) }
                }
            }
        }
    }
    pitch
}

/// Copies some channels of one plane of voxels of maps of `input` voxels, rounded, in pairs of neighbouring positions;
/// positions outside the maps, and those behind the plane up to `end`, are zero. Pairs that begin at one parity lie one
/// after the other, those of the other `pitch` lines further: see [`line_of`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_pairs(c: &Channels, input: [usize; 3], voxels: VoxelBox, end: usize, pitch: usize, out: &mut [Line]) {
    let VoxelBox { batch_idx, first, size: [_, height, width] } = voxels;
    let lanes = (((1u32 << c.lanes.len) - 1) << (c.lanes.first % ROWS)) as u16;
    let zero = _mm512_setzero_si512();
    let (mut position, mut before) = (0, zero);
    // Completes the pair that the position before began.
    macro_rules! put {
        ($x:expr) => {
            let x: __m512i = $x;
            let pair = _mm512_or_si512(before, _mm512_slli_epi32::<16>(x));
            let line = &mut out[position % 2 * pitch + position / 2];
            // SAFETY: a line has 16 pairs.
            unsafe { _mm512_mask_storeu_epi32(line.0.as_mut_ptr().cast(), lanes, pair) }
            before = x;
            position += 1;
        };
    }
    let Overlap { before: left, start, count } = overlap(first[2], width, input[2]);
    for h in 0..height {
        let ih = first[1] + h as isize;
        let row_end = position + width;
        if is_inside(first[0], input[0]) && is_inside(ih, input[1]) {
            let row = (batch_idx * input[0] + first[0] as usize) * input[1] + ih as usize;
            for _ in 0..left {
                put!(zero);
            }
            for voxel in row * input[2] + start..row * input[2] + start + count {
                let x = _mm512_cvtepu16_epi32(round(c.read(voxel)));
                put!(_mm512_maskz_expand_epi32(lanes, x));
            }
        }
        while position < row_end {
            put!(zero);
        }
    }
    while position <= end {
        put!(zero);
    }
}

/// Transposes a 16 x 16 matrix.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(x: &[__m512i; 16]) -> [__m512i; 16] {
    let (mut a, mut b, mut y) = (*x, *x, *x);
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    // Then the quarter q of b[4 i + j] holds column 4 q + j of the rows 4 i to 4 i + 3.
    for i in 0..4 {
        for j in 0..2 {
            b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        }
    }
    for j in 0..4 {
        let even = [0, 8].map(|i| _mm512_shuffle_i32x4::<0x88>(b[i + j], b[i + 4 + j]));
        let odd = [0, 8].map(|i| _mm512_shuffle_i32x4::<0xdd>(b[i + j], b[i + 4 + j]));
        y[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        y[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        y[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        y[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    y
}
