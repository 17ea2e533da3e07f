use ndarray::{Array3, Array4};

use super::*;
use crate::nifti::{read_labels, write_image, write_labels};
use crate::phantom::{PhantomOptions, write_dataset};

fn phantom(dir: &Path, num_cases: usize) {
    let options = PhantomOptions { num_cases, num_test: 1, shape: [8, 10, 12], ..PhantomOptions::default() };
    write_dataset(dir, &options).unwrap();
}

#[test]
fn a_sound_dataset_has_no_problems() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 5);
    assert_eq!(check_dataset(dir.path()), []);
}

#[test]
fn all_problems_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 9);
    let file = |folder: &str, i: usize| dir.path().join(format!("{folder}/phantom_00{i}.nii.gz"));
    fs::remove_file(file("labelsTr", 0)).unwrap();
    fs::write(file("imagesTr", 1), "short").unwrap();
    let small = Geometry::new([3, 3, 3], [1.0; 3]);
    write_labels(file("labelsTr", 2), &Array3::ones((3, 3, 3)).view(), &small).unwrap();
    let map = read_labels(file("labelsTr", 3)).unwrap();
    write_labels(file("labelsTr", 3), &map.data.mapv(|v| v * 40).view(), &map.geometry).unwrap();
    let map = read_labels(file("labelsTr", 4)).unwrap();
    let shape = map.geometry.shape;
    let nan = Array4::from_elem((1, shape[0], shape[1], shape[2]), f32::NAN);
    write_image(file("imagesTr", 4), &nan.view(), &map.geometry).unwrap();
    let map = read_labels(file("labelsTr", 5)).unwrap();
    write_labels(file("labelsTr", 5), &map.data.mapv(|_| 0).view(), &map.geometry).unwrap();
    let shape = read_labels(file("labelsTr", 6)).unwrap().geometry.shape;
    let flat = Array4::ones((1, shape[0], shape[1], shape[2]));
    write_image(file("imagesTr", 6), &flat.view(), &Geometry::new(shape, [1.0; 3])).unwrap();
    fs::copy(file("imagesTr", 8), dir.path().join("imagesTr/stray.nii.gz")).unwrap();
    // Moved in the scanner: another origin in the sform (offset 292) of an uncompressed copy.
    let map = read_labels(file("labelsTr", 7)).unwrap();
    let plain = dir.path().join("moved.nii");
    write_labels(&plain, &map.data.view(), &map.geometry).unwrap();
    let mut bytes = fs::read(&plain).unwrap();
    bytes[292..296].copy_from_slice(&5f32.to_le_bytes());
    fs::write(file("labelsTr", 7), bytes).unwrap(); // the name says .gz, the content is believed

    let problems: Vec<String> = check_dataset(dir.path()).iter().map(ToString::to_string).collect();
    for (kind, words) in [
        ("error", "phantom_000.nii.gz, which does not exist"),
        ("error", "phantom_001.nii.gz: truncated"),
        ("error", "phantom_002.nii.gz: shape [3, 3, 3]"),
        ("error", "have label 40"),
        ("error", "voxels are NaN"),
        ("warning", "phantom_005.nii.gz: no voxel is labelled"),
        ("warning", "phantom_006.nii.gz: every voxel of channel 0 is the same"),
        ("warning", "lies up to 5.0 mm away"),
        ("warning", "1 files that dataset.json does not list, e.g. "),
    ] {
        let found = problems.iter().filter(|p| p.starts_with(kind) && p.contains(words)).count();
        assert_eq!(found, 1, "{kind} {words} in {problems:#?}");
    }
    assert_eq!(problems.len(), 9, "{problems:#?}");
}

#[test]
fn too_few_cases_and_wrong_counts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 4);
    let json = dir.path().join("dataset.json");
    let text = fs::read_to_string(&json).unwrap();
    fs::write(&json, text.replace("\"numTraining\": 4", "\"numTraining\": 7")).unwrap();
    let problems = check_dataset(dir.path());
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].message.starts_with("4 training cases, but five-fold"));
    assert!(problems[1].message.contains("numTraining is 7, but 4 cases are listed"));
    fs::write(&json, "{").unwrap();
    assert!(check_dataset(dir.path())[0].message.contains("not the JSON expected"));
}
