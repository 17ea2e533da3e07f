use super::*;
use crate::Memory;
use crate::dataset::Dataset;
use crate::fingerprint::fingerprint;
use crate::plan::{PlanOptions, plan};
use adw_testing::{assert_close, tolerance};

#[test]
fn is_a_real_dataset_with_every_label_in_every_case() {
    let options = PhantomOptions {
        family: PhantomFamily::Anatomy,
        num_cases: 6,
        num_test: 2,
        shape: [24, 40, 36],
        spacing_mm: [2.0, 1.0, 1.2],
        num_labels: 5,
        num_modalities: 2,
        seed: 3,
    };
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &options).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!((dataset.training.len(), dataset.test.len(), dataset.labels.len()), (6, 2, 6));
    assert_eq!(dataset.modalities, ["MR1", "MR2"]);
    for case in &dataset.training {
        let (image, labels) = dataset.load_case(case).unwrap();
        assert_close("spacing", &[image.geometry.spacing_mm[2]], &[1.2], tolerance::NIFTI_LENGTH);
        let mut counts = [0; 6];
        labels.data.iter().for_each(|&l| counts[usize::from(l)] += 1);
        assert!(counts.iter().all(|&n| n > 30), "{} {counts:?}", case.id);
    }
    let plan = plan(&fingerprint(&dataset, Memory::unlimited()).unwrap(), &dataset, &PlanOptions::default()).unwrap();
    assert!(!plan.strides.is_empty() && plan.patch_size.iter().all(|&n| n >= 16), "{plan:?}");
}

#[test]
fn brightness_alone_does_not_tell_the_labels() {
    let options = PhantomOptions::default();
    let (image, labels, _) = Anatomy::new(&options).case(&options, 0);
    let mean = |label| {
        let values: Vec<f32> = image.iter().zip(&labels).filter(|(_, l)| **l == label).map(|(v, _)| *v).collect();
        values.iter().sum::<f32>() / values.len() as f32
    };
    let [background, first, second] = [mean(0), mean(1), mean(2)];
    assert!((first - background).abs() > 15.0, "an organ can be seen: {first} {background}");
    assert!((first - second).abs() < 15.0, "its halves look alike: {first} {second}");
}

#[test]
fn equal_seeds_give_equal_files() {
    let options = PhantomOptions { num_cases: 2, num_test: 0, shape: [10, 12, 14], ..PhantomOptions::default() };
    let bytes = |options: &PhantomOptions| {
        let dir = tempfile::tempdir().unwrap();
        write_dataset(dir.path(), options).unwrap();
        fs::read(dir.path().join("imagesTr/phantom_001.nii.gz")).unwrap()
    };
    assert_eq!(bytes(&options), bytes(&options));
    assert_ne!(bytes(&options), bytes(&PhantomOptions { seed: 2, ..options }));
}

#[test]
fn impossible_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for options in [
        PhantomOptions { shape: [2, 20, 20], ..PhantomOptions::default() },
        PhantomOptions { spacing_mm: [0.0, 1.0, 1.0], ..PhantomOptions::default() },
        PhantomOptions { num_labels: 0, ..PhantomOptions::default() },
    ] {
        assert!(write_dataset(dir.path(), &options).unwrap_err().to_string().starts_with("phantom: "));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn textures_show_their_labels_in_nothing_else() {
    let options = PhantomOptions { family: PhantomFamily::Texture, shape: [24, 32, 24], ..PhantomOptions::default() };
    let of_label = |image: &Array4<f32>, labels: &Array3<u16>, label: u16| -> Vec<f32> {
        image.iter().zip(labels).filter(|(_, l)| **l == label).map(|(v, _)| *v).collect()
    };
    let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
    let (mut first, mut second) = (vec![], vec![]);
    for index in 0..10 {
        let (image, labels, _) = texture_case(&options, index);
        first.extend(of_label(&image, &labels, 1));
        second.extend(of_label(&image, &labels, 2));
    }
    assert!(first.len() > 500 && second.len() > 500, "{} {}", first.len(), second.len());
    for values in [&first, &second] {
        assert!(mean(values).abs() < 0.15, "{}", mean(values));
    }
    // The texture's sign changes along z in label 1 alone, along y in label 2 alone.
    let (image, labels, _) = texture_case(&options, 0);
    let image = image.index_axis(Axis(0), 0);
    let product = |label: u16, step: [usize; 3]| {
        let pairs = labels.indexed_iter().filter_map(|((z, y, x), &l)| {
            let next = [z + step[0], y + step[1], x + step[2]];
            (l == label && labels.get(next) == Some(&label)).then(|| image[[z, y, x]] * image[next])
        });
        mean(&pairs.collect::<Vec<_>>())
    };
    for (label, along_z, along_y) in [(1, -0.49, 0.49), (2, 0.49, -0.49)] {
        assert!((product(label, [1, 0, 0]) - along_z).abs() < 0.2, "{label}: {}", product(label, [1, 0, 0]));
        assert!((product(label, [0, 1, 0]) - along_y).abs() < 0.2, "{label}: {}", product(label, [0, 1, 0]));
    }
}

#[test]
fn balls_are_those_of_a_scan_of_the_volume() {
    for i in 0..300u16 {
        let at = |k: u16, n: f32| f32::from(i * k % 101) / 100.0 * n;
        let (centre, radius) = ([at(37, 9.0), at(53, 11.0), at(71, 7.0)], 2.0 + at(29, 1.4));
        let all = ndarray::indices([9, 11, 7]).into_iter().map(|(z, y, x)| [z, y, x]);
        let scanned: Vec<_> = all.filter(|&voxel| planted::is_inside(voxel, centre, radius)).collect();
        assert_eq!(planted::ball([9, 11, 7], centre, radius), scanned, "{centre:?} {radius}");
    }
}
