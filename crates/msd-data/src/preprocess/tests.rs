use ndarray::{Array3, Array4, Axis};

use super::*;
use crate::geometry::Geometry;

fn test_plan(spacing_mm: [f64; 3], transpose_forward: [usize; 3]) -> Plan {
    let labels = [0, 1, 2].map(|value| serde_json::json!({"value": value, "name": value.to_string()}));
    let json = serde_json::json!({
        "dataset_name": "T", "modalities": ["MRI"], "labels": labels, "spacing_mm": spacing_mm, "median_shape": [1.0, 1.0, 1.0],
        "patch_size": [8, 8, 8], "batch_size": 2, "strides": [], "kernels": [], "normalization": ["z_score"],
        "use_mask_for_norm": [false], "intensity": [], "batch_dice": false,
        "transpose_forward": transpose_forward, "transpose_backward": [0, 1, 2]
    });
    serde_json::from_value(json).unwrap()
}

/// An organ in a box of nonzero voxels, off-centre, in a black image.
fn organ() -> (Volume<f32>, LabelMap) {
    let geometry = Geometry::new([14, 12, 16], [1.5, 1.0, 2.0]);
    let inside = |z: usize, y: usize, x: usize| (2..12).contains(&z) && (3..12).contains(&y) && (1..13).contains(&x);
    let labels = Array3::from_shape_fn((14, 12, 16), |(z, y, x)| {
        let r = (z as f64 - 7.0).powi(2) + (y as f64 - 6.0).powi(2) + (x as f64 - 5.0).powi(2);
        u16::from(r < 16.0) + u16::from(r < 4.0)
    });
    let data = Array4::from_shape_fn((1, 14, 12, 16), |(_, z, y, x)| {
        if inside(z, y, x) { 10.0 + f32::from(labels[[z, y, x]]) + x as f32 * 0.1 } else { 0.0 }
    });
    (Volume { data, geometry: geometry.clone() }, LabelMap { data: labels, geometry })
}

#[test]
fn labels_come_back_to_where_they_were() {
    let (image, labels) = organ();
    let plan = test_plan([2.0, 1.5, 1.0], [2, 0, 1]);
    let case = preprocess(image.clone(), Some(labels.clone()), &plan).unwrap();
    assert_eq!(case.image.shape(), [1, 12, 10, 9], "cropped, x first");
    assert_eq!(case.properties.shape_before_cropping, [16, 14, 12]);
    let predicted = case.labels.as_ref().unwrap().mapv(|v| v.max(0) as u16);
    assert_eq!(case.properties.restore_labels(&predicted.view()).unwrap(), labels.data);
    assert_eq!(case.locations.iter().map(|l| l.label).collect::<Vec<_>>(), [1, 2]);
    let logits = Array4::from_shape_fn((3, 12, 10, 9), |(k, ..)| if k == 1 { 0.0 } else { f32::NEG_INFINITY });
    let mut probabilities = Vec::new();
    let keep = |class: Array3<f32>| -> Result<()> {
        probabilities.push(class[[7, 6, 5]]);
        Ok(())
    };
    case.properties.restore_probabilities(&logits.view(), keep).unwrap();
    assert_eq!(probabilities, [0.0, 1.0, 0.0]);
    for (crop, size) in [([5, 1], 9), ([0, 99], 9), ([2, 14], 0)] {
        let mut broken = case.properties.clone();
        (broken.crop[0], broken.shape[2]) = (crop, size);
        let message = broken.restore_logits(&logits.view()).unwrap_err().to_string();
        assert!(message.contains("expected the properties of a prepared case"), "{message}");
    }
    let without_labels = preprocess(image, None, &plan).unwrap();
    assert_eq!(without_labels.image, case.image);
    assert!(without_labels.labels.is_none() && without_labels.locations.is_empty());
}

