//! Register tile of all convolution passes:
//!
//! ```text
//! c[r][v] += sum over segments s, k < s.len:  a[s.a + r * a_row + k * a_step] * b[s.b + k * b_step + v * b_vector]
//! ```
//! where `c[r][v]` and `b[...]` are vectors. `R` rows by `V` vectors stay in registers for the whole sum. Forward pass and
//! input gradient: rows are output voxels, `k` runs over input channels (and taps along W), vectors hold output channels.
//! Weight gradient: rows are input channels, `k` runs over voxels. Every sum is taken in one fixed order, whatever the
//! number of threads.

use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};

/// One run of `k`: its first elements in the operands, and its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) len: usize,
}

/// Addresses of a tile's operands, and their strides in elements.
#[derive(Clone, Copy)]
pub(crate) struct Operands<T> {
    pub(crate) a: *const T,
    /// Stride from row to row.
    pub(crate) a_row: usize,
    /// Stride from `k` to `k + 1`.
    pub(crate) a_step: usize,
    pub(crate) b: *const T,
    /// Stride from `k` to `k + 1`.
    pub(crate) b_step: usize,
    /// Stride from vector to vector.
    pub(crate) b_vector: usize,
    pub(crate) c: *mut T,
    /// Stride from row to row.
    pub(crate) c_row: usize,
    /// Stride from vector to vector.
    pub(crate) c_vector: usize,
    /// Lanes of the last vector that exist in `c`.
    pub(crate) tail: usize,
    /// Add to `c` instead of overwriting it.
    pub(crate) accumulate: bool,
}

/// Largest width of a tile, in vectors.
pub(super) const fn max_vectors<S: Simd>() -> usize {
    match S::REGISTERS {
        32 => 4,
        16 => 2,
        _ => 1,
    }
}

/// Largest number of rows of a tile of `vectors` vectors: accumulators, one row of `b` and one splat fill the registers,
/// and 12 accumulators already hide the latency of two multiply-add units.
pub(crate) const fn max_rows<S: Simd>(vectors: usize) -> usize {
    match (S::REGISTERS, vectors) {
        (32, 1 | 2) => 12,
        (32, 3) => 8,
        (32, _) | (16, 2) => 6,
        (16, 1) => 10,
        _ => 4,
    }
}

/// The tile of `R` rows by `V` vectors, a kernel of its own: inlined everywhere, its many sizes would take minutes to
/// compile.
struct Tile<'a, T, const R: usize, const V: usize> {
    operands: &'a Operands<T>,
    segments: &'a [Segment],
}

impl<T: Element, const R: usize, const V: usize> Kernel<T> for Tile<'_, T, R, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        // SAFETY: `run_tile`, which alone makes this kernel, has the same conditions.
        unsafe { tile::<S, R, V>(simd, self.operands, self.segments) }
    }
}

/// Computes a tile of `R` rows by `V` vectors.
///
/// # Safety
/// All addresses that the formula at the head of the file names are valid: `a` and `b` for reading (`b` in whole
/// vectors), `c` for writing (and for reading with `accumulate`), its last vector for `tail` elements.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(simd: S, o: &Operands<S::Elem>, segments: &[Segment]) {
    // SAFETY: the caller guarantees that these addresses are valid.
    unsafe {
        let one = simd.splat(S::Elem::ONE);
        let mut acc = [[simd.splat(S::Elem::ZERO); V]; R];
        for s in segments {
            let (mut a, mut b) = (o.a.add(s.a), o.b.add(s.b));
            for _ in 0..s.len {
                let mut row = [simd.splat(S::Elem::ZERO); V];
                for (v, x) in row.iter_mut().enumerate() {
                    *x = simd.load(b.add(v * o.b_vector));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = simd.splat(*a.add(r * o.a_row));
                    for (acc, &b) in acc.iter_mut().zip(&row) {
                        *acc = simd.mul_add(x, b, *acc);
                    }
                }
                a = a.add(o.a_step);
                b = b.add(o.b_step);
            }
        }
        // The previous value is added to the finished sum, not the other way round: a long sum over several calls is then
        // one of partial sums, with their smaller rounding errors.
        for (r, row) in acc.iter().enumerate() {
            let c = o.c.add(r * o.c_row);
            for (v, &sum) in row.iter().enumerate() {
                let at = c.add(v * o.c_vector);
                let lanes = if v + 1 == V { o.tail } else { S::LANES };
                let sum = if o.accumulate { simd.mul_add(sum, one, simd.load_up_to(at, lanes)) } else { sum };
                simd.store_up_to(at, sum, lanes);
            }
        }
    }
}

/// Computes the tile of the formula at the head of the file, of `rows` rows by `vectors` vectors.
///
/// # Safety
/// `1 <= vectors <= max_vectors` and `1 <= rows <= max_rows(vectors)`. All addresses that the formula names are valid: `a`
/// and `b` for reading (`b` in whole vectors), `c` for writing (and for reading with `accumulate`), its last vector for
/// `tail` elements.
#[inline(always)]
pub(crate) unsafe fn run_tile<S: Simd>(
    simd: S,
    rows: usize,
    vectors: usize,
    operands: &Operands<S::Elem>,
    segments: &[Segment],
) {
    macro_rules! pick {
        ($($v:literal: $($r:literal)*;)*) => {
            match (vectors, rows) {
                $($(($v, $r) => {
                    // Tiles larger than this instruction set has registers for are not compiled.
                    if const { $v <= max_vectors::<S>() && $r <= max_rows::<S>($v) } {
                        simd.call(Tile::<_, $r, $v> { operands, segments })
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

/// Vector lengths of an instruction set, as far as packing depends on them.
pub(super) struct VectorShape {
    pub(super) lanes: usize,
    pub(super) max_vectors: usize,
}

impl VectorShape {
    /// Vectors of `T` in `set`.
    pub(super) fn of<T: Element>(set: InstructionSet) -> Self {
        struct ReadConstants;
        impl<T: Element> Kernel<T> for ReadConstants {
            type Output = VectorShape;
            #[inline(always)]
            fn run<S: Simd<Elem = T>>(self, _: S) -> VectorShape {
                VectorShape { lanes: S::LANES, max_vectors: max_vectors::<S>() }
            }
        }
        dispatch::<T, _>(set, ReadConstants)
    }
}
