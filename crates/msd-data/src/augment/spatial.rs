//! Rotation, scaling and cropping in one interpolation.
#![expect(
    clippy::inline_always,
    reason = "what interpolates is compiled anew for each set of vectors that it is dispatched to"
)]

use std::f32::consts::PI;
use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};
use rand::{Rng, RngExt};

use super::{Augmentation, Patch};
use crate::error::Result;
use crate::training_case::{Region, TrainingCase};

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
        let scale = if rescale { rng.random_range(0.7f32..1.4) } else { 1.0 };
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
            multiply(&about(2, angles[2]), &multiply(&about(1, angles[1]), &about(0, angles[0])))
        };
        let mut matrix = rotation.map(|row| row.map(|v| v * scale));
        if flat {
            matrix[0][0] = 1.0;
        }
        Self { matrix: Some(matrix) }
    }

    /// The patch whose enlarged version begins at `start` in the case. Voxels from outside the enlarged patch or the
    /// image are 0, their label -1. Images are interpolated linearly; the label is the one with the largest
    /// interpolated indicator, the lowest of equals. The memory of `spare` is used again.
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
        out.image.clear();
        out.image.resize(case.channels() * voxels, 0.0);
        out.labels.clear();
        out.labels.resize(voxels, -1);
        match &self.matrix {
            None => {
                let margin = |a: usize| (enlarged[a] / 2) as isize - (patch[a] / 2) as isize;
                let from = [0, 1, 2].map(|a| start[a] + margin(a));
                let source = case.region(from, patch)?;
                Source::new(&source, from, patch).crop(&mut out);
            }
            Some(matrix) => {
                let source = case.region(start, enlarged)?;
                Source::new(&source, start, enlarged).interpolate(matrix, &mut out);
            }
        }
        Ok(out)
    }
}