#[test]
fn logits_are_resampled_back() {
    let (image, labels) = organ();
    let plan = test_plan([1.0, 1.0, 1.0], [0, 1, 2]);
    let case = preprocess(image.clone(), Some(labels.clone()), &plan).unwrap();
    assert_eq!(case.image.shape(), [1, 15, 9, 24]);
    let truth = case.labels.as_ref().unwrap();
    let (d, h, w) = truth.dim();
    let logits =
        Array4::from_shape_fn((3, d, h, w), |(k, z, y, x)| f32::from(u8::from(truth[[z, y, x]].max(0) as usize == k)));
    let back = case.properties.restore_logits(&logits.view()).unwrap();
    assert_eq!(back.shape(), labels.data.shape());
    for value in [1, 2] {
        let count = |a: &Array3<u16>| a.iter().filter(|&&v| v == value).count() as f64;
        let both = back.iter().zip(&labels.data).filter(|&(&a, &b)| a == value && b == value).count() as f64;
        assert!(2.0 * both / (count(&back) + count(&labels.data)) > 0.85, "label {value}");
    }
    let message = case.properties.restore_labels(&Array3::zeros((d, h, w)).view()).unwrap_err().to_string();
    assert!(message.contains("restore its logits"), "{message}");
    assert!(case.properties.restore_logits(&Array4::zeros((3, 1, 2, 3)).view()).is_err());
    let mut classes = Vec::new();
    let keep = |class| -> Result<()> {
        classes.push(class);
        Ok(())
    };
    case.properties.restore_probabilities(&logits.view(), keep).unwrap();
    // Inside the crop and outside of it, probabilities add up to 1, and the most probable class is the label.
    for (voxel, &label) in back.indexed_iter() {
        let sum: f32 = classes.iter().map(|class| class[voxel]).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{voxel:?}: {sum}");
        assert!(classes.iter().all(|class| class[voxel] <= classes[usize::from(label)][voxel]), "{voxel:?}");
    }
}

/// Finer and coarser grids along the first axis and the others, resampled last or first or by the nearest plane, and none of it.
#[test]
fn labels_of_logits_that_come_in_parts_are_those_of_the_whole() {
    let (image, _) = organ();
    for target in [
        [1.0, 1.0, 1.0],
        [4.0, 1.3, 0.9],
        [2.0, 1.5, 1.0],
        [2.0, 0.7, 1.1],
        [1.3, 1.5, 1.0],
        [9.0, 1.5, 1.0],
        [2.0, 9.0, 1.0],
        // Labels skip planes of logits: their sources lie behind the planes that have come.
        [0.6, 0.7, 0.5],
        [0.3, 1.5, 1.0],
    ] {
        let case = preprocess(image.clone(), None, &test_plan(target, [0, 1, 2])).unwrap();
        let (_, d, h, w) = case.image.dim();
        let noise =
            |(k, z, y, x): (usize, usize, usize, usize)| ((k * 7919 + z * 613 + y * 389 + x * 101) % 997) as f32;
        let logits = Array4::from_shape_fn((3, d, h, w), noise);
        let whole = case.properties.restore_logits(&logits.view()).unwrap();
        for size in [1, 2, 5] {
            let mut restorer = LabelRestorer::new(&case.properties);
            for part in logits.axis_chunks_iter(Axis(1), size) {
                restorer.add(&part).unwrap();
            }
            assert_eq!(restorer.finish().unwrap(), whole, "{target:?}, parts of {size} planes");
        }
        let mut restorer = LabelRestorer::new(&case.properties);
        restorer.add(&logits.slice_axis(Axis(1), (..1).into())).unwrap();
        assert!(restorer.add(&logits.view()).is_err(), "too many");
        assert!(restorer.add(&logits.slice_axis(Axis(3), (1..).into())).is_err(), "another width");
        if d > 1 {
            let two = Array4::zeros((2, 1, h, w));
            assert_eq!(restorer.add(&two.view()).unwrap_err().to_string(), "classes: shape [2], expected [3]");
        }
        assert!(d == 1 || restorer.finish().is_err(), "too few");
    }
}

