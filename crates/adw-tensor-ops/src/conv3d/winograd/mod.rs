//! Winograd's minimal filtering for 3x3x3 and 1x3x3 kernels of stride 1: two neighbouring outputs of a three-tap filter
//! from four multiplications instead of six, along every axis, so 64 instead of 216 per 2x2x2 outputs.
//!
//! Along one axis, with inputs `x0..x3`, taps `g0..g2` and outputs `y0, y1` (F(2, 3); Lavin and Gray, CVPR 2016):
//! ```text
//! input    B^T x = [x0 - x2,  x1 + x2,  x2 - x1,  x3 - x1]
//! weight   G g   = [g0,  (g0 + g1 + g2) / 2,  (g0 - g1 + g2) / 2,  g2]
//! output   A^T m = [m0 + m1 + m2,  m1 - m2 + m3]        y = A^T [(G g) * (B^T x)]
//! gradient dg    = G^T [(A dy) * (B^T x)]               the adjoint in g: the weight gradient costs as little
//! ```
//! All coefficients are 0, 1, -1 and 1/2, so that little accuracy is lost: the tests of [`mod@crate::conv3d`] hold it to the same
//! bound as the direct sum.
//!
//! The four *frequencies* of axis D are taken one after the other, and at each of them the sixteen of H and W at once:
//! transform the tiles of a block, multiply `[tiles x k channels]` by `[k channels x output channels]` sixteen times,
//! transform back and add to the outputs. What one frequency of D needs stays in the second-level cache for blocks of
//! about a hundred tiles, where all 64 together would not. A kernel of depth 1 is the same with a single frequency of D.

pub(super) mod correlation;
mod panel;
mod tiling;
mod transform;
pub(super) mod weight_gradient;

use super::job::Axis;
use tiling::Tiling;

/// Cost of a transformed weight, which is computed, written and read, in multiply-adds of the direct sum per frequency.
/// Measured, and of little consequence: it decides where few voxels meet many channels.
const WEIGHT_COST: usize = 160;
/// With fewer channels than this, the transforms are more work than the products.
const MIN_CHANNELS: usize = 8;

/// Returns true if the transforms compute a job with these axes.
pub(super) fn supports(axes: &[Axis; 3]) -> bool {
    let is_dense = |a: &Axis| a.step == 1 && a.output_step == 1 && a.is_contiguous();
    axes.iter().all(is_dense) && matches!(axes.each_ref().map(|a| a.taps.len()), [1 | 3, 3, 3])
}

/// Returns true if the transforms, of a job that they support, are estimated to cost less than the direct sum.
pub(super) fn is_cheaper(axes: &[Axis; 3], batch: usize, in_channels: usize, out_channels: usize) -> bool {
    if in_channels.min(out_channels) < MIN_CHANNELS {
        return false;
    }
    let outputs = axes.each_ref().map(|a| a.num_outputs);
    let tiling = Tiling::new(axes[0].taps.len(), outputs);
    let tiles = batch * tiling.tiles.iter().product::<usize>();
    let direct = batch * outputs.iter().product::<usize>() * axes[0].taps.len() * 9;
    (tiles + WEIGHT_COST) * tiling.num_frequencies() < direct
}
