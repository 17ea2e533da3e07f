use std::fs;

use ndarray::{Array3, Array4};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::geometry::Geometry;
use crate::nifti::{write_image, write_labels};

/// A dataset of `n` cases of 4 x 3 x 2 voxels, with the usual junk.
fn write_dataset(dir: &Path, n: usize, change: impl FnOnce(&mut serde_json::Value)) {
    let geometry = Geometry::new([4, 3, 2], [2.0, 1.0, 1.0]);
    for folder in ["imagesTr", "labelsTr"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let mut training = vec![json!({"image": "./imagesTr/._c0.nii.gz", "label": "./labelsTr/._c0.nii.gz"})];
    for i in (0..n).rev() {
        let image = Array4::from_elem((1, 4, 3, 2), 1.0);
        let labels = Array3::from_elem((4, 3, 2), (i % 3) as u16);
        write_image(dir.join(format!("imagesTr/c{i}.nii.gz")), &image.view(), &geometry).unwrap();
        write_labels(dir.join(format!("labelsTr/c{i}.nii.gz")), &labels.view(), &geometry).unwrap();
        training.push(json!({"image": format!("./imagesTr/c{i}.nii.gz"), "label": format!("./labelsTr/c{i}.nii.gz")}));
    }
    let mut json = json!({
        "name": "Tiny", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"},
        "numTraining": n, "training": training, "test": ["./imagesTr/c0.nii.gz"]
    });
    change(&mut json);
    fs::write(dir.join("dataset.json"), json.to_string()).unwrap();
}

#[test]
fn opens_what_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), 4, |_| {});
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.name, "Tiny");
    assert_eq!(dataset.training_ids(), ["c0", "c1", "c2", "c3"], "sorted, without AppleDouble junk");
    assert_eq!(dataset.test.len(), 1);
    assert_eq!(dataset.labels[2], Label { value: 2, name: "b".into() });
    let (image, labels) = dataset.load_case(&dataset.training[1]).unwrap();
    assert_eq!((image.data.shape(), labels.data[[0, 0, 0]]), (&[1, 4, 3, 2][..], 1));
    let task = dir.path().join("Task77_Tiny");
    write_dataset(&task, 1, |_| {});
    assert_eq!(Dataset::open(&task).unwrap().name, "Task77_Tiny");
}

#[test]
fn impossible_descriptions_are_refused_in_one_line() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 8] = [
        (|j| j["labels"] = json!({"0": "background", "2": "b"}), "keys \"0\", \"2\"; expected the numbers from 0 to 1"),
        (|j| j["labels"] = json!({"background": "0", "a": "1"}), "expected the numbers"),
        (|j| j["labels"] = json!({"0": "background"}), "only the background"),
        (|j| j["modality"] = json!({}), "modality is empty"),
        (|j| j["training"] = json!(7), "not the JSON expected"),
        (|j| j["training"][1]["label"] = json!("labelsTr/gone.nii.gz"), "labelsTr/gone.nii.gz, which does not exist;"),
        (
            |j| j["test"] = json!([{"image": "x/gone.nii.gz"}, "y/gone2.nii.gz"]),
            "does not exist (and 1 more cannot be used)",
        ),
        (|j| j["training"][1] = j["training"][2].clone(), "twice"),
    ];
    for (change, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_dataset(dir.path(), 3, change);
        let message = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("dataset.json") && !message.contains('\n'), "{message}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(Dataset::open(empty.path()).unwrap_err().to_string().contains("no dataset.json here"));
}

#[test]
fn cases_that_do_not_fit_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), 2, |_| {});
    let dataset = Dataset::open(dir.path()).unwrap();
    let case = &dataset.training[0];
    let fails = |says: &str| {
        let message = dataset.load_case(case).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("c0.nii.gz") && !message.contains('\n'), "{message}");
    };
    let label = |shape, mm, value| {
        let geometry = Geometry::new(shape, mm);
        write_labels(&case.label, &Array3::from_elem(shape, value).view(), &geometry).unwrap();
    };
    label([4, 3, 3], [2.0, 1.0, 1.0], 1);
    fails("shape [4, 3, 3] (z, y, x) differs from that of");
    label([4, 3, 2], [2.0, 1.0, 1.1], 1);
    fails("voxel size");
    label([4, 3, 2], [2.0, 1.0, 1.0], 7);
    fails("24 voxels have label 7, which dataset.json does not name (it names 0 to 2)");
    label([4, 3, 2], [2.0, 1.0, 1.0], 2);
    let geometry = Geometry::new([4, 3, 2], [2.0, 1.0, 1.0]);
    write_image(&case.image[0], &Array4::ones((2, 4, 3, 2)).view(), &geometry).unwrap();
    fails("2 channels, where 1 are expected");
    write_image(&case.image[0], &Array4::ones((1, 4, 3, 2)).view(), &geometry).unwrap();
    let moved = Geometry::from_affine([4, 3, 2], [[1.0, 0.0, 0.0, 9.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]);
    write_labels(&case.label, &Array3::ones((4, 3, 2)).view(), &moved).unwrap();
    fails("lies up to 9.0 mm away");
    let ignoring = Dataset { positions: Positions::Ignored, ..dataset.clone() };
    let (image, labels) = ignoring.load_case(case).unwrap();
    assert_eq!(labels.geometry, image.geometry, "as `preprocess` demands");
    fs::remove_file(&case.label).unwrap();
    fails("No such file");
}

