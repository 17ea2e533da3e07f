use ndarray::{Array3, Array4};

use super::drawn::ChannelTransforms;
use super::intensity::{BrightnessAndContrast, Gamma};
use super::*;
use crate::preprocess::{CaseProperties, PreparedCase};
use crate::random::{Purpose, rng};

const SHAPE: [usize; 3] = [12, 14, 10];

/// Channel 0 is a smooth ramp, channel 1 the label; labels are slabs of 4 along axis 1, -1 in one corner.
fn case() -> PreparedCase {
    let [d, h, w] = SHAPE;
    let labels = Array3::from_shape_fn((d, h, w), |(z, y, x)| if z + y + x < 3 { -1 } else { (y / 4) as i16 });
    let image = Array4::from_shape_fn((2, d, h, w), |(c, z, y, x)| match c {
        0 => z as f32 + 0.1 * y as f32 - 0.01 * x as f32 + 1.0,
        _ => f32::from(labels[[z, y, x]]),
    });
    let properties = CaseProperties {
        spacing_mm: [1.0; 3],
        target_spacing_mm: [1.0; 3],
        shape_before_cropping: SHAPE,
        crop: SHAPE.map(|n| [0, n]),
        shape: SHAPE,
        axes: crate::AxisMap::IDENTITY,
    };
    PreparedCase { image, labels: Some(labels), locations: vec![], properties }
}

fn extract(
    spatial: SpatialTransform,
    case: &PreparedCase,
    start: [isize; 3],
    enlarged: [usize; 3],
    patch: [usize; 3],
) -> Patch {
    let case = case.clone().into();
    // Memory of another patch, of which nothing may be left.
    let spare = Patch { image: vec![f32::NAN; 9000], labels: vec![77; 9000], shape: [9; 3] };
    spatial.extract(&case, start, enlarged, patch, spare).unwrap()
}

fn at(patch: &Patch, c: usize, [z, y, x]: [usize; 3]) -> f32 {
    let [d, h, w] = patch.shape;
    patch.image[((c * d + z) * h + y) * w + x]
}

fn channel(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37) % 101) as f32 * 0.05 - 1.5).collect()
}

fn stats(v: &[f32]) -> (f32, f32) {
    let mean = v.iter().sum::<f32>() / v.len() as f32;
    (mean, (v.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / (v.len() as f32 - 1.0)).sqrt())
}

#[test]
fn enlarged_patches_are_those_of_nnunet() {
    assert_eq!(spatial::enlarged([40, 56, 40]), [73, 80, 64]);
    assert_eq!(spatial::enlarged([80, 192, 160]), [194, 289, 210]);
    assert_eq!(spatial::enlarged([128, 128, 128]), [205, 205, 205]);
    assert_eq!(spatial::enlarged([20, 64, 80])[0], 20, "flat patches keep axis 0");
    assert_eq!(enlarged_patch(&Augmentation::light(), [40, 56, 40]), [40, 56, 40]);
}

#[test]
fn an_identity_transform_equals_the_crop() {
    let case = case();
    // Odd and even edges, partly outside the image.
    for (patch, enlarged, start) in [([6, 6, 6], [8, 8, 8], [1, 2, 1]), ([7, 5, 9], [9, 9, 11], [-3, 8, -2])] {
        let crop = SpatialTransform::affine([0.0; 3], 1.0, false);
        let crop = extract(crop, &case, start, enlarged, patch);
        let first = [0, 1, 2].map(|a| start[a] + (enlarged[a] / 2 - patch[a] / 2) as isize);
        let plain = SpatialTransform::draw(&Augmentation::none(), patch, &mut rng(1, Purpose::Weights, 0, 0, 0));
        let plain = extract(plain, &case, start, enlarged, patch);
        for (i, (a, b)) in crop.image.iter().zip(&plain.image).enumerate() {
            assert!((a - b).abs() < 1e-5, "voxel {i}: {a} {b}");
        }
        assert_eq!(crop.labels, plain.labels);
        for z in 0..patch[0] {
            for y in 0..patch[1] {
                for x in 0..patch[2] {
                    let src = [z as isize + first[0], y as isize + first[1], x as isize + first[2]];
                    let inside = (0..3).all(|a| (0..SHAPE[a] as isize).contains(&src[a]));
                    let [sz, sy, sx] = src.map(|v| v.max(0) as usize);
                    let expected = if inside { case.image[[0, sz, sy, sx]] } else { 0.0 };
                    assert_eq!(at(&plain, 0, [z, y, x]), expected);
                }
            }
        }
    }
}

