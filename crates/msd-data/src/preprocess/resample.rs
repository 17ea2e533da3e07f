//! Resampling to another voxel size, as scikit-image's `resize` does it for nnU-Net: output voxel i of an axis lies
//! at `(i + 0.5) n_in / n_out - 0.5` of the input, edges replicate, there is no anti-aliasing. Every interpolation
//! is separable, so images are done one axis at a time, axes that grow most last, in blocks of neighbouring lines whose
//! arithmetic fills a vector. Labels are decided voxel by voxel from the corners around, without a map of their own.
#![expect(clippy::inline_always, reason = "a block is compiled anew for each set of vectors that it is dispatched to")]

use ndarray::{Array3, Array4, ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, Zip, parallel::prelude::*};
use pulp::{Arch, NullaryFnOnce};

/// Interpolation along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// Interpolating cubic B-spline.
    Cubic,
    /// Linear.
    Linear,
}

/// round(shape spacing / target) per axis.
pub(crate) fn resampled_shape(shape: [usize; 3], spacing_mm: [f64; 3], target_mm: [f64; 3]) -> [usize; 3] {
    // At least one voxel: a slice thinner than half a target voxel would vanish.
    let along = |a: usize| (spacing_mm[a] / target_mm[a] * shape[a] as f64).round_ties_even();
    [0, 1, 2].map(|a| along(a).max(1.0) as usize)
}

