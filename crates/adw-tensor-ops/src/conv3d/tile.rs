//! The register tile that all convolution passes are made of, and the packing of its operands.
//!
//! ```text
//! c[r][v] += sum over segments s, k < s.len:  a[s.a + r * a_row + k * a_step] * b[s.b + k * b_step + v * b_vector]
//! ```
//! where `c[r][v]` and `b[...]` are vectors. `R` rows by `V` vectors stay in registers for the whole sum. Forward and input
//! gradient: rows are output voxels, `k` runs over input channels (and taps along W), vectors hold output channels. Weight
//! gradient: rows are input channels, `k` runs over voxels. Every sum is taken in one fixed order, whatever the number of
//! threads.

use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use std::ops::Range;

/// Where one run of `k` begins in the operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) len: usize,
}

/// Addresses and strides of a tile's operands, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Operands<T> {
    pub(crate) a: *const T,
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    pub(crate) b: *const T,
    pub(crate) b_step: usize,
    /// From vector to vector.
    pub(crate) b_vector: usize,
    pub(crate) c: *mut T,
    pub(crate) c_row: usize,
    /// From vector to vector.
    pub(crate) c_vector: usize,
    /// Lanes of the last vector that exist in `c`.
    pub(crate) tail: usize,
    /// Add to `c` instead of overwriting it.
    pub(crate) accumulate: bool,
}

/// Most vectors a tile may be wide.
pub(super) const fn max_vectors<S: Simd>() -> usize {
    match S::REGISTERS {
        32 => 4,
        16 => 2,
        _ => 1,
    }
}

/// Most rows of a tile `vectors` wide: accumulators, one row of `b` and one splat fill the registers, and 12
/// accumulators already hide the latency of two multiply-add units.
pub(crate) const fn max_rows<S: Simd>(vectors: usize) -> usize {
    match (S::REGISTERS, vectors) {
        (32, 1 | 2) => 12,
        (32, 3) => 8,
        (32, _) | (16, 2) => 6,
        (16, 1) => 10,
        _ => 4,
    }
}

/// Splits `n` into parts of at most `max` that differ by at most one.
pub(super) fn balanced(n: usize, max: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = n.div_ceil(max);
    (0..parts).map(move |i| n * i / parts..n * (i + 1) / parts)
}

/// Output rows of one sample: what one task computes.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) batch_idx: usize,
    pub(super) d: Range<usize>,
    pub(super) h: Range<usize>,
}

/// The rows `d` x `h` of every sample, in blocks of at most `nd` x `nh`.
pub(super) fn row_blocks(batch: usize, [d, h]: [usize; 2], [nd, nh]: [usize; 2]) -> Vec<Rows> {
    let mut blocks = Vec::new();
    for batch_idx in 0..batch {
        for d in balanced(d, nd) {
            for h in balanced(h, nh) {
                let d = d.clone();
                blocks.push(Rows { batch_idx, d, h });
            }
        }
    }
    blocks
}

/// Rows per block along D and H, in parts that differ by at most one: as many of a plane as fit, then as many whole planes.
pub(super) fn rows_that_fit([d, h]: [usize; 2], fit: impl Fn([usize; 2]) -> bool) -> [usize; 2] {
    let most = |n: usize, fits: &dyn Fn(usize) -> bool| {
        let most = (1..n).take_while(|&i| fits(i + 1)).last().map_or(1, |i| i + 1);
        n.div_ceil(n.div_ceil(most))
    };
    let nh = most(h, &|nh| fit([1, nh]));
    let nd = most(d, &|nd| nh == h && fit([nd, nh]));
    [nd, nh]
}

