//! The transforms of tiles and weights, for vectors of channels.

// Small matrices of vectors, indexed as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::filter::{F2, F4, Filter, is_compiled};
use super::panel::Panel;
use crate::simd::{Element, Kernel, Simd};
use candle_core::WithDType;
use std::marker::PhantomData;

/// Elements from tile to tile at one frequency of D, which lie as `[vector of channels][tile][frequency of H and W][lane]`:
/// numbers that are transformed together lie together.
pub(super) const fn tile_len(plane_frequencies: usize, lanes: usize) -> usize {
    // One vector more than there are frequencies: at a distance of a power of two, all tiles would fall into the same few
    // sets of the first-level cache.
    (plane_frequencies + 1) * lanes
}

/// A transform along one axis, of `N` voxels to `P` frequencies. A trait rather than a function value, through which a call
/// would not be compiled for the instruction set.
pub(super) trait AxisTransform<const N: usize, const P: usize> {
    fn apply<S: Simd>(simd: S, x: [S::Vector; N]) -> [S::Vector; P];
}

/// `B^T x` of the filter `F` of `M` outputs.
pub(super) struct Input<F, const M: usize>(PhantomData<F>);

impl<F: Filter<N, M>, const N: usize, const M: usize> AxisTransform<N, N> for Input<F, M> {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: [S::Vector; N]) -> [S::Vector; N] {
        F::input(simd, x)
    }
}

/// `A y` of the filter `F`.
pub(super) struct OutputAdjoint<F>(PhantomData<F>);

impl<F: Filter<N, M>, const N: usize, const M: usize> AxisTransform<M, N> for OutputAdjoint<F> {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, y: [S::Vector; M]) -> [S::Vector; N] {
        F::output_adjoint(simd, y)
    }
}

/// `A^T m A`: the outputs of a tile from its products at one frequency of D, `[frequency of H and W][lane]`.
#[inline(always)]
pub(super) fn output_plane<S: Simd, F: Filter<N, M>, const N: usize, const M: usize>(
    simd: S,
    products: &[S::Elem],
) -> [[S::Vector; M]; M] {
    let zero = simd.splat(S::Elem::ZERO);
    let products = &products[..N * N * S::LANES];
    let mut half = [[zero; N]; M];
    for j in 0..N {
        let mut column = [zero; N];
        for i in 0..N {
            column[i] = simd.read(&products[(i * N + j) * S::LANES..][..S::LANES]);
        }
        let column = F::output(simd, column);
        for i in 0..M {
            half[i][j] = column[i];
        }
    }
    // Not `map`: its closure would not be compiled for the instruction set.
    let mut outputs = [[zero; M]; M];
    for i in 0..M {
        outputs[i] = F::output(simd, half[i]);
    }
    outputs
}

/// Memory of [`transform_tiles`]: a plane of voxels joined along D, and rows of it transformed along H.
pub(super) struct Planes<T> {
    joined: Vec<T>,
    rows: Vec<T>,
}

impl<T> Default for Planes<T> {
    fn default() -> Self {
        Self { joined: Vec::new(), rows: Vec::new() }
    }
}

