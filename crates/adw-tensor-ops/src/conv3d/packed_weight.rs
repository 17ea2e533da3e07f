//! Weights in the order in which register tiles read them.

use super::job::Correlation;
use super::partition::balanced;
use super::tile::VectorShape;
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, InstructionSet};
use rayon::prelude::*;

/// Input channels that one packing task takes.
const K_CHUNK: usize = 16;

/// Output channels `first..first + count`, `vectors` wide when packed.
#[derive(Clone, Debug)]
pub(super) struct ChannelBlock {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) vectors: usize,
    /// Offset of the block's packed weights.
    pub(super) offset: usize,
}

/// A weight packed as `[channel block][tap d][tap h][tap w][k channel][lane]`, or with frequencies in the taps' place;
/// lanes without a channel are zero.
pub(super) struct PackedWeight<T> {
    pub(super) data: Vec<T>,
    pub(super) blocks: Vec<ChannelBlock>,
    pub(super) lanes: usize,
}

/// A linear transform of the taps of every pair of channels.
pub(super) struct TapTransform<F> {
    /// Numbers that the taps of a pair of channels become.
    pub(super) num_outputs: usize,
    /// Transforms whole vectors of lanes from `[tap][lane]` to `[output][lane]`.
    pub(super) apply: F,
}

impl<T: Element> PackedWeight<T> {
    /// Packs the weight as it is.
    pub(super) fn new(set: InstructionSet, job: &Correlation<T>) -> Self {
        let num_taps = job.axes.iter().map(|a| a.taps.len()).product();
        Self::pack(set, job, num_taps, |taps, _| taps)
    }

    /// Packs the transformed weight.
    pub(super) fn transformed(
        set: InstructionSet,
        job: &Correlation<T>,
        transform: &TapTransform<impl Fn(&[T], &mut [T]) + Sync>,
    ) -> Self {
        let num_taps: usize = job.axes.iter().map(|a| a.taps.len()).product();
        Self::pack(set, job, transform.num_outputs, |taps, transformed| {
            transformed.resize(taps.len() / num_taps * transform.num_outputs, T::ZERO);
            (transform.apply)(taps, transformed);
            transformed
        })
    }

    /// Packs `rows` numbers per pair of channels: those that `rows_of` makes of the taps `[tap][lane]`, returned as they
    /// are or written to the buffer.
    fn pack(
        set: InstructionSet,
        job: &Correlation<T>,
        rows: usize,
        rows_of: impl for<'b> Fn(&'b [T], &'b mut Vec<T>) -> &'b [T] + Sync,
    ) -> Self {
        let VectorShape { lanes, max_vectors } = VectorShape::of::<T>(set);
        let k = job.k_channels();
        let mut blocks = Vec::new();
        let mut offset = 0;
        for r in balanced(job.out_channels.div_ceil(lanes), max_vectors) {
            let first = r.start * lanes;
            let count = (r.end * lanes).min(job.out_channels) - first;
            blocks.push(ChannelBlock { first, count, vectors: r.len(), offset });
            offset += rows * k * r.len() * lanes;
        }
        let layout = job.layout;
        let tap_offsets = job.tap_offsets();
        let tasks: Vec<(&ChannelBlock, usize)> =
            blocks.iter().flat_map(|b| (0..k.div_ceil(K_CHUNK)).map(move |i| (b, i * K_CHUNK))).collect();
        let pack_task = |out: SharedOut<T>, buffers: &mut (Vec<T>, Vec<T>), block: &ChannelBlock, k0: usize| {
            let (by_lane, transformed) = buffers;
            let width = block.vectors * lanes;
            for kc in k0..(k0 + K_CHUNK).min(k) {
                // By way of a small buffer: written straight to the packed order, the taps of one weight would lie many
                // pages apart, in the same few sets of the cache.
                by_lane.clear();
                by_lane.resize(tap_offsets.len() * width, T::ZERO);
                for lane in 0..block.count {
                    let lane_offset = (block.first + lane) * layout.lane_stride;
                    let src = &job.weight[layout.base + kc * layout.k_stride + lane_offset..];
                    for (row, &tap) in by_lane.chunks_exact_mut(width).zip(&tap_offsets) {
                        row[lane] = src[tap];
                    }
                }
                if let Some(round) = job.round_weight {
                    round(by_lane);
                }
                for (i, row) in rows_of(by_lane, transformed).chunks_exact(width).enumerate() {
                    // SAFETY: inside the block's packed weights; no other task writes this k channel.
                    unsafe { out.write(block.offset + (i * k + kc) * width, row) }
                }
            }
        };
        // SAFETY: the tasks cover every block and k channel, and each writes all rows and lanes of its own.
        let data = unsafe {
            filled(offset, |out: SharedOut<T>| {
                tasks.par_iter().for_each_init(Default::default, |buffers, &(block, k0)| {
                    pack_task(out, buffers, block, k0);
                });
            })
        };
        Self { data, blocks, lanes }
    }
}
