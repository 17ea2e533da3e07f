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

use super::{Amx, Channels, DEPTH, Line, Product, ROWS, Segment, channels, cheapest_block, round};
use crate::conv3d::grad_weight::{GradWeight, Partials};
use crate::conv3d::tile::{Rows, balanced, inside, overlap, row_blocks};
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
const LEAST_TASKS: usize = 16;
/// Steps of a piece: two tiles of each operand take 4 KiB per step.
const PIECE: usize = 8;

/// Whether `job` is one that this module can do, and worth the unit.
pub(in crate::conv3d) fn applies(job: &GradWeight<f32>) -> bool {
    job.geometry.stride == [1; 3] && job.in_channels() >= 16 && job.grad_output.channels >= 16
}

/// 16 sums that lie in one line of the cache.
#[repr(C, align(64))]
struct Sums([f32; ROWS]);

/// As [`GradWeight::run`]; `job` [`applies`].
pub(in crate::conv3d) fn run(amx: Amx, job: &GradWeight<f32>) -> Vec<f32> {
    let [kd, kh, kw] = job.geometry.kernel;
    let (ci, co) = (job.in_channels(), job.grad_output.channels);
    let [od, oh, _] = job.output;
    let partials = Partials {
        taps: kd * kh * kw,
        rows: co,
        row_pitch: co.next_multiple_of(ROWS),
        columns: ci,
        column_pitch: ci.next_multiple_of(ROWS),
        rows_are_outputs: true,
    };
    let blocks = row_blocks(job.batch, [od, oh], block_rows(job));
    let groups = (PARTIAL_BYTES / (partials.len() * size_of::<f32>())).clamp(1, LEAST_TASKS).min(blocks.len());
    let row_pairs = co.div_ceil(2 * ROWS);
    let splits = LEAST_TASKS.div_ceil(groups).min(row_pairs);
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
            tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (group, blocks_of, rows)| {
                let sums = out.ptr().wrapping_add(group * partials.len());
                for (i, block) in blocks[blocks_of].iter().enumerate() {
                    // `amx` says that the processor has all that this is compiled for.
                    add_block(amx, job, block, &rows, &partials, sums, i > 0, scratch);
                }
            });
        })
    };
    // SAFETY: whole lines of sums, as many as were made.
    partials.join(unsafe { std::slice::from_raw_parts(sums.as_ptr().cast::<f32>(), num_sums) })
}

/// Output rows per block along D and H.
fn block_rows(job: &GradWeight<f32>) -> [usize; 2] {
    let [kd, kh, kw] = job.geometry.kernel;
    let [od, oh, ow] = job.output;
    let (ci, co) = (job.in_channels(), job.grad_output.channels);
    let width = ow + kw - 1;
    let bytes = |[nd, nh]: [usize; 2]| 2 * width * (2 * (nd + kd - 1) * (nh + kh - 1) * ci + nd * nh * co);
    // Blocks overlap, and every block's sums are read and written.
    let cost = |[nd, nh]: [usize; 2]| od.div_ceil(nd) * oh.div_ceil(nh) * ((nd + kd - 1) * (nh + kh - 1) + 16);
    cheapest_block([od, oh], |block| bytes(block) <= BLOCK_BYTES, cost)
}

#[derive(Default)]
struct Scratch {
    /// `[tile of input channels][parity][D][pair of positions]`, 16 channels each
    input: Vec<Line>,
    /// `[output channel][D][step]`, 32 positions each
    grad: Vec<Line>,
    /// Of one plane of the gradient.
    pairs: Vec<Line>,
}

/// # Safety
/// The rows `rows` of `sums` are the caller's alone; with `accumulate` they have been written.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_block(
    amx: Amx,
    job: &GradWeight<f32>,
    block: &Rows,
    rows: &Range<usize>,
    partials: &Partials,
    sums: *mut f32,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    const LINE: usize = size_of::<Line>();
    let [kd, kh, kw] = job.geometry.kernel;
    let (nd, nh) = (block.d.len(), block.h.len());
    let size = [nd + kd - 1, nh + kh - 1, job.output[2] + kw - 1];
    let steps = (nh * size[2]).div_ceil(DEPTH);
    // Lines of one parity of a plane: a whole number of pairs, so that taps along D keep the parity, and room for the pair
    // that begins at the last position, which the next plane's first line must not overwrite.
    let plane = size[1] * size[2] / 2 + 1;
    let shift = |th: usize, tw: usize| th * size[2] + tw;
    // Of one parity: as far as the last step of the last tap reads.
    let pitch = (size[0] - 1) * plane + (plane + 1).max(shift(kh, 0) / 2 + 1 + steps * ROWS);
    pack_input(job, block, size, plane, pitch, &mut scratch.input);
    let grad_pitch = pack_grad(job, block, rows, size[2], steps, scratch);

    let mut taps = Vec::with_capacity(partials.taps);
    for td in 0..kd {
        for parity in [0, 1] {
            for t in 0..kh * kw {
                let position = shift(t / kw, t % kw);
                if position % 2 == parity {
                    taps.push((td * kh * kw + t, line_of(position, pitch) + td * plane));
                }
            }
        }
    }
    // Pieces of positions: of a plane, or several planes.
    let mut segments = Vec::new();
    let mut pieces = Vec::new();
    if steps >= PIECE {
        for d in 0..nd {
            for piece in balanced(steps, PIECE) {
                segments
                    .push(Segment { a: (d * steps + piece.start) * LINE, b: (d * plane + piece.start * ROWS) * LINE });
                pieces.push((segments.len() - 1..segments.len(), piece.len()));
            }
        }
    } else {
        segments.extend((0..nd).map(|d| Segment { a: d * steps * LINE, b: d * plane * LINE }));
        pieces.extend(balanced(nd, PIECE / steps).map(|planes| (planes, steps)));
    }

    let (row_tiles, column_tiles) = (rows.len() / ROWS, partials.column_pitch / ROWS);
    let unit = amx.start();
    for row in (0..row_tiles).step_by(2) {
        for column in (0..column_tiles).step_by(2) {
            for (i, (segments_of, steps)) in pieces.iter().enumerate() {
                for &(tap, line) in &taps {
                    let at =
                        (tap * partials.row_pitch + rows.start + row * ROWS) * partials.column_pitch + column * ROWS;
                    // SAFETY: the gradient has whole steps in every plane; the input has lines up to the last step of the
                    // last tap; the sums' rows and columns are filled up to whole tiles.
                    unsafe {
                        unit.multiply(
                            (row_tiles - row).min(2),
                            (column_tiles - column).min(2),
                            &Product {
                                a: scratch.grad[row * ROWS * grad_pitch..].as_ptr().cast(),
                                a_row: grad_pitch * LINE,
                                a_tile: ROWS * grad_pitch * LINE,
                                b: scratch.input[column * 2 * pitch + line..].as_ptr(),
                                b_tile: 2 * pitch * LINE,
                                segments: &segments[segments_of.clone()],
                                steps: *steps,
                                sums: sums.add(at),
                                sum_bytes: partials.column_pitch * size_of::<f32>(),
                                accumulate: accumulate || i > 0,
                            },
                        );
                    }
                }
            }
        }
    }
}

