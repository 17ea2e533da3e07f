//! Forward pass, input gradient and transposed convolution in bf16.
//!
//! Rows of the left operand are output positions, consecutive in the panel of input voxels: along a row of the image, or,
//! without a stride, over all rows of a plane, those of the padding included and thrown away afterwards. The run over taps
//! along W x input channels is contiguous in the panel; the weight is filled up with zeros to whole steps.

use super::unit::{Amx, ByteSegment, DEPTH, Line, Product, ROWS, factors};
use super::vectors::{channels, load_first, round, store_first};
use crate::conv3d::bf16::suits_correlation;
use crate::conv3d::job::Correlation;
use crate::conv3d::packing::{Overlap, VoxelBox, is_inside, overlap};
use crate::conv3d::partition::{RowBlock, balanced, cheapest_row_block, row_blocks};
use crate::norm_act::moments::{BlockMoments, block_moments};
use crate::raw_output::{SharedOut, filled};
use rayon::prelude::*;
use std::arch::x86_64::{
    __m512i, _mm512_cvtepu16_epi32, _mm512_load_si512, _mm512_or_si512, _mm512_slli_epi32, _mm512_store_si512,
};
use std::ops::Range;

/// Bytes of a panel.
const PANEL_BYTES: usize = 384 << 10;

/// Tasks that keep many threads busy.
const MIN_TASKS: usize = 16;

/// A packed weight: `[tile of output channels][tap d][tap h][step]` of tiles `[pair of k][channel][2]`.
struct TiledWeight {
    data: Vec<Line>,
    /// Steps of 32 factors in the run over taps along W and input channels.
    steps: usize,
    /// Taps along D and H.
    segments: usize,
}

impl TiledWeight {
    /// The first argument is the proof that the processor has the instructions.
    fn pack(_: Amx, job: &Correlation<f32>) -> Self {
        let [d, h, w] = &job.axes;
        let steps = (w.taps.len() * job.k_channels()).div_ceil(DEPTH);
        let segments = d.taps.len() * h.taps.len();
        let tile_len = segments * steps * ROWS;
        let offsets = job.tap_offsets();
        let tiles = job.out_channels.div_ceil(ROWS);
        // SAFETY: every tile is written whole; there is an `Amx`, so the processor has all instructions that `pack_tile` is
        // compiled for.
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

    /// First line of a tile of output channels.
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

/// Writes the outputs of a correlation into `out` (`[B, D, H, W, out_channels]`), and returns the moments of the outputs
/// if `with_moments`. The job [suits](suits_correlation) the unit.
///
/// # Safety
/// `out` is valid for the whole output map, and nothing else accesses the outputs of the job.
pub(in crate::conv3d) unsafe fn run(
    amx: Amx,
    job: &Correlation<f32>,
    out: SharedOut<f32>,
    with_moments: bool,
) -> Vec<BlockMoments<f32>> {
    debug_assert!(suits_correlation(job), "the chooser has checked that");
    let [d, h, _] = &job.axes;
    let weight = TiledWeight::pack(amx, job);
    let blocks = row_blocks(job.batch, [d.num_outputs, h.num_outputs], block_rows(job));
    // Layers with few voxels and many channels are split by channel as well; by even numbers of tiles, which are used in
    // pairs.
    let column_tiles = job.out_channels.div_ceil(ROWS);
    let pairs = column_tiles.div_ceil(2);
    let splits = MIN_TASKS.div_ceil(blocks.len()).min(pairs);
    let tiles = balanced(pairs, pairs.div_ceil(splits)).map(|pairs| pairs.start * 2..(pairs.end * 2).min(column_tiles));
    let tasks: Vec<(&RowBlock, Range<usize>)> =
        blocks.iter().flat_map(|rows| tiles.clone().map(move |t| (rows, t))).collect();
    let moments: Vec<Option<BlockMoments<f32>>> = tasks
        .into_par_iter()
        .map_init(Buffers::default, |buffers, (rows, tiles)| {
            let task = CorrelateRows { job, weight: &weight, rows, tiles, out };
            // SAFETY: `amx` is the proof that the processor has all instructions that these functions are compiled for.
            unsafe {
                task.run(amx, buffers);
                with_moments.then(|| task.moments())
            }
        })
        .collect();
    moments.into_iter().flatten().collect()
}

/// Output rows per task along D and H.
fn block_rows(job: &Correlation<f32>) -> [usize; 2] {
    let [d, h, w] = &job.axes;
    let row = w.extent(w.num_outputs) * job.k_channels() * size_of::<u16>();
    let num_blocks = |[nd, nh]: [usize; 2]| d.num_outputs.div_ceil(nd) * h.num_outputs.div_ceil(nh);
    let cost = |[nd, nh]: [usize; 2]| num_blocks([nd, nh]) * (d.extent(nd) * h.extent(nh) + 4);
    let is_allowed = |[nd, nh]: [usize; 2]| {
        let fits = d.extent(nd) * h.extent(nh) * row <= PANEL_BYTES;
        let is_busy = job.batch * num_blocks([nd, nh]) >= MIN_TASKS;
        fits && (is_busy || nd * nh <= 4)
    };
    cheapest_row_block([d.num_outputs, h.num_outputs], is_allowed, cost)
}

/// Memory of a thread, used by one task after the other.
#[derive(Default)]
struct Buffers {
    panel: Vec<Line>,
    /// 2 x 2 tiles of sums.
    sums: Vec<f32>,
}

/// Consecutive positions of a plane of the panel that one sweep of the unit multiplies.
struct PositionRun {
    /// First voxel in the plane.
    start: usize,
    /// Output row of the first position.
    first_row: usize,
    positions: usize,
    /// Positions from output row to output row.
    per_row: usize,
}

/// Task that computes a block of output rows for some tiles of output channels.
struct CorrelateRows<'a> {
    job: &'a Correlation<'a, f32>,
    weight: &'a TiledWeight,
    rows: &'a RowBlock,
    tiles: Range<usize>,
    out: SharedOut<f32>,
}

impl CorrelateRows<'_> {
    /// Voxels that the rows read.
    fn voxels(&self) -> VoxelBox {
        let [d, h, w] = &self.job.axes;
        VoxelBox {
            batch_idx: self.rows.batch_idx,
            first: [
                (self.rows.d.start * d.step) as isize + d.first_offset(),
                (self.rows.h.start * h.step) as isize + h.first_offset(),
                w.first_offset(),
            ],
            size: [d.extent(self.rows.d.len()), h.extent(self.rows.h.len()), w.extent(w.num_outputs)],
        }
    }