/// # Safety
/// All addresses that the formula at the head of the file names are valid: `a` and `b` for reading (`b` in whole
/// vectors), `c` for writing (and for reading with `accumulate`), its last vector for `tail` elements.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const R: usize, const V: usize>(o: &Operands<S::Elem>, segments: &[Segment]) {
    // SAFETY: as the caller vouches.
    unsafe {
        let one = S::splat(S::Elem::ONE);
        let mut acc = [[S::splat(S::Elem::ZERO); V]; R];
        for s in segments {
            let (mut a, mut b) = (o.a.add(s.a), o.b.add(s.b));
            for _ in 0..s.len {
                let mut row = [S::splat(S::Elem::ZERO); V];
                for (v, x) in row.iter_mut().enumerate() {
                    *x = S::load(b.add(v * o.b_vector));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = S::splat(*a.add(r * o.a_row));
                    for (acc, &b) in acc.iter_mut().zip(&row) {
                        *acc = S::mul_add(x, b, *acc);
                    }
                }
                a = a.add(o.a_step);
                b = b.add(o.b_step);
            }
        }
        // What is there is added to the finished sum, not the other way round: a long sum over several calls is then one
        // of partial sums, with their smaller rounding errors.
        for (r, row) in acc.iter().enumerate() {
            let c = o.c.add(r * o.c_row);
            for (v, &sum) in row.iter().enumerate() {
                let at = c.add(v * o.c_vector);
                let add = |before| {
                    if o.accumulate { S::mul_add(sum, one, before) } else { sum }
                };
                if v + 1 == V {
                    let n = if o.accumulate { o.tail } else { 0 };
                    S::store_first(at, add(S::load_first(at, n)), o.tail);
                } else if o.accumulate {
                    S::store(at, add(S::load(at)));
                } else {
                    S::store(at, sum);
                }
            }
        }
    }
}

/// [`tile`] with `rows` and `vectors` known at run time only.
///
/// # Safety
/// As for [`tile`]; `1 <= vectors <= max_vectors` and `1 <= rows <= max_rows(vectors)`.
#[inline(always)]
pub(crate) unsafe fn run_tile<S: Simd>(rows: usize, vectors: usize, o: &Operands<S::Elem>, segments: &[Segment]) {
    macro_rules! pick {
        ($($v:literal: $($r:literal)*;)*) => {
            match (vectors, rows) {
                $($(($v, $r) => {
                    // Tiles that this instruction set never asks for are not even compiled.
                    if const { $v <= max_vectors::<S>() && $r <= max_rows::<S>($v) } {
                        // SAFETY: as the caller vouches.
                        unsafe { S::tile::<$r, $v>(o, segments) }
                    }
                })*)*
                _ => unreachable!("a tile of {rows} rows by {vectors} vectors"),
            }
        };
    }
    pick! {
        1: 1 2 3 4 5 6 7 8 9 10 11 12;
        2: 1 2 3 4 5 6 7 8 9 10 11 12;
        3: 1 2 3 4 5 6 7 8;
        4: 1 2 3 4 5 6;
    }
}

/// A map that a convolution reads: `[B, D, H, W, channels]`, as it is or normalised while it is read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) channels: usize,
    /// `x -> leaky(scale[b][c] * x + shift[b][c])`
    pub(crate) norm: Option<Norm<'a, T>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Norm<'a, T> {
    pub(crate) scale: &'a [T],
    pub(crate) shift: &'a [T],
    pub(crate) slope: T,
}

/// Channels `first..first + len` of what a pass reads, at most one vector of them, all from one map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    pub(super) source: usize,
    /// Within the source.
    pub(super) first_of_source: usize,
    /// Among the channels of all sources.
    pub(super) first: usize,
    pub(super) len: usize,
}

/// All channels of maps that lie side by side, cut into vectors.
pub(super) fn lanes_of<T>(sources: &[Source<T>], lanes: usize) -> Vec<Lanes> {
    let mut all = Vec::new();
    let mut first = 0;
    for (source, s) in sources.iter().enumerate() {
        for first_of_source in (0..s.channels).step_by(lanes) {
            let len = lanes.min(s.channels - first_of_source);
            all.push(Lanes { source, first_of_source, first, len });
            first += len;
        }
    }
    all
}