#[test]
fn ill_fitting_cases_are_refused() {
    let (image, mut labels) = organ();
    let plan = test_plan([1.0; 3], [0, 1, 2]);
    labels.data = Array3::zeros((14, 12, 15));
    let message = preprocess(image.clone(), Some(labels.clone()), &plan).unwrap_err().to_string();
    assert_eq!(message, "label map: shape [14, 12, 15], expected [14, 12, 16]");
    // As a signed number it would be the mark of what lies outside.
    labels.data = Array3::from_elem((14, 12, 16), 65535);
    let message = preprocess(image.clone(), Some(labels.clone()), &plan).unwrap_err().to_string();
    assert!(message.contains("label 65535"), "{message}");
    labels.data.fill(0);
    for (origin, says) in [(30.0, "along other axes than its image"), (50.0, "lies up to 20.0 mm away from image")] {
        let affine = [[-2.0, 0.0, 0.0, origin], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.0]];
        let labels = LabelMap { geometry: Geometry::from_affine([14, 12, 16], affine), ..labels.clone() };
        let message = preprocess(image.clone(), Some(labels), &plan).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    let other_grid = Volume { geometry: Geometry::new([14, 12, 15], [1.0; 3]), ..image.clone() };
    let message = preprocess(other_grid, None, &plan).unwrap_err().to_string();
    assert_eq!(message, "image: shape [14, 12, 16], expected [14, 12, 15]");
    let two = Volume { data: Array4::ones((2, 14, 12, 16)), geometry: image.geometry };
    assert!(preprocess(two, None, &plan).unwrap_err().to_string().contains("image channels"));
}

/// However a volume is stored, the network sees the same and its answer lies on the same organ.
#[test]
fn all_48_orientations_of_an_image_are_one_case() {
    let (image, labels) = organ();
    let shape = image.geometry.shape;
    let oblique = [[1.9, 0.3, 0.0, -20.0], [-0.3, 0.95, 0.1, 4.0], [0.1, 0.0, 1.49, 9.0]];
    let geometry = Geometry::from_affine(shape, oblique);
    let plan = Plan { orientation: geometry.orientation(), ..test_plan([1.2, 1.5, 1.0], [2, 0, 1]) };
    let expected = preprocess(
        Volume { data: image.data.clone(), geometry: geometry.clone() },
        Some(LabelMap { data: labels.data.clone(), geometry: geometry.clone() }),
        &plan,
    )
    .unwrap();
    let (d, h, w) = expected.labels.as_ref().unwrap().dim();
    let logits = Array4::from_shape_fn((3, d, h, w), |(k, z, y, x)| {
        f32::from(u8::from(expected.labels.as_ref().unwrap()[[z, y, x]].max(0) as usize == k)) + 0.01 * x as f32
    });
    let restored = expected.properties.restore_logits(&logits.view()).unwrap();
    let mut seen = 0;
    for letters in ["RAS", "RSA", "ARS", "ASR", "SRA", "SAR"] {
        for bits in 0..8 {
            let flip = |(i, c): (usize, char)| match (bits >> i & 1, c) {
                (0, c) => c,
                (_, 'R') => 'L',
                (_, 'A') => 'P',
                _ => 'I',
            };
            let code: String = letters.chars().enumerate().map(flip).collect();
            let map = AxisMap::between(geometry.orientation().unwrap(), code.parse().unwrap());
            let stored = Geometry::from_affine(map.triple(shape), crate::grid::moved_affine(&oblique, shape, map));
            assert_eq!(stored.orientation().unwrap().to_string(), code);
            let image = Volume { data: map.apply(image.data.clone()), geometry: stored.clone() };
            let labels = LabelMap { data: map.apply(labels.data.clone()), geometry: stored };
            let case = preprocess(image, Some(labels), &plan).unwrap();
            assert_eq!((&case.image, &case.labels), (&expected.image, &expected.labels), "{code}");
            assert_eq!(case.locations, expected.locations);
            assert_eq!(case.properties.restore_logits(&logits.view()).unwrap(), map.apply(restored.view()), "{code}");
            seen += 1;
        }
    }
    assert_eq!(seen, 48);
}
