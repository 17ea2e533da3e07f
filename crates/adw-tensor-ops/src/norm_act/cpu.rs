//! Instance normalisation + LeakyReLU on channels-last maps: moments, and the two passes of the backward.

use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Voxels that one task of a pass over a map computes; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 2048;

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
    let voxels_of = |row: *const T| {
        // SAFETY: the caller guarantees that these elements are valid.
        (0..voxels).map(move |v| unsafe { std::slice::from_raw_parts(row.add(v * stride), n) })
    };
    let mut mean = vec![T::ZERO; n];
    let mut count = 0;
    let mut of_row = vec![T::ZERO; n];
    for row in rows.clone() {
        of_row.fill(T::ZERO);
        for x in voxels_of(row) {
            for (s, &x) in of_row.iter_mut().zip(x) {
                *s += x;
            }
        }
        // A sum of sums: one long sum of f32 would drift.
        for (s, &x) in mean.iter_mut().zip(&of_row) {
            *s += x;
        }
        count += voxels;
    }
    let scale = T::from_f64(1.0 / count as f64);
    for m in &mut mean {
        *m *= scale;
    }
    // Deviations from the exact mean sum to zero; their sum here corrects the rounded mean.
    let (mut m2, mut sum) = (vec![T::ZERO; n], vec![T::ZERO; n]);
    for row in rows {
        for x in voxels_of(row) {
            for (((m2, sum), &x), &m) in m2.iter_mut().zip(&mut sum).zip(x).zip(&mean) {
                let d = x - m;
                *m2 += d * d;
                *sum += d;
            }
        }
    }
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
        variance: m2.iter().zip(&count).map(|(m2, n)| T::from_f64(m2 / n)).collect(),
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

/// The gradient that reaches a normalised map z: `weight * outer + direct`, either of which may be absent.
#[derive(Clone, Copy)]
pub(crate) struct GradOutput<'a, T> {
    /// The gradient of a weighted sum of maps, and this map's weight in it.
    pub(crate) outer: Option<(&'a [T], T)>,
    pub(crate) direct: Option<&'a [T]>,
}

impl<'a, T: Element> GradOutput<'a, T> {
    fn slice(&self, r: &Range<usize>) -> GradOutput<'a, T> {
        GradOutput { outer: self.outer.map(|(g, w)| (&g[r.clone()], w)), direct: self.direct.map(|g| &g[r.clone()]) }
    }
}

/// A raw map and the affine function that normalises it: `z = leaky(scale * y + shift)`, both `[B, C]`.
#[derive(Clone, Copy)]
pub(crate) struct Normalised<'a, T> {
    pub(crate) y: &'a [T],
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) mean: &'a [T],
    pub(crate) scale: &'a [T],
    pub(crate) shift: &'a [T],
    pub(crate) slope: T,
}

/// Computes `sum_l h_l z_l` over maps of one shape, in one pass over the raw maps.
pub(crate) fn weighted_sum<T: Element>(set: InstructionSet, maps: &[(Normalised<T>, T)]) -> Vec<T> {
    let first = &maps[0].0;
    let (c, per_sample) = (first.channels, first.y.len() / first.batch);
    // SAFETY: the chunks cover the map, and each writes every element of its own.
    unsafe {
        filled(first.y.len(), |out: SharedOut<T>| {
            chunks(first.batch, per_sample, c).into_par_iter().for_each(|(b, r)| {
                let out = uninit_slice(out, &r);
                dispatch(set, SumChunk { maps, batch_idx: b, range: r, out });
            });
        })
    }
}

/// The elements `range` of a map that is being filled.
///
/// # Safety
/// The range lies inside the map, and nothing else accesses it while the slice lives.
unsafe fn uninit_slice<'a, T>(out: SharedOut<T>, range: &Range<usize>) -> &'a mut [MaybeUninit<T>] {
    // SAFETY: the caller guarantees range and exclusive access; `MaybeUninit` may be uninitialised.
    unsafe { std::slice::from_raw_parts_mut(out.ptr().add(range.start).cast(), range.len()) }
}