    /// Runs of positions: all rows of a plane at once without a stride, else row by row.
    fn runs(&self, size: [usize; 3]) -> Vec<PositionRun> {
        let [_, h, w] = &self.job.axes;
        let (rows, count) = (self.rows.h.len(), w.num_outputs);
        if w.step == 1 && h.step == 1 {
            let positions = (rows - 1) * size[2] + count;
            return vec![PositionRun { start: 0, first_row: 0, positions, per_row: size[2] }];
        }
        let run = |row| PositionRun { start: row * h.step * size[2], first_row: row, positions: count, per_row: count };
        (0..rows).map(run).collect()
    }

    /// Writes the task's outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn run(&self, amx: Amx, buffers: &mut Buffers) {
        let Self { job, weight, rows, tiles, .. } = self;
        let [d, h, w] = &job.axes;
        let k = job.k_channels();
        let voxels = self.voxels();
        let size = voxels.size;
        let panel = pack_panel(job, voxels, &mut buffers.panel);
        let sums = &mut buffers.sums;
        sums.resize(2 * ROWS * 2 * ROWS, 0.0);
        let unit = amx.configure();
        let segments: Vec<ByteSegment> = (0..d.taps.len())
            .flat_map(|td| (0..h.taps.len()).map(move |th| (td * size[1] + th) * size[2]))
            .enumerate()
            .map(|(i, voxel)| ByteSegment {
                a: voxel * k * size_of::<u16>(),
                b: i * weight.steps * ROWS * size_of::<Line>(),
            })
            .collect();
        let row_bytes = w.step * k * size_of::<u16>();
        for qd in rows.d.clone() {
            let plane = (qd - rows.d.start) * d.step * size[1] * size[2];
            for run in self.runs(size) {
                for p in (0..run.positions).step_by(2 * ROWS) {
                    let a = panel[(plane + run.start + p * w.step) * k..].as_ptr();
                    let row_tiles = (run.positions - p).div_ceil(ROWS).min(2);
                    for tile in tiles.clone().step_by(2) {
                        let column_tiles = (tiles.end - tile).min(2);
                        let product = Product {
                            a,
                            a_row: row_bytes,
                            a_tile: ROWS * row_bytes,
                            b: weight.tile(tile),
                            b_tile: weight.tile_bytes(),
                            segments: &segments,
                            steps: weight.steps,
                            sums: sums.as_mut_ptr(),
                            sum_bytes: 2 * ROWS * size_of::<f32>(),
                            accumulate: false,
                        };
                        // SAFETY: the panel ends with as many elements as the last rows reach beyond it; packed weights
                        // have a tile per segment and step; the sums have room for 2 x 2 tiles.
                        unsafe { unit.multiply(row_tiles, column_tiles, &product) }
                        self.store(qd, &run, p, tile..tile + column_tiles, sums);
                    }
                }
            }
        }
    }

    /// Copies the sums of the positions from `p` on to the outputs; positions of the padding are left out.
    #[inline]
    fn store(&self, qd: usize, run: &PositionRun, p: usize, tiles: Range<usize>, sums: &[f32]) {
        let Self { job, rows, out, .. } = self;
        let [d, h, w] = &job.axes;
        let channel = tiles.start * ROWS;
        let count = (tiles.len() * ROWS).min(job.out_channels - channel);
        let end = (p + 2 * ROWS).min(run.positions);
        let mut q = p;
        while q < end {
            let (row, first) = (q / run.per_row, q % run.per_row);
            let len = (run.per_row - first).min(end - q);
            let out_row = ((rows.batch_idx * d.output_size + d.output_position(qd)) * h.output_size
                + h.output_position(rows.h.start + run.first_row + row))
                * w.output_size;
            for column in first..(first + len).min(w.num_outputs) {
                let sums = &sums[(q - p + column - first) * 2 * ROWS..][..count];
                let voxel = out_row + w.output_position(column);
                // SAFETY: an output of this task and channels of its tiles.
                unsafe { out.write(voxel * job.out_channels + channel, sums) }
            }
            q += len;
        }
    }

    /// Moments of the task's outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn moments(&self) -> BlockMoments<f32> {
        let Self { job, rows, tiles, out, .. } = self;
        let [d, h, w] = &job.axes;
        let channels = tiles.start * ROWS..(tiles.end * ROWS).min(job.out_channels);
        let starts = rows.rows().map(|(qd, qh)| {
            let row = (rows.batch_idx * d.output_size + d.output_position(qd)) * h.output_size + h.output_position(qh);
            out.ptr().cast_const().wrapping_add(row * w.output_size * job.out_channels + channels.start)
        });
        // SAFETY: this task has just written these channels of these rows.
        unsafe { block_moments(starts, w.output_size, job.out_channels, channels.clone(), rows.batch_idx) }
    }
}

