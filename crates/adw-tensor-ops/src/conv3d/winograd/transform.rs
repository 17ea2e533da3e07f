//! The transforms of inputs, weights and outputs, for vectors of channels.

// Small matrices of vectors, indexed as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::panel::Panel;
use super::tiling::{DepthSum, PLANE};
use crate::simd::{Element, Kernel, Simd};
use candle_core::WithDType;

/// Elements from tile to tile at one frequency of D, which lie as `[vector of channels][tile][frequency of H and W][lane]`:
/// numbers that are transformed together lie together.
pub(super) const fn tile_len(lanes: usize) -> usize {
    // One vector more than there are frequencies: at a distance of a power of two, all tiles would fall into the same few
    // sets of the first-level cache.
    (PLANE + 1) * lanes
}

/// A transform of [`transform_tiles`] along H or W. A trait rather than a function value, through which a call would not
/// be compiled for the instruction set.
pub(super) trait AxisTransform<const N: usize> {
    fn apply<S: Simd>(simd: S, x: [S::Vector; N]) -> [S::Vector; 4];
}

/// `B^T x`
pub(super) struct InputTransform;

impl AxisTransform<4> for InputTransform {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: [S::Vector; 4]) -> [S::Vector; 4] {
        [simd.sub(x[0], x[2]), simd.add(x[1], x[2]), simd.sub(x[2], x[1]), simd.sub(x[3], x[1])]
    }
}

/// `A y`
pub(super) struct OutputAdjoint;

impl AxisTransform<2> for OutputAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, y: [S::Vector; 2]) -> [S::Vector; 4] {
        [y[0], simd.add(y[0], y[1]), simd.sub(y[0], y[1]), y[1]]
    }
}

/// `A^T m`
#[inline(always)]
fn output_transform<S: Simd>(simd: S, m: [S::Vector; 4]) -> [S::Vector; 2] {
    [simd.add(simd.add(m[0], m[1]), m[2]), simd.add(simd.sub(m[1], m[2]), m[3])]
}

/// `A^T m A`: the outputs of a tile from its products at one frequency of D, `[frequency of H and W][lane]`.
#[inline(always)]
pub(super) fn output_plane<S: Simd>(simd: S, products: &[S::Elem]) -> [[S::Vector; 2]; 2] {
    let zero = simd.splat(S::Elem::ZERO);
    let products = &products[..PLANE * S::LANES];
    let mut m = [[zero; 4]; 4];
    for i in 0..4 {
        for j in 0..4 {
            m[i][j] = simd.read(&products[(i * 4 + j) * S::LANES..][..S::LANES]);
        }
    }
    let mut half = [[zero; 4]; 2];
    for j in 0..4 {
        let column = output_transform(simd, [m[0][j], m[1][j], m[2][j], m[3][j]]);
        half[0][j] = column[0];
        half[1][j] = column[1];
    }
    // Not `map`: its closure would not be compiled for the instruction set.
    [output_transform(simd, half[0]), output_transform(simd, half[1])]
}