/// Transforms every tile of a block of `block` tiles (D, H, W): the planes `depth` of a tile are joined along D with their
/// factors, then `N` x `N` voxels become `P` x `P` frequencies by `A` along H and W. Tiles begin `step` voxels apart.
///
/// # Panics
/// If the panel does not hold the voxels of all tiles, or `out` not their frequencies.
#[inline(always)]
pub(super) fn transform_tiles<S: Simd, A: AxisTransform<N, P>, const N: usize, const P: usize>(
    simd: S,
    panel: &Panel<S::Elem>,
    planes: &mut Planes<S::Elem>,
    out: &mut [S::Elem],
    block: [usize; 3],
    step: [usize; 3],
    depth: &[(usize, f64)],
) {
    let [panel_d, panel_h, panel_w] = panel.size;
    let row = panel_w * S::LANES;
    let plane = panel_h * row;
    let num_vectors = panel.data.len() / (panel_d * plane);
    for i in [1, 2] {
        assert!((block[i] - 1) * step[i] + N <= panel.size[i], "tiles reach beyond the panel");
    }
    let tile_len = tile_len(P * P, S::LANES);
    assert!(out.len() >= num_vectors * block.iter().product::<usize>() * tile_len, "more tiles than there is room for");
    planes.rows.resize(P * row, S::Elem::ZERO);
    let mut out = out.as_mut_ptr();
    for v in 0..num_vectors {
        for d in 0..block[0] {
            let planes_of = &panel.data[v * panel_d * plane..][..panel_d * plane];
            let voxels = join_planes(simd, &mut planes.joined, planes_of, plane, d * step[0], depth);
            for h in 0..block[1] {
                let voxels = &voxels[h * step[1] * row..][..N * row];
                let rows = planes.rows.as_mut_ptr();
                // SAFETY: `voxels` and `rows` are N and P rows of the panel's width; the tiles' voxels lie inside it, and
                // `out` has room for all tiles, as was asserted above.
                unsafe {
                    for w in 0..panel_w {
                        let mut column = [simd.splat(S::Elem::ZERO); N];
                        for i in 0..N {
                            column[i] = simd.load(voxels.as_ptr().add(i * row + w * S::LANES));
                        }
                        let column = A::apply(simd, column);
                        for i in 0..P {
                            simd.store(rows.add(i * row + w * S::LANES), column[i]);
                        }
                    }
                    for w in 0..block[2] {
                        for i in 0..P {
                            let mut x = [simd.splat(S::Elem::ZERO); N];
                            for j in 0..N {
                                x[j] = simd.load(rows.add(i * row + (w * step[2] + j) * S::LANES));
                            }
                            let x = A::apply(simd, x);
                            for j in 0..P {
                                simd.store(out.add((i * P + j) * S::LANES), x[j]);
                            }
                        }
                        out = out.add(tile_len);
                    }
                }
            }
        }
    }
}

/// The sum of the planes `first + depth[i].0` of `plane` elements, times their factors, of which the first is 1.
#[inline(always)]
fn join_planes<'a, S: Simd>(
    simd: S,
    buffer: &'a mut Vec<S::Elem>,
    planes: &'a [S::Elem],
    plane: usize,
    first: usize,
    depth: &[(usize, f64)],
) -> &'a [S::Elem] {
    let at = |i: usize| &planes[(first + depth[i].0) * plane..][..plane];
    buffer.resize(plane, S::Elem::ZERO);
    match depth.len() {
        1 => return at(0),
        2 => join::<S, 1>(simd, buffer, at(0), [at(1)], [depth[1].1]),
        3 => join::<S, 2>(simd, buffer, at(0), [at(1), at(2)], [depth[1].1, depth[2].1]),
        4 => join::<S, 3>(simd, buffer, at(0), [at(1), at(2), at(3)], [depth[1].1, depth[2].1, depth[3].1]),
        n => unreachable!("a frequency of {n} planes"),
    }
    buffer
}

/// `out = first + sum of factors[i] * others[i]`, all of the same length.
#[inline(always)]
fn join<S: Simd, const K: usize>(
    simd: S,
    out: &mut [S::Elem],
    first: &[S::Elem],
    others: [&[S::Elem]; K],
    factors: [f64; K],
) {
    let mut splats = [simd.splat(S::Elem::ZERO); K];
    for k in 0..K {
        splats[k] = simd.splat(S::Elem::from_f64(factors[k]));
        assert!(others[k].len() == out.len() && first.len() == out.len(), "planes of different lengths");
    }
    for i in (0..out.len() / S::LANES).map(|i| i * S::LANES) {
        // SAFETY: all slices are as long as `out`.
        unsafe {
            let mut sum = simd.load(first.as_ptr().add(i));
            for k in 0..K {
                sum = simd.mul_add(simd.load(others[k].as_ptr().add(i)), splats[k], sum);
            }
            simd.store(out.as_mut_ptr().add(i), sum);
        }
    }
}

/// `G g` along the three axes, for a row of lanes: from `[tap][lane]` to `[frequency][lane]`, with the filter `F` along H and
/// W.
pub(super) struct TransformWeight<'a, T, F, const N: usize, const M: usize> {
    pub(super) taps: &'a [T],
    pub(super) frequencies: &'a mut [T],
    /// Frequencies of D: 1 for a kernel of depth 1, else 4 or 6.
    pub(super) depths: usize,
    pub(super) filter: PhantomData<F>,
}

