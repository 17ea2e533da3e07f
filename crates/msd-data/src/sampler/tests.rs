use std::sync::Arc;

use ndarray::{Array3, Array4};
use proptest::prelude::*;

use super::*;
use crate::preprocess::PreparedCase;
use crate::preprocess::{CaseProperties, ClassLocations};

fn case(shape: [usize; 3], voxel: [usize; 3]) -> Arc<PreparedCase> {
    let mut labels = Array3::zeros(shape);
    labels[voxel] = 2;
    let image = Array4::from_shape_fn((1, shape[0], shape[1], shape[2]), |(_, z, y, x)| 1.0 + labels[[z, y, x]] as f32);
    let properties = CaseProperties {
        spacing_mm: [1.0; 3],
        target_spacing_mm: [1.0; 3],
        shape_before_cropping: shape,
        crop: shape.map(|n| [0, n]),
        shape,
        axes: crate::AxisMap::IDENTITY,
    };
    let locations = vec![ClassLocations { label: 2, voxels: vec![voxel.map(|v| v as u32)] }];
    Arc::new(PreparedCase { image, labels: Some(labels), locations, properties })
}

fn key(iteration: u64) -> BatchKey {
    BatchKey { seed: 5, purpose: Purpose::Weights, epoch: 0, iteration }
}

#[test]
fn half_of_a_batch_of_two_shows_foreground() {
    for augmentation in [Augmentation::none(), Augmentation::full()] {
        let cases = vec![case([40, 50, 45], [20, 4, 41]), case([30, 50, 45], [29, 30, 20])];
        let sampler = PatchSampler::new(cases, [16, 16, 16], 2, augmentation, &[false]).unwrap();
        let (mut forced, mut random) = (0, 0);
        for i in 0..60 {
            let batch = sampler.batch(key(i)).unwrap();
            assert_eq!((batch.x_shape, batch.target_shape), ([2, 1, 16, 16, 16], [2, 16, 16, 16]));
            forced += u32::from(batch.target[16 * 16 * 16..].contains(&2));
            random += u32::from(batch.target[..16 * 16 * 16].contains(&2));
        }
        // A third of the patches are interpolated, which loses most single voxels.
        assert!(forced > 30 && random < 15, "{forced} {random} with {augmentation:?}");
    }
}

#[test]
fn forced_patches_contain_their_voxel_without_augmentation() {
    let sampler =
        PatchSampler::new(vec![case([20, 21, 22], [0, 20, 11])], [8, 9, 10], 3, Augmentation::none(), &[false])
            .unwrap();
    for i in 0..20 {
        let batch = sampler.batch(key(i)).unwrap();
        assert!(batch.target[2 * 720..].contains(&2), "the last of three is forced");
    }
}

#[test]
fn the_forced_part_can_be_chosen() {
    let whole = |part| {
        let cases = vec![case([30, 30, 30], [3, 20, 11])];
        let sampler = PatchSampler::new(cases, [6, 6, 6], 1, Augmentation::none(), &[false]).unwrap();
        let sampler = sampler.with_forced_foreground(part);
        (0..20).filter(|&i| sampler.batch(key(i)).unwrap().target.contains(&2)).count()
    };
    assert_eq!(whole(1.0), 20);
    assert!(whole(0.0) < 10);
}

#[test]
fn patches_larger_than_the_image_are_padded() {
    let sampler =
        PatchSampler::new(vec![case([5, 6, 7], [2, 3, 3])], [8, 12, 8], 1, Augmentation::none(), &[false]).unwrap();
    let batch = sampler.batch(key(0)).unwrap();
    assert_eq!(batch.x.iter().filter(|v| **v == 1.0).count(), 5 * 6 * 7 - 1, "the whole image is there");
    assert_eq!(batch.x.iter().filter(|v| **v == 3.0).count(), 1);
    assert_eq!(batch.x.iter().filter(|v| **v == 0.0).count(), 8 * 12 * 8 - 5 * 6 * 7);
}

#[test]
fn a_key_names_a_batch() {
    let cases = vec![case([20, 20, 20], [3, 3, 3]), case([22, 20, 20], [9, 3, 3])];
    let sampler = PatchSampler::new(cases, [12, 12, 12], 2, Augmentation::full(), &[true]).unwrap();
    let first = sampler.batch(key(7)).unwrap();
    let _ = sampler.batch(key(8));
    assert_eq!(sampler.batch(key(7)).unwrap(), first);
    assert_eq!(sampler.cases(key(7)), first.cases);
    for other in [
        key(8),
        BatchKey { seed: 6, ..key(7) },
        BatchKey { purpose: Purpose::Architecture, ..key(7) },
        BatchKey { epoch: 1, ..key(7) },
    ] {
        assert_ne!(sampler.batch(other).unwrap(), first, "{other:?}");
    }
}

#[test]
fn impossible_requests_are_refused() {
    let refuse = |cases: Vec<Arc<PreparedCase>>, patch, batch, says: &str| {
        let message = PatchSampler::new(cases, patch, batch, Augmentation::none(), &[false]).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    };
    let good = case([4, 4, 4], [0, 0, 0]);
    refuse(vec![], [4; 3], 2, "no case");
    refuse(vec![good.clone()], [4, 0, 4], 2, "at least 1");
    refuse(vec![good.clone()], [4; 3], 0, "at least 1");
    refuse(vec![Arc::new(PreparedCase { labels: None, ..(*good).clone() })], [4; 3], 1, "no labels");
    let two_channels = PreparedCase { image: Array4::zeros((2, 4, 4, 4)), ..(*good).clone() };
    refuse(vec![Arc::new(two_channels)], [4; 3], 1, "channels");
    let wide = PreparedCase { labels: Some(Array3::from_elem((4, 4, 4), 300)), ..(*good).clone() };
    refuse(vec![Arc::new(wide)], [4; 3], 1, "label 300");
    // No memory is taken, since there is no channel.
    let large = PreparedCase { image: Array4::zeros((0, 1 << 16, 1 << 16, 1)), ..(*good).clone() };
    refuse(vec![Arc::new(large)], [4; 3], 1, "4294967296 voxels");
}

proptest! {
    /// Whatever the sizes, a batch has its shape and an unforced patch overlaps the image.
    #[test]
    fn any_shape_works(shape in prop::array::uniform3(1usize..24), patch in prop::array::uniform3(1usize..20), seed: u64, full: bool) {
        let augmentation = if full { Augmentation::full() } else { Augmentation::none() };
        let sampler = PatchSampler::new(vec![case(shape, [0, 0, 0])], patch, 3, augmentation, &[false]).unwrap();
        let batch = sampler.batch(BatchKey { seed, ..key(0) }).unwrap();
        prop_assert_eq!(batch.x.len(), 3 * patch.iter().product::<usize>());
        prop_assert!(batch.x.iter().all(|v| v.is_finite()));
        if !full {
            let seen = batch.x.iter().filter(|v| **v > 0.0).count() / 3;
            let covered: usize = (0..3).map(|a| shape[a].min(patch[a])).product();
            prop_assert_eq!(seen, covered, "without augmentation patches do not leave the image more than they must");
        }
    }
}
