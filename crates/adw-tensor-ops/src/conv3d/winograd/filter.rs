//! Winograd's minimal filters along one axis: their matrices, applied to vectors.

use crate::simd::{Element, Simd};
use candle_core::WithDType;

/// Outputs of a tile along H and W.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaneFilter {
    /// 2 x 2, by [`F2`].
    Two,
    /// 4 x 4, by [`F4`].
    Four,
}

/// Returns true if the program has the kernels of a filter in an instruction set. Those of 4 x 4 outputs without vector
/// instructions, for f64 and old processors, are left out: they would make the program larger for few.
pub(super) const fn is_compiled<S: Simd>(plane: PlaneFilter) -> bool {
    S::REGISTERS >= 16 || matches!(plane, PlaneFilter::Two)
}

/// F(M, 3): `M` neighbouring outputs of a filter of three taps from `N = M + 2` products, at the points 0, pairs `p`, `-p`
/// and infinity.
pub(super) trait Filter<const N: usize, const M: usize>: Copy + Send + Sync + 'static {
    /// Its name among those of tilings.
    const PLANE: PlaneFilter;

    /// `B^T x`
    fn input<S: Simd>(simd: S, x: [S::Vector; N]) -> [S::Vector; N];
    /// `A^T m`
    fn output<S: Simd>(simd: S, m: [S::Vector; N]) -> [S::Vector; M];
    /// `A y`
    fn output_adjoint<S: Simd>(simd: S, y: [S::Vector; M]) -> [S::Vector; N];
    /// `G g`
    fn weight<S: Simd>(simd: S, g: [S::Vector; 3]) -> [S::Vector; N];
    /// `G^T f`
    fn weight_adjoint<S: Simd>(simd: S, f: [S::Vector; N]) -> [S::Vector; 3];
}

/// F(2, 3), at the points 0, 1, -1 and infinity.
#[derive(Clone, Copy)]
pub(super) struct F2;

impl Filter<4, 2> for F2 {
    const PLANE: PlaneFilter = PlaneFilter::Two;

    #[inline(always)]
    fn input<S: Simd>(simd: S, x: [S::Vector; 4]) -> [S::Vector; 4] {
        [simd.sub(x[0], x[2]), simd.add(x[1], x[2]), simd.sub(x[2], x[1]), simd.sub(x[3], x[1])]
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::Vector; 4]) -> [S::Vector; 2] {
        [simd.add(simd.add(m[0], m[1]), m[2]), simd.add(simd.sub(m[1], m[2]), m[3])]
    }

    #[inline(always)]
    fn output_adjoint<S: Simd>(simd: S, y: [S::Vector; 2]) -> [S::Vector; 4] {
        [y[0], simd.add(y[0], y[1]), simd.sub(y[0], y[1]), y[1]]
    }

    #[inline(always)]
    fn weight<S: Simd>(simd: S, g: [S::Vector; 3]) -> [S::Vector; 4] {
        let even = times(simd, simd.add(g[0], g[2]), 0.5);
        let odd = times(simd, g[1], 0.5);
        [g[0], simd.add(even, odd), simd.sub(even, odd), g[2]]
    }

    #[inline(always)]
    fn weight_adjoint<S: Simd>(simd: S, f: [S::Vector; 4]) -> [S::Vector; 3] {
        let even = times(simd, simd.add(f[1], f[2]), 0.5);
        let odd = times(simd, simd.sub(f[1], f[2]), 0.5);
        [simd.add(f[0], even), odd, simd.add(even, f[3])]
    }
}

/// First point of [`F4`]. Of 56 pairs of points tried on random numbers, these two have nearly the least error along all three
/// axes together: 1.1e-6 (relative L2), where F(2, 3) has 2e-7 and the usual points 1 and 2 have 5e-6. All coefficients of
/// `B^T` and `A^T` are exact in f32.
pub(super) const P: f64 = 0.625;
/// Second point of [`F4`].
pub(super) const Q: f64 = 1.5;
const P2: f64 = P * P;
const Q2: f64 = Q * Q;
/// `G` of the points 0, P and -P, Q and -Q.
const G_0: f64 = 1.0 / (P2 * Q2);
const G_P: f64 = 1.0 / (2.0 * P2 * (P2 - Q2));
const G_Q: f64 = 1.0 / (2.0 * Q2 * (Q2 - P2));

/// F(4, 3), at the points 0, P, -P, Q, -Q and infinity.
#[derive(Clone, Copy)]
pub(super) struct F4;