/// Where [`pack_pairs`] puts the pair that begins at a position.
fn line_of(position: usize, pitch: usize) -> usize {
    (position + 1) % 2 * pitch + position.div_ceil(2)
}

/// Copies a block's input in pairs of positions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_input(job: &GradWeight<f32>, block: &Rows, size: [usize; 3], plane: usize, pitch: usize, out: &mut Vec<Line>) {
    out.resize(job.in_channels().div_ceil(ROWS) * 2 * pitch, Line::ZERO);
    let [pd, ph, pw] = job.geometry.padding.map(|p| p as isize);
    for c in channels(job.sources, block.batch_idx) {
        let tile = c.lanes.first / ROWS;
        for d in 0..size[0] {
            let first = [(block.d.start + d) as isize - pd, block.h.start as isize - ph, -pw];
            let out = &mut out[tile * 2 * pitch + d * plane..];
            let rows = [size[1], size[2]];
            pack_pairs(&c, block.batch_idx, job.input, first, rows, 2 * plane, pitch, out);
        }
    }
}

/// Copies a block's gradient channel by channel, rows `width` positions apart, zero behind their end; returns the lines from
/// channel to channel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_grad(
    job: &GradWeight<f32>,
    block: &Rows,
    rows: &Range<usize>,
    width: usize,
    steps: usize,
    scratch: &mut Scratch,
) -> usize {
    let (nd, nh) = (block.d.len(), block.h.len());
    // An odd number of lines keeps channels apart in the cache.
    let pitch = (nd * steps) | 1;
    let pairs_pitch = steps * ROWS + 1;
    scratch.grad.resize(rows.len() * pitch, Line::ZERO);
    scratch.pairs.resize(2 * pairs_pitch, Line::ZERO);
    let sources = [job.grad_output];
    for c in channels(&sources, block.batch_idx) {
        if !rows.contains(&c.lanes.first) {
            continue;
        }
        let out = &mut scratch.grad[(c.lanes.first - rows.start) * pitch..];
        for d in 0..nd {
            let first = [(block.d.start + d) as isize, block.h.start as isize, 0];
            let size = [nh, width];
            let (end, pairs) = (steps * DEPTH, &mut scratch.pairs);
            pack_pairs(&c, block.batch_idx, job.output, first, size, end, pairs_pitch, pairs);
            let even = &pairs[line_of(0, pairs_pitch)..];
            for (step, lines) in even.chunks_exact(ROWS).take(steps).enumerate() {
                let mut x = [_mm512_setzero_si512(); ROWS];
                for (x, line) in x.iter_mut().zip(lines) {
                    // SAFETY: a line is 64 bytes long, and aligned.
                    *x = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
                }
                for (lane, x) in transpose(&x).into_iter().enumerate() {
                    let line = &mut out[lane * pitch + d * steps + step];
                    // SAFETY: as above.
                    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), x) }
                }
            }
        }
    }
    pitch
}

/// Copies some channels of rows of `size` (H, W) voxels that begin at `first` (D, H, W; it may reach outside), rounded, in
/// pairs of neighbouring positions; positions outside, and those behind the rows up to `end`, are zero. Pairs that begin at
/// one parity lie one after the other, those of the other `pitch` lines further: see [`line_of`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_pairs(
    c: &Channels,
    batch_idx: usize,
    input: [usize; 3],
    first: [isize; 3],
    size: [usize; 2],
    end: usize,
    pitch: usize,
    out: &mut [Line],
) {
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
    let (left, skip, count) = overlap(first[2], size[1], input[2]);
    for h in 0..size[0] {
        let ih = first[1] + h as isize;
        let row_end = position + size[1];
        if inside(first[0], input[0]) && inside(ih, input[1]) {
            let row = (batch_idx * input[0] + first[0] as usize) * input[1] + ih as usize;
            for _ in 0..left {
                put!(zero);
            }
            for voxel in row * input[2] + skip..row * input[2] + skip + count {
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

/// Rows and columns of a 16 x 16 matrix exchanged.
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