/// Lists the chunks of a map: sample and range of elements.
fn chunks(batch: usize, per_sample: usize, channels: usize) -> Vec<(usize, Range<usize>)> {
    let step = CHUNK * channels;
    (0..batch)
        .flat_map(|b| {
            (0..per_sample)
                .step_by(step)
                .map(move |i| (b, b * per_sample + i..b * per_sample + (i + step).min(per_sample)))
        })
        .collect()
}

/// Kernel that writes a chunk of a weighted sum.
struct SumChunk<'a, T> {
    maps: &'a [(Normalised<'a, T>, T)],
    batch_idx: usize,
    range: Range<usize>,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel<T> for SumChunk<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, _: S) {
        for (i, (map, weight)) in self.maps.iter().enumerate() {
            let c = map.channels;
            let at = self.batch_idx * c..(self.batch_idx + 1) * c;
            let (scale, shift) = (&map.scale[at.clone()], &map.shift[at]);
            let y = &map.y[self.range.clone()];
            for (out, y) in self.out.chunks_exact_mut(c).zip(y.chunks_exact(c)) {
                for (((o, &y), &a), &b) in out.iter_mut().zip(y).zip(scale).zip(shift) {
                    let v = a * y + b;
                    let z = *weight * if v > T::ZERO { v } else { v * map.slope };
                    let sum = match i {
                        0 => z,
                        // SAFETY: the first map has written every element.
                        _ => z + unsafe { o.assume_init() },
                    };
                    o.write(sum);
                }
            }
        }
    }
}

/// Sums over voxels that the backward pass needs, with `gv = grad z * leaky'(v)`.
pub(crate) struct GradSums {
    /// `sum gv`, `[B, C]`.
    pub(crate) grad: Vec<f64>,
    /// `sum gv (y - mean)`, `[B, C]`.
    pub(crate) grad_centred: Vec<f64>,
    /// Sum of `outer * z` over the whole map.
    pub(crate) outer_dot: f64,
}

/// Computes the sums of a map's gradient over the voxels.
pub(crate) fn grad_sums<T: Element>(set: InstructionSet, map: &Normalised<T>, grad: GradOutput<T>) -> GradSums {
    let c = map.channels;
    let parts: Vec<(usize, ChunkSums<T>)> = chunks(map.batch, map.y.len() / map.batch, c)
        .into_par_iter()
        .map(|(b, range)| (b, dispatch(set, SumGradChunk { map, grad: grad.slice(&range), batch_idx: b, range })))
        .collect();
    let mut sums = GradSums { grad: vec![0.0; map.batch * c], grad_centred: vec![0.0; map.batch * c], outer_dot: 0.0 };
    for (b, part) in parts {
        for i in 0..c {
            sums.grad[b * c + i] += part.grad[i].to_f64();
            sums.grad_centred[b * c + i] += part.grad_centred[i].to_f64();
            sums.outer_dot += part.outer_dot[i].to_f64();
        }
    }
    sums
}

/// [`GradSums`] of one chunk, per channel.
struct ChunkSums<T> {
    grad: Vec<T>,
    grad_centred: Vec<T>,
    outer_dot: Vec<T>,
}

/// Kernel that computes the sums of a chunk.
struct SumGradChunk<'a, T> {
    map: &'a Normalised<'a, T>,
    grad: GradOutput<'a, T>,
    batch_idx: usize,
    range: Range<usize>,
}