/// The axis to be treated on its own: its voxels are more than three times longer than the finest, in the current
/// grid or else in the target grid, and it alone is that long.
pub(crate) fn separate_axis(current_mm: [f64; 3], target_mm: [f64; 3]) -> Option<usize> {
    let extremes = |mm: [f64; 3]| mm.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
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
pub(crate) fn resample_image(image: Array4<f32>, shape: [usize; 3], separate: Option<usize>) -> Array4<f32> {
    if image.shape()[1..] == shape {
        return image;
    }
    let mut out = Array4::zeros((image.dim().0, shape[0], shape[1], shape[2]));
    for (from, to) in image.outer_iter().zip(out.outer_iter_mut()) {
        resample_into(&from, to, separate, Kernel::Cubic);
    }
    out
}

/// Resamples labels: per label in ascending order, -1 included, voxels whose indicator interpolates to at least one
/// half get it; where none does, 0. Across a separate axis the nearest slice's winner is taken.
pub(crate) fn resample_labels(labels: Array3<i16>, shape: [usize; 3], separate: Option<usize>) -> Array3<i16> {
    if labels.shape() == shape {
        return labels;
    }
    let [z_taps, y_taps, x_taps] =
        [0, 1, 2].map(|axis| LabelTap::along(labels.shape()[axis], shape[axis], separate == Some(axis)));
    let (_, height, width) = labels.dim();
    let voxels = labels.as_slice().expect("labels are in standard layout");
    let mut out = Array3::zeros(shape);
    let slices = out.outer_iter_mut().into_par_iter().zip(&z_taps);
    slices.for_each(|(mut slice, z)| {
        for (mut row, y) in slice.outer_iter_mut().zip(&y_taps) {
            let row = row.as_slice_mut().expect("made in standard layout");
            let rows = [(z.low, y.low), (z.low, y.high), (z.high, y.low), (z.high, y.high)]
                .map(|(z, y)| &voxels[(z * height + y) * width..][..width]);
            let alike = rows[1..].iter().all(|other| *other == rows[0]);
            if alike && width == shape[2] {
                row.copy_from_slice(rows[0]);
                continue;
            }
            for (label, x) in row.iter_mut().zip(&x_taps) {
                let first = rows[0][x.low];
                let uniform = |row: &&[i16]| row[x.low] == first && row[x.high] == first;
                let all = if alike { uniform(&rows[0]) } else { rows.iter().all(uniform) };
                *label = if all {
                    first
                } else {
                    let at = rows.map(|row| [row[x.low], row[x.high]]);
                    winner(at, [z.weights, y.weights, x.weights])
                };
            }
        }
    });
    out
}

/// The two voxels along an axis that decide a label, and their weights.
struct LabelTap {
    low: usize,
    high: usize,
    weights: [f64; 2],
}

impl LabelTap {
    fn along(n_in: usize, n_out: usize, nearest: bool) -> Vec<Self> {
        let only = |i| Self { low: i, high: i, weights: [1.0, 0.0] };
        if n_in == n_out {
            return (0..n_out).map(only).collect();
        }
        if nearest {
            return nearest_voxels(n_in, n_out).into_iter().map(only).collect();
        }
        let taps = Taps::new(n_in, n_out, Kernel::Linear).taps;
        let tap = |(low, [a, b, ..]): (usize, [f64; 4])| Self { low, high: (low + 1).min(n_in - 1), weights: [a, b] };
        taps.into_iter().map(tap).collect()
    }
}

/// The label of a voxel between eight, `corners[2 z + y][x]`: axes one after the other, so that ties fall as they do
/// in three passes.
fn winner(corners: [[i16; 2]; 4], [z, y, x]: [[f64; 2]; 3]) -> i16 {
    let mut candidates = corners.concat();
    candidates.sort_unstable();
    candidates.dedup();
    let mut won = 0;
    for label in candidates {
        let is = |at: i16| f64::from(u8::from(at == label));
        let along_z = |y: usize, x: usize| z[0] * is(corners[y][x]) + z[1] * is(corners[2 + y][x]);
        let along_y = |x: usize| y[0] * along_z(0, x) + y[1] * along_z(1, x);
        if x[0] * along_y(0) + x[1] * along_y(1) >= 0.5 {
            won = label;
        }
    }
    won
}

/// Resamples one volume linearly.
pub(crate) fn resample_linear(volume: &ArrayView3<f32>, shape: [usize; 3], separate: Option<usize>) -> Array3<f32> {
    let mut out = Array3::zeros(shape);
    resample_into(volume, out.view_mut(), separate, Kernel::Linear);
    out
}

/// Resamples one volume to the shape of `to`; cubic results are clipped to the input's range.
fn resample_into(from: &ArrayView3<f32>, mut to: ArrayViewMut3<f32>, separate: Option<usize>, kernel: Kernel) {
    let (n_in, n_out) = ([0, 1, 2].map(|a| from.shape()[a]), [0, 1, 2].map(|a| to.shape()[a]));
    let mut axes: Vec<usize> = (0..3).filter(|&a| Some(a) != separate && n_in[a] != n_out[a]).collect();
    // What grows most comes last: the maps between stay small.
    axes.sort_by(|&a, &b| (n_out[a] * n_in[b]).cmp(&(n_out[b] * n_in[a])));
    let clip = kernel == Kernel::Cubic && !axes.is_empty();
    let whole = (clip && separate.is_none()).then(|| range(from));
    let across = separate.filter(|&a| n_in[a] != n_out[a]);
    let mut current: Option<Array3<f32>> = None;
    for (i, &axis) in axes.iter().enumerate() {
        let source = current.as_ref().map_or(from.view(), |c| c.view());
        let last = i + 1 == axes.len();
        let bounds = whole.filter(|_| last);
        if last && across.is_none() {
            along(&source, &mut to, axis, kernel, bounds);
        } else {
            let mut shape = [0, 1, 2].map(|a| source.shape()[a]);
            shape[axis] = n_out[axis];
            let mut next = Array3::from_elem(shape, 0.0);
            along(&source, &mut next.view_mut(), axis, kernel, bounds);
            current = Some(next);
        }
    }
    if let Some(axis) = separate.filter(|_| clip) {
        let in_plane = match &mut current {
            Some(current) if across.is_some() => current.view_mut(),
            _ => to.view_mut(),
        };
        clip_slices(in_plane, from, axis);
    }
    match across {
        Some(axis) => {
            let source = current.as_ref().map_or(from.view(), |c| c.view());
            let picked = nearest_voxels(n_in[axis], n_out[axis]);
            let slices = to.axis_iter_mut(Axis(axis)).into_par_iter().zip(picked);
            slices.for_each(|(mut to, i)| to.assign(&source.index_axis(Axis(axis), i)));
        }
        None if axes.is_empty() => to.assign(from),
        None => {}
    }
}

/// Smallest and largest value.
fn range(volume: &ArrayView3<f32>) -> (f32, f32) {
    let wider = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.max(b.1));
    let slices = volume.outer_iter().into_par_iter();
    let of_slice = |slice: ArrayView2<f32>| slice.iter().map(|&v| (v, v)).reduce(wider);
    let all = slices.filter_map(of_slice).reduce_with(wider);
    all.unwrap_or((0.0, 0.0))
}

