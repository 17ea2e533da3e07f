use ndarray::{Array3, Array4};

use super::*;
use crate::geometry::Geometry;
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
    assert_eq!(check_dataset(dir.path(), Positions::Checked, Memory::unlimited()), []);
}

#[test]
fn one_reading_gives_problems_and_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 6);
    let again = |positions| {
        let dataset = Dataset { positions, ..Dataset::open(dir.path()).unwrap() };
        crate::fingerprint(&dataset, Memory::unlimited()).unwrap()
    };
    // Stored along other axes than the others.
    let file = dir.path().join("imagesTr/phantom_003.nii.gz");
    let map = dir.path().join("labelsTr/phantom_003.nii.gz");
    for path in [&file, &map] {
        // The first axis of the sform runs the other way.
        patch(path, &[(280, &(-1.0f32).to_le_bytes())]);
    }
    for positions in [Positions::Checked, Positions::Ignored] {
        let found = survey(dir.path(), positions, Memory::unlimited());
        assert_eq!(found.fingerprint, Some(again(positions)));
    }
    fs::write(file, "short").unwrap();
    let found = survey(dir.path(), Positions::Checked, Memory::unlimited());
    assert_eq!(found.fingerprint, None);
    assert_eq!(found.problems[0].severity, Severity::Error, "{found:?}");
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
    patch(&file("imagesTr", 4), &[(352, &f32::NAN.to_le_bytes())]);
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

    let problems: Vec<String> =
        check_dataset(dir.path(), Positions::Checked, Memory::unlimited()).iter().map(ToString::to_string).collect();
    for (kind, words) in [
        ("error", "phantom_000.nii.gz, which does not exist"),
        ("error", "phantom_001.nii.gz: truncated"),
        ("error", "phantom_002.nii.gz: shape [3, 3, 3]"),
        ("error", "have label 40"),
        ("error", "voxels are NaN"),
        ("warning", "phantom_005.nii.gz: no voxel is labelled"),
        ("warning", "phantom_006.nii.gz: every voxel of channel 0 is the same"),
        ("error", "phantom_007.nii.gz: lies up to 5.0 mm away"),
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
    let problems = check_dataset(dir.path(), Positions::Checked, Memory::unlimited());
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].message.starts_with("4 training cases, but five-fold"));
    assert!(problems[1].message.contains("numTraining is 7, but 4 cases are listed"));
    let twice = text.replace("labelsTr/phantom_001", "labelsTr/phantom_000");
    fs::write(&json, twice).unwrap();
    let found = check_dataset(dir.path(), Positions::Checked, Memory::unlimited());
    let words = "labelsTr/phantom_000.nii.gz more than once";
    assert!(found.iter().any(|p| p.severity == Severity::Warning && p.message.contains(words)), "{found:?}");
    fs::write(&json, "{").unwrap();
    assert!(
        check_dataset(dir.path(), Positions::Checked, Memory::unlimited())[0].message.contains("not the JSON expected")
    );
}

/// Overwrites header bytes of an uncompressed copy under the same name.
fn patch(path: &Path, changes: &[(usize, &[u8])]) {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.nii");
    let image = crate::nifti::read_image(path).unwrap();
    write_image(&plain, &image.data.view(), &image.geometry).unwrap();
    let mut bytes = fs::read(&plain).unwrap();
    for (offset, new) in changes {
        bytes[*offset..offset + new.len()].copy_from_slice(new);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn implausible_values_are_named_with_their_case() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 10);
    let file = |folder: &str, i: usize| dir.path().join(format!("{folder}/phantom_{i:03}.nii.gz"));
    let both = |i: usize, changes: &[(usize, &[u8])]| {
        patch(&file("imagesTr", i), changes);
        patch(&file("labelsTr", i), changes);
    };
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    both(0, &[(280, &floats(&[0.5]))]);
    both(1, &[(296, &floats(&[f32::NAN]))]);
    both(
        2,
        &[(80, &floats(&[0.001; 3])), (280, &floats(&[0.001])), (300, &floats(&[0.001])), (320, &floats(&[0.001]))],
    );
    both(3, &[(280, &floats(&[-1.0, 0.0, 0.0, 11.0])), (252, &[0, 0])]);
    both(4, &[(268, &floats(&[9.0]))]);
    both(7, &[(284, &floats(&[0.3]))]);
    let mut image = crate::nifti::read_image(file("imagesTr", 5)).unwrap();
    image.data[[0, 1, 1, 1]] = 3e38;
    write_image(file("imagesTr", 5), &image.data.view(), &image.geometry).unwrap();
    let mut image = crate::nifti::read_image(file("imagesTr", 6)).unwrap();
    image.data.slice_axis_mut(ndarray::Axis(1), ndarray::Slice::from(4..)).fill(0.0);
    write_image(file("imagesTr", 6), &image.data.view(), &image.geometry).unwrap();

    let problems: Vec<String> =
        check_dataset(dir.path(), Positions::Checked, Memory::unlimited()).iter().map(ToString::to_string).collect();
    for (case, words) in [
        (0, "voxels measure [1.0, 1.0, 0.5] mm (z, y, x) by its sform, but [1.0, 1.0, 1.0] by its pixdim"),
        (0, "place voxels up to "),
        (1, "its sform is singular or holds no numbers"),
        (2, "is far from the median of all cases, [1.0, 1.0, 1.0] mm"),
        (2, "its extent"),
        (3, "is stored in orientation LAS, most cases in RAS"),
        (4, "its sform and its qform place voxels up to 9.0 mm apart"),
        (5, "intensities up to 3e38"),
        (6, "labelled voxels lie where the image is 0"),
        (7, "the axes of its sform are 16.7 degrees off right angles"),
    ] {
        let name = format!("phantom_{case:03}.nii.gz: ");
        let found = problems.iter().filter(|p| p.starts_with("warning: ") && p.contains(&name) && p.contains(words));
        assert_eq!(found.count(), 1, "{case} {words} in {problems:#?}");
    }
    assert!(problems.iter().all(|p| (0..8).any(|i| p.contains(&format!("phantom_{i:03}")))), "{problems:#?}");
}

