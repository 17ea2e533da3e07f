use adw_testing::{assert_close, tolerance};
use ndarray::{Array2, Zip, arr3};
use proptest::prelude::*;

use super::lines::{AxisTaps, PAD, padded, spline_coefficients};
use super::*;

#[test]
fn splines_pass_through_their_points() {
    let lines = Array2::from_shape_fn((7, 2), |(i, b)| [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0][i] * (1.0 + b as f32));
    let mut c = padded(&lines.view(), PAD);
    spline_coefficients(&mut c);
    for ((i, b), v) in lines.indexed_iter() {
        let at = (c[PAD + i - 1][b] + 4.0 * c[PAD + i][b] + c[PAD + i + 1][b]) / 6.0;
        assert_close(format!("point {i}"), &[at], &[*v], tolerance::SPLINE);
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
        assert_close(format!("slice {z}"), &[finer[[z, 2, 1]]], &[expected], tolerance::F32_TRANSFORMED_IMAGE);
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
                let taps = AxisTaps::new(from[axis], to[axis], Interpolation::Linear).taps;
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
