//! Resampling to another voxel size, as scikit-image's `resize` does it for nnU-Net: output voxel i of an axis lies
//! at `(i + 0.5) n_in / n_out - 0.5` of the input, edges replicate, there is no anti-aliasing. Every interpolation
//! is separable, so it is done one axis at a time.

use ndarray::{Array3, Array4, ArrayView1, ArrayView3, ArrayViewMut1, Axis, Zip};

/// Interpolation along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Interpolating cubic B-spline.
    Cubic,
    /// Linear.
    Linear,
}

/// A voxel in memory; arithmetic is in f64.
pub(crate) trait Voxel: Copy + Send + Sync + PartialOrd {
    const ZERO: Self;
    fn load(self) -> f64;
    fn store(v: f64) -> Self;
}

impl Voxel for f32 {
    const ZERO: Self = 0.0;
    fn load(self) -> f64 {
        f64::from(self)
    }
    fn store(v: f64) -> Self {
        v as Self
    }
}

/// For indicators of labels, where a value that should be exactly one half must not be rounded below it.
impl Voxel for f64 {
    const ZERO: Self = 0.0;
    fn load(self) -> f64 {
        self
    }
    fn store(v: f64) -> Self {
        v
    }
}

/// round(shape spacing / target) per axis.
pub(crate) fn resampled_shape(
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    target_mm: [f64; 3],
) -> [usize; 3] {
    // At least one voxel: a slice thinner than half a target voxel would vanish.
    let along = |a: usize| (spacing_mm[a] / target_mm[a] * shape[a] as f64).round_ties_even();
    [0, 1, 2].map(|a| along(a).max(1.0) as usize)
}

/// The axis to be treated on its own: its voxels are more than three times longer than the finest, in the current
/// grid or else in the target grid, and it alone is that long.
pub(crate) fn separate_axis(current_mm: [f64; 3], target_mm: [f64; 3]) -> Option<usize> {
    let extremes = |mm: [f64; 3]| {
        mm.iter()
            .fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)))
    };
    let anisotropic = |mm: &[f64; 3]| {
        let (min, max) = extremes(*mm);
        max / min > 3.0
    };
    let mm = [current_mm, target_mm].into_iter().find(anisotropic)?;
    let (_, max) = extremes(mm);
    let mut longest = (0..3).filter(|&a| mm[a] == max);
    longest.next().filter(|_| longest.next().is_none())
}

/// Resamples every channel with cubic splines, then clips it to the range it had (per slice where an axis is
/// treated on its own). An image that has the shape already is returned as it is.
pub(crate) fn resample_image(
    image: Array4<f32>,
    shape: [usize; 3],
    separate: Option<usize>,
) -> Array4<f32> {
    if image.shape()[1..] == shape {
        return image;
    }
    let mut out = Array4::zeros((image.dim().0, shape[0], shape[1], shape[2]));
    for (from, mut to) in image.outer_iter().zip(out.outer_iter_mut()) {
        to.assign(&resample(&from, shape, separate, Kernel::Cubic));
    }
    out
}

/// Resamples labels: per label in ascending order, -1 included, voxels whose indicator interpolates to at least one
/// half get it; where none does, 0.
pub(crate) fn resample_labels(
    labels: Array3<i16>,
    shape: [usize; 3],
    separate: Option<usize>,
) -> Array3<i16> {
    if labels.shape() == shape {
        return labels;
    }
    let mut values: Vec<i16> = labels.iter().copied().collect();
    values.sort_unstable();
    values.dedup();
    // The winner is decided in-plane; across the separate axis the winner is copied.
    let mut in_plane = shape;
    if let Some(axis) = separate {
        in_plane[axis] = labels.shape()[axis];
    }
    let mut out = Array3::zeros(in_plane);
    for value in values {
        let indicator = labels.mapv(|v| f64::from(u8::from(v == value)));
        let share = resample(&indicator.view(), in_plane, separate, Kernel::Linear);
        Zip::from(&mut out).and(&share).for_each(|label, &share| {
            if share >= 0.5 {
                *label = value;
            }
        });
    }
    match separate {
        Some(axis) => nearest(&out.view(), axis, shape[axis]),
        None => out,
    }
}

