//! Voxels of an enlarged patch, copied or interpolated into a patch.
#![expect(
    clippy::inline_always,
    reason = "interpolation is compiled anew for each set of vectors that it is dispatched to"
)]

use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};

use crate::augment::patch::Patch;
use crate::training_case::CaseRegion;

/// An enlarged patch of a case: the voxels that a patch may be made of.
pub(super) struct EnlargedPatch<'a> {
    image: &'a [f32],
    labels: &'a [i16],
    channels: usize,
    shape: [usize; 3],
    /// First voxel of the enlarged patch, counted in the region.
    start: [isize; 3],
    enlarged: [usize; 3],
    /// Voxels of the region within the enlarged patch, per axis: first and one past the last.
    valid: [(isize, isize); 3],
}

impl<'a> EnlargedPatch<'a> {
    /// The patch that begins at voxel `start` of the case, with `region` as the part of the case that is in memory.
    pub(super) fn new(region: &'a CaseRegion<'_>, start: [isize; 3], enlarged: [usize; 3]) -> Self {
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

    /// Copies the voxels that lie in the image.
    pub(super) fn crop(&self, out: &mut Patch) {
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

    /// Fills a patch by trilinear interpolation at `matrix (voxel - centre of patch) + centre of enlarged patch`.
    pub(super) fn interpolate(&self, matrix: &[[f32; 3]; 3], out: &mut Patch) {
        Arch::new().dispatch(InterpolatePatch { source: self, matrix, out });
    }

    /// Range of the voxels of a row whose eight neighbours all lie in the image and the enlarged patch. `from(w)` is the
    /// position of voxel w of `n`, and `step` the difference between two of them.
    #[inline(always)]
    fn inner(&self, n: usize, step: [f32; 3], from: impl Fn(usize) -> [f32; 3]) -> Range<usize> {
        // Along a row each coordinate only grows or only falls, also when rounded: what is inside is one range. It is
        // estimated a voxel too wide at both ends, then its ends are tried.
        let limits = [0, 1, 2].map(|a| {
            let limit = |v: isize| (v - self.start[a]) as f32;
            (limit(self.valid[a].0), limit(self.valid[a].1 - 1))
        });
        let inside = |w: usize| {
            let position = from(w);
            (0..3).all(|a| position[a] >= limits[a].0 && position[a] < limits[a].1)
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

    /// Splits a position into its first neighbour and the distances from it. Pure arithmetic, so that a loop fills vectors.
    #[inline(always)]
    fn sample_point(&self, position: [f32; 3]) -> SamplePoint {
        let [z, y, x] = position;
        let (fz, fy, fx) = (z.floor(), y.floor(), x.floor());
        let [start_z, start_y, start_x] = self.start.map(|v| v as i32);
        let (h, w) = (self.shape[1] as i32, self.shape[2] as i32);
        let row = (fz as i32 + start_z) * h + fy as i32 + start_y;
        // Modulo 2^32, below which every index lies (`TrainingCase::check`).
        let corner = row.wrapping_mul(w).wrapping_add(fx as i32 + start_x);
        SamplePoint { corner: corner as u32, t: [z - fz, y - fy, x - fx] }
    }

    /// Interpolates a channel at each of `points`.
    #[inline(always)]
    fn values(&self, channel: &[f32], points: &[SamplePoint], out: &mut [f32]) {
        let [_, sh, sw] = self.shape;
        let lerp = |[a, b]: [f32; 2], t: f32| a + (b - a) * t;
        for (v, point) in out.iter_mut().zip(points) {
            let corner = point.corner as usize;
            let [tz, ty, tx] = point.t;
            let pair = |offset: usize| {
                let pair = &channel[corner + offset..][..2];
                lerp([pair[0], pair[1]], tx)
            };
            let near = lerp([pair(0), pair(sw)], ty);
            let far = lerp([pair(sh * sw), pair(sh * sw + sw)], ty);
            *v = lerp([near, far], tz);
        }
    }

    /// Writes for each of `points` the label with the largest interpolated indicator.
    #[inline(always)]
    fn winners(&self, points: &[SamplePoint], out: &mut [i16]) {
        let [_, sh, sw] = self.shape;
        for (label, point) in out.iter_mut().zip(points) {
            let corner = point.corner as usize;
            let pair = |offset: usize| {
                let pair = &self.labels[corner + offset..][..2];
                (i32::from(pair[0]), i32::from(pair[1]))
            };
            // Scalars instead of an array: most voxels are among eight of one label, and those must cost nothing.
            let ((a, b), (c, d)) = (pair(0), pair(sw));
            let ((e, f), (g, h)) = (pair(sh * sw), pair(sh * sw + sw));
            let differ = (b ^ a) | (c ^ a) | (d ^ a) | (e ^ a) | (f ^ a) | (g ^ a) | (h ^ a);
            *label = if differ == 0 { a as i16 } else { self.winner(point) };
        }
    }

    #[inline(never)]
    fn winner(&self, point: &SamplePoint) -> i16 {
        let ([_, sh, sw], [tz, ty, tx]) = (self.shape, point.t);
        let pairs = [0, sw, sh * sw, sh * sw + sw].map(|offset| {
            let pair = &self.labels[point.corner as usize + offset..][..2];
            [pair[0], pair[1]]
        });
        heaviest(pairs, &corner_weights(tz, ty, tx))
    }

    /// Interpolates one voxel, number `at` of a patch of `voxels`, at position `src` of the enlarged patch.
    #[inline]
    pub(super) fn voxel(&self, src: [f32; 3], at: usize, voxels: usize, out: &mut Patch) {
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

/// A position between eight voxels: index of the first, and distances from it along each axis, 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
struct SamplePoint {
    corner: u32,
    t: [f32; 3],
}

/// Interpolation of a patch, row by row: voxels between eight of the image in one loop for their positions and one for their
/// values, the few at the border one at a time.
struct InterpolatePatch<'a> {
    source: &'a EnlargedPatch<'a>,
    matrix: &'a [[f32; 3]; 3],
    out: &'a mut Patch,
}

impl NullaryFnOnce for InterpolatePatch<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { source, matrix: m, out } = self;
        let [pd, ph, pw] = out.shape;
        let centre = out.shape.map(|n| (n as f32 - 1.0) / 2.0);
        let target = source.enlarged.map(|n| (n as f32 - 1.0) / 2.0);
        let voxels = pd * ph * pw;
        let mut points = vec![SamplePoint::default(); pw];
        for d in 0..pd {
            for h in 0..ph {
                let (y, x) = (d as f32 - centre[0], h as f32 - centre[1]);
                let row = [0, 1, 2].map(|a| m[a][0] * y + m[a][1] * x + target[a]);
                let from = |w: usize| {
                    let w = w as f32 - centre[2];
                    [0, 1, 2].map(|a| row[a] + m[a][2] * w)
                };
                let inner = source.inner(pw, m.map(|row| row[2]), from);
                let points = &mut points[..inner.len()];
                for (w, point) in inner.clone().zip(&mut *points) {
                    *point = source.sample_point(from(w));
                }
                let at = (d * ph + h) * pw;
                for c in 0..source.channels {
                    let channel = &source.image[c * source.labels.len()..][..source.labels.len()];
                    let out = &mut out.image[c * voxels + at..][inner.clone()];
                    source.values(channel, points, out);
                }
                source.winners(points, &mut out.labels[at..][inner.clone()]);
                for w in (0..inner.start).chain(inner.end..pw) {
                    source.voxel(from(w), at + w, voxels, out);
                }
            }
        }
    }
}

/// Weights of eight voxels for a position between them, last axis fastest.
fn corner_weights(tz: f32, ty: f32, tx: f32) -> [f32; 8] {
    let [sz, sy, sx] = [1.0 - tz, 1.0 - ty, 1.0 - tx];
    let plane = [sy * sx, sy * tx, ty * sx, ty * tx];
    let [a, b, c, d] = plane;
    [sz * a, sz * b, sz * c, sz * d, tz * a, tz * b, tz * c, tz * d]
}

/// Label of the largest total weight, the lowest of equals; `corners` as in [`corner_weights`].
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
