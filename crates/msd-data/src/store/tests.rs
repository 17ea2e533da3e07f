use std::fs;

use ndarray::Slice;
use proptest::prelude::*;

use super::*;
use crate::dataset::Dataset;
use crate::memory::Memory;
use crate::plan::{Plan, PlanOptions, plan};
use crate::preprocess::ClassLocations;
use crate::{PhantomOptions, fingerprint, write_phantom};

fn case(channels: usize, shape: [usize; 3]) -> PreparedCase {
    let [d, h, w] = shape;
    let mut n = 1u32;
    let mut noise = || {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        n
    };
    PreparedCase {
        image: Array4::from_shape_simple_fn((channels, d, h, w), || f32::from_bits(noise() & 0xbfff_ffff)),
        labels: Some(Array3::from_shape_simple_fn((d, h, w), || (noise() >> 30) as i16 - 1)),
        locations: vec![ClassLocations { label: 2, voxels: vec![[0, 0, 0], [7, 8, 9]] }],
        properties: CaseProperties {
            spacing_mm: [1.0; 3],
            target_spacing_mm: [1.0; 3],
            shape_before_cropping: shape,
            crop: [[0, d], [0, h], [0, w]],
            shape,
            axes: crate::AxisMap::IDENTITY,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_box_comes_back(
        channels in 1usize..3,
        shape in prop::array::uniform3(1usize..70),
        corners in prop::array::uniform6(0usize..1000),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let case = case(channels, shape);
        let stored = StoredCase::write(&dir.path().join("a.case"), &case, "key").unwrap();
        let part = [0, 1, 2].map(|a| {
            let [from, to] = [corners[a], corners[3 + a]].map(|n| n % (shape[a] + 1));
            from.min(to)..from.max(to)
        });
        let (image, labels) = stored.read(&part).unwrap();
        let labels_part = case.labels.as_ref().unwrap().slice_each_axis(|ax| part[ax.axis.0].clone().into());
        let image_part = case.image.slice_each_axis(|ax| match ax.axis.0 {
            0 => Slice::from(..),
            a => part[a - 1].clone().into(),
        });
        prop_assert_eq!(&image, &image_part);
        prop_assert_eq!(&labels, &labels_part);
    }
}

#[test]
fn everything_else_comes_back_and_another_key_or_a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.case");
    let case = case(2, [40, 9, 33]);
    let stored = StoredCase::write(&path, &case, "key").unwrap();
    assert_eq!((stored.channels(), stored.shape()), (2, [40, 9, 33]));
    assert_eq!(stored.properties(), &case.properties);
    assert_eq!((stored.num_classes(), stored.num_voxels(0), stored.highest_label()), (1, 2, 2));
    assert_eq!(stored.voxel(0, 1).unwrap(), [7, 8, 9]);

    let unusable = PreparedCase { locations: vec![ClassLocations { label: 1, voxels: vec![] }], ..case.clone() };
    let message = StoredCase::write(&path, &unusable, "key").unwrap_err().to_string();
    assert!(message.contains("a class without voxels"), "{message}");
    let message = StoredCase::open(&path, "other").unwrap_err().to_string();
    assert!(message.contains("for another plan"), "{message}");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = StoredCase::open(&path, "key").unwrap_err().to_string();
        assert!(message.contains("not a whole prepared case"), "{length}: {message}");
    }
    // Every byte is under a checksum or is compared.
    for at in (0..whole.len()).step_by(61).chain(whole.len() - 20..whole.len()) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, &damaged).unwrap();
        let read = StoredCase::open(&path, "key").and_then(|stored| stored.read(&stored.shape().map(|n| 0..n)));
        let message = read.unwrap_err().to_string();
        assert!(message.contains("a.case: ") && message.ends_with("it will be made again"), "{at}: {message}");
    }
}

