//! Interpolation along one axis, in blocks of neighbouring lines whose arithmetic fills a vector.
#![expect(clippy::inline_always, reason = "a block is compiled anew for each set of vectors that it is dispatched to")]

use std::ops::Range;

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, Zip, parallel::prelude::*};
use pulp::{Arch, NullaryFnOnce};

/// Interpolation along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interpolation {
    /// Interpolating cubic B-spline.
    Cubic,
    /// Linear.
    Linear,
}

/// Resamples along one axis by `taps` and clips the values to `bounds` (smallest and largest). The other two axes have equal
/// lengths in `from` and `to`.
pub(super) fn resample_axis(
    from: &ArrayView3<f32>,
    to: &mut ArrayViewMut3<f32>,
    axis: usize,
    taps: &AxisTaps,
    bounds: Option<(f32, f32)>,
) {
    // Blocks lie along the faster of the other axes.
    let order = [[1, 0, 2], [0, 1, 2], [0, 2, 1]][axis];
    let (from, mut to) = (from.view().permuted_axes(order), to.view_mut().permuted_axes(order));
    Zip::from(to.outer_iter_mut()).and(from.outer_iter()).par_for_each(|mut to, from| {
        let blocks = to.axis_chunks_iter_mut(Axis(1), BLOCK).into_par_iter();
        blocks.zip(from.axis_chunks_iter(Axis(1), BLOCK)).for_each(|(to, from)| {
            Arch::new().dispatch(LineBlock { taps, from, to, bounds });
        });
    });
}

/// Index of the input sample nearest to each output sample.
pub(super) fn nearest_voxels(n_in: usize, n_out: usize) -> Vec<usize> {
    let nearest = |i| ((position(i, n_in, n_out) + 0.5).floor() as usize).min(n_in - 1);
    (0..n_out).map(nearest).collect()
}

/// Position of output sample i among the input samples.
fn position(i: usize, n_in: usize, n_out: usize) -> f64 {
    (i as f64 + 0.5) * (n_in as f64 / n_out as f64) - 0.5
}

/// Shift of positions under linear interpolation. For ratios such as 8 / 7 some samples lie exactly half way between two
/// voxels, and which of two labels they get hangs on the last bit, which differs between builds of SciPy. With the shift
/// it is the voxel of higher index.
const TIE: f64 = 1e-12;

/// Lines that are resampled together: enough for the widest vectors, few enough for their samples to stay in the
/// second-level cache.
const BLOCK: usize = 32;

/// Samples added at each end before the spline filter, as many as in SciPy. An edge's influence falls to 0.27 per sample, so
/// twelve leave 1e-7.
pub(super) const PAD: usize = 12;

/// Input samples that make up each output sample of an axis.
pub(super) struct AxisTaps {
    interpolation: Interpolation,
    /// For each output sample, the first input sample (counted with [`PAD`] if cubic) and the weights from there on.
    pub(super) taps: Vec<(usize, [f64; 4])>,
}

