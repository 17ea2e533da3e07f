//! Forward pass, input gradient and transposed convolution in bf16.
//!
//! Rows of the left operand are output positions, consecutive in the panel of input voxels: along a row of the image, or,
//! without a stride, over all rows of a plane, those of the padding included and thrown away afterwards. The run over taps
//! along W x input channels is contiguous in the panel; the weight is filled up with zeros to whole steps.

use super::{
    Amx, DEPTH, Line, Product, ROWS, Segment, channels, cheapest_block, factors, load_first, round, store_first,
};
use crate::conv3d::correlate::Correlation;
use crate::conv3d::tile::{Rows, balanced, inside, overlap, row_blocks};
use crate::norm_act::cpu::{BlockMoments, block_moments};
use crate::raw_output::{SharedOut, filled};
use rayon::prelude::*;
use std::arch::x86_64::{
    __m512i, _mm512_cvtepu16_epi32, _mm512_load_si512, _mm512_or_si512, _mm512_slli_epi32, _mm512_store_si512,
};
use std::ops::Range;

/// Bytes of a panel.
const PANEL_BYTES: usize = 384 << 10;

/// Whether `job` is worth the unit: below a vector of channels most of a tile would be empty.
pub(in crate::conv3d) fn applies(job: &Correlation<f32>) -> bool {
    job.k_channels() >= 16 && job.out_channels >= 16 && job.axes.iter().all(|a| !a.taps.is_empty())
}

/// `[tile of output channels][tap d][tap h][step]` of tiles `[pair of k][channel][2]`.
struct Weight {
    data: Vec<Line>,
    steps: usize,
    segments: usize,
}

impl Weight {
    /// The first argument is the proof that the processor has the instructions.
    fn pack(_: Amx, job: &Correlation<f32>) -> Self {
        let [d, h, w] = &job.axes;
        let k = job.k_channels();
        let steps = (w.taps.len() * k).div_ceil(DEPTH);
        let segments = d.taps.len() * h.taps.len();
        let tile_len = segments * steps * ROWS;
        let tiles = job.out_channels.div_ceil(ROWS);
        let offsets = job.tap_offsets();
        // SAFETY: every tile is written whole; there is an `Amx`, so the processor has all that `pack_tile` is compiled for.
        let data = unsafe {
            filled(tiles * tile_len, |out: SharedOut<Line>| {
                (0..tiles).into_par_iter().for_each(|tile| {
                    let lines = out.ptr().add(tile * tile_len);
                    lines.write_bytes(0, tile_len);
                    let lines = std::slice::from_raw_parts_mut(lines, tile_len);
                    pack_tile(job, tile * ROWS, &offsets, steps, lines);
                });
            })
        };
        Self { data, steps, segments }
    }

    fn tile(&self, index: usize) -> *const Line {
        self.data[index * self.tile_bytes() / size_of::<Line>()..].as_ptr()
    }

    fn tile_bytes(&self) -> usize {
        self.segments * self.steps * ROWS * size_of::<Line>()
    }
}

/// Packs the weights of the output channels from `first` on, at most a tile of them, into lines of zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_tile(job: &Correlation<f32>, first: usize, tap_offsets: &[usize], steps: usize, out: &mut [Line]) {
    let (k, layout) = (job.k_channels(), job.layout);
    let lanes = ROWS.min(job.out_channels - first);
    let taps_w = job.axes[2].taps.len();
    // By way of a small buffer, `[tap][channel]`: the taps of a weight lie many lines apart in the packed order.
    let mut by_tap = vec![[0.0; ROWS]; tap_offsets.len()];
    for kc in 0..k {
        for lane in 0..lanes {
            let at = layout.base + kc * layout.k_stride + (first + lane) * layout.lane_stride;
            let src = &job.weight[at..];
            for (by_tap, &offset) in by_tap.iter_mut().zip(tap_offsets) {
                by_tap[lane] = src[offset];
            }
        }
        for (tap, x) in by_tap.iter().enumerate() {
            let r = tap % taps_w * k + kc;
            let line = &mut out[(tap / taps_w * steps + r / DEPTH) * ROWS + r % DEPTH / 2];
            // SAFETY: 16 values, and the 64 bytes of a line, which is aligned.
            unsafe {
                let x = _mm512_cvtepu16_epi32(round(load_first(x.as_ptr(), ROWS)));
                let pair = if r % 2 == 1 { _mm512_slli_epi32::<16>(x) } else { x };
                let line = (&raw mut *line).cast::<__m512i>();
                _mm512_store_si512(line, _mm512_or_si512(_mm512_load_si512(line), pair));
            }
        }
    }
}