/// nnU-Net's layout: a file per channel, names of labels to values.
fn nnunet_layout(dir: &Path, cases: &[&str], channels: usize) {
    for folder in ["imagesTr", "labelsTr", "imagesTs"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let geometry = Geometry::new([4, 3, 2], [2.0, 1.0, 1.0]);
    let write = |folder: &str, id: &str| {
        for c in 0..channels {
            let image = Array4::from_elem((1, 4, 3, 2), c as f32 + 1.0);
            let file = dir.join(format!("{folder}/{id}_{c:04}.nii.gz"));
            write_image(file, &image.view(), &geometry).unwrap();
        }
    };
    for id in cases {
        write("imagesTr", id);
        let labels = Array3::from_elem((4, 3, 2), 1u16);
        let file = dir.join(format!("labelsTr/{id}.nii.gz"));
        write_labels(file, &labels.view(), &geometry).unwrap();
    }
    write("imagesTs", "new");
    fs::write(dir.join("imagesTr/._junk_0000.nii.gz"), "junk").unwrap();
    let json = json!({
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"tumour": 2, "background": 0, "organ": 1},
        "numTraining": cases.len(), "file_ending": ".nii.gz"
    });
    fs::write(dir.join("dataset.json"), json.to_string()).unwrap();
}

#[test]
fn nnunets_layout_is_read_as_well() {
    let dir = tempfile::tempdir().unwrap();
    nnunet_layout(dir.path(), &["b_01", "a_02"], 2);
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.modalities, ["T2", "ADC"]);
    let names: Vec<_> = dataset.labels.iter().map(|label| label.name.as_str()).collect();
    assert_eq!(names, ["background", "organ", "tumour"]);
    assert_eq!(dataset.training_ids(), ["a_02", "b_01"]);
    assert_eq!(dataset.test[0].id, "new");
    let (image, labels) = dataset.load_case(&dataset.training[0]).unwrap();
    assert_eq!(image.data.shape(), [2, 4, 3, 2]);
    assert_eq!((image.data[[0, 3, 2, 1]], image.data[[1, 3, 2, 1]]), (1.0, 2.0));
    assert_eq!(labels.data[[0, 0, 0]], 1);
    let problems = crate::check_dataset(dir.path(), crate::Positions::Checked, crate::Memory::unlimited());
    assert!(problems.iter().all(|p| !p.message.contains("does not list")), "{problems:?}");

    let geometry = Geometry::new([4, 3, 3], [2.0, 1.0, 1.0]);
    let other = dir.path().join("imagesTr/a_02_0001.nii.gz");
    write_image(&other, &Array4::ones((1, 4, 3, 3)).view(), &geometry).unwrap();
    let error = dataset.load_case(&dataset.training[0]).unwrap_err().to_string();
    assert!(error.contains("a_02_0001.nii.gz: shape [4, 3, 3]"), "{error}");
    fs::remove_file(other).unwrap();
    let error = Dataset::open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(" has images of a case without ") && error.contains("a_02_0001.nii.gz, which does not exist")
    );
    assert!(error.ends_with("; add the file, or remove the case's other files"), "{error}");
    fs::write(dir.path().join("labelsTr/c.nii.gz"), "").unwrap();
    let problems = crate::check_dataset(dir.path(), crate::Positions::Checked, crate::Memory::unlimited());
    let words = ["1 files that belong to no case, e.g. ", "has images of a case without "];
    assert!(words.iter().all(|words| problems.iter().any(|p| p.message.contains(words))), "{problems:?}");
}

