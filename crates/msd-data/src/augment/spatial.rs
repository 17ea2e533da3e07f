//! Rotation, scaling and cropping in one interpolation.

use std::f32::consts::PI;

use rand::{Rng, RngExt};

use super::{Augmentation, Patch};
use crate::preprocess::PreparedCase;

/// Where each voxel of a patch comes from: `src = matrix (dst - centre of patch) + centre of enlarged patch`, or a
/// plain crop of the centre.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SpatialTransform {
    matrix: Option<[[f32; 3]; 3]>,
}

/// Whether patches are so flat that they are rotated in-plane only: the longest edge exceeds axis 0 threefold.
pub(crate) fn is_flat(patch: [usize; 3]) -> bool {
    patch.iter().any(|&n| n > 3 * patch[0])
}

fn max_rotation(patch: [usize; 3]) -> f32 {
    if is_flat(patch) { PI } else { PI / 6.0 }
}

/// The box that holds the patch after the largest rotation about any one axis, 1 / 0.85 larger.
pub(crate) fn enlarged(patch: [usize; 3]) -> [usize; 3] {
    let p = patch.map(|n| n as f64);
    let (s, c) = f64::from(max_rotation(patch))
        .min(std::f64::consts::FRAC_PI_2)
        .sin_cos();
    let rotated = [
        [p[0], p[1] * c + p[2] * s, -p[1] * s + p[2] * c],
        [p[0] * c - p[2] * s, p[1], p[0] * s + p[2] * c],
        [p[0] * c + p[1] * s, -p[0] * s + p[1] * c, p[2]],
    ];
    let mut out = [0, 1, 2]
        .map(|a| (rotated.iter().map(|r| r[a].abs()).fold(p[a], f64::max) / 0.85) as usize);
    if is_flat(patch) {
        out[0] = patch[0];
    }
    out
}

impl SpatialTransform {
    /// Draws angles and scale, each with its own coin.
    pub(crate) fn draw(augmentation: &Augmentation, patch: [usize; 3], rng: &mut impl Rng) -> Self {
        let rotate = rng.random_bool(augmentation.rotation);
        let rescale = rng.random_bool(augmentation.scaling);
        let max = max_rotation(patch);
        let mut angles = [0.0; 3];
        if rotate {
            angles = angles.map(|_: f32| rng.random_range(-max..max));
        }
        let scale = if rescale {
            rng.random_range(0.7f32..1.4)
        } else {
            1.0
        };
        if !rotate && !rescale {
            return Self { matrix: None };
        }
        Self::affine(angles, scale, is_flat(patch))
    }

    /// Rz Ry Rx scale, angles about axes 0, 1, 2; if flat only about axis 0, which is not scaled either. A scale
    /// above 1 makes objects smaller.
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
            multiply(
                &about(2, angles[2]),
                &multiply(&about(1, angles[1]), &about(0, angles[0])),
            )
        };
        let mut matrix = rotation.map(|row| row.map(|v| v * scale));
        if flat {
            matrix[0][0] = 1.0;
        }
        Self {
            matrix: Some(matrix),
        }
    }

    /// The patch whose enlarged version begins at `start` in the case. Voxels from outside the enlarged patch or the
    /// image are 0, their label -1. Images are interpolated linearly; the label is the one with the largest
    /// interpolated indicator, the lowest of equals.
    pub(crate) fn extract(
        &self,
        case: &PreparedCase,
        start: [isize; 3],
        enlarged: [usize; 3],
        patch: [usize; 3],
    ) -> Patch {
        let source = Source::new(case, start, enlarged);
        let voxels: usize = patch.iter().product();
        let channels = source.channels();
        let mut out = Patch {
            image: vec![0.0; channels * voxels],
            labels: vec![-1; voxels],
            shape: patch,
        };
        match &self.matrix {
            None => source.crop(
                [0, 1, 2].map(|a| start[a] + (enlarged[a] / 2 - patch[a] / 2) as isize),
                &mut out,
            ),
            Some(matrix) => source.interpolate(matrix, &mut out),
        }
        out
    }
}