/// As [`Correlation::run`].
///
/// # Safety
/// As for [`Correlation::run`]; `job` [`applies`].
pub(in crate::conv3d) unsafe fn run(
    amx: Amx,
    job: &Correlation<f32>,
    out: SharedOut<f32>,
    with_moments: bool,
) -> Vec<BlockMoments<f32>> {
    let [d, h, _] = &job.axes;
    let weight = Weight::pack(amx, job);
    let blocks = row_blocks(job.batch, [d.count, h.count], block_rows(job));
    // Layers with few voxels and many channels are split by channel as well; by even numbers of tiles, which are used in
    // pairs.
    let column_tiles = job.out_channels.div_ceil(ROWS);
    let pairs = column_tiles.div_ceil(2);
    let splits = 16usize.div_ceil(blocks.len()).min(pairs);
    let tiles = balanced(pairs, pairs.div_ceil(splits)).map(|pairs| pairs.start * 2..(pairs.end * 2).min(column_tiles));
    let tasks: Vec<(&Rows, Range<usize>)> =
        blocks.iter().flat_map(|rows| tiles.clone().map(move |t| (rows, t))).collect();
    let moments: Vec<Option<BlockMoments<f32>>> = tasks
        .into_par_iter()
        .map_init(Scratch::default, |scratch, (rows, tiles)| {
            // SAFETY: `amx` says that the processor has all that `run_task` is compiled for; the outputs of the task are its
            // own.
            unsafe { run_task(amx, job, &weight, rows, tiles, out, with_moments, scratch) }
        })
        .collect();
    moments.into_iter().flatten().collect()
}

/// Output rows per task along D and H.
fn block_rows(job: &Correlation<f32>) -> [usize; 2] {
    let [d, h, w] = &job.axes;
    let row = w.extent(w.count) * job.k_channels() * size_of::<u16>();
    let cost = |[nd, nh]: [usize; 2]| d.count.div_ceil(nd) * h.count.div_ceil(nh) * (d.extent(nd) * h.extent(nh) + 4);
    let is_allowed = |[nd, nh]: [usize; 2]| {
        let fits = d.extent(nd) * h.extent(nh) * row <= PANEL_BYTES;
        let busy = job.batch * d.count.div_ceil(nd) * h.count.div_ceil(nh) >= 16;
        fits && (busy || nd * nh <= 4)
    };
    cheapest_block([d.count, h.count], is_allowed, cost)
}