/// Resamples one volume; cubic results are clipped to the input's range.
pub(crate) fn resample<T: Voxel>(
    volume: &ArrayView3<T>,
    shape: [usize; 3],
    separate: Option<usize>,
    kernel: Kernel,
) -> Array3<T> {
    let mut out = volume.to_owned();
    for axis in (0..3).filter(|&axis| Some(axis) != separate) {
        if out.shape()[axis] != shape[axis] {
            out = along(&out.view(), axis, shape[axis], kernel);
        }
    }
    if kernel == Kernel::Cubic {
        match separate {
            None => clip(out.iter_mut(), volume.iter()),
            Some(axis) => {
                for (mut slice, from) in out
                    .axis_iter_mut(Axis(axis))
                    .zip(volume.axis_iter(Axis(axis)))
                {
                    clip(slice.iter_mut(), from.iter());
                }
            }
        }
    }
    match separate {
        Some(axis) => nearest(&out.view(), axis, shape[axis]),
        None => out,
    }
}

fn clip<'a, T: Voxel + 'a>(to: impl Iterator<Item = &'a mut T>, from: impl Iterator<Item = &'a T>) {
    let bounds = from.fold(None, |bounds, &v| match bounds {
        None => Some((v, v)),
        Some((min, max)) => Some((if v < min { v } else { min }, if v > max { v } else { max })),
    });
    let Some((min, max)) = bounds else { return };
    for v in to {
        if *v < min {
            *v = min;
        } else if *v > max {
            *v = max;
        }
    }
}

fn nearest<T: Copy>(volume: &ArrayView3<T>, axis: usize, n_out: usize) -> Array3<T> {
    let n_in = volume.shape()[axis];
    let picked: Vec<usize> = (0..n_out)
        .map(|i| ((source(i, n_in, n_out) + 0.5).floor() as usize).min(n_in - 1))
        .collect();
    volume.select(Axis(axis), &picked)
}

/// Where output sample i lies in the input.
fn source(i: usize, n_in: usize, n_out: usize) -> f64 {
    (i as f64 + 0.5) * (n_in as f64 / n_out as f64) - 0.5
}

/// For ratios such as 8 / 7 some samples lie exactly half way between two voxels, and of two labels there the last
/// bit decides, which differs between builds of SciPy. Here the voxel of higher index wins.
const TIE: f64 = 1e-12;

fn along<T: Voxel>(volume: &ArrayView3<T>, axis: usize, n_out: usize, kernel: Kernel) -> Array3<T> {
    let n_in = volume.shape()[axis];
    let mut shape = [volume.dim().0, volume.dim().1, volume.dim().2];
    shape[axis] = n_out;
    let mut out = Array3::from_elem(shape, T::ZERO);
    let taps = Taps::new(n_in, n_out, kernel);
    Zip::from(out.lanes_mut(Axis(axis)))
        .and(volume.lanes(Axis(axis)))
        .par_for_each(|to, from| taps.apply(&from, to));
    out
}

/// Samples added at each end before the spline filter: SciPy's number. The filter forgets an edge by 0.27 per
/// sample, so twelve leave 1e-7.
const PAD: usize = 12;

/// Per output sample: the first input sample it needs and the weights from there on.
struct Taps {
    kernel: Kernel,
    taps: Vec<(usize, [f64; 4])>,
}

impl Taps {
    fn new(n_in: usize, n_out: usize, kernel: Kernel) -> Self {
        let tap = |i| match kernel {
            Kernel::Cubic => {
                let x = source(i, n_in, n_out) + PAD as f64;
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
            Kernel::Linear => {
                let x = (source(i, n_in, n_out) + TIE).clamp(0.0, (n_in - 1) as f64);
                let start = (x.floor() as usize).min(n_in.saturating_sub(2));
                let t = x - start as f64;
                (start, [1.0 - t, t, 0.0, 0.0])
            }
        };
        Self {
            kernel,
            taps: (0..n_out).map(tap).collect(),
        }
    }

    fn apply<T: Voxel>(&self, from: &ArrayView1<T>, to: ArrayViewMut1<T>) {
        match self.kernel {
            Kernel::Linear => {
                let last = from.len() - 1;
                for (to, &(start, [a, b, ..])) in to.into_iter().zip(&self.taps) {
                    *to = T::store(a * from[start].load() + b * from[(start + 1).min(last)].load());
                }
            }
            Kernel::Cubic => {
                let coefficients = spline_coefficients(from);
                for (to, (start, weights)) in to.into_iter().zip(&self.taps) {
                    let window = &coefficients[*start..start + 4];
                    *to = T::store(window.iter().zip(weights).map(|(c, w)| c * w).sum());
                }
            }
        }
    }
}

/// Coefficients of the interpolating cubic B-spline through a line whose end values repeat `PAD` times and beyond
/// (Unser, IEEE Signal Processing Magazine 1999).
fn spline_coefficients<T: Voxel>(line: &ArrayView1<T>) -> Vec<f64> {
    let pole = 3f64.sqrt() - 2.0;
    let last = line.len() - 1;
    let mut c: Vec<f64> = (0..line.len() + 2 * PAD)
        .map(|i| 6.0 * line[i.saturating_sub(PAD).min(last)].load())
        .collect();
    let end = c.len() - 1;
    // At both ends the signal is constant, where the recursions have come to rest.
    c[0] /= 1.0 - pole;
    for i in 1..=end {
        c[i] += pole * c[i - 1];
    }
    c[end] *= -pole / (1.0 - pole);
    for i in (0..end).rev() {
        c[i] = pole * (c[i + 1] - c[i]);
    }
    c
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, arr3};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splines_pass_through_their_points() {
        let line = Array1::from_iter([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]);
        let c = spline_coefficients(&line.view());
        for (i, v) in line.iter().enumerate() {
            let at = (c[PAD + i - 1] + 4.0 * c[PAD + i] + c[PAD + i + 1]) / 6.0;
            assert!((at - v).abs() < 1e-6, "{i}: {at} {v}");
        }
    }

