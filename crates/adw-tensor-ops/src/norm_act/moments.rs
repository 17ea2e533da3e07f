//! Mean and variance of channels-last maps, and rows of voxels that fill vectors.

use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Voxels that one task of a pass over a map computes; fixed, so that sums do not depend on the number of threads.
pub(super) const CHUNK: usize = 2048;

/// Number of voxels that a loop takes as one row, with the channels' values repeated for each: rows of 256 elements or multiples of
/// that fill vectors whatever the number of channels, and each voxel of a row has sums of its own, which do not wait for each
/// other. Independent of the instruction set, so that the order of sums is.
pub(super) fn voxels_per_row(channels: usize) -> usize {
    // Longer rows would not stay in the first-level cache.
    (256 >> channels.trailing_zeros().min(8)).min((512 / channels).max(1))
}

/// Adds up what the voxels of a row have, per channel.
pub(super) fn join_voxels<T: Element>(mut row: Vec<T>, channels: usize) -> Vec<T> {
    let (first, others) = row.split_at_mut(channels);
    for voxel in others.chunks_exact(channels) {
        add(first, voxel);
    }
    row.truncate(channels);
    row
}

/// Adds `values` to the first sums.
#[inline(always)]
fn add<T: Element>(sums: &mut [T], values: &[T]) {
    for (s, &x) in sums.iter_mut().zip(values) {
        *s += x;
    }
}

/// Mean and sum of squared deviations of some voxels of one sample, for a range of channels.
pub(crate) struct BlockMoments<T> {
    batch_idx: usize,
    channels: Range<usize>,
    count: usize,
    mean: Vec<T>,
    m2: Vec<T>,
}

/// Computes the moments of rows of voxels, each `voxels` long with `stride` elements from voxel to voxel. Two passes over
/// data that is still in the cache, the mean first: sums of squares would cancel in a map with a large mean.
///
/// # Safety
/// Every row is valid for reading `channels.len()` elements at each of its voxels.
#[inline(always)]
pub(crate) unsafe fn block_moments<T: Element>(
    rows: impl Iterator<Item = *const T> + Clone,
    voxels: usize,
    stride: usize,
    channels: Range<usize>,
    batch_idx: usize,
) -> BlockMoments<T> {
    let n = channels.len();
    // Few voxels would not pay for the sums that are to be joined.
    let group = if stride == n && voxels >= 32 { voxels_per_row(n).min(voxels) } else { 1 };
    let end = voxels * stride;
    let pieces = |row: *const T| {
        let length = group * n;
        // SAFETY: the caller guarantees that these elements are valid; between the voxels of a piece there are no others.
        (0..end)
            .step_by(group * stride)
            .map(move |i| unsafe { std::slice::from_raw_parts(row.add(i), length.min(end - i)) })
    };
    let mut total = vec![T::ZERO; group * n];
    let mut count = 0;
    let mut of_row = vec![T::ZERO; group * n];
    for row in rows.clone() {
        of_row.fill(T::ZERO);
        for x in pieces(row) {
            add(&mut of_row, x);
        }
        // A sum of sums: one long sum of f32 would drift.
        add(&mut total, &of_row);
        count += voxels;
    }
    let scale = T::from_f64(1.0 / count as f64);
    let mut mean = join_voxels(total, n);
    for m in &mut mean {
        *m *= scale;
    }
    // Deviations from the exact mean sum to zero; their sum here corrects the rounded mean.
    let (mut m2, mut sum, of_voxels) = (vec![T::ZERO; group * n], vec![T::ZERO; group * n], mean.repeat(group));
    for row in rows {
        for x in pieces(row) {
            for (((m2, sum), &x), &m) in m2.iter_mut().zip(&mut sum).zip(x).zip(&of_voxels) {
                let d = x - m;
                *m2 += d * d;
                *sum += d;
            }
        }
    }
    let (mut m2, sum) = (join_voxels(m2, n), join_voxels(sum, n));
    for ((m2, &sum), m) in m2.iter_mut().zip(&sum).zip(&mut mean) {
        *m += sum * scale;
        *m2 -= sum * sum * scale;
    }
    BlockMoments { batch_idx, channels, count, mean, m2 }
}

/// Mean and population variance per sample and channel, `[B, C]`.
pub(crate) struct ChannelMoments<T> {
    pub(crate) mean: Vec<T>,
    pub(crate) variance: Vec<T>,
}

/// Joins the moments of blocks in their order (Chan et al. 1983), in f64.
pub(crate) fn join_moments<T: Element>(blocks: &[BlockMoments<T>], batch: usize, channels: usize) -> ChannelMoments<T> {
    let mut count = vec![0.0f64; batch * channels];
    let mut mean = vec![0.0f64; batch * channels];
    let mut m2 = vec![0.0f64; batch * channels];
    for block in blocks {
        let n = block.count as f64;
        for (i, c) in block.channels.clone().enumerate() {
            let at = block.batch_idx * channels + c;
            let total = count[at] + n;
            let delta = block.mean[i].to_f64() - mean[at];
            mean[at] += delta * n / total;
            m2[at] += block.m2[i].to_f64() + delta * delta * count[at] * n / total;
            count[at] = total;
        }
    }
    ChannelMoments {
        mean: mean.into_iter().map(T::from_f64).collect(),
        // The correction of rounded means can take more than there is.
        variance: m2.iter().zip(&count).map(|(m2, n)| T::from_f64((m2 / n).max(0.0))).collect(),
    }
}

/// Kernel that computes the moments of a part of a map.
struct ChunkMoments<'a, T> {
    x: &'a [T],
    channels: usize,
    batch_idx: usize,
}

impl<T: Element> Kernel<T> for ChunkMoments<'_, T> {
    type Output = BlockMoments<T>;
    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, _: S) -> BlockMoments<T> {
        let rows = std::iter::once(self.x.as_ptr());
        // SAFETY: one row, the whole slice.
        unsafe { block_moments(rows, self.x.len() / self.channels, self.channels, 0..self.channels, self.batch_idx) }
    }
}

/// Computes the moments of a map `[B, voxels, C]`.
pub(crate) fn moments<T: Element>(set: InstructionSet, x: &[T], batch: usize, channels: usize) -> ChannelMoments<T> {
    let per_sample = x.len() / batch;
    let blocks: Vec<BlockMoments<T>> = (0..batch)
        .flat_map(|b| (0..per_sample).step_by(CHUNK * channels).map(move |i| (b, i)))
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(b, i)| {
            let x = &x[b * per_sample..(b + 1) * per_sample];
            let x = &x[i..(i + CHUNK * channels).min(per_sample)];
            dispatch(set, ChunkMoments { x, channels, batch_idx: b })
        })
        .collect();
    join_moments(&blocks, batch, channels)
}