fn multiply(a: &[[f32; 3]; 3], b: &[[f32; 3]; 3]) -> [[f32; 3]; 3] {
    [0, 1, 2].map(|i| [0, 1, 2].map(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

/// A case, or the part of it at hand, seen through an enlarged patch.
struct Source<'a> {
    image: &'a [f32],
    labels: &'a [i16],
    channels: usize,
    shape: [usize; 3],
    /// First voxel of the enlarged patch, in the voxels at hand.
    start: [isize; 3],
    enlarged: [usize; 3],
    /// Voxels at hand within the enlarged patch, per axis: first and one past the last.
    valid: [(isize, isize); 3],
}

impl<'a> Source<'a> {
    fn new(region: &'a Region<'_>, start: [isize; 3], enlarged: [usize; 3]) -> Self {
        let start = [0, 1, 2].map(|a| start[a] - region.origin[a] as isize);
        let valid =
            [0, 1, 2].map(|a| (start[a].max(0), (start[a] + enlarged[a] as isize).min(region.shape[a] as isize)));
        Self {
            image: &region.image,
            labels: &region.labels,
            channels: region.channels,
            shape: region.shape,
            start,
            enlarged,
            valid,
        }
    }

    /// Copies what lies in the image.
    fn crop(&self, out: &mut Patch) {
        let from = self.start;
        let [pd, ph, pw] = out.shape;
        let [sd, sh, sw] = self.shape.map(|n| n as isize);
        let voxels = pd * ph * pw;
        let (first, last) = ((-from[2]).clamp(0, pw as isize), (sw - from[2]).clamp(0, pw as isize));
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
                for c in 0..self.channels {
                    let (src, dst) = (src + c * self.labels.len(), dst + c * voxels);
                    out.image[dst..dst + n].copy_from_slice(&self.image[src..src + n]);
                }
            }
        }
    }

    fn interpolate(&self, matrix: &[[f32; 3]; 3], out: &mut Patch) {
        Arch::new().dispatch(Interpolate { source: self, matrix, out });
    }

    /// The voxels of a row of `n`, at `row + step w` for w from `-centre` on, whose eight neighbours lie in the image and
    /// the enlarged patch.
    #[inline(always)]
    fn inner(&self, n: usize, step: [f32; 3], from: impl Fn(usize) -> [f32; 3]) -> Range<usize> {
        // Along a row each coordinate only grows or only falls, also when rounded: what is inside is one range. It is
        // estimated a voxel too wide at both ends, then its ends are tried.
        let limits = [0, 1, 2].map(|a| {
            let limit = |v: isize| (v - self.start[a]) as f32;
            (limit(self.valid[a].0), limit(self.valid[a].1 - 1))
        });
        let inside = |w: usize| {
            let source = from(w);
            (0..3).all(|a| source[a] >= limits[a].0 && source[a] < limits[a].1)
        };
        let origin = from(0);
        let (mut first, mut last) = (0.0f32, n as f32);
        for a in 0..3 {
            if step[a].abs() > 1e-6 {
                let [u, v] = [limits[a].0, limits[a].1].map(|limit| (limit - origin[a]) / step[a]);
                first = first.max(u.min(v) - 1.0);
                last = last.min(u.max(v) + 2.0);
            }
        }
        let (mut first, mut last) = (first.min(n as f32) as usize, last.max(0.0) as usize);
        while first < last && !inside(first) {
            first += 1;
        }
        while first < last && !inside(last - 1) {
            last -= 1;
        }
        first..last.max(first)
    }

    /// Vectorised: nothing but arithmetic.
    #[inline(always)]
    fn place(&self, source: [f32; 3]) -> Place {
        let [z, y, x] = source;
        let (fz, fy, fx) = (z.floor(), y.floor(), x.floor());
        let [start_z, start_y, start_x] = self.start.map(|v| v as i32);
        let (h, w) = (self.shape[1] as i32, self.shape[2] as i32);
        let row = (fz as i32 + start_z) * h + fy as i32 + start_y;
        Place { corner: (row * w + fx as i32 + start_x) as u32, t: [z - fz, y - fy, x - fx] }
    }

    /// Trilinear values of a channel.
    #[inline(always)]
    fn values(&self, channel: &[f32], places: &[Place], out: &mut [f32]) {
        let [_, sh, sw] = self.shape;
        let lerp = |[a, b]: [f32; 2], t: f32| a + (b - a) * t;
        for (v, place) in out.iter_mut().zip(places) {
            let corner = place.corner as usize;
            let [tz, ty, tx] = place.t;
            let pair = |offset: usize| {
                let pair = &channel[corner + offset..][..2];
                lerp([pair[0], pair[1]], tx)
            };
            let near = lerp([pair(0), pair(sw)], ty);
            let far = lerp([pair(sh * sw), pair(sh * sw + sw)], ty);
            *v = lerp([near, far], tz);
        }
    }

    /// The label with the largest interpolated indicator.
    #[inline(always)]
    fn winners(&self, places: &[Place], out: &mut [i16]) {
        let [_, sh, sw] = self.shape;
        for (label, place) in out.iter_mut().zip(places) {
            let corner = place.corner as usize;
            let pair = |offset: usize| {
                let pair = &self.labels[corner + offset..][..2];
                (i32::from(pair[0]), i32::from(pair[1]))
            };
            // Numbers, no array: most voxels are among eight of one label, and this must cost them nothing.
            let ((a, b), (c, d)) = (pair(0), pair(sw));
            let ((e, f), (g, h)) = (pair(sh * sw), pair(sh * sw + sw));
            let differ = (b ^ a) | (c ^ a) | (d ^ a) | (e ^ a) | (f ^ a) | (g ^ a) | (h ^ a);
            *label = if differ == 0 { a as i16 } else { self.winner(place) };
        }
    }

    #[inline(never)]
    fn winner(&self, place: &Place) -> i16 {
        let ([_, sh, sw], [tz, ty, tx]) = (self.shape, place.t);
        let pairs = [0, sw, sh * sw, sh * sw + sw].map(|offset| {
            let pair = &self.labels[place.corner as usize + offset..][..2];
            [pair[0], pair[1]]
        });
        heaviest(pairs, &corner_weights(tz, ty, tx))
    }

    /// One voxel at `src`, in coordinates of the enlarged patch.
    #[inline]
    fn voxel(&self, src: [f32; 3], at: usize, voxels: usize, out: &mut Patch) {
        let floor = src.map(f32::floor);
        let [tz, ty, tx] = [0, 1, 2].map(|a| src[a] - floor[a]);
        let base = [0, 1, 2].map(|a| floor[a] as isize + self.start[a]);
        let weights = corner_weights(tz, ty, tx);
        let [_, sh, sw] = self.shape;
        if (0..3).any(|a| base[a] + 1 < self.valid[a].0 || base[a] >= self.valid[a].1) {
            return; // 0 and -1 already
        }
        let mut labels = [-1; 8];
        for (i, (label, weight)) in labels.iter_mut().zip(weights).enumerate() {
            let tap = [base[0] + (i as isize >> 2), base[1] + (i as isize >> 1 & 1), base[2] + (i as isize & 1)];
            if (0..3).all(|a| (self.valid[a].0..self.valid[a].1).contains(&tap[a])) {
                let t = (tap[0] as usize * sh + tap[1] as usize) * sw + tap[2] as usize;
                for c in 0..self.channels {
                    out.image[c * voxels + at] += weight * self.image[c * self.labels.len() + t];
                }
                *label = self.labels[t];
            }
        }
        if (0..3).all(|a| (0.0..=(self.enlarged[a] - 1) as f32).contains(&src[a])) {
            let [a, b, c, d, e, f, g, h] = labels;
            out.labels[at] = heaviest([[a, b], [c, d], [e, f], [g, h]], &weights);
        }
    }
}