/// Writes one image row (voxels `0..width`, the channels of all sources side by side) to `dst`, with `before` voxels of
/// zeros in front of it and zeros behind it up to `voxels` in all. `before` may be negative: then the row's first
/// voxels are left out. Voxels past `voxels` are left out too. Voxels begin `pitch` elements apart; what lies between
/// the channels of one and the next voxel is left as it was.
///
/// # Safety
/// `dst` is valid for writing `voxels * pitch` elements; `pitch >=` the sum of all channels.
#[inline(always)]
pub(super) unsafe fn pack_row<T: Element>(
    dst: *mut T,
    sources: &[Source<T>],
    batch_idx: usize,
    row: usize,
    width: usize,
    before: isize,
    voxels: usize,
    pitch: usize,
) {
    let (first, skip, count) = overlap(-before, voxels, width);
    // SAFETY: the caller vouches for the length.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, voxels * pitch) };
    dst[..first * pitch].fill(T::ZERO);
    if first + count < voxels {
        dst[(first + count) * pitch..].fill(T::ZERO);
    }
    if count == 0 {
        return;
    }
    let dst = &mut dst[first * pitch..(first + count) * pitch];
    let mut at = 0;
    for s in sources {
        let n = s.channels;
        let src = &s.data[(row * width + skip) * n..(row * width + skip + count) * n];
        match s.norm {
            None if n == pitch => dst.copy_from_slice(src),
            None => {
                for (d, x) in dst.chunks_exact_mut(pitch).zip(src.chunks_exact(n)) {
                    d[at..at + n].copy_from_slice(x);
                }
            }
            Some(norm) => {
                let scale = &norm.scale[batch_idx * n..(batch_idx + 1) * n];
                let shift = &norm.shift[batch_idx * n..(batch_idx + 1) * n];
                for (d, x) in dst.chunks_exact_mut(pitch).zip(src.chunks_exact(n)) {
                    let d = &mut d[at..at + n];
                    for (((d, &x), &a), &b) in d.iter_mut().zip(x).zip(scale).zip(shift) {
                        let v = a * x + b;
                        *d = if v > T::ZERO { v } else { v * norm.slope };
                    }
                }
            }
        }
        at += n;
    }
}

/// Which part of `voxels` positions that begin at `first` lies on an axis of `width`: how many lie in front of it, the
/// first that does not, and how many are on it.
#[inline(always)]
pub(super) fn overlap(first: isize, voxels: usize, width: usize) -> (usize, usize, usize) {
    let before = ((-first).max(0) as usize).min(voxels);
    let skip = first.max(0) as usize;
    let count = width.saturating_sub(skip).min(voxels - before);
    (before, skip, count)
}

/// Whether `at` is a position on an axis of `n`.
pub(super) fn inside(at: isize, n: usize) -> bool {
    at >= 0 && (at as usize) < n
}

/// Copies the box of `size` voxels that begins at `first` (D, H, W; it may reach outside) of one sample of maps of
/// `input` voxels: `size[0] * size[1]` rows, each zero-padded along W. Rows that lie outside are left as they were, and
/// whoever reads the panel skips them.
///
/// # Safety
/// `panel` is valid for writing `size[0] * size[1] * size[2] * (sum of channels)` elements.
#[inline(always)]
pub(super) unsafe fn pack_panel<T: Element>(
    panel: *mut T,
    sources: &[Source<T>],
    batch_idx: usize,
    input: [usize; 3],
    first: [isize; 3],
    size: [usize; 3],
) {
    let channels: usize = sources.iter().map(|s| s.channels).sum();
    for d in 0..size[0] {
        for h in 0..size[1] {
            let (id, ih) = (first[0] + d as isize, first[1] + h as isize);
            if inside(id, input[0]) && inside(ih, input[1]) {
                let row = (batch_idx * input[0] + id as usize) * input[1] + ih as usize;
                // SAFETY: row d * size[1] + h of the panel, as the caller vouches.
                unsafe {
                    let dst = panel.add((d * size[1] + h) * size[2] * channels);
                    pack_row(dst, sources, batch_idx, row, input[2], -first[2], size[2], channels);
                }
            }
        }
    }
}

/// What packing has to know of an instruction set.
pub(super) struct VectorShape {
    pub(super) lanes: usize,
    pub(super) max_vectors: usize,
}

pub(super) fn vector_shape<T: Element>(set: InstructionSet) -> VectorShape {
    struct Ask;
    impl<T: Element> Kernel<T> for Ask {
        type Output = VectorShape;
        #[inline(always)]
        fn run<S: Simd<Elem = T>>(self) -> VectorShape {
            VectorShape { lanes: S::LANES, max_vectors: max_vectors::<S>() }
        }
    }
    dispatch::<T, _>(set, Ask)
}
