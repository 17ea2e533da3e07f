//! Peak speed of the processor, which benchmarks compare the convolutions with.

use crate::conv3d::tile::{Operands, Segment, max_rows, run_tile};
use crate::simd::{Element, InstructionSet, Kernel, Simd, dispatch};
use rayon::prelude::*;
use std::time::Instant;

/// Measures the floating-point operations per second (two per multiply-add) of the convolutions' register tile, on all
/// threads of the current rayon pool with operands in the first-level cache: the best of 20 runs. A convolution by the
/// direct sum cannot be faster; one by Winograd's transforms can, since it does fewer operations than are counted.
pub fn flops_per_second(set: InstructionSet) -> f64 {
    let once = || {
        let start = Instant::now();
        let operations: u64 =
            (0..rayon::current_num_threads()).into_par_iter().map(|_| dispatch::<f32, _>(set, Multiply)).sum();
        operations as f64 / start.elapsed().as_secs_f64()
    };
    (0..20).map(|_| once()).fold(0.0, f64::max)
}

struct Multiply;

impl Kernel<f32> for Multiply {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd<Elem = f32>>(self, simd: S) -> u64 {
        const LEN: usize = 96;
        const CALLS: usize = 4000;
        let vectors = if S::REGISTERS == 32 { 3 } else { 1 };
        let rows = max_rows::<S>(vectors);
        let width = vectors * S::LANES;
        let (a, b) = (vec![f32::ZERO; rows * LEN], vec![f32::ZERO; LEN * width]);
        let mut c = vec![f32::ZERO; rows * width];
        let operands = Operands {
            a: a.as_ptr(),
            a_row: LEN,
            a_step: 1,
            b: b.as_ptr(),
            b_step: width,
            b_vector: S::LANES,
            c: c.as_mut_ptr(),
            c_row: width,
            c_vector: S::LANES,
            tail: S::LANES,
            accumulate: false,
        };
        let all = [Segment { a: 0, b: 0, len: LEN }];
        for _ in 0..CALLS {
            // SAFETY: the operands were made for this tile.
            unsafe { run_tile(simd, rows, vectors, &operands, &all) }
        }
        std::hint::black_box(c);
        (2 * CALLS * LEN * rows * width) as u64
    }
}