impl<T: Element> Kernel<T> for SumGradChunk<'_, T> {
    type Output = ChunkSums<T>;
    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, _: S) -> ChunkSums<T> {
        let c = self.map.channels;
        let at = self.batch_idx * c..(self.batch_idx + 1) * c;
        let (scale, shift, mean) = (&self.map.scale[at.clone()], &self.map.shift[at.clone()], &self.map.mean[at]);
        let slope = self.map.slope;
        let y = &self.map.y[self.range];
        let zero = || vec![T::ZERO; c];
        let (mut s1, mut s2, mut dot) = (zero(), zero(), zero());
        // Three loops rather than one with conditions inside: the channel loop must stay a plain vector loop.
        match (self.grad.outer, self.grad.direct) {
            (Some((outer, w)), direct) => {
                for (i, (y, o)) in y.chunks_exact(c).zip(outer.chunks_exact(c)).enumerate() {
                    let g = direct.map(|g| &g[i * c..(i + 1) * c]);
                    for j in 0..c {
                        let v = scale[j] * y[j] + shift[j];
                        let positive = v > T::ZERO;
                        dot[j] += o[j] * if positive { v } else { v * slope };
                        let g = w * o[j] + g.map_or(T::ZERO, |g| g[j]);
                        let gv = if positive { g } else { g * slope };
                        s1[j] += gv;
                        s2[j] += gv * (y[j] - mean[j]);
                    }
                }
            }
            (None, Some(direct)) => {
                for (y, g) in y.chunks_exact(c).zip(direct.chunks_exact(c)) {
                    for j in 0..c {
                        let gv = if scale[j] * y[j] + shift[j] > T::ZERO { g[j] } else { g[j] * slope };
                        s1[j] += gv;
                        s2[j] += gv * (y[j] - mean[j]);
                    }
                }
            }
            (None, None) => {}
        }
        ChunkSums { grad: s1, grad_centred: s2, outer_dot: dot }
    }
}

/// Computes `grad y = scale * (gv - offset - factor * (y - mean))`, `offset` and `factor` `[B, C]`.
pub(crate) fn grad_input<T: Element>(
    set: InstructionSet,
    map: &Normalised<T>,
    grad: GradOutput<T>,
    offset: &[T],
    factor: &[T],
) -> Vec<T> {
    // SAFETY: the chunks cover the map, and each writes every element of its own.
    unsafe {
        filled(map.y.len(), |out: SharedOut<T>| {
            chunks(map.batch, map.y.len() / map.batch, map.channels).into_par_iter().for_each(|(b, range)| {
                let out = uninit_slice(out, &range);
                dispatch(set, GradChunk { map, grad: grad.slice(&range), batch_idx: b, range, offset, factor, out });
            });
        })
    }
}

/// Kernel that writes a chunk of the gradient of the raw map.
struct GradChunk<'a, T> {
    map: &'a Normalised<'a, T>,
    grad: GradOutput<'a, T>,
    batch_idx: usize,
    range: Range<usize>,
    offset: &'a [T],
    factor: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel<T> for GradChunk<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, _: S) {
        let c = self.map.channels;
        let at = self.batch_idx * c..(self.batch_idx + 1) * c;
        let (scale, shift, mean) =
            (&self.map.scale[at.clone()], &self.map.shift[at.clone()], &self.map.mean[at.clone()]);
        let (offset, factor) = (&self.offset[at.clone()], &self.factor[at]);
        let slope = self.map.slope;
        let y = &self.map.y[self.range];
        macro_rules! pass {
            ($i:ident, $j:ident, $g:expr) => {
                for ($i, (out, y)) in self.out.chunks_exact_mut(c).zip(y.chunks_exact(c)).enumerate() {
                    for $j in 0..c {
                        let g = $g;
                        let gv = if scale[$j] * y[$j] + shift[$j] > T::ZERO { g } else { g * slope };
                        let g = scale[$j] * (gv - offset[$j] - factor[$j] * (y[$j] - mean[$j]));
                        out[$j].write(g);
                    }
                }
            };
        }
        // One loop per combination: the channel loop must stay a plain vector loop.
        match (self.grad.outer, self.grad.direct) {
            (Some((o, w)), Some(g)) => pass!(i, j, w * o[i * c + j] + g[i * c + j]),
            (Some((o, w)), None) => pass!(i, j, w * o[i * c + j]),
            (None, Some(g)) => pass!(i, j, g[i * c + j]),
            (None, None) => pass!(_i, j, T::ZERO),
        }
    }
}
