//! Instance normalisation + LeakyReLU on channels-last maps, and the two passes of the backward.

use super::moments::{CHUNK, join_voxels, voxels_per_row};
use crate::raw_output::{SharedOut, filled};
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

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

    /// Values of a row of `buffer.len()` elements or fewer, in the buffer or where they are already.
    #[inline(always)]
    fn row<'b>(&self, range: Range<usize>, buffer: &'b mut [T]) -> &'b [T]
    where
        'a: 'b,
    {
        let Self { outer, direct } = self.slice(&range);
        let buffer = &mut buffer[..range.len()];
        match (outer, direct) {
            (None, Some(direct)) => return direct,
            (Some((outer, weight)), Some(direct)) => {
                for ((g, &o), &d) in buffer.iter_mut().zip(outer).zip(direct) {
                    *g = weight * o + d;
                }
            }
            (Some((outer, weight)), None) => {
                for (g, &o) in buffer.iter_mut().zip(outer) {
                    *g = weight * o;
                }
            }
            (None, None) => buffer.fill(T::ZERO),
        }
        buffer
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

impl<T: Element> Normalised<'_, T> {
    /// Elements of a row of voxels.
    fn row(&self) -> usize {
        voxels_per_row(self.channels) * self.channels
    }

    /// A sample's values of the channels, out of `[B, C]`, for every voxel of a row.
    fn repeated(&self, values: &[T], batch_idx: usize) -> Vec<T> {
        values[batch_idx * self.channels..][..self.channels].repeat(voxels_per_row(self.channels))
    }
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
            let row = map.row();
            let (scale, shift) = (map.repeated(map.scale, self.batch_idx), map.repeated(map.shift, self.batch_idx));
            let (weight, slope) = (*weight, map.slope);
            let y = &map.y[self.range.clone()];
            for (out, y) in self.out.chunks_mut(row).zip(y.chunks(row)) {
                let n = y.len();
                // Slices of one length: the loops must stay plain vector loops.
                let (out, scale, shift) = (&mut out[..n], &scale[..n], &shift[..n]);
                let z = |j: usize| {
                    let v = scale[j] * y[j] + shift[j];
                    weight * if v > T::ZERO { v } else { v * slope }
                };
                if i == 0 {
                    for (j, out) in out.iter_mut().enumerate() {
                        out.write(z(j));
                    }
                } else {
                    for (j, out) in out.iter_mut().enumerate() {
                        // SAFETY: the first map has written every element.
                        out.write(z(j) + unsafe { out.assume_init() });
                    }
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
        let (map, row) = (self.map, self.map.row());
        let scale = map.repeated(map.scale, self.batch_idx);
        let shift = map.repeated(map.shift, self.batch_idx);
        let mean = map.repeated(map.mean, self.batch_idx);
        let slope = map.slope;
        let y = &map.y[self.range];
        let zeros = vec![T::ZERO; row];
        let (mut s1, mut s2, mut dot, mut buffer) = (zeros.clone(), zeros.clone(), zeros.clone(), zeros);
        for (i, y) in y.chunks(row).enumerate() {
            let n = y.len();
            let range = i * row..i * row + n;
            let g = self.grad.row(range.clone(), &mut buffer);
            // Slices of one length: the loops must stay plain vector loops.
            let (scale, shift, mean, g) = (&scale[..n], &shift[..n], &mean[..n], &g[..n]);
            let (s1, s2, dot) = (&mut s1[..n], &mut s2[..n], &mut dot[..n]);
            for j in 0..n {
                let gv = if scale[j] * y[j] + shift[j] > T::ZERO { g[j] } else { g[j] * slope };
                s1[j] += gv;
                s2[j] += gv * (y[j] - mean[j]);
            }
            if let Some((outer, _)) = self.grad.outer {
                let outer = &outer[range];
                for j in 0..n {
                    let v = scale[j] * y[j] + shift[j];
                    dot[j] += outer[j] * if v > T::ZERO { v } else { v * slope };
                }
            }
        }
        let c = map.channels;
        ChunkSums { grad: join_voxels(s1, c), grad_centred: join_voxels(s2, c), outer_dot: join_voxels(dot, c) }
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
        let (map, row) = (self.map, self.map.row());
        let scale = map.repeated(map.scale, self.batch_idx);
        let shift = map.repeated(map.shift, self.batch_idx);
        let mean = map.repeated(map.mean, self.batch_idx);
        let offset = map.repeated(self.offset, self.batch_idx);
        let factor = map.repeated(self.factor, self.batch_idx);
        let slope = map.slope;
        let mut buffer = vec![T::ZERO; row];
        for (i, (out, y)) in self.out.chunks_mut(row).zip(map.y[self.range].chunks(row)).enumerate() {
            let n = y.len();
            let g = self.grad.row(i * row..i * row + n, &mut buffer);
            // Slices of one length: the loop must stay a plain vector loop.
            let (out, g, scale, shift) = (&mut out[..n], &g[..n], &scale[..n], &shift[..n]);
            let (mean, offset, factor) = (&mean[..n], &offset[..n], &factor[..n]);
            for j in 0..n {
                let gv = if scale[j] * y[j] + shift[j] > T::ZERO { g[j] } else { g[j] * slope };
                out[j].write(scale[j] * (gv - offset[j] - factor[j] * (y[j] - mean[j])));
            }
        }
    }
}
