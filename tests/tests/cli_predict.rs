//! Probabilities beside label maps.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, io::Read, path::Path};

use cli_support::{Adw, TINY, names, phantom};
use flate2::read::DeflateDecoder;
use msd_data::read_labels;

/// Shape and half-precision bits of the array in an archive with one member.
fn probabilities(path: &Path) -> (Vec<usize>, Vec<u16>) {
    let bytes = fs::read(path).unwrap();
    let length = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let mut array = Vec::new();
    DeflateDecoder::new(&bytes[30 + length(26) + length(28)..]).read_to_end(&mut array).unwrap();
    let data = 10 + usize::from(u16::from_le_bytes([array[8], array[9]]));
    let header = String::from_utf8(array[10..data].to_vec()).unwrap();
    assert!(header.contains("'<f2'"), "{header}");
    let shape = header.split(['(', ')']).nth(1).unwrap().split(", ").map(|n| n.parse().unwrap()).collect();
    (shape, array[data..].chunks(2).map(|half| u16::from_le_bytes([half[0], half[1]])).collect())
}

#[test]
fn probabilities_belong_to_the_label_maps_and_are_kept_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let (run, output) = (dir.path().join("run"), dir.path().join("labels"));
    Adw::new(["retrain", "--uniform-width", "2"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    let predict = Adw::new(["predict", "--probabilities", "--skip-existing"])
        .path("--model", &run)
        .path("--input", &data.join("imagesTs"))
        .path("--output", &output);
    predict.succeed();
    assert_eq!(names(&output), ["phantom_005.nii.gz", "phantom_005.npz", "phantom_006.nii.gz", "phantom_006.npz"]);

    let labels = read_labels(output.join("phantom_005.nii.gz")).unwrap().data;
    let archive = output.join("phantom_005.npz");
    let (shape, values) = probabilities(&archive);
    assert_eq!(shape, [&[3], labels.shape()].concat());
    // Bits of numbers that are not negative are ordered as the numbers are.
    for (voxel, &label) in labels.iter().enumerate() {
        let classes = [0, 1, 2].map(|class| values[class * labels.len() + voxel]);
        assert_eq!(classes[usize::from(label)], classes.into_iter().max().unwrap(), "{voxel}");
    }

    // A second call keeps the files, and replaces one that is cut.
    let whole = fs::read(&archive).unwrap();
    let written = || fs::metadata(&archive).unwrap().modified().unwrap();
    let before = written();
    predict.succeed();
    assert_eq!(written(), before);
    fs::write(&archive, &whole[..whole.len() - 1]).unwrap();
    predict.succeed();
    assert!(fs::read(&archive).unwrap() == whole);
}