/// Clips each slice along `axis` to the range of the same slice of `like`.
fn clip_slices(mut volume: ArrayViewMut3<f32>, like: &ArrayView3<f32>, axis: usize) {
    let slices = volume.axis_iter_mut(Axis(axis)).into_par_iter();
    let likes = like.axis_iter(Axis(axis)).into_par_iter();
    slices.zip(likes).for_each(|(mut slice, like)| {
        let bounds = range(&like.insert_axis(Axis(0)));
        slice.mapv_inplace(|v| clamp(v, bounds));
    });
}

fn clamp(v: f32, (min, max): (f32, f32)) -> f32 {
    v.max(min).min(max)
}

/// Per output sample the input sample nearest to it.
fn nearest_voxels(n_in: usize, n_out: usize) -> Vec<usize> {
    let nearest = |i| ((source(i, n_in, n_out) + 0.5).floor() as usize).min(n_in - 1);
    (0..n_out).map(nearest).collect()
}

/// Where output sample i lies in the input.
fn source(i: usize, n_in: usize, n_out: usize) -> f64 {
    (i as f64 + 0.5) * (n_in as f64 / n_out as f64) - 0.5
}

/// For ratios such as 8 / 7 some samples lie exactly half way between two voxels, and of two labels there the last
/// bit decides, which differs between builds of SciPy. Here the voxel of higher index wins.
const TIE: f64 = 1e-12;

/// Lines that are resampled together: enough for the widest vectors, few enough for their samples to stay in the
/// second-level cache.
const BLOCK: usize = 32;

/// Resamples along one axis; the other two have equal lengths in `from` and `to`.
fn along(from: &ArrayView3<f32>, to: &mut ArrayViewMut3<f32>, axis: usize, kernel: Kernel, bounds: Option<(f32, f32)>) {
    let taps = Taps::new(from.shape()[axis], to.shape()[axis], kernel);
    // Blocks lie along the faster of the other axes.
    let order = [[1, 0, 2], [0, 1, 2], [0, 2, 1]][axis];
    let (from, mut to) = (from.view().permuted_axes(order), to.view_mut().permuted_axes(order));
    Zip::from(to.outer_iter_mut()).and(from.outer_iter()).par_for_each(|mut to, from| {
        let blocks = to.axis_chunks_iter_mut(Axis(1), BLOCK).into_par_iter();
        blocks.zip(from.axis_chunks_iter(Axis(1), BLOCK)).for_each(|(to, from)| {
            Arch::new().dispatch(Block { taps: &taps, from, to, bounds });
        });
    });
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
        Self { kernel, taps: (0..n_out).map(tap).collect() }
    }

    #[inline(always)]
    fn apply(&self, from: &ArrayView2<f32>, mut to: ArrayViewMut2<f32>, bounds: Option<(f32, f32)>) {
        let pad = if self.kernel == Kernel::Cubic { PAD } else { 1 };
        let mut lines = padded(from, pad);
        let first = match self.kernel {
            Kernel::Cubic => {
                spline_coefficients(&mut lines);
                0
            }
            Kernel::Linear => pad,
        };
        for (mut row, (start, w)) in to.outer_iter_mut().zip(&self.taps) {
            let window = &lines[first + start..];
            let mut sums = [0.0; BLOCK];
            if self.kernel == Kernel::Cubic {
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

/// A block of lines, `[samples, lines]`, to be resampled.
struct Block<'a> {
    taps: &'a Taps,
    from: ArrayView2<'a, f32>,
    to: ArrayViewMut2<'a, f32>,
    bounds: Option<(f32, f32)>,
}

impl NullaryFnOnce for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.taps.apply(&self.from, self.to, self.bounds);
    }
}