#[test]
fn a_quarter_turn_about_axis_0_moves_voxels_exactly() {
    let case = case();
    let turn = SpatialTransform::affine([std::f32::consts::FRAC_PI_2, 0.0, 0.0], 1.0, false);
    let (patch, start) = ([4, 4, 4], [4, 5, 3]);
    let turned = extract(turn, &case, start, [4, 4, 4], patch);
    for z in 0..4 {
        for y in 0..4 {
            for x in 0..4 {
                // src = R (dst - 1.5) + 1.5 with R = [[0, -1], [1, 0]] in (y, x).
                let expected = case.image[[0, z + 4, 3 - x + 5, y + 3]];
                assert!((at(&turned, 0, [z, y, x]) - expected).abs() < 1e-4, "{z} {y} {x}");
            }
        }
    }
}

#[test]
fn images_and_labels_stay_together() {
    let case = case();
    let spatial = SpatialTransform::affine([0.3, -0.2, 0.4], 1.2, false);
    let patch = extract(spatial, &case, [-2, -2, -2], [16, 18, 14], [10, 12, 8]);
    let voxels = patch.labels.len();
    // Channel 1 is the label: its interpolation is within one half of the label that won a majority.
    let mut seen = 0;
    for (label, value) in patch.labels.iter().zip(&patch.image[voxels..]) {
        if *label >= 0 && (value - value.round()).abs() < 0.01 && *value > 0.5 {
            assert_eq!(f32::from(*label), value.round());
            seen += 1;
        }
    }
    assert!(seen > 100 && patch.labels.contains(&-1), "{seen}");
}

#[test]
fn outside_of_the_enlarged_patch_is_unlabelled_even_within_the_image() {
    let spatial = SpatialTransform::affine([0.0; 3], 1.4, false);
    let patch = extract(spatial, &case(), [3, 4, 2], [6, 6, 6], [6, 6, 6]);
    assert_eq!(patch.labels[0], -1);
    assert_eq!(at(&patch, 0, [0, 0, 0]), 0.0);
    assert!(at(&patch, 0, [3, 3, 3]) > 0.0);
}

#[test]
fn flat_patches_are_not_tilted() {
    let case = case();
    assert!(spatial::is_flat([3, 10, 5]) && !spatial::is_flat([4, 12, 5]));
    let spatial = SpatialTransform::affine([1.0, 0.7, 0.9], 1.3, true);
    let patch = extract(spatial, &case, [2, 0, 0], [3, 14, 10], [3, 4, 4]);
    for z in 0..3 {
        let difference = at(&patch, 0, [z, 2, 2]) - at(&patch, 0, [0, 2, 2]);
        assert!((difference - z as f32).abs() < 1e-4, "axis 0 is untouched");
    }
}

#[test]
fn mirroring_matches_its_definition() {
    let [d, h, w] = [2, 3, 4];
    for bits in 0..8 {
        let axes = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
        let n = d * h * w;
        let mut patch =
            Patch { image: (0..2 * n).map(|v| v as f32).collect(), labels: (0..n as i16).collect(), shape: [d, h, w] };
        let drawn = DrawnTransforms {
            channels: vec![ChannelTransforms::default(); 2],
            mirror: axes,
            ..DrawnTransforms::default()
        };
        drawn.apply_to(&mut patch);
        for (i, &label) in patch.labels.iter().enumerate() {
            let (z, y, x) = (i / (h * w), i / w % h, i % w);
            let [z, y, x] = [(z, d), (y, h), (x, w)]
                .map(|(i, n)| [i, n - 1 - i])
                .iter()
                .zip(axes)
                .map(|(choice, flip)| choice[usize::from(flip)])
                .collect::<Vec<_>>()
                .try_into()
                .unwrap();
            assert_eq!(label as usize, (z * h + y) * w + x, "{axes:?}");
            assert_eq!((patch.image[i], patch.image[n + i]), (f32::from(label), f32::from(label) + n as f32));
        }
    }
}