/// Copies a box of voxels of one sample, rounded, zero-padded: `[D][H][W][channel]`, and behind it as many elements as the
/// rows of the last tiles may read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_panel<'a>(job: &Correlation<f32>, voxels: VoxelBox, panel: &'a mut Vec<Line>) -> &'a [u16] {
    let VoxelBox { batch_idx, first, size } = voxels;
    let k = job.k_channels();
    let input = job.axes.each_ref().map(|a| a.input_size);
    let slack = (2 * ROWS + 1) * job.axes[2].step * k + (job.axes[2].taps.len() * k).next_multiple_of(DEPTH);
    let len = size.iter().product::<usize>() * k + slack;
    panel.resize(len.div_ceil(DEPTH), Line::ZERO);
    let panel = factors(panel);
    let Overlap { before, start, count } = overlap(first[2], size[2], input[2]);
    let channels = channels(job.sources, batch_idx);
    for d in 0..size[0] {
        for h in 0..size[1] {
            let row = &mut panel[(d * size[1] + h) * size[2] * k..][..size[2] * k];
            let (id, ih) = (first[0] + d as isize, first[1] + h as isize);
            if count == 0 || !is_inside(id, input[0]) || !is_inside(ih, input[1]) {
                row.fill(0);
                continue;
            }
            row[..before * k].fill(0);
            row[(before + count) * k..].fill(0);
            let voxel = ((batch_idx * input[0] + id as usize) * input[1] + ih as usize) * input[2] + start;
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