fn multiply(a: &[[f32; 3]; 3], b: &[[f32; 3]; 3]) -> [[f32; 3]; 3] {
    [0, 1, 2].map(|i| [0, 1, 2].map(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

/// A case seen through an enlarged patch.
struct Source<'a> {
    image: &'a [f32],
    labels: &'a [i16],
    shape: [usize; 3],
    start: [isize; 3],
    enlarged: [usize; 3],
    /// Case voxels within the enlarged patch, per axis: first and one past the last.
    valid: [(isize, isize); 3],
}

impl<'a> Source<'a> {
    fn new(case: &'a PreparedCase, start: [isize; 3], enlarged: [usize; 3]) -> Self {
        let labels = case
            .labels
            .as_ref()
            .expect("the sampler takes labelled cases only");
        let shape = [labels.dim().0, labels.dim().1, labels.dim().2];
        let valid = [0, 1, 2].map(|a| {
            (
                start[a].max(0),
                (start[a] + enlarged[a] as isize).min(shape[a] as isize),
            )
        });
        Self {
            image: case
                .image
                .as_slice()
                .expect("prepared cases are in standard layout"),
            labels: labels
                .as_slice()
                .expect("prepared cases are in standard layout"),
            shape,
            start,
            enlarged,
            valid,
        }
    }

    fn channels(&self) -> usize {
        self.image.len() / self.labels.len()
    }

    /// Copies what lies in the image.
    fn crop(&self, from: [isize; 3], out: &mut Patch) {
        let [pd, ph, pw] = out.shape;
        let [sd, sh, sw] = self.shape.map(|n| n as isize);
        let voxels = pd * ph * pw;
        let (first, last) = (
            (-from[2]).clamp(0, pw as isize),
            (sw - from[2]).clamp(0, pw as isize),
        );
        if first >= last {
            return;
        }
        let (first, last) = (first as usize, last as usize);
        for d in (0..pd).filter(|&d| (0..sd).contains(&(from[0] + d as isize))) {
            for h in (0..ph).filter(|&h| (0..sh).contains(&(from[1] + h as isize))) {
                let row = ((from[0] + d as isize) * sh + from[1] + h as isize) * sw + from[2];
                let (src, dst) = ((row + first as isize) as usize, (d * ph + h) * pw + first);
                let n = last - first;
                out.labels[dst..dst + n].copy_from_slice(&self.labels[src..src + n]);
                for c in 0..self.channels() {
                    let (src, dst) = (src + c * self.labels.len(), dst + c * voxels);
                    out.image[dst..dst + n].copy_from_slice(&self.image[src..src + n]);
                }
            }
        }
    }

    fn interpolate(&self, m: &[[f32; 3]; 3], out: &mut Patch) {
        let [pd, ph, pw] = out.shape;
        let centre = out.shape.map(|n| (n as f32 - 1.0) / 2.0);
        let target = self.enlarged.map(|n| (n as f32 - 1.0) / 2.0);
        let voxels = pd * ph * pw;
        let mut at = 0;
        for d in 0..pd {
            for h in 0..ph {
                let (d, h) = (d as f32 - centre[0], h as f32 - centre[1]);
                let row = [0, 1, 2].map(|a| m[a][0] * d + m[a][1] * h + target[a]);
                for w in 0..pw {
                    let w = w as f32 - centre[2];
                    let src = [0, 1, 2].map(|a| row[a] + m[a][2] * w);
                    self.voxel(src, at, voxels, out);
                    at += 1;
                }
            }
        }
    }

    /// One voxel at `src`, in coordinates of the enlarged patch.
    #[inline]
    fn voxel(&self, src: [f32; 3], at: usize, voxels: usize, out: &mut Patch) {
        let floor = src.map(f32::floor);
        let [tz, ty, tx] = [0, 1, 2].map(|a| src[a] - floor[a]);
        let base = [0, 1, 2].map(|a| floor[a] as isize + self.start[a]);
        let weights = [
            (1.0 - tz) * (1.0 - ty) * (1.0 - tx),
            (1.0 - tz) * (1.0 - ty) * tx,
            (1.0 - tz) * ty * (1.0 - tx),
            (1.0 - tz) * ty * tx,
            tz * (1.0 - ty) * (1.0 - tx),
            tz * (1.0 - ty) * tx,
            tz * ty * (1.0 - tx),
            tz * ty * tx,
        ];
        let [_, sh, sw] = self.shape;
        if (0..3).all(|a| base[a] >= self.valid[a].0 && base[a] + 1 < self.valid[a].1) {
            let corner = (base[0] as usize * sh + base[1] as usize) * sw + base[2] as usize;
            let taps = [0, 1, sw, sw + 1].map(|o| corner + o);
            let below = taps.map(|t| t + sh * sw);
            let taps = [
                taps[0], taps[1], taps[2], taps[3], below[0], below[1], below[2], below[3],
            ];
            for c in 0..self.channels() {
                let channel = &self.image[c * self.labels.len()..];
                out.image[c * voxels + at] = taps
                    .iter()
                    .zip(&weights)
                    .map(|(&t, w)| channel[t] * w)
                    .sum();
            }
            out.labels[at] = heaviest(taps.map(|t| self.labels[t]), &weights);
            return;
        }
        if (0..3).any(|a| base[a] + 1 < self.valid[a].0 || base[a] >= self.valid[a].1) {
            return; // 0 and -1 already
        }
        let mut labels = [-1; 8];
        for (i, (label, weight)) in labels.iter_mut().zip(weights).enumerate() {
            let tap = [
                base[0] + (i as isize >> 2),
                base[1] + (i as isize >> 1 & 1),
                base[2] + (i as isize & 1),
            ];
            if (0..3).all(|a| (self.valid[a].0..self.valid[a].1).contains(&tap[a])) {
                let t = (tap[0] as usize * sh + tap[1] as usize) * sw + tap[2] as usize;
                for c in 0..self.channels() {
                    out.image[c * voxels + at] += weight * self.image[c * self.labels.len() + t];
                }
                *label = self.labels[t];
            }
        }
        if (0..3).all(|a| (0.0..=(self.enlarged[a] - 1) as f32).contains(&src[a])) {
            out.labels[at] = heaviest(labels, &weights);
        }
    }
}

#[inline]
fn heaviest(labels: [i16; 8], weights: &[f32; 8]) -> i16 {
    if labels[1..].iter().all(|&l| l == labels[0]) {
        return labels[0];
    }
    let (mut best, mut best_weight) = (i16::MAX, -1.0);
    for &label in &labels {
        let weight: f32 = labels
            .iter()
            .zip(weights)
            .filter(|(l, _)| **l == label)
            .map(|(_, w)| w)
            .sum();
        if weight > best_weight || (weight == best_weight && label < best) {
            (best, best_weight) = (label, weight);
        }
    }
    best
}