#[test]
fn images_that_are_there_twice_and_a_ct_in_other_units_are_named() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 6);
    let file = |folder: &str, i: usize| dir.path().join(format!("{folder}/phantom_00{i}.nii.gz"));
    fs::copy(file("imagesTr", 0), dir.path().join("imagesTs/phantom_006.nii.gz")).unwrap();
    // The same voxels in another file: compressed or not.
    let image = crate::nifti::read_image(file("imagesTr", 1)).unwrap();
    let plain = dir.path().join("plain.nii");
    write_image(&plain, &image.data.view(), &image.geometry).unwrap();
    fs::rename(plain, file("imagesTr", 2)).unwrap();
    fs::copy(file("labelsTr", 1), file("labelsTr", 2)).unwrap();
    let mut shifted = crate::nifti::read_image(file("imagesTr", 4)).unwrap();
    shifted.data -= 1024.0;
    write_image(file("imagesTr", 4), &shifted.data.view(), &shifted.geometry).unwrap();
    let problems = || -> Vec<String> {
        check_dataset(dir.path(), Positions::Checked, Memory::unlimited()).iter().map(ToString::to_string).collect()
    };
    let of_mri = problems();
    for (again, first) in [("Tr/phantom_002", "Tr/phantom_001"), ("Ts/phantom_006", "Tr/phantom_000")] {
        let is_named =
            |p: &&String| p.contains(again) && p.contains(&format!("as {}", dir.path().display())) && p.contains(first);
        assert_eq!(of_mri.iter().filter(is_named).count(), 1, "{of_mri:#?}");
    }
    assert_eq!(of_mri.len(), 2, "{of_mri:#?}");
    let json = dir.path().join("dataset.json");
    let text = fs::read_to_string(&json).unwrap();
    fs::write(&json, text.replace("\"MRI\"", "\"CT\"")).unwrap();
    let of_ct = problems();
    assert_eq!(of_ct.len(), 3, "{of_ct:#?}");
    assert!(
        of_ct[0].contains("phantom_004.nii.gz: the median of its labelled voxels in channel 0 (CT) is -"),
        "{of_ct:#?}"
    );
}

#[test]
fn equal_channels_and_the_file_of_a_constant_one_are_named() {
    let files = ["a_0000.nii", "a_0001.nii", "a_0002.nii"].map(PathBuf::from);
    let mut data = Array4::from_shape_fn((3, 2, 2, 2), |(_, z, y, x)| (z + 2 * y + 4 * x) as f32);
    data.index_axis_mut(ndarray::Axis(0), 2).fill(5.0);
    let image = crate::nifti::Volume { data, geometry: Geometry::new([2; 3], [1.0; 3]) };
    let expected =
        ["a_0001.nii: channel 1 has the same voxels as channel 0", "a_0002.nii: every voxel of channel 2 is the same"];
    assert_eq!(plausibility::image(&files, &image), expected);
    let in_one_file = plausibility::image(&files[..1], &image);
    assert!(in_one_file.iter().all(|problem| problem.starts_with("a_0000.nii: ")), "{in_one_file:?}");
}

#[test]
fn rare_labels_and_a_structure_with_label_0_are_named() {
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 10);
    for i in 1..10 {
        let file = dir.path().join(format!("labelsTr/phantom_00{i}.nii.gz"));
        let map = read_labels(&file).unwrap();
        write_labels(&file, &map.data.mapv(|v| v.min(1)).view(), &map.geometry).unwrap();
    }
    let json = dir.path().join("dataset.json");
    let text = fs::read_to_string(&json).unwrap();
    assert!(text.contains("\"background\""), "{text}");
    fs::write(&json, text.replace("\"background\"", "\"left\"")).unwrap();
    let problems = check_dataset(dir.path(), Positions::Checked, Memory::unlimited());
    let words = ["label 0 is called \"left\"", "occurs in 1 of 10 cases"];
    assert_eq!(problems.len(), words.len(), "{problems:?}");
    for (problem, words) in problems.iter().zip(words) {
        assert!(problem.severity == Severity::Warning && problem.message.contains(words), "{problems:?}");
    }
}