#[test]
fn intensity_transforms_follow_their_formulas() {
    let original = channel(1000);
    let (mean, std) = stats(&original);
    let (min, max) = original.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    for inverted in [false, true] {
        for g in [0.7, 1.0, 1.5] {
            let mut v = original.clone();
            intensity::apply(Gamma { channel: &mut v, g, inverted });
            let (new_mean, new_std) = stats(&v);
            assert!((new_mean - mean).abs() < 1e-4 && (new_std - std).abs() < 1e-4, "mean and deviation are kept");
            if g == 1.0 {
                assert!(v.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-4), "gamma 1 changes nothing");
            } else {
                // Gamma above 1 pushes the median below the mean; of the negative, above.
                let middle = original.iter().position(|v| (v - 0.5 * (min + max)).abs() < 0.03).unwrap();
                assert_eq!(v[middle] < original[middle], (g > 1.0) != inverted, "g {g}, inverted {inverted}");
            }
        }
    }
    let change = |channel: &mut [f32], brightness, contrast| {
        intensity::apply(BrightnessAndContrast { channel, brightness, contrast });
    };
    let mut v = original.clone();
    change(&mut v, None, Some(1.25));
    assert!(v.iter().all(|v| (min..=max).contains(v)), "within the old range");
    for (v, original) in v.iter().zip(&original) {
        let expected = ((original - mean) * 1.25 + mean).clamp(min, max);
        assert!((v - expected).abs() < 1e-5, "{v} {expected}");
    }
    let mut one_after_the_other = original.clone();
    for (b, c) in [(Some(0.5), None), (None, Some(0.8))] {
        change(&mut one_after_the_other, b, c);
    }
    let mut at_once = original.clone();
    change(&mut at_once, Some(0.5), Some(0.8));
    for (a, b) in at_once.iter().zip(&one_after_the_other) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    let mut noise = vec![0.0; 100_001];
    intensity::add_noise(&mut noise, 0.1, &mut rng(3, Purpose::Weights, 0, 0, 0));
    let (mean, std) = stats(&noise);
    assert!(mean.abs() < 2e-3 && (std - 0.1).abs() < 2e-3, "{mean} {std}");
}

#[test]
fn blur_keeps_constants_and_spreads_points() {
    let shape = [7, 6, 5];
    let mut constant = vec![2.0; 210];
    filter::blur(&mut constant, shape, [0.5, 0.7, 1.0]);
    assert!(constant.iter().all(|v| (v - 2.0).abs() < 1e-5), "edges included");
    let mut point = vec![0.0; 210];
    point[(3 * 6 + 3) * 5 + 2] = 1.0;
    filter::blur(&mut point, shape, [0.5, 0.5, 0.5]);
    // Three samples, exp(-2) : 1 : exp(-2), normalised.
    let side = (-2f32).exp() / (1.0 + 2.0 * (-2f32).exp());
    assert!((point[(2 * 6 + 3) * 5 + 2] - side * (1.0 - 2.0 * side).powi(2)).abs() < 1e-6);
    assert_eq!(point[(6 + 3) * 5 + 2], 0.0, "two voxels away");
}

#[test]
fn low_resolution_takes_nearest_then_interpolates() {
    // 4 -> 2 samples: voxels 1 and 3 ((0.5) 2 = 1, (1.5) 2 = 3), then back: weights .25 and .75.
    let mut line = vec![0.0, 10.0, 20.0, 30.0];
    filter::low_resolution(&mut line, [1, 1, 4], [0.5; 3]);
    assert_eq!(line, [10.0, 15.0, 25.0, 30.0]);
    let mut same = channel(60);
    filter::low_resolution(&mut same, [3, 4, 5], [0.99; 3]);
    assert_eq!(same, channel(60), "nothing to round away");
}

#[test]
fn masked_channels_are_zero_outside() {
    let mut patch = Patch { image: vec![5.0; 4], labels: vec![-1, 2], shape: [1, 1, 2] };
    patch.clear_outside(&[true, false]);
    assert_eq!(patch.image, [0.0, 5.0, 5.0, 5.0]);
}

#[test]
fn presets_have_names_and_probabilities_are_checked() {
    assert_eq!(Augmentation::preset("light").unwrap(), Augmentation::light());
    assert!(Augmentation::preset("heavy").unwrap_err().to_string().contains("expected none, light or full"));
    let wrong = Augmentation { gamma: 1.5, ..Augmentation::full() };
    assert_eq!(wrong.check().unwrap_err().to_string(), "augmentation: gamma is 1.5; a probability is from 0 to 1");
}

/// Wherever a stream stands, noise takes as many words from it as its blocks of elements, and can be made again.
#[test]
fn noise_is_its_place_in_a_stream() {
    use rand::Rng;
    for (len, before) in [(1, 0), (127, 1), (128, 2), (129, 63), (1000, 64), (4096, 7)] {
        let mut old = rng(3, Purpose::Weights, 1, 2, 0);
        (0..before).for_each(|_| _ = old.next_u32());
        let mut new = old.clone();
        let (mut expected, mut found) = (vec![1.0; len], vec![1.0; len]);
        intensity::add_noise(&mut expected, 0.1, &mut old);
        let stream = drawn::take_noise(&mut new, len);
        assert_eq!(stream.get_word_pos(), before as u128);
        assert_eq!(old.next_u64(), new.next_u64(), "{len} after {before}");
        let drawn = DrawnTransforms {
            noise: Some((0.1, stream)),
            channels: vec![ChannelTransforms::default()],
            mirror: [false; 3],
        };
        drawn.apply(&mut found, &mut vec![0; len], [1, 1, len]);
        assert_eq!(found, expected);
    }
}
