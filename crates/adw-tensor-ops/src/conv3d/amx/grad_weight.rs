//! Weight gradient in bf16, for stride 1.
//!
//! Per tap, `[input channels x positions] x [positions x output channels]`, positions running over the planes of a block with
//! the width of the padded input, so that a tap is a shift; the gradient is zero where the padding is. The input is
//! therefore copied channel by channel, the gradient in pairs of positions. Blocks are split into a number of groups that
//! depends on the shape alone, each with its own partial sum.

use super::{Amx, DEPTH, Product, ROWS, Rows, TILE, channels, round};
use crate::conv3d::grad_weight::{GradWeight, Partials};
use crate::conv3d::tile::{balanced, inside, overlap};
use crate::raw_output::{SharedOut, filled};
use rayon::prelude::*;
use std::arch::x86_64::{
    __m256i, __m512i, _mm256_storeu_si256, _mm512_cvtepu16_epi32, _mm512_or_si512,
    _mm512_slli_epi32, _mm512_storeu_si512,
};
use std::ops::Range;

/// Bytes of both copies of a block.
const BLOCK_BYTES: usize = 640 << 10;
/// Bytes that all partial sums together may take.
const PARTIAL_BYTES: usize = 12 << 20;
/// Tasks that keep many threads busy.
const LEAST_TASKS: usize = 16;

/// Whether `job` is one that this module can do, and worth the unit.
pub(in crate::conv3d) fn applies(job: &GradWeight<f32>) -> bool {
    job.geometry.stride == [1; 3] && job.in_channels() >= 16 && job.grad_output.channels >= 16
}

/// As [`GradWeight::run`]; `job` [`applies`].
pub(in crate::conv3d) fn run(amx: Amx, job: &GradWeight<f32>) -> Vec<f32> {
    let [kd, kh, kw] = job.geometry.kernel;
    let (ci, co) = (job.in_channels(), job.grad_output.channels);
    let [od, oh, _] = job.output;
    let partials = Partials {
        taps: kd * kh * kw,
        ci,
        ci_pitch: ci.next_multiple_of(ROWS),
        co,
        co_pitch: co.next_multiple_of(ROWS),
    };
    let [nd, nh] = block_rows(job);
    let mut blocks = Vec::new();
    for batch_idx in 0..job.batch {
        for d in balanced(od, nd) {
            for h in balanced(oh, nh) {
                blocks.push(Block {
                    batch_idx,
                    d: d.clone(),
                    h,
                });
            }
        }
    }
    let groups = (PARTIAL_BYTES / (partials.len() * size_of::<f32>()))
        .clamp(1, LEAST_TASKS)
        .min(blocks.len());
    let row_pairs = ci.div_ceil(2 * ROWS);
    let splits = LEAST_TASKS.div_ceil(groups).min(row_pairs);
    let mut tasks = Vec::new();
    for (group, blocks_of) in balanced(blocks.len(), blocks.len().div_ceil(groups)).enumerate() {
        for rows in balanced(row_pairs, row_pairs.div_ceil(splits)) {
            tasks.push((group, blocks_of.clone(), rows));
        }
    }
    let num_groups = tasks.last().map_or(0, |t| t.0 + 1);
    // SAFETY: the tasks cover every group and every row of the partial sums, and the first block of each writes them.
    let sums = unsafe {
        filled(num_groups * partials.len(), |out: SharedOut<f32>| {
            tasks.into_par_iter().for_each_init(
                Scratch::default,
                |scratch, (group, blocks_of, row_pairs)| {
                    let sums = out.ptr().wrapping_add(group * partials.len());
                    for (i, block) in blocks[blocks_of].iter().enumerate() {
                        // `amx` says that the processor has all that this is compiled for.
                        add_block(amx, job, block, &row_pairs, &partials, sums, i > 0, scratch);
                    }
                },
            );
        })
    };
    partials.join(&sums)
}