impl Filter<6, 4> for F4 {
    const PLANE: PlaneFilter = PlaneFilter::Four;

    #[inline(always)]
    fn input<S: Simd>(simd: S, x: [S::Vector; 6]) -> [S::Vector; 6] {
        let (even_p, odd_p) = (plus(simd, x[4], -Q2, x[2]), plus(simd, x[3], -Q2, x[1]));
        let (even_q, odd_q) = (plus(simd, x[4], -P2, x[2]), plus(simd, x[3], -P2, x[1]));
        [
            plus(simd, plus(simd, x[4], -P2 - Q2, x[2]), P2 * Q2, x[0]),
            plus(simd, even_p, P, odd_p),
            plus(simd, even_p, -P, odd_p),
            plus(simd, even_q, Q, odd_q),
            plus(simd, even_q, -Q, odd_q),
            plus(simd, plus(simd, x[5], -P2 - Q2, x[3]), P2 * Q2, x[1]),
        ]
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::Vector; 6]) -> [S::Vector; 4] {
        let (even_p, odd_p) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
        let (even_q, odd_q) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
        [
            simd.add(simd.add(m[0], even_p), even_q),
            plus(simd, times(simd, odd_p, P), Q, odd_q),
            plus(simd, times(simd, even_p, P2), Q2, even_q),
            plus(simd, plus(simd, m[5], P2 * P, odd_p), Q2 * Q, odd_q),
        ]
    }

    #[inline(always)]
    fn output_adjoint<S: Simd>(simd: S, y: [S::Vector; 4]) -> [S::Vector; 6] {
        let (even_p, odd_p) = (plus(simd, y[0], P2, y[2]), plus(simd, y[1], P2, y[3]));
        let (even_q, odd_q) = (plus(simd, y[0], Q2, y[2]), plus(simd, y[1], Q2, y[3]));
        [
            y[0],
            plus(simd, even_p, P, odd_p),
            plus(simd, even_p, -P, odd_p),
            plus(simd, even_q, Q, odd_q),
            plus(simd, even_q, -Q, odd_q),
            y[3],
        ]
    }

    #[inline(always)]
    fn weight<S: Simd>(simd: S, g: [S::Vector; 3]) -> [S::Vector; 6] {
        let (even_p, odd_p) = (times(simd, plus(simd, g[0], P2, g[2]), G_P), times(simd, g[1], P * G_P));
        let (even_q, odd_q) = (times(simd, plus(simd, g[0], Q2, g[2]), G_Q), times(simd, g[1], Q * G_Q));
        [
            times(simd, g[0], G_0),
            simd.add(even_p, odd_p),
            simd.sub(even_p, odd_p),
            simd.add(even_q, odd_q),
            simd.sub(even_q, odd_q),
            g[2],
        ]
    }

    #[inline(always)]
    fn weight_adjoint<S: Simd>(simd: S, f: [S::Vector; 6]) -> [S::Vector; 3] {
        let (even_p, odd_p) = (simd.add(f[1], f[2]), simd.sub(f[1], f[2]));
        let (even_q, odd_q) = (simd.add(f[3], f[4]), simd.sub(f[3], f[4]));
        [
            plus(simd, plus(simd, times(simd, f[0], G_0), G_P, even_p), G_Q, even_q),
            plus(simd, times(simd, odd_p, P * G_P), Q * G_Q, odd_q),
            plus(simd, plus(simd, f[5], P2 * G_P, even_p), Q2 * G_Q, even_q),
        ]
    }
}

/// `factor * x`
#[inline(always)]
fn times<S: Simd>(simd: S, x: S::Vector, factor: f64) -> S::Vector {
    plus(simd, simd.splat(S::Elem::ZERO), factor, x)
}

/// `sum + factor * x`
#[inline(always)]
fn plus<S: Simd>(simd: S, sum: S::Vector, factor: f64, x: S::Vector) -> S::Vector {
    simd.mul_add(x, simd.splat(S::Elem::from_f64(factor)), sum)
}

/// One frequency of axis D.
#[derive(Clone, Copy, Debug)]
pub(super) struct DepthFrequency {
    /// A row of `B^T`: planes of an input tile and their factors, the first 1.
    pub(super) input: &'static [(usize, f64)],
    /// A column of `A^T`, which is a row of `A`: planes of outputs that the frequency contributes to, and its share.
    pub(super) output: &'static [(usize, f64)],
}