/// Where a voxel of a patch comes from: the first of eight voxels, and how far it lies from it.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    corner: u32,
    t: [f32; 3],
}

/// Fills a patch row by row: the voxels that lie between eight of the image in one loop for their places and one for
/// their values, the few at its border one at a time.
struct Interpolate<'a> {
    source: &'a Source<'a>,
    matrix: &'a [[f32; 3]; 3],
    out: &'a mut Patch,
}

impl NullaryFnOnce for Interpolate<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { source, matrix: m, out } = self;
        let [pd, ph, pw] = out.shape;
        let centre = out.shape.map(|n| (n as f32 - 1.0) / 2.0);
        let target = source.enlarged.map(|n| (n as f32 - 1.0) / 2.0);
        let voxels = pd * ph * pw;
        let mut places = vec![Place::default(); pw];
        for d in 0..pd {
            for h in 0..ph {
                let (y, x) = (d as f32 - centre[0], h as f32 - centre[1]);
                let row = [0, 1, 2].map(|a| m[a][0] * y + m[a][1] * x + target[a]);
                let from = |w: usize| {
                    let w = w as f32 - centre[2];
                    [0, 1, 2].map(|a| row[a] + m[a][2] * w)
                };
                let inner = source.inner(pw, m.map(|row| row[2]), from);
                let places = &mut places[..inner.len()];
                for (w, place) in inner.clone().zip(&mut *places) {
                    *place = source.place(from(w));
                }
                let at = (d * ph + h) * pw;
                for c in 0..source.channels {
                    let channel = &source.image[c * source.labels.len()..][..source.labels.len()];
                    let out = &mut out.image[c * voxels + at..][inner.clone()];
                    source.values(channel, places, out);
                }
                source.winners(places, &mut out.labels[at..][inner.clone()]);
                for w in (0..inner.start).chain(inner.end..pw) {
                    source.voxel(from(w), at + w, voxels, out);
                }
            }
        }
    }
}