/// Output rows per block along D and H.
fn block_rows(job: &GradWeight<f32>) -> [usize; 2] {
    let [kd, kh, kw] = job.geometry.kernel;
    let [od, oh, ow] = job.output;
    let (ci, co) = (job.in_channels(), job.grad_output.channels);
    let width = ow + kw - 1;
    let bytes =
        |[nd, nh]: [usize; 2]| 2 * width * ((nd + kd - 1) * (nh + kh - 1) * ci + nd * nh * co);
    // Blocks overlap, and every block's sums are read and written.
    let cost = |[nd, nh]: [usize; 2]| {
        od.div_ceil(nd) * oh.div_ceil(nh) * ((nd + kd - 1) * (nh + kh - 1) + 16)
    };
    let mut best = [1, 1];
    for nd in 1..=od {
        for nh in 1..=oh {
            if bytes([nd, nh]) <= BLOCK_BYTES && cost([nd, nh]) < cost(best) {
                best = [nd, nh];
            }
        }
    }
    best
}

struct Block {
    batch_idx: usize,
    d: Range<usize>,
    h: Range<usize>,
}

#[derive(Default)]
struct Scratch {
    /// `[channel][D][H][W]`
    input: Vec<u16>,
    /// `[tile of channels][D][step]` of tiles `[pair of positions][channel][2]`
    grad: Vec<u16>,
}

/// # Safety
/// The rows `row_pairs` of `sums` are the caller's alone; with `accumulate` they have been written.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_block(
    amx: Amx,
    job: &GradWeight<f32>,
    block: &Block,
    row_pairs: &Range<usize>,
    partials: &Partials,
    sums: *mut f32,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    let [kd, kh, kw] = job.geometry.kernel;
    let ow = job.output[2];
    let (nd, nh) = (block.d.len(), block.h.len());
    let size = [nd + kd - 1, nh + kh - 1, ow + kw - 1];
    let steps = (nh * size[2]).div_ceil(DEPTH);
    let channel_range =
        row_pairs.start * 2 * ROWS..(row_pairs.end * 2 * ROWS).min(partials.ci_pitch);
    let pitch = pack_input(job, block, size, &channel_range, steps, &mut scratch.input);
    pack_grad(job, block, size[2], steps, &mut scratch.grad);
    let column_tiles = partials.co_pitch / ROWS;
    let unit = amx.start();
    let mut rows = Vec::with_capacity(nd);
    for ci in channel_range.clone().step_by(2 * ROWS) {
        let row_tiles = ((channel_range.end - ci) / ROWS).min(2);
        for tile in (0..column_tiles).step_by(2) {
            let tiles = (column_tiles - tile).min(2);
            let column = |tile: usize| scratch.grad[tile * nd * steps * TILE..].as_ptr();
            for tap in 0..partials.taps {
                let (td, th, tw) = (tap / kw / kh, tap / kw % kh, tap % kw);
                rows.clear();
                for d in 0..nd {
                    let position = ((d + td) * size[1] + th) * size[2] + tw;
                    let first =
                        scratch.input[(ci - channel_range.start) * pitch + position..].as_ptr();
                    rows.push(Rows {
                        first,
                        second: first.wrapping_add(ROWS * pitch),
                    });
                }
                // SAFETY: channels have room behind their positions for the last step; the gradient has a tile per plane and
                // step; the sums' channels are filled up to whole tiles.
                unsafe {
                    let at = (tap * partials.ci_pitch + ci) * partials.co_pitch + tile * ROWS;
                    unit.multiply(
                        row_tiles,
                        tiles,
                        &Product {
                            rows: &rows,
                            row_bytes: pitch * size_of::<u16>(),
                            columns: [column(tile), column(tile + tiles - 1)],
                            steps,
                            sums: sums.add(at),
                            sum_bytes: partials.co_pitch * size_of::<f32>(),
                            accumulate,
                        },
                    );
                }
            }
        }
    }
}

