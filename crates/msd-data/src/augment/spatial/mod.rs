//! Rotation, scaling and cropping in one interpolation.

use std::f32::consts::PI;

use rand::{Rng, RngExt};

use super::patch::Patch;
use super::probabilities::Augmentation;
use crate::error::Result;
use crate::training_case::TrainingCase;

mod enlarged_patch;

use enlarged_patch::EnlargedPatch;

/// Map from the voxels of a patch to those of the enlarged patch around it: `src = matrix (dst - centre of patch) + centre
/// of enlarged patch`, or a crop of the centre without a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SpatialTransform {
    matrix: Option<[[f32; 3]; 3]>,
}

/// Returns true for patches so flat that they are rotated in-plane only: an edge exceeds axis 0 more than threefold.
pub(crate) fn is_flat(patch: [usize; 3]) -> bool {
    patch.iter().any(|&n| n > 3 * patch[0])
}

fn max_rotation(patch: [usize; 3]) -> f32 {
    if is_flat(patch) { PI } else { PI / 6.0 }
}

/// Shape of a box that holds the patch after the largest rotation about any one axis, enlarged by 1 / 0.85.
pub(super) fn enlarged(patch: [usize; 3]) -> [usize; 3] {
    let p = patch.map(|n| n as f64);
    let (s, c) = f64::from(max_rotation(patch)).min(std::f64::consts::FRAC_PI_2).sin_cos();
    let rotated = [
        [p[0], p[1] * c + p[2] * s, -p[1] * s + p[2] * c],
        [p[0] * c - p[2] * s, p[1], p[0] * s + p[2] * c],
        [p[0] * c + p[1] * s, -p[0] * s + p[1] * c, p[2]],
    ];
    let mut out = [0, 1, 2].map(|a| (rotated.iter().map(|r| r[a].abs()).fold(p[a], f64::max) / 0.85) as usize);
    if is_flat(patch) {
        out[0] = patch[0];
    }
    out
}

/// Shape of the part of an image that a patch is made of: larger than the patch if it may be rotated or scaled.
pub(crate) fn enlarged_patch(augmentation: &Augmentation, patch: [usize; 3]) -> [usize; 3] {
    if augmentation.rotation == 0.0 && augmentation.scaling == 0.0 { patch } else { enlarged(patch) }
}

impl SpatialTransform {
    /// Draws rotation and scaling, each with its own probability.
    pub(crate) fn draw(augmentation: &Augmentation, patch: [usize; 3], rng: &mut impl Rng) -> Self {
        let rotate = rng.random_bool(augmentation.rotation);
        let rescale = rng.random_bool(augmentation.scaling);
        let max = max_rotation(patch);
        let mut angles = [0.0; 3];
        if rotate {
            angles = angles.map(|_: f32| rng.random_range(-max..max));
        }
        let scale = if rescale { rng.random_range(0.7f32..1.4) } else { 1.0 };
        if !rotate && !rescale {
            return Self { matrix: None };
        }
        Self::affine(angles, scale, is_flat(patch))
    }

    /// Rotation R2 R1 R0 by `angles` (radians) about axes 0, 1, 2, times `scale`; a scale above 1 makes objects smaller. Flat
    /// patches are rotated about axis 0 only, and not scaled along it.
    pub(crate) fn affine(angles: [f32; 3], scale: f32, flat: bool) -> Self {
        let about = |axis: usize, angle: f32| {
            let (s, c) = angle.sin_cos();
            let (i, j) = ((axis + 1) % 3, (axis + 2) % 3);
            let mut m = [[0.0; 3]; 3];
            m[axis][axis] = 1.0;
            m[i][i] = c;
            m[j][j] = c;
            m[i][j] = -s;
            m[j][i] = s;
            m
        };
        let rotation = if flat {
            about(0, angles[0])
        } else {
            multiply(&about(2, angles[2]), &multiply(&about(1, angles[1]), &about(0, angles[0])))
        };
        let mut matrix = rotation.map(|row| row.map(|v| v * scale));
        if flat {
            matrix[0][0] = 1.0;
        }
        Self { matrix: Some(matrix) }
    }

    /// Extracts the patch whose `enlarged` version begins at voxel `start` of the case. Voxels outside the enlarged patch or
    /// the image are 0, their label -1. Images are interpolated linearly; a label is the one with the largest interpolated
    /// indicator, the lowest of equals. The memory of `spare` is used again.
    pub(crate) fn extract(
        &self,
        case: &TrainingCase,
        start: [isize; 3],
        enlarged: [usize; 3],
        patch: [usize; 3],
        spare: Patch,
    ) -> Result<Patch> {
        let voxels: usize = patch.iter().product();
        let mut out = Patch { shape: patch, ..spare };
        out.image.resize(case.channels() * voxels, 0.0);
        out.labels.resize(voxels, -1);
        let margin = |a: usize| (enlarged[a] / 2) as isize - (patch[a] / 2) as isize;
        let from = [0, 1, 2].map(|a| start[a] + margin(a));
        let is_inside = |a: usize| from[a] >= 0 && from[a] + patch[a] as isize <= case.shape()[a] as isize;
        // A crop within the image writes every voxel itself.
        if self.matrix.is_some() || !(0..3).all(is_inside) {
            out.image.fill(0.0);
            out.labels.fill(-1);
        }
        match &self.matrix {
            None => {
                let region = case.region(from, patch)?;
                EnlargedPatch::new(&region, from, patch).crop(&mut out);
            }
            Some(matrix) => {
                let region = case.region(start, enlarged)?;
                EnlargedPatch::new(&region, start, enlarged).interpolate(matrix, &mut out);
            }
        }
        Ok(out)
    }
}

fn multiply(a: &[[f32; 3]; 3], b: &[[f32; 3]; 3]) -> [[f32; 3]; 3] {
    [0, 1, 2].map(|i| [0, 1, 2].map(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

#[cfg(test)]
mod tests;