const fn frequency(input: &'static [(usize, f64)], output: &'static [(usize, f64)]) -> DepthFrequency {
    DepthFrequency { input, output }
}

/// The frequency of a single tap.
pub(super) const DEPTH_1: &[DepthFrequency] = &[frequency(&[(0, 1.0)], &[(0, 1.0)])];
/// F(2, 3), as [`F2`].
pub(super) const DEPTH_2: &[DepthFrequency] = &[
    frequency(&[(0, 1.0), (2, -1.0)], &[(0, 1.0)]),
    frequency(&[(1, 1.0), (2, 1.0)], &[(0, 1.0), (1, 1.0)]),
    frequency(&[(2, 1.0), (1, -1.0)], &[(0, 1.0), (1, -1.0)]),
    frequency(&[(3, 1.0), (1, -1.0)], &[(1, 1.0)]),
];
/// F(4, 3), as [`F4`].
pub(super) const DEPTH_4: &[DepthFrequency] = &[
    frequency(&[(4, 1.0), (2, -P2 - Q2), (0, P2 * Q2)], &[(0, 1.0)]),
    frequency(&[(4, 1.0), (3, P), (2, -Q2), (1, -P * Q2)], &[(0, 1.0), (1, P), (2, P2), (3, P2 * P)]),
    frequency(&[(4, 1.0), (3, -P), (2, -Q2), (1, P * Q2)], &[(0, 1.0), (1, -P), (2, P2), (3, -P2 * P)]),
    frequency(&[(4, 1.0), (3, Q), (2, -P2), (1, -Q * P2)], &[(0, 1.0), (1, Q), (2, Q2), (3, Q2 * Q)]),
    frequency(&[(4, 1.0), (3, -Q), (2, -P2), (1, Q * P2)], &[(0, 1.0), (1, -Q), (2, Q2), (3, -Q2 * Q)]),
    frequency(&[(5, 1.0), (3, -P2 - Q2), (1, P2 * Q2)], &[(3, 1.0)]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{InstructionSet, Kernel, dispatch};
    use crate::testing::numbers;
    use adw_testing::{assert_close, tolerance};
    use std::marker::PhantomData;

    /// Outputs, transformed inputs and outputs' shares of one filter, in the first lane.
    struct Apply<F, const N: usize, const M: usize> {
        x: Vec<f64>,
        g: Vec<f64>,
        filter: PhantomData<F>,
    }

    impl<F: Filter<N, M>, const N: usize, const M: usize> Kernel<f64> for Apply<F, N, M> {
        /// `A^T [(G g) * (B^T x)]`, and the same by [`DepthFrequency`]s.
        type Output = [Vec<f64>; 2];

        fn run<S: Simd<Elem = f64>>(self, simd: S) -> Self::Output {
            let first = |v: S::Vector| {
                let mut lanes = vec![0.0; S::LANES];
                simd.write(&mut lanes, v);
                lanes[0]
            };
            let weight = F::weight(simd, [0, 1, 2].map(|i| simd.splat(self.g[i])));
            let input = F::input(simd, std::array::from_fn(|i| simd.splat(self.x[i])));
            let zero = simd.splat(0.0);
            let products: [S::Vector; N] = std::array::from_fn(|i| simd.mul_add(weight[i], input[i], zero));
            let depth = if N == 4 { DEPTH_2 } else { DEPTH_4 };
            let mut by_depth = vec![0.0; M];
            for (i, frequency) in depth.iter().enumerate() {
                let joined: f64 = frequency.input.iter().map(|&(plane, factor)| factor * self.x[plane]).sum();
                for &(plane, share) in frequency.output {
                    by_depth[plane] += share * first(weight[i]) * joined;
                }
            }
            [F::output(simd, products).map(first).to_vec(), by_depth]
        }
    }

    fn check<F: Filter<N, M>, const N: usize, const M: usize>(filter: PhantomData<F>) {
        let (x, g) = (numbers(1, N), numbers(2, 3));
        let expected: Vec<f64> = (0..M).map(|i| (0..3).map(|k| x[i + k] * g[k]).sum()).collect();
        for set in InstructionSet::available() {
            for outputs in dispatch(set, Apply::<F, N, M> { x: x.clone(), g: g.clone(), filter }) {
                assert_close("outputs", &outputs, &expected, tolerance::F64_SUM);
            }
        }
    }

    #[test]
    fn filters_are_correlations() {
        check::<F2, 4, 2>(PhantomData);
        check::<F4, 6, 4>(PhantomData);
    }
}