impl<T: Element, F: Filter<N, M>, const N: usize, const M: usize> Kernel<T> for TransformWeight<'_, T, F, N, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        if const { !is_compiled::<S>(F::PLANE) } {
            unreachable!("the chooser knows which filters there are");
        }
        let Self { taps, frequencies, depths, .. } = self;
        let planes = if depths == 1 { 1 } else { 3 };
        let lanes = taps.len() / (planes * 9);
        debug_assert_eq!(lanes % S::LANES, 0, "rows are whole vectors");
        let zero = simd.splat(T::ZERO);
        for lane in (0..lanes).step_by(S::LANES) {
            let mut depth = [[[zero; N]; N]; 3];
            for d in 0..planes {
                let mut rows = [[zero; N]; 3];
                for h in 0..3 {
                    let mut g = [zero; 3];
                    for w in 0..3 {
                        g[w] = simd.read(&taps[((d * 3 + h) * 3 + w) * lanes + lane..][..S::LANES]);
                    }
                    rows[h] = F::weight(simd, g);
                }
                for w in 0..N {
                    let column = F::weight(simd, [rows[0][w], rows[1][w], rows[2][w]]);
                    for h in 0..N {
                        depth[d][h][w] = column[h];
                    }
                }
            }
            for h in 0..N {
                for w in 0..N {
                    let g = [depth[0][h][w], depth[1][h][w], depth[2][h][w]];
                    let mut f = [zero; 6];
                    match depths {
                        1 => f[0] = g[0],
                        4 => f[..4].copy_from_slice(&F2::weight(simd, g)),
                        _ => f = F4::weight(simd, g),
                    }
                    for d in 0..depths {
                        simd.write(&mut frequencies[((d * N + h) * N + w) * lanes + lane..][..S::LANES], f[d]);
                    }
                }
            }
        }
    }
}

/// `G^T f` along the three axes, for a row of lanes: from `[frequency][lane]` to `[tap][lane]`. The adjoint of
/// [`TransformWeight`].
pub(super) struct TransformWeightAdjoint<'a, T, F, const N: usize, const M: usize> {
    pub(super) frequencies: &'a [T],
    pub(super) taps: &'a mut [T],
    /// Frequencies of D: 1 for a kernel of depth 1, else 4 or 6.
    pub(super) depths: usize,
    pub(super) filter: PhantomData<F>,
}

impl<T: Element, F: Filter<N, M>, const N: usize, const M: usize> Kernel<T> for TransformWeightAdjoint<'_, T, F, N, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        if const { !is_compiled::<S>(F::PLANE) } {
            unreachable!("the chooser knows which filters there are");
        }
        let Self { frequencies, taps, depths, .. } = self;
        let lanes = frequencies.len() / (depths * N * N);
        debug_assert_eq!(lanes % S::LANES, 0, "rows are whole vectors");
        let zero = simd.splat(T::ZERO);
        for lane in (0..lanes).step_by(S::LANES) {
            let mut plane = [[[zero; 3]; 3]; 6];
            for d in 0..depths {
                let mut rows = [[zero; 3]; N];
                for h in 0..N {
                    let mut f = [zero; N];
                    for w in 0..N {
                        f[w] = simd.read(&frequencies[((d * N + h) * N + w) * lanes + lane..][..S::LANES]);
                    }
                    rows[h] = F::weight_adjoint(simd, f);
                }
                for w in 0..3 {
                    let mut column = [zero; N];
                    for h in 0..N {
                        column[h] = rows[h][w];
                    }
                    let column = F::weight_adjoint(simd, column);
                    for h in 0..3 {
                        plane[d][h][w] = column[h];
                    }
                }
            }
            for h in 0..3 {
                for w in 0..3 {
                    let mut f = [zero; 6];
                    for d in 0..6 {
                        f[d] = plane[d][h][w];
                    }
                    let g = match depths {
                        1 => [f[0], zero, zero],
                        4 => F2::weight_adjoint(simd, [f[0], f[1], f[2], f[3]]),
                        _ => F4::weight_adjoint(simd, f),
                    };
                    for d in 0..if depths == 1 { 1 } else { 3 } {
                        simd.write(&mut taps[((d * 3 + h) * 3 + w) * lanes + lane..][..S::LANES], g[d]);
                    }
                }
            }
        }
    }
}