#[derive(Default)]
struct Scratch {
    panel: Vec<Line>,
    sums: Vec<f32>,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn run_task(
    amx: Amx,
    job: &Correlation<f32>,
    weight: &Weight,
    rows: &Rows,
    tiles: Range<usize>,
    out: SharedOut<f32>,
    with_moments: bool,
    scratch: &mut Scratch,
) -> Option<BlockMoments<f32>> {
    let [d, h, w] = &job.axes;
    let k = job.k_channels();
    let size = [d.extent(rows.d.len()), h.extent(rows.h.len()), w.extent(w.count)];
    let first = [
        (rows.d.start * d.step) as isize + d.first_offset(),
        (rows.h.start * h.step) as isize + h.first_offset(),
        w.first_offset(),
    ];
    let panel = pack_panel(job, rows.batch_idx, first, size, &mut scratch.panel);
    let unit = amx.start();
    let segments: Vec<Segment> = (0..d.taps.len())
        .flat_map(|td| (0..h.taps.len()).map(move |th| (td * size[1] + th) * size[2]))
        .enumerate()
        .map(|(i, voxel)| Segment { a: voxel * k * size_of::<u16>(), b: i * weight.steps * ROWS * size_of::<Line>() })
        .collect();
    // Runs of positions: (first voxel in the plane, output row of the first position, positions, those per row).
    let mut runs = Vec::new();
    if w.step == 1 && h.step == 1 {
        runs.push((0, 0, (rows.h.len() - 1) * size[2] + w.count, size[2]));
    } else {
        for row in 0..rows.h.len() {
            runs.push((row * h.step * size[2], row, w.count, w.count));
        }
    }
    scratch.sums.resize(2 * ROWS * 2 * ROWS, 0.0);
    for qd in rows.d.clone() {
        for &(start, first_row, positions, per_row) in &runs {
            for p in (0..positions).step_by(2 * ROWS) {
                let left = positions - p;
                let plane = (qd - rows.d.start) * d.step * size[1] * size[2];
                let a = panel[(plane + start + p * w.step) * k..].as_ptr();
                let row_bytes = w.step * k * size_of::<u16>();
                let row_tiles = left.div_ceil(ROWS).min(2);
                for tile in tiles.clone().step_by(2) {
                    let column_tiles = (tiles.end - tile).min(2);
                    // SAFETY: the panel ends with as many elements as the last rows reach beyond it; packed weights have a
                    // tile per segment and step; the sums have room for 2 x 2 tiles.
                    unsafe {
                        unit.multiply(
                            row_tiles,
                            column_tiles,
                            &Product {
                                a,
                                a_row: row_bytes,
                                a_tile: ROWS * row_bytes,
                                b: weight.tile(tile),
                                b_tile: weight.tile_bytes(),
                                segments: &segments,
                                steps: weight.steps,
                                sums: scratch.sums.as_mut_ptr(),
                                sum_bytes: 2 * ROWS * size_of::<f32>(),
                                accumulate: false,
                            },
                        );
                    }
                    let channel = tile * ROWS;
                    let count = (column_tiles * ROWS).min(job.out_channels - channel);
                    let end = (p + 2 * ROWS).min(positions);
                    let mut q = p;
                    while q < end {
                        let (row, first) = (q / per_row, q % per_row);
                        let len = (per_row - first).min(end - q);
                        let out_row = ((rows.batch_idx * d.output + d.output_at(qd)) * h.output
                            + h.output_at(rows.h.start + first_row + row))
                            * w.output;
                        for column in first..(first + len).min(w.count) {
                            let sums = &scratch.sums[(q - p + column - first) * 2 * ROWS..][..count];
                            // SAFETY: an output of this task and channels of its tiles.
                            unsafe {
                                let voxel = out_row + w.output_at(column);
                                let dst = out.ptr().add(voxel * job.out_channels + channel);
                                dst.copy_from_nonoverlapping(sums.as_ptr(), count);
                            }
                        }
                        q += len;
                    }
                }
            }
        }
    }
    drop(unit);
    if !with_moments {
        return None;
    }
    let channels = tiles.start * ROWS..(tiles.end * ROWS).min(job.out_channels);
    let starts = rows.d.clone().flat_map(|qd| {
        rows.h.clone().map(move |qh| {
            let row = (rows.batch_idx * d.output + d.output_at(qd)) * h.output + h.output_at(qh);
            let at = row * w.output * job.out_channels + tiles.start * ROWS;
            out.ptr().cast_const().wrapping_add(at)
        })
    });
    // SAFETY: this task has just written these channels of these rows.
    Some(unsafe { block_moments(starts, w.output, job.out_channels, channels, rows.batch_idx) })
}

/// Copies a box of voxels of one sample, rounded, zero-padded: `[D][H][W][channel]`, and behind it as many elements as the
/// rows of the last tiles may read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_panel<'a>(
    job: &Correlation<f32>,
    batch_idx: usize,
    first: [isize; 3],
    size: [usize; 3],
    panel: &'a mut Vec<Line>,
) -> &'a [u16] {
    let k = job.k_channels();
    let input = job.axes.each_ref().map(|a| a.input);
    let slack = (2 * ROWS + 1) * job.axes[2].step * k + (job.axes[2].taps.len() * k).next_multiple_of(DEPTH);
    let len = size.iter().product::<usize>() * k + slack;
    panel.resize(len.div_ceil(DEPTH), Line::ZERO);
    let panel = factors(panel);
    let (before, skip, count) = overlap(first[2], size[2], input[2]);
    let channels = channels(job.sources, batch_idx);
    for d in 0..size[0] {
        for h in 0..size[1] {
            let row = &mut panel[(d * size[1] + h) * size[2] * k..][..size[2] * k];
            let (id, ih) = (first[0] + d as isize, first[1] + h as isize);
            if count == 0 || !inside(id, input[0]) || !inside(ih, input[1]) {
                row.fill(0);
                continue;
            }
            row[..before * k].fill(0);
            row[(before + count) * k..].fill(0);
            let voxel = ((batch_idx * input[0] + id as usize) * input[1] + ih as usize) * input[2] + skip;
            for c in &channels {
                for i in 0..count {
                    let x = round(c.read(voxel + i));
                    let dst = &mut row[(before + i) * k + c.lanes.first..][..c.lanes.len];
                    // SAFETY: the slice is that long.
                    unsafe { store_first(dst.as_mut_ptr(), x, c.lanes.len) }
                }
            }
        }
    }
    panel
}