#[test]
fn what_nnunets_layout_must_not_hold_is_named() {
    let dir = tempfile::tempdir().unwrap();
    nnunet_layout(dir.path(), &["a"], 2);
    let fails = |expected: &str| {
        let error = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let json = |key: &str, value: serde_json::Value| {
        let mut json = json!({"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "organ": 1}});
        json[key] = value;
        fs::write(dir.path().join("dataset.json"), json.to_string()).unwrap();
    };
    json("labels", json!({"background": 0, "whole": [1, 2], "core": 2}));
    fails("label \"whole\" is a region");
    json("labels", json!({"background": 0, "organ": 1, "ignore": 2}));
    fails("relabel those voxels");
    json("labels", json!({"background": 0, "organ": 2}));
    fails("labels has the values 0, 2; expected each of the numbers from 0 to 1 once");
    json("file_ending", json!(".png"));
    fails("only .nii and .nii.gz, with their dots, can be read");
    json("channel_names", json!({"0": "T2"}));
    fails("a_0001.nii.gz: channel 1, but dataset.json names 1 (from 0)");
    json("dataset", json!({"x": {"images": [], "label": "x"}}));
    fails("dataset lists no image for case \"x\"");
    json(
        "dataset",
        json!({"x": {"images": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"],
        "label": "./labelsTr/a.nii.gz"}}),
    );
    let dataset = Dataset::open(dir.path()).unwrap();
    dataset.load_case(&dataset.training[0]).unwrap();
    fs::write(dir.path().join("imagesTr/b.nii.gz"), "").unwrap();
    json("file_ending", json!(".nii.gz"));
    fails("the name must end in the number of its channel, as in b_0000.nii.gz");
}

proptest! {
    /// Whatever stands in dataset.json, the answer is a dataset or an error, and the error is one line.
    #[test]
    fn arbitrary_descriptions_never_panic(
        keys in prop::collection::vec("[0-9a-c]{0,2}", 0..4),
        path in "[a-z./]{0,12}",
        noise in prop::collection::vec(any::<u8>(), 0..40),
        structured: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let labels: serde_json::Map<_, _> = keys.iter().map(|key| (key.clone(), json!("name"))).collect();
        let json = json!({
            "modality": {"0": "CT"}, "labels": labels, "training": [{"image": path, "label": path}], "test": [path]
        });
        let content = if structured { json.to_string().into_bytes() } else { noise };
        fs::write(dir.path().join("dataset.json"), content).unwrap();
        if let Err(error) = Dataset::open(dir.path()) {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}

#[test]
fn names_are_plain_and_none_is_dropped_or_merged() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 6] = [
        (|j| j["name"] = json!("../../x"), "name \"../../x\"; expected 1 to 200 characters without slashes"),
        (|j| j["test"] = json!(["a/imaging.nii.gz", "b/imaging.nii.gz"]), "test lists case \"imaging\" twice"),
        (|j| j["training"][1]["image"] = json!("imagesTr/.hidden.nii.gz"), "case \".hidden\"; expected"),
        (|j| j["training"][1]["image"] = json!("imagesTr/.."), "lists \"imagesTr/..\", which names no file"),
        (|j| j["training"][1]["image"] = json!("imagesTr/a\nb.nii.gz"), "case \"a\\nb\"; expected"),
        (|j| j["labels"] = (0..256).map(|i| (i.to_string(), json!("a"))).collect(), "256 labels; at most 255"),
    ];
    for (change, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_dataset(dir.path(), 3, change);
        let message = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("dataset.json") && !message.contains('\n'), "{message}");
    }
    // Back-slashes of Windows, endings in capitals.
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), 3, |j| {
        j["training"][1] = json!({"image": ".\\imagesTr\\c2.nii.gz", "label": ".\\labelsTr\\c2.nii.gz"});
        j["training"][2]["image"] = json!("imagesTr/c1.NII.GZ");
    });
    fs::rename(dir.path().join("imagesTr/c1.nii.gz"), dir.path().join("imagesTr/c1.NII.GZ")).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.training_ids(), ["c0", "c1", "c2"]);
    dataset.training.iter().for_each(|case| _ = dataset.load_case(case).unwrap());
    assert_eq!(nifti_files(&dir.path().join("imagesTr")).unwrap().len(), 3);
}

#[test]
fn encodings_of_dataset_json() {
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), 3, |_| {});
    let path = dir.path().join("dataset.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert_eq!(Dataset::open(dir.path()).unwrap().training.len(), 3);
    fs::write(&path, text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    let fails = |says: &str| {
        let message = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("dataset.json: ") && message.contains(says), "{message}");
    };
    // Without a byte order mark it is UTF-8 with zeros.
    fails("is encoded as UTF-16; save it as UTF-8");
    let marked = [&[0xff, 0xfe][..], &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()].concat();
    fs::write(&path, marked).unwrap();
    fails("is encoded as UTF-16; save it as UTF-8");
}

#[test]
fn files_with_another_ending_than_announced_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), 3, |json| {
        *json = json!({"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"});
    });
    for (from, to) in [("c0.nii.gz", "c0_0000.nii.gz"), ("c1.nii.gz", "c1_0000.nii.gz"), ("c2.nii.gz", "c2_0000.nii")] {
        fs::rename(dir.path().join("imagesTr").join(from), dir.path().join("imagesTr").join(to)).unwrap();
    }
    let message = Dataset::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("c2_0000.nii: the name does not end in .nii.gz"), "{message}");
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"M\xfcller.nii.gz");
    fs::write(dir.path().join(name), "").unwrap();
    let message = nifti_files(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with("ller.nii.gz: the name is not UTF-8; rename the file"), "{message}");
}