/// Transforms every tile of a block of `block` tiles (D, H, W): one or two planes of `N` x `N` voxels, joined along D,
/// become 4 x 4 frequencies by `A` along H and W. Tiles begin `step` voxels apart.
///
/// # Panics
/// If the panel does not hold the voxels of all tiles, or `out` not their frequencies.
#[inline(always)]
pub(super) fn transform_tiles<S: Simd, A: AxisTransform<N>, const N: usize>(
    simd: S,
    panel: &Panel<S::Elem>,
    out: &mut [S::Elem],
    block: [usize; 3],
    step: [usize; 3],
    depth: &DepthSum<S::Elem>,
) {
    let [panel_d, panel_h, panel_w] = panel.size;
    let row = panel_w * S::LANES;
    let num_vectors = panel.data.len() / (panel_d * panel_h * row);
    let planes = depth.first.max(depth.second.map_or(0, |s| s.0)) + 1;
    for (i, reach) in [planes, N, N].into_iter().enumerate() {
        assert!((block[i] - 1) * step[i] + reach <= panel.size[i], "tiles reach beyond the panel");
    }
    let num_tiles = num_vectors * block.iter().product::<usize>();
    assert!(out.len() >= num_tiles * tile_len(S::LANES), "more tiles than there is room for");
    let zero = simd.splat(S::Elem::ZERO);
    let sign = simd.splat(depth.second.map_or(S::Elem::ZERO, |s| s.1));
    let mut out = out.as_mut_ptr();
    for v in 0..num_vectors {
        for d in 0..block[0] {
            for h in 0..block[1] {
                for w in 0..block[2] {
                    let at = |plane: usize| {
                        ((v * panel_d + d * step[0] + plane) * panel_h + h * step[1]) * row + w * step[2] * S::LANES
                    };
                    let mut x = [[zero; N]; N];
                    // SAFETY: the voxels of the tile lie inside the panel, and `out` has room for the tile, as was
                    // asserted above.
                    unsafe {
                        let first = panel.data.as_ptr().add(at(depth.first));
                        for i in 0..N {
                            for j in 0..N {
                                x[i][j] = simd.load(first.add(i * row + j * S::LANES));
                            }
                        }
                        if let Some((second, _)) = depth.second {
                            let second = panel.data.as_ptr().add(at(second));
                            for i in 0..N {
                                for j in 0..N {
                                    let other = simd.load(second.add(i * row + j * S::LANES));
                                    x[i][j] = simd.mul_add(other, sign, x[i][j]);
                                }
                            }
                        }
                        let columns = transform_columns::<S, A, N>(simd, &x);
                        for i in 0..4 {
                            let row = A::apply(simd, columns[i]);
                            for j in 0..4 {
                                simd.store(out.add((i * 4 + j) * S::LANES), row[j]);
                            }
                        }
                        out = out.add(tile_len(S::LANES));
                    }
                }
            }
        }
    }
}

/// Applies `A` to every column of a plane.
#[inline(always)]
fn transform_columns<S: Simd, A: AxisTransform<N>, const N: usize>(
    simd: S,
    x: &[[S::Vector; N]; N],
) -> [[S::Vector; N]; 4] {
    let zero = simd.splat(S::Elem::ZERO);
    let mut columns = [[zero; N]; 4];
    for j in 0..N {
        let mut column = [zero; N];
        for i in 0..N {
            column[i] = x[i][j];
        }
        let column = A::apply(simd, column);
        for i in 0..4 {
            columns[i][j] = column[i];
        }
    }
    columns
}

/// `G g`
#[inline(always)]
fn weight_transform<S: Simd>(simd: S, g: [S::Vector; 3]) -> [S::Vector; 4] {
    let half = simd.splat(S::Elem::from_f64(0.5));
    let zero = simd.splat(S::Elem::ZERO);
    let even = simd.mul_add(simd.add(g[0], g[2]), half, zero);
    let odd = simd.mul_add(g[1], half, zero);
    [g[0], simd.add(even, odd), simd.sub(even, odd), g[2]]
}

/// `G^T f`
#[inline(always)]
fn weight_transform_adjoint<S: Simd>(simd: S, f: [S::Vector; 4]) -> [S::Vector; 3] {
    let half = simd.splat(S::Elem::from_f64(0.5));
    let zero = simd.splat(S::Elem::ZERO);
    let even = simd.mul_add(simd.add(f[1], f[2]), half, zero);
    let odd = simd.mul_add(simd.sub(f[1], f[2]), half, zero);
    [simd.add(f[0], even), odd, simd.add(even, f[3])]
}

/// `G g` along the three axes, for a row of lanes: from `[tap][lane]`, nine or 27 taps, to `[frequency][lane]`.
pub(super) struct TransformWeight<'a, T> {
    pub(super) taps: &'a [T],
    pub(super) frequencies: &'a mut [T],
}