#[test]
fn a_preparation_goes_on_where_it_ended_and_notices_other_files_and_plans() {
    let dir = tempfile::tempdir().unwrap();
    let (data, folder) = (dir.path().join("data"), dir.path().join("prepared"));
    let options = PhantomOptions { num_cases: 5, shape: [12, 14, 10], ..PhantomOptions::default() };
    write_phantom(&data, &options).unwrap();
    let dataset = Dataset::open(&data).unwrap();
    let mut plan =
        plan(&fingerprint(&dataset, Memory::unlimited()).unwrap(), &dataset, &PlanOptions::default()).unwrap();
    let ids = dataset.training_ids();
    let store = |plan: &Plan, memory| store_training_cases(&dataset, &ids, plan, &folder, memory);
    let times = || {
        ids.iter()
            .map(|id| fs::metadata(folder.join(format!("{id}.case"))).unwrap().modified().unwrap())
            .collect::<Vec<_>>()
    };

    let message = store(&plan, Memory::bytes(1000)).unwrap_err().to_string();
    assert!(message.contains("_000.nii.gz (") && message.contains("allow more"), "{message}");
    let stored = store(&plan, Memory::unlimited()).unwrap();
    for (stored, prepared) in
        stored.iter().zip(crate::prepare_training_cases(&dataset, &ids, &plan, Memory::unlimited()).unwrap())
    {
        let (image, labels) = stored.read(&stored.shape().map(|n| 0..n)).unwrap();
        assert_eq!((image, Some(labels)), (prepared.image, prepared.labels));
        assert_eq!(stored.num_classes(), prepared.locations.len());
    }
    let before = times();
    fs::write(folder.join(format!("{}.case", ids[1])), "cut short").unwrap();
    store(&plan, Memory::bytes(10_000_000)).unwrap();
    let after = times();
    assert_eq!((before[0], &before[2..]), (after[0], &after[2..]));
    assert_ne!(before[1], after[1], "the damaged one is made anew");
    plan.spacing_mm = [1.5; 3];
    store(&plan, Memory::unlimited()).unwrap();
    assert!(times().iter().zip(&after).all(|(a, b)| a != b), "another plan");
    let before = times();
    let ignoring = Dataset { positions: crate::Positions::Ignored, ..dataset.clone() };
    store_training_cases(&ignoring, &ids, &plan, &folder, Memory::unlimited()).unwrap();
    assert!(times().iter().zip(&before).all(|(a, b)| a != b), "other handling of positions");
    let fewer = Plan { labels: plan.labels[..2].to_vec(), ..plan.clone() };
    assert!(store(&fewer, Memory::unlimited()).unwrap_err().to_string().contains("label 2, which the plan does not"));
    let size = training_cases_bytes(&dataset, &ids, &plan).unwrap().prepared;
    let real: usize = crate::prepare_training_cases(&dataset, &ids, &plan, Memory::unlimited())
        .unwrap()
        .iter()
        .map(|case| 4 * case.image.len() + 2 * case.image.len())
        .sum();
    assert!((size as usize) >= real, "{size} is an upper bound of {real}");
}

/// Batches do not depend on the place of the cases.
#[test]
fn batches_from_files_are_those_from_memory() {
    use crate::{Augmentation, BatchKey, PatchSampler, Purpose, TrainingCase};
    let dir = tempfile::tempdir().unwrap();
    let cases: Vec<_> = [[40, 50, 45], [20, 70, 33]]
        .into_iter()
        .map(|shape| {
            let mut case = case(2, shape);
            // Finite numbers: sums of patches are compared.
            case.image.mapv_inplace(|v| if v.is_finite() { v % 10.0 } else { 1.0 });
            case
        })
        .collect();
    let stored = cases
        .iter()
        .enumerate()
        .map(|(i, case)| StoredCase::write(&dir.path().join(format!("{i}.case")), case, "").unwrap().into());
    let [files, memory]: [Vec<TrainingCase>; 2] = [stored.collect(), cases.iter().cloned().map(Into::into).collect()];
    for augmentation in [Augmentation::none(), Augmentation::full()] {
        let sampler = |cases: &Vec<TrainingCase>| {
            PatchSampler::new(cases.clone(), [24, 30, 28], 3, augmentation, &[false, true]).unwrap()
        };
        let (files, memory) = (sampler(&files), sampler(&memory));
        for iteration in 0..15 {
            let key = BatchKey { seed: 1, purpose: Purpose::Weights, epoch: 0, iteration };
            assert_eq!(files.batch(key).unwrap(), memory.batch(key).unwrap());
        }
    }
}