/// Lines side by side in f64, their end values repeated `pad` times.
#[inline(always)]
fn padded(from: &ArrayView2<f32>, pad: usize) -> Vec<[f64; BLOCK]> {
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

/// Coefficients of the interpolating cubic B-splines through lines whose end values repeat `PAD` times and beyond
/// (Unser, IEEE Signal Processing Magazine 1999), in place of the samples.
#[inline(always)]
fn spline_coefficients(lines: &mut [[f64; BLOCK]]) {
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

#[cfg(test)]
mod tests {
    use ndarray::{Array2, arr3};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splines_pass_through_their_points() {
        let lines = Array2::from_shape_fn((7, 2), |(i, b)| [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0][i] * (1.0 + b as f32));
        let mut c = padded(&lines.view(), PAD);
        spline_coefficients(&mut c);
        for ((i, b), v) in lines.indexed_iter() {
            let at = (c[PAD + i - 1][b] + 4.0 * c[PAD + i][b] + c[PAD + i + 1][b]) / 6.0;
            assert!((at - f64::from(*v)).abs() < 1e-6, "{i}: {at} {v}");
        }
    }

    #[test]
    fn cubic_resampling_is_exact_on_smooth_ramps_and_never_overshoots() {
        let ramp = Array3::from_shape_fn((24, 5, 4), |(z, y, x)| (z as f32) + 10.0 * y as f32 - x as f32);
        let resample = |volume: Array3<f32>, shape| {
            let image = volume.insert_axis(Axis(0));
            resample_image(image, shape, None).index_axis_move(Axis(0), 0)
        };
        let finer = resample(ramp, [48, 5, 4]);
        for z in 16..32 {
            let expected = 0.5 * z as f32 - 0.25 + 20.0 - 1.0;
            assert!((finer[[z, 2, 1]] - expected).abs() < 1e-4, "{z}");
        }
        let step = Array3::from_shape_fn((8, 8, 8), |(z, ..)| f32::from(u8::from(z > 3)));
        let finer = resample(step, [13, 11, 9]);
        assert!(finer.iter().all(|v| (0.0..=1.0).contains(v)));
    }

    fn random_labels(shape: [usize; 3], seed: u32) -> Array3<i16> {
        let mut n = seed;
        Array3::from_shape_simple_fn(shape, || {
            n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            [-1, 0, 3, 7][(n >> 30) as usize]
        })
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
            let labels = random_labels(from, seed);
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

    proptest! {
        /// Voxel by voxel as by whole maps of indicators.
        #[test]
        fn labels_win_as_their_indicators_do(
            from in prop::array::uniform3(1usize..8),
            to in prop::array::uniform3(1usize..11),
            separate in prop::option::of(0usize..3),
            seed in 0u32..1000,
        ) {
            let labels = random_labels(from, seed);
            let mut expected = Array3::zeros(to);
            for value in [-1, 0, 3, 7] {
                let mut share = labels.mapv(|v| f64::from(u8::from(v == value)));
                for axis in (0..3).filter(|&axis| from[axis] != to[axis]) {
                    let taps = Taps::new(from[axis], to[axis], Kernel::Linear).taps;
                    let picked = nearest_voxels(from[axis], to[axis]);
                    let mut next = Array3::zeros([0, 1, 2].map(|a| {
                        if a == axis { to[a] } else { share.shape()[a] }
                    }));
                    for (i, mut slice) in next.axis_iter_mut(Axis(axis)).enumerate() {
                        let at = |i: usize| share.index_axis(Axis(axis), i);
                        let (start, [a, b, ..]) = taps[i];
                        if Some(axis) == separate {
                            slice.assign(&at(picked[i]));
                        } else {
                            slice.assign(&(&at(start) * a + &at((start + 1).min(from[axis] - 1)) * b));
                        }
                    }
                    share = next;
                }
                Zip::from(&mut expected).and(&share).for_each(|label, &share| {
                    if share >= 0.5 {
                        *label = value;
                    }
                });
            }
            prop_assert_eq!(resample_labels(labels, to, separate), expected);
        }
    }

    #[test]
    fn separate_axes() {
        assert_eq!(separate_axis([4.5, 0.8, 0.9], [1.0; 3]), Some(0), "current grid");
        assert_eq!(separate_axis([1.0; 3], [1.0, 1.0, 3.1]), Some(2), "target grid");
        assert_eq!(separate_axis([3.0, 1.0, 1.0], [1.0; 3]), None, "strictly more than three");
        assert_eq!(separate_axis([4.0, 4.0, 1.0], [1.0; 3]), None, "two equally long axes");
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
        let finer = resample_image(volume.insert_axis(Axis(0)), [6, 2, 2], Some(0));
        let finer = finer.index_axis_move(Axis(0), 0);
        assert_eq!(finer.lanes(Axis(0)).into_iter().next().unwrap().to_vec(), [0.0, 0.0, 5.0, 5.0, 7.0, 7.0]);
    }
}
