//! Winograd's minimal filtering for 3x3x3 and 1x3x3 kernels of stride 1: `m` neighbouring outputs of a three-tap filter from
//! `m + 2` multiplications instead of `3 m`, along every axis. With `m = 2` everywhere these are 64 instead of 216 per 2x2x2
//! outputs, with `m = 4` 216 instead of 1728 per 4x4x4.
//!
//! Along one axis, with inputs `x`, taps `g` and outputs `y` (Lavin and Gray, CVPR 2016):
//! ```text
//! forward    y  = A^T [(G g) * (B^T x)]
//! gradient   dg = G^T [(A dy) * (B^T x)]        the adjoint in g: the weight gradient costs as little
//!
//! F(2, 3):   B^T x = [x0 - x2,  x1 + x2,  x2 - x1,  x3 - x1]
//!            G g   = [g0,  (g0 + g1 + g2) / 2,  (g0 - g1 + g2) / 2,  g2]
//!            A^T m = [m0 + m1 + m2,  m1 - m2 + m3]
//! ```
//! and F(4, 3) alike (`filter.rs`), with larger coefficients: along all three axes it loses two bits and a half, which leaves an
//! error of 2e-6 (relative L2) in f32.
//!
//! The *frequencies* of axis D are taken one after the other, and at each of them all those of H and W at once: join the planes
//! of the tiles of a block along D, transform them along H and W, multiply `[tiles x k channels]` by `[k channels x output
//! channels]` for each frequency, transform back and add to the outputs. What one frequency of D needs stays in the
//! second-level cache for blocks of some dozens of tiles, where all together would not. A kernel of depth 1 is the same with a
//! single frequency of D.

pub(super) mod correlation;
mod filter;
mod panel;
mod tiling;
mod transform;
pub(super) mod weight_gradient;

use super::job::Axis;
use crate::simd::{Element, InstructionSet};

pub(super) use tiling::{TileShape, Tiling};

/// Cost of a transformed weight, which is computed, written and read, in multiply-adds of the direct sum per frequency.
/// Measured, and of little consequence: it decides where few voxels meet many channels.
const WEIGHT_COST: usize = 160;

/// Returns true if the transforms compute a job with these axes.
pub(super) fn supports(axes: &[Axis; 3]) -> bool {
    let is_dense = |a: &Axis| a.step == 1 && a.output_step == 1 && a.is_contiguous();
    axes.iter().all(is_dense) && matches!(axes.each_ref().map(|a| a.taps.len()), [1 | 3, 3, 3])
}

/// Tiles of a shape for a job that the transforms support; none if there is no such shape for it.
pub(super) fn tiling<T: Element>(set: InstructionSet, axes: &[Axis; 3], shape: TileShape) -> Option<Tiling> {
    let outputs = axes.each_ref().map(|a| a.num_outputs);
    TileShape::available::<T>(set, axes[0].taps.len()).contains(&shape).then(|| Tiling::new(shape, outputs))
}

/// The tiles of least work for a job that the transforms support, if it has channels enough (read and written) and the work is
/// estimated to be less than the direct sum.
pub(super) fn cheapest<T: Element>(
    set: InstructionSet,
    axes: &[Axis; 3],
    batch: usize,
    channels: [usize; 2],
    min_channels: [usize; 2],
) -> Option<Tiling> {
    if channels[0] < min_channels[0] || channels[1] < min_channels[1] {
        return None;
    }
    let outputs = axes.each_ref().map(|a| a.num_outputs);
    let direct = batch * outputs.iter().product::<usize>() * axes[0].taps.len() * 9;
    let cost = |t: &Tiling| (batch * t.tiles.iter().product::<usize>() + WEIGHT_COST) * t.num_frequencies();
    let shapes = TileShape::available::<T>(set, axes[0].taps.len());
    let cheapest = shapes.into_iter().map(|shape| Tiling::new(shape, outputs)).min_by_key(cost);
    cheapest.filter(|t| cost(t) < direct)
}