fn corner_weights(tz: f32, ty: f32, tx: f32) -> [f32; 8] {
    let [sz, sy, sx] = [1.0 - tz, 1.0 - ty, 1.0 - tx];
    let plane = [sy * sx, sy * tx, ty * sx, ty * tx];
    let [a, b, c, d] = plane;
    [sz * a, sz * b, sz * c, sz * d, tz * a, tz * b, tz * c, tz * d]
}

/// The label of the largest total weight, the lowest of equals.
fn heaviest(corners: [[i16; 2]; 4], weights: &[f32; 8]) -> i16 {
    let labels = corners.as_flattened();
    let total = |label: i16| {
        let weights = labels.iter().zip(weights);
        weights.map(|(l, w)| if *l == label { *w } else { 0.0 }).sum::<f32>()
    };
    // Most often two labels meet: one and the other.
    let first = labels[0];
    let other = labels.iter().copied().find(|&l| l != first).unwrap_or(first);
    if labels.iter().all(|&l| l == first || l == other) {
        let (a, b) = (total(first), total(other));
        let first_wins = a > b || (a == b && first <= other);
        return if first_wins { first } else { other };
    }
    let (mut best, mut best_weight) = (i16::MAX, -1.0);
    for &label in labels {
        let weight = total(label);
        if weight > best_weight || (weight == best_weight && label < best) {
            (best, best_weight) = (label, weight);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, Array4};
    use proptest::prelude::*;

    use super::*;
    use crate::preprocess::{CaseProperties, PreparedCase};

    proptest! {
        /// Rows with their ranges and vectors as voxel by voxel.
        #[test]
        fn rows_equal_their_voxels(
            angles in prop::array::uniform3(-3.2f32..3.2),
            scale in 0.7f32..1.4,
            start in prop::array::uniform3(-9isize..9),
            shape in prop::array::uniform3(2usize..17),
            patch in prop::array::uniform3(1usize..10),
            flat: bool,
        ) {
            let mut n = 1u32;
            let mut noise = || {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                n >> 16
            };
            let [d, h, w] = shape;
            let image = Array4::from_shape_simple_fn((2, d, h, w), || noise() as f32 / 65536.0);
            let labels = Array3::from_shape_fn(shape, |(z, y, x)| ((z / 3 + y / 2 + x / 4) % 4) as i16 - 1);
            let properties = CaseProperties {
                spacing_mm: [1.0; 3],
                target_spacing_mm: [1.0; 3],
                shape_before_cropping: shape,
                crop: [[0, d], [0, h], [0, w]],
                shape,
                transpose_forward: [0, 1, 2],
            };
            let case = PreparedCase { image, labels: Some(labels), locations: vec![], properties };
            let transform = SpatialTransform::affine(angles, scale, flat);
            let enlarged = enlarged(patch);
            let case = TrainingCase::from(case);
            let found = transform.extract(&case, start, enlarged, patch, Patch::default()).unwrap();

            let region = case.region(start, enlarged).unwrap();
            let source = Source::new(&region, start, enlarged);
            let voxels: usize = patch.iter().product();
            let mut expected = Patch { image: vec![0.0; 2 * voxels], labels: vec![-1; voxels], shape: patch };
            let m = transform.matrix.expect("affine");
            let centre = |n: usize| (n as f32 - 1.0) / 2.0;
            for (at, (z, y, x)) in ndarray::indices(patch).into_iter().enumerate() {
                let o = [z as f32 - centre(patch[0]), y as f32 - centre(patch[1]), x as f32 - centre(patch[2])];
                let row = [0, 1, 2].map(|a| m[a][0] * o[0] + m[a][1] * o[1] + centre(enlarged[a]));
                source.voxel([0, 1, 2].map(|a| row[a] + m[a][2] * o[2]), at, voxels, &mut expected);
            }
            prop_assert_eq!(&found.labels, &expected.labels);
            for (a, b) in found.image.iter().zip(&expected.image) {
                prop_assert!((a - b).abs() < 1e-5, "{} {}", a, b);
            }
        }
    }
}