impl AxisTaps {
    pub(super) fn new(n_in: usize, n_out: usize, interpolation: Interpolation) -> Self {
        let tap = |i| match interpolation {
            Interpolation::Cubic => {
                let x = position(i, n_in, n_out) + PAD as f64;
                let (start, t) = (x.floor(), x.fract());
                let u = 1.0 - t;
                let weights = [
                    u * u * u / 6.0,
                    (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0,
                    (4.0 - 6.0 * u * u + 3.0 * u * u * u) / 6.0,
                    t * t * t / 6.0,
                ];
                (start as usize - 1, weights)
            }
            Interpolation::Linear => {
                let x = (position(i, n_in, n_out) + TIE).clamp(0.0, (n_in - 1) as f64);
                let start = (x.floor() as usize).min(n_in.saturating_sub(2));
                let t = x - start as f64;
                (start, [1.0 - t, t, 0.0, 0.0])
            }
        };
        Self { interpolation, taps: (0..n_out).map(tap).collect() }
    }

    /// The output samples `out` alone, from input samples of which the first `first` are left out.
    pub(super) fn part(mut self, first: usize, out: Range<usize>) -> Self {
        self.taps = self.taps[out].iter().map(|&(start, weights)| (start - first, weights)).collect();
        self
    }

    /// Interpolates a block of lines, `[samples, lines]`.
    #[inline(always)]
    fn apply(&self, from: &ArrayView2<f32>, mut to: ArrayViewMut2<f32>, bounds: Option<(f32, f32)>) {
        let pad = if self.interpolation == Interpolation::Cubic { PAD } else { 1 };
        let mut lines = padded(from, pad);
        let first = match self.interpolation {
            Interpolation::Cubic => {
                spline_coefficients(&mut lines);
                0
            }
            Interpolation::Linear => pad,
        };
        for (mut row, (start, w)) in to.outer_iter_mut().zip(&self.taps) {
            let window = &lines[first + start..];
            let mut sums = [0.0; BLOCK];
            if self.interpolation == Interpolation::Cubic {
                let [c0, c1, c2, c3] = [&window[0], &window[1], &window[2], &window[3]];
                for b in 0..BLOCK {
                    sums[b] = c0[b] * w[0] + c1[b] * w[1] + c2[b] * w[2] + c3[b] * w[3];
                }
            } else {
                let [c0, c1] = [&window[0], &window[1]];
                for b in 0..BLOCK {
                    sums[b] = w[0] * c0[b] + w[1] * c1[b];
                }
            }
            let mut values = [0.0; BLOCK];
            for (value, sum) in values.iter_mut().zip(sums) {
                *value = sum as f32;
            }
            if let Some(bounds) = bounds {
                values = values.map(|v| clamp(v, bounds));
            }
            let values = &values[..row.len()];
            match row.as_slice_mut() {
                Some(row) => row.copy_from_slice(values),
                None => row.iter_mut().zip(values).for_each(|(to, v)| *to = *v),
            }
        }
    }
}

/// Resampling of a block of at most [`BLOCK`] lines, `[samples, lines]`.
struct LineBlock<'a> {
    taps: &'a AxisTaps,
    from: ArrayView2<'a, f32>,
    to: ArrayViewMut2<'a, f32>,
    bounds: Option<(f32, f32)>,
}

impl NullaryFnOnce for LineBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.taps.apply(&self.from, self.to, self.bounds);
    }
}

/// `v`, or the bound it exceeds.
pub(super) fn clamp(v: f32, (min, max): (f32, f32)) -> f32 {
    v.max(min).min(max)
}

/// Copies lines into rows of [`BLOCK`] f64 values per sample, their end values repeated `pad` times.
#[inline(always)]
pub(super) fn padded(from: &ArrayView2<f32>, pad: usize) -> Vec<[f64; BLOCK]> {
    let n = from.dim().0;
    let mut lines = vec![[0.0; BLOCK]; n + 2 * pad];
    for (line, row) in lines[pad..].iter_mut().zip(from.outer_iter()) {
        match row.as_slice() {
            Some(row) => line.iter_mut().zip(row).for_each(|(to, v)| *to = f64::from(*v)),
            None => line.iter_mut().zip(row).for_each(|(to, v)| *to = f64::from(*v)),
        }
    }
    let (first, last) = (lines[pad], lines[pad + n - 1]);
    lines[..pad].fill(first);
    lines[pad + n..].fill(last);
    lines
}

/// Replaces samples by the coefficients of the interpolating cubic B-splines through them (Unser, IEEE Signal Processing
/// Magazine 1999). The end values of each line repeat [`PAD`] times and beyond.
#[inline(always)]
pub(super) fn spline_coefficients(lines: &mut [[f64; BLOCK]]) {
    let pole = 3f64.sqrt() - 2.0;
    let end = lines.len() - 1;
    // At both ends the signal is constant, where the recursions have come to rest.
    let mut before = lines[0].map(|v| 6.0 * v / (1.0 - pole));
    lines[0] = before;
    for line in &mut lines[1..] {
        for b in 0..BLOCK {
            before[b] = 6.0 * line[b] + pole * before[b];
        }
        *line = before;
    }
    let mut after = lines[end].map(|v| v * (-pole / (1.0 - pole)));
    lines[end] = after;
    for line in lines[..end].iter_mut().rev() {
        for b in 0..BLOCK {
            after[b] = pole * (after[b] - line[b]);
        }
        *line = after;
    }
}
