use std::fs;

use ndarray::arr3;

use super::*;
use crate::geometry::Geometry;
use crate::nifti::write_labels;

#[test]
fn the_largest_component_stays_and_corners_connect() {
    let mut labels = arr3(&[[[1u16, 0, 0, 2, 0], [0, 1, 0, 0, 0], [0, 0, 2, 0, 1]]]);
    let original = labels.clone();
    keep_largest_component(&mut labels, Structure::Foreground);
    assert_eq!(labels, arr3(&[[[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 2, 0, 0]]]));
    let mut labels = original.clone();
    keep_largest_component(&mut labels, Structure::Label(1));
    assert_eq!(labels, arr3(&[[[1, 0, 0, 2, 0], [0, 1, 0, 0, 0], [0, 0, 2, 0, 0]]]));
    let mut labels = original.clone();
    keep_largest_component(&mut labels, Structure::Label(2));
    assert_eq!(labels, original, "equally large components all stay");
    keep_largest_component(&mut labels, Structure::Label(9));
    assert_eq!(labels, original);
}

#[test]
fn steps_are_accepted_where_they_help() {
    let dir = tempfile::tempdir().unwrap();
    let (p, r) = (dir.path().join("p"), dir.path().join("r"));
    let geometry = Geometry::new([1, 1, 10], [1.0; 3]);
    let write = |folder: &Path, name: &str, values: [u16; 10]| {
        fs::create_dir_all(folder).unwrap();
        let labels = Array3::from_shape_vec((1, 1, 10), values.to_vec()).unwrap();
        write_labels(folder.join(name), &labels.view(), &geometry).unwrap();
    };
    // Label 1 has a stray voxel, label 2 truly consists of two parts.
    write(&p, "a.nii", [1, 1, 1, 0, 1, 0, 2, 0, 2, 2]);
    write(&r, "a.nii", [1, 1, 1, 0, 0, 0, 2, 0, 2, 2]);
    let find = || Postprocessing::find(std::slice::from_ref(&p), &r, Positions::Checked, Memory::unlimited()).unwrap();
    let found = find();
    assert_eq!(found.postprocessing.keep_largest, [Structure::Label(1)]);
    let [before, after] = found.dice[&1];
    assert!((before - 6.0 / 7.0).abs() < 1e-12 && after == 1.0, "{found:?}");
    // Everything but the largest is wrong.
    write(&r, "a.nii", [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    write(&p, "a.nii", [1, 1, 1, 0, 1, 0, 1, 0, 1, 1]);
    assert_eq!(find().postprocessing.keep_largest, [Structure::Foreground]);

    let file = dir.path().join("postprocessing.json");
    let both = Postprocessing { keep_largest: vec![Structure::Foreground, Structure::Label(2)] };
    both.save(&file).unwrap();
    assert_eq!(Postprocessing::load(&file).unwrap(), both);
}