    #[test]
    fn cubic_resampling_is_exact_on_smooth_ramps_and_never_overshoots() {
        let ramp = Array3::from_shape_fn((24, 5, 4), |(z, y, x)| {
            (z as f32) + 10.0 * y as f32 - x as f32
        });
        let finer = resample(&ramp.view(), [48, 5, 4], None, Kernel::Cubic);
        for z in 16..32 {
            let expected = 0.5 * z as f32 - 0.25 + 20.0 - 1.0;
            assert!((finer[[z, 2, 1]] - expected).abs() < 1e-4, "{z}");
        }
        let step = Array3::from_shape_fn((8, 8, 8), |(z, ..)| f32::from(u8::from(z > 3)));
        let finer = resample(&step.view(), [13, 11, 9], None, Kernel::Cubic);
        assert!(finer.iter().all(|v| (0.0..=1.0).contains(v)));
    }

    proptest! {
        /// Any shape to any shape: the range is kept, constants stay, labels are invented nowhere.
        #[test]
        fn any_shape_to_any_shape(
            from in prop::array::uniform3(1usize..9),
            to in prop::array::uniform3(1usize..12),
            separate in prop::option::of(0usize..3),
            seed in 0u32..100,
        ) {
            let mut n = seed;
            let labels = Array3::from_shape_simple_fn(from, || {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                [-1i16, 0, 3, 7][(n >> 30) as usize]
            });
            let image = labels.mapv(f32::from).insert_axis(Axis(0));
            let resampled = resample_image(image, to, separate);
            prop_assert_eq!(&resampled.shape()[1..], &to);
            prop_assert!(resampled.iter().all(|v| (-1.0..=7.0).contains(v)));
            let constant = resample_image(Array4::from_elem((1, from[0], from[1], from[2]), 2.5), to, separate);
            prop_assert!(constant.iter().all(|v| *v == 2.5));
            let resampled = resample_labels(labels, to, separate);
            prop_assert_eq!(resampled.shape(), to);
            prop_assert!(resampled.iter().all(|v| [-1, 0, 3, 7].contains(v)));
        }
    }

    #[test]
    fn separate_axes() {
        assert_eq!(
            separate_axis([4.5, 0.8, 0.9], [1.0; 3]),
            Some(0),
            "current grid"
        );
        assert_eq!(
            separate_axis([1.0; 3], [1.0, 1.0, 3.1]),
            Some(2),
            "target grid"
        );
        assert_eq!(
            separate_axis([3.0, 1.0, 1.0], [1.0; 3]),
            None,
            "strictly more than three"
        );
        assert_eq!(
            separate_axis([4.0, 4.0, 1.0], [1.0; 3]),
            None,
            "two equally long axes"
        );
    }

    #[test]
    fn labels_keep_their_values_and_minus_one() {
        let labels = arr3(&[[[-1i16, -1, 0, 0, 2, 2]]]);
        let finer = resample_labels(labels.clone(), [1, 1, 12], None);
        assert_eq!(finer, arr3(&[[[-1, -1, -1, -1, 0, 0, 0, 0, 2, 2, 2, 2]]]));
        assert_eq!(resample_labels(finer, [1, 1, 6], None), labels);
    }

    #[test]
    fn across_a_separate_axis_slices_are_copied() {
        let volume = Array3::from_shape_fn((3, 2, 2), |(z, ..)| [0.0f32, 5.0, 7.0][z]);
        let finer = resample(&volume.view(), [6, 2, 2], Some(0), Kernel::Cubic);
        assert_eq!(
            finer.lanes(Axis(0)).into_iter().next().unwrap().to_vec(),
            [0.0, 0.0, 5.0, 5.0, 7.0, 7.0]
        );
    }
}