/// Copies a block's input channel by channel; returns the elements from channel to channel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_input(
    job: &GradWeight<f32>,
    block: &Block,
    size: [usize; 3],
    channel_range: &Range<usize>,
    steps: usize,
    out: &mut Vec<u16>,
) -> usize {
    let positions = size.iter().product::<usize>();
    // The last step of the last tap reads up to here; an odd number of cache lines keeps channels apart in the cache.
    let reach = (positions + steps * DEPTH).div_ceil(32) | 1;
    let pitch = reach * 32;
    out.resize(channel_range.len() * pitch, 0);
    let padding = job.geometry.padding;
    let first = [
        block.d.start as isize - padding[0] as isize,
        block.h.start as isize - padding[1] as isize,
        -(padding[2] as isize),
    ];
    let (before, _, count) = overlap(first[2], size[2], job.input[2]);
    let all = channels(job.sources, block.batch_idx);
    let of_range = |at: usize| at >= channel_range.start && at < channel_range.end;
    for d in 0..size[0] {
        for h in 0..size[1] {
            let position = (d * size[1] + h) * size[2];
            let (id, ih) = (first[0] + d as isize, first[1] + h as isize);
            let is_inside = inside(id, job.input[0]) && inside(ih, job.input[1]);
            for c in channel_range.clone() {
                let row = &mut out[(c - channel_range.start) * pitch + position..][..size[2]];
                if is_inside {
                    row[..before].fill(0);
                    row[before + count..].fill(0);
                } else {
                    row.fill(0);
                }
            }
            if !is_inside {
                continue;
            }
            let voxel = ((block.batch_idx * job.input[0] + id as usize) * job.input[1]
                + ih as usize)
                * job.input[2];
            for c in &all {
                let mut tile = [[0u16; 16]; 16];
                for start in (0..count).step_by(16) {
                    let n = (count - start).min(16);
                    for (i, line) in tile.iter_mut().enumerate().take(n) {
                        let x: __m256i = round(c.read(voxel + start + i));
                        // SAFETY: a line is 32 bytes long.
                        unsafe { _mm256_storeu_si256(line.as_mut_ptr().cast(), x) }
                    }
                    for lane in 0..c.len {
                        if !of_range(c.at + lane) {
                            continue;
                        }
                        let at =
                            (c.at + lane - channel_range.start) * pitch + position + before + start;
                        for (i, x) in out[at..at + n].iter_mut().enumerate() {
                            *x = tile[i][lane];
                        }
                    }
                }
            }
        }
    }
    pitch
}

/// Copies a block's gradient in pairs of positions, rows `width` positions apart, zero behind their end.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_grad(job: &GradWeight<f32>, block: &Block, width: usize, steps: usize, out: &mut Vec<u16>) {
    let ow = job.output[2];
    let sources = [job.grad_output];
    let all = channels(&sources, block.batch_idx);
    let (nd, nh) = (block.d.len(), block.h.len());
    out.resize(all.len() * nd * steps * TILE, 0);
    for (tile, c) in all.iter().enumerate() {
        for d in 0..nd {
            let plane = &mut out[(tile * nd + d) * steps * TILE..][..steps * TILE];
            let read = |position: usize| -> __m512i {
                let (h, w) = (position / width, position % width);
                if h < nh && w < ow {
                    let voxel = ((block.batch_idx * job.output[0] + block.d.start + d)
                        * job.output[1]
                        + block.h.start
                        + h)
                        * ow
                        + w;
                    _mm512_cvtepu16_epi32(round(c.read(voxel)))
                } else {
                    _mm512_cvtepu16_epi32(round(zero()))
                }
            };
            for (pair, line) in plane.chunks_exact_mut(DEPTH).enumerate() {
                let (even, odd) = (read(2 * pair), read(2 * pair + 1));
                let both = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                // SAFETY: a line is 64 bytes long.
                unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), both) }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn zero() -> std::arch::x86_64::__m512 {
    std::arch::x86_64::_mm512_setzero_ps()
}