impl<T: Element> Kernel<T> for TransformWeight<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        let planes = if self.frequencies.len() * 9 == self.taps.len() * PLANE { 1 } else { 3 };
        let lanes = self.taps.len() / (planes * 9);
        debug_assert_eq!(lanes % S::LANES, 0, "rows are whole vectors");
        let zero = simd.splat(T::ZERO);
        for lane in (0..lanes).step_by(S::LANES) {
            let mut depth = [[zero; PLANE]; 3];
            for (d, plane) in depth.iter_mut().enumerate().take(planes) {
                let tap =
                    |h: usize, w: usize| simd.read(&self.taps[((d * 3 + h) * 3 + w) * lanes + lane..][..S::LANES]);
                let mut rows = [[zero; 4]; 3];
                for (h, row) in rows.iter_mut().enumerate() {
                    *row = weight_transform(simd, [tap(h, 0), tap(h, 1), tap(h, 2)]);
                }
                for w in 0..4 {
                    let column = weight_transform(simd, [rows[0][w], rows[1][w], rows[2][w]]);
                    for h in 0..4 {
                        plane[h * 4 + w] = column[h];
                    }
                }
            }
            for f in 0..PLANE {
                let along = weight_transform(simd, [depth[0][f], depth[1][f], depth[2][f]]);
                let along = if planes == 1 { &[depth[0][f]][..] } else { &along[..] };
                for (d, &x) in along.iter().enumerate() {
                    simd.write(&mut self.frequencies[(d * PLANE + f) * lanes + lane..][..S::LANES], x);
                }
            }
        }
    }
}

/// `G^T f` along the three axes, for a row of lanes: from `[frequency][lane]`, 16 or 64 frequencies, to `[tap][lane]`. The
/// adjoint of [`TransformWeight`].
pub(super) struct TransformWeightAdjoint<'a, T> {
    pub(super) frequencies: &'a [T],
    pub(super) taps: &'a mut [T],
}

impl<T: Element> Kernel<T> for TransformWeightAdjoint<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = T>>(self, simd: S) {
        let depths = if self.frequencies.len() * 9 == self.taps.len() * PLANE { 1 } else { 4 };
        let lanes = self.frequencies.len() / (depths * PLANE);
        debug_assert_eq!(lanes % S::LANES, 0, "rows are whole vectors");
        let zero = simd.splat(T::ZERO);
        for lane in (0..lanes).step_by(S::LANES) {
            let mut plane = [[[zero; 3]; 3]; 4];
            for (d, plane) in plane.iter_mut().enumerate().take(depths) {
                let at = |h: usize, w: usize| {
                    simd.read(&self.frequencies[(d * PLANE + h * 4 + w) * lanes + lane..][..S::LANES])
                };
                let mut rows = [[zero; 3]; 4];
                for (h, row) in rows.iter_mut().enumerate() {
                    *row = weight_transform_adjoint(simd, [at(h, 0), at(h, 1), at(h, 2), at(h, 3)]);
                }
                for w in 0..3 {
                    let column = weight_transform_adjoint(simd, [rows[0][w], rows[1][w], rows[2][w], rows[3][w]]);
                    for h in 0..3 {
                        plane[h][w] = column[h];
                    }
                }
            }
            for h in 0..3 {
                for w in 0..3 {
                    let along = weight_transform_adjoint(
                        simd,
                        [plane[0][h][w], plane[1][h][w], plane[2][h][w], plane[3][h][w]],
                    );
                    let along = if depths == 1 { &[plane[0][h][w]][..] } else { &along[..] };
                    for (d, &x) in along.iter().enumerate() {
                        simd.write(&mut self.taps[((d * 3 + h) * 3 + w) * lanes + lane..][..S::LANES], x);
                    }
                }
            }
        }
    }
}
