//! Datasets in and submissions out: check, nnU-Net's layout, postprocess, submit.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path};

use cli_support::{Adw, TINY, names, phantom};
use msd_data::{read_image, read_labels, write_image, write_labels};
use serde_json::json;

/// The same dataset in nnU-Net's layout: a file per channel, no list of files.
fn as_nnunet(msd: &Path, to: &Path) {
    for folder in ["imagesTr", "imagesTs"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for name in names(&msd.join(folder)) {
            let image = read_image(msd.join(folder).join(&name)).unwrap();
            for (c, channel) in image.data.outer_iter().enumerate() {
                let id = name.strip_suffix(".nii.gz").unwrap();
                let file = to.join(folder).join(format!("{id}_{c:04}.nii.gz"));
                let channel = channel.insert_axis(ndarray::Axis(0));
                write_image(file, &channel, &image.geometry).unwrap();
            }
        }
    }
    fs::create_dir_all(to.join("labelsTr")).unwrap();
    for name in names(&msd.join("labelsTr")) {
        fs::copy(msd.join("labelsTr").join(&name), to.join("labelsTr").join(&name)).unwrap();
    }
    let json = json!({
        "channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": names(&msd.join("labelsTr")).len(), "file_ending": ".nii.gz"
    });
    fs::write(to.join("dataset.json"), json.to_string()).unwrap();
}

#[test]
fn nnunets_layout_goes_all_the_way_to_a_submission() {
    let dir = tempfile::tempdir().unwrap();
    let msd = dir.path().join("Task00_Phantom");
    Adw::new(["phantom", "--shape", "16", "20", "16", "--cases", "5", "--test", "2", "--modalities", "2"])
        .path("--output", &msd)
        .succeed();
    let data = dir.path().join("Dataset900_Phantom");
    as_nnunet(&msd, &data);
    let check = Adw::new(["check"]).path("--data", &data).succeed();
    assert!(check.stdout.contains("sound"), "{}", check.stdout);

    let run = dir.path().join("run");
    Adw::new(["retrain", "--uniform-width", "4", "--uniform-depth", "1"])
        .path("--run", &run)
        .path("--data", &data)
        .args(TINY)
        .succeed();
    let folder = run.join("retrain/fold_0");
    let (model, steps) = (folder.join("model.safetensors"), dir.path().join("postprocessing.json"));
    let found = Adw::new(["postprocess"])
        .path("--predictions", &folder.join("validation"))
        .path("--references", &data.join("labelsTr"))
        .path("--output", &steps)
        .succeed();
    // Which it is depends on what three epochs trained.
    let found_steps: serde_json::Value = serde_json::from_slice(&fs::read(&steps).unwrap()).unwrap();
    let line = if found_steps["keep_largest"].as_array().unwrap().is_empty() {
        "no step helps"
    } else {
        "keep the largest component of ["
    };
    assert!(found.stdout.contains(line), "{}", found.stdout);

    // What is kept here does not depend on how well three epochs trained.
    fs::write(&steps, r#"{"keep_largest": ["foreground"]}"#).unwrap();
    let submissions = dir.path().join("submissions");
    let submit = Adw::new(["submit"]).path("--model", &model).path("--data", &data);
    submit.clone().path("--output", &submissions).path("--postprocessing", &steps).succeed();
    let submitted = submissions.join("Dataset900_Phantom");
    assert_eq!(names(&submitted), names(&msd.join("imagesTs")), "names of cases, not of channels");

    let plain = dir.path().join("plain");
    let predict =
        Adw::new(["predict"]).path("--model", &model).path("--input", &data.join("imagesTs")).path("--output", &plain);
    predict.succeed();
    // The case that lacks a channel is named, not the first one.
    let partial = dir.path().join("partial");
    fs::create_dir_all(&partial).unwrap();
    for name in names(&data.join("imagesTs")).iter().take(3) {
        fs::copy(data.join("imagesTs").join(name), partial.join(name)).unwrap();
    }
    let lacking = names(&partial)[2].strip_suffix("_0000.nii.gz").unwrap().to_owned();
    Adw::new(["predict"])
        .path("--model", &model)
        .path("--input", &partial)
        .path("--output", &dir.path().join("none"))
        .run()
        .assert_bad_input(&[&format!("case {lacking} has files of the channels [0]"), "0 to 1"]);
    let step = msd_data::Postprocessing::load(&steps).unwrap();
    for name in names(&plain) {
        let mut labels = read_labels(plain.join(&name)).unwrap().data;
        step.apply(&mut labels);
        assert_eq!(labels, read_labels(submitted.join(&name)).unwrap().data);
    }

    // An interrupted call goes on: what is there is kept, what is missing is made, and what another program wrote stays.
    let [first, second] = names(&plain).try_into().unwrap();
    let written = || plain.join(&first).metadata().unwrap().modified().unwrap();
    let (whole, before) = (read_labels(plain.join(&first)).unwrap(), written());
    fs::remove_file(plain.join(&second)).unwrap();
    predict.clone().arg("--resume").succeed();
    assert_eq!(written(), before);
    assert!(plain.join(&second).is_file());
    write_labels(plain.join(&first), &whole.data.mapv(|_| 1).view(), &whole.geometry).unwrap();
    predict.clone().arg("--resume").run().assert_bad_input(&[&first, "exists and is not of"]);
    assert_ne!(read_labels(plain.join(&first)).unwrap(), whole);

    let other = phantom(&dir.path().join("other"), 5);
    Adw::new(["submit"])
        .path("--model", &model)
        .path("--data", &other)
        .path("--output", &submissions)
        .run()
        .assert_bad_input(&["model.safetensors", "other labels or modalities"]);
}

#[test]
fn check_lists_every_problem_and_ends_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let names = names(&data.join("imagesTr"));
    fs::write(data.join("imagesTr").join(&names[0]), "no image").unwrap();
    fs::remove_file(data.join("labelsTr").join(&names[3])).unwrap();
    fs::copy(data.join("imagesTr").join(&names[1]), data.join("imagesTr/stray.nii.gz")).unwrap();
    let check = Adw::new(["check"]).path("--data", &data);
    let outcome = check.run();
    outcome.assert_bad_input(&["2 errors to put right, 1 warning"]);
    assert_eq!(outcome.stdout.lines().count(), 3, "{}", outcome.stdout);
    for part in [&names[0], &names[3], "stray.nii.gz"] {
        assert!(outcome.stdout.contains(part), "{part} in {}", outcome.stdout);
    }
    let lines = check.arg("--json").run().stdout;
    let severe = |line: &&str| line.contains(r#""severity":"error""#);
    assert_eq!(lines.lines().filter(severe).count(), 2, "{lines}");
}

/// Cases that do not fit into memory go to files; the search is the same, a kill while they are made is no loss.
#[test]
fn a_search_within_little_memory_finds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Large");
    Adw::new(["phantom", "--shape", "48", "64", "56", "--cases", "10", "--test", "0"])
        .path("--output", &data)
        .succeed();
    let search = |run: &str| {
        Adw::new(["search", "--set=data.patch_size=[16,16,16]"])
            .path("--data", &data)
            .path("--run", &dir.path().join(run))
            .args(TINY)
    };
    search("roomy").succeed();
    let tight = search("tight").args(["--memory", "0.011"]);
    let outcome = tight.succeed();
    assert!(outcome.stderr.contains("kept in"), "{}", outcome.stderr);
    let prepared = dir.path().join("tight/prepared");
    assert_eq!(names(&prepared).len(), 8, "the training cases of one fold");
    let found = |run: &str| fs::read(dir.path().join(run).join("search/fold_0/architecture.json")).unwrap();
    assert_eq!(found("roomy"), found("tight"));

    // On a scratch disk, once for all runs with this plan.
    let scratch = dir.path().join("scratch");
    let local = |run: &str| search(run).args(["--memory", "0.011"]).path("--scratch", &scratch);
    let outcome = local("local").succeed();
    assert!(
        outcome.stderr.contains("scratch/adw-cases-") && !dir.path().join("local/prepared").exists(),
        "{outcome:?}"
    );
    let [folder] = names(&scratch).try_into().unwrap();
    let times = || {
        names(&scratch.join(&folder))
            .iter()
            .map(|name| fs::metadata(scratch.join(&folder).join(name)).unwrap().modified().unwrap())
            .collect::<Vec<_>>()
    };
    let before = times();
    assert_eq!(before.len(), 8);
    local("again").args(["--seed=2"]).succeed();
    assert_eq!(times(), before);
    assert_eq!(found("roomy"), found("local"));

    let tiny = search("tiny").args(["--memory", "0.001"]).run();
    tiny.assert_bad_input_last(&["GB"]);
    assert!(!dir.path().join("tiny").exists());
}

/// Overwrites header bytes of a volume; the file is uncompressed then, whatever its name says.
fn patch_header(path: &Path, changes: &[(usize, Vec<u8>)]) {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.nii");
    let image = read_image(path).unwrap();
    write_image(&plain, &image.data.view(), &image.geometry).unwrap();
    let mut bytes = fs::read(&plain).unwrap();
    for (offset, new) in changes {
        bytes[*offset..offset + new.len()].copy_from_slice(new);
    }
    fs::write(path, bytes).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Changes the text of `dataset.json`.
fn edit_json(data: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = data.join("dataset.json");
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn check_warns_of_implausible_cases_and_refuses_damaged_or_displaced_ones() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 8);
    let names = names(&data.join("imagesTr"));
    let both = |i: usize, changes: &[(usize, Vec<u8>)]| {
        for folder in ["imagesTr", "labelsTr"] {
            patch_header(&data.join(folder).join(&names[i]), changes);
        }
    };
    both(0, &[(280, floats(&[0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0]))]);
    both(1, &[(252, vec![0, 0]), (280, floats(&[-1.0, 0.0, 0.0, 15.0]))]);
    both(2, &[(80, floats(&[0.001; 3]))]);
    let check = Adw::new(["check"]).path("--data", &data);
    let outcome = check.succeed();
    for (i, words) in [
        (0, "by its sform, but [1.0, 1.0, 1.0] by its pixdim"),
        (1, "is stored in orientation LAS, most cases in RAS"),
        (2, "is far from the median of all cases"),
    ] {
        let named = |line: &str| line.contains(&names[i]) && line.contains(words);
        assert!(outcome.stdout.lines().any(named), "{words}: {}", outcome.stdout);
    }

    // 40 mm apart: named by the check, refused by all that would use it.
    patch_header(&data.join("labelsTr").join(&names[3]), &[(292, floats(&[40.0]))]);
    let words = ["labelsTr", &names[3], "lies up to 40.0 mm away from"];
    let outcome = check.run();
    outcome.assert_bad_input(&["1 error to put right"]);
    assert!(words.iter().all(|word| outcome.stdout.contains(word)), "{}", outcome.stdout);
    let plan = Adw::new(["plan"]).path("--data", &data);
    plan.run().assert_bad_input(&words);
    let ignored = "--set=data.ignore_positions=true";
    plan.arg(ignored).succeed();
    let run = dir.path().join("run");
    Adw::new(["run", ignored]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    patch_header(&data.join("labelsTr").join(&names[3]), &[(292, floats(&[0.0]))]);

    let image = data.join("imagesTr").join(&names[4]);
    let sound = fs::read(&image).unwrap();
    patch_header(&image, &[(112, floats(&[0.01, f32::NAN]))]);
    Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&[&names[4], "intercept NaN"]);
    // The checksum of a compressed file is looked at.
    let mut damaged = sound.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 0x55;
    fs::write(&image, damaged).unwrap();
    Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&[&names[4], "damaged", "checksum"]);
    fs::write(&image, sound).unwrap();

    // A byte order mark is no fault; names that are paths are.
    let json = data.join("dataset.json");
    fs::write(&json, [&[0xef, 0xbb, 0xbf], fs::read(&json).unwrap().as_slice()].concat()).unwrap();
    check.succeed();
    let text = fs::read_to_string(&json).unwrap();
    fs::write(&json, text.trim_start_matches('\u{feff}')).unwrap();
    edit_json(&data, |json| json["training"][0]["image"] = "./imagesTr/..".into());
    check.run().assert_bad_input(&["1 error"]);
}

#[test]
fn validation_cases_are_scored_against_the_labels_that_dataset_json_lists() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    for name in names(&data.join("labelsTr")) {
        fs::rename(data.join("labelsTr").join(&name), data.join("labelsTr").join(name.replace("phantom", "seg")))
            .unwrap();
    }
    edit_json(&data, |json| {
        for entry in json["training"].as_array_mut().unwrap() {
            entry["label"] = entry["label"].as_str().unwrap().replace("phantom", "seg").into();
        }
    });
    let run = dir.path().join("run");
    Adw::new(["retrain", "--uniform-width", "4", "--uniform-depth", "1"])
        .path("--run", &run)
        .path("--data", &data)
        .args(TINY)
        .succeed();
    let metrics = fs::read(run.join("retrain/fold_0/metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_slice(&metrics).unwrap();
    let case = &metrics["metric_per_case"][0];
    assert!(case["reference_file"].as_str().unwrap().contains("labelsTr/seg_"), "{case}");

    // The same image in each of the 48 orientations gets the same label map, in the image's own grid.
    let image = read_image(data.join("imagesTs").join(&names(&data.join("imagesTs"))[0])).unwrap();
    let (images, maps) = (dir.path().join("images"), dir.path().join("maps"));
    fs::create_dir_all(&images).unwrap();
    let stored = orientations();
    for (code, orientation) in &stored {
        let (data, geometry) = reoriented(&image, orientation);
        write_image(images.join(format!("{code}.nii.gz")), &data.view(), &geometry).unwrap();
    }
    Adw::new(["predict"])
        .path("--model", &run.join("retrain/fold_0/model.safetensors"))
        .path("--input", &images)
        .path("--output", &maps)
        .succeed();
    let expected = read_labels(maps.join("RAS.nii.gz")).unwrap();
    assert!(expected.data.iter().any(|&v| v > 0), "there is something to compare");
    for (code, orientation) in &stored {
        let found = read_labels(maps.join(format!("{code}.nii.gz"))).unwrap();
        assert_eq!(found.geometry.orientation().unwrap().to_string(), *code);
        let labels = expected.data.mapv(f32::from).insert_axis(ndarray::Axis(0));
        let expected = msd_data::Volume { data: labels, geometry: expected.geometry.clone() };
        let (labels, geometry) = reoriented(&expected, orientation);
        assert_eq!(found.data.mapv(f32::from), labels.index_axis(ndarray::Axis(0), 0), "{code}");
        assert_eq!(found.geometry.affine(), geometry.affine(), "{code}");
    }
    // And evaluation compares them with a reference stored otherwise.
    let references = dir.path().join("references");
    fs::create_dir_all(&references).unwrap();
    for (code, _) in &stored {
        fs::copy(maps.join("RAS.nii.gz"), references.join(format!("{code}.nii.gz"))).unwrap();
    }
    let evaluate = Adw::new(["evaluate", "--json"]).path("--predictions", &maps).path("--references", &references);
    let report: serde_json::Value = serde_json::from_str(&evaluate.succeed().stdout).unwrap();
    assert_eq!(report["metric_per_case"].as_array().unwrap().len(), 48);
    for (label, mean) in report["mean"].as_object().unwrap() {
        assert_eq!(mean["Dice"], 1.0, "label {label}");
    }
}

/// The 48 orientations: code, and for each axis z, y, x of the stored array the axis of a RAS array and its direction.
fn orientations() -> Vec<(String, [(usize, bool); 3])> {
    let mut all = Vec::new();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for bits in 0..8 {
            let axes = [0, 1, 2].map(|a| (order[a], bits >> a & 1 == 1));
            // Array axes 2, 1, 0 are x, y, z: R, A, S.
            let letter =
                |(axis, reversed): (usize, bool)| [['S', 'I'], ['A', 'P'], ['R', 'L']][axis][usize::from(reversed)];
            all.push((axes.iter().rev().map(|&axis| letter(axis)).collect(), axes));
        }
    }
    all
}

/// A volume of a RAS grid, stored along other axes.
fn reoriented(image: &msd_data::Volume<f32>, axes: &[(usize, bool); 3]) -> (ndarray::Array4<f32>, msd_data::Geometry) {
    let mut data = image.data.view().permuted_axes([0, 1 + axes[0].0, 1 + axes[1].0, 1 + axes[2].0]);
    let before = image.geometry.affine();
    let mut affine = before.map(|row| [0.0, 0.0, 0.0, row[3]]);
    for (a, &(from, reversed)) in axes.iter().enumerate() {
        if reversed {
            data.invert_axis(ndarray::Axis(1 + a));
        }
        for (row, old) in affine.iter_mut().zip(before) {
            let step = old[2 - from];
            row[2 - a] = if reversed { -step } else { step };
            row[3] += if reversed { step * (image.geometry.shape[from] - 1) as f64 } else { 0.0 };
        }
    }
    let shape = [0, 1, 2].map(|a| data.shape()[1 + a]);
    (data.as_standard_layout().into_owned(), msd_data::Geometry::from_affine(shape, affine))
}

#[test]
fn nothing_is_dropped_merged_or_counted_twice() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let labels = names(&data.join("labelsTr"));
    let (p, r) = (dir.path().join("p"), dir.path().join("r"));
    for folder in [&p, &r] {
        fs::create_dir_all(folder).unwrap();
        fs::copy(data.join("labelsTr").join(&labels[0]), folder.join("a.nii.gz")).unwrap();
    }
    let evaluate = Adw::new(["evaluate", "--json"]).path("--predictions", &p).path("--references", &r);
    evaluate.succeed();
    fs::copy(r.join("a.nii.gz"), p.join("a.nii")).unwrap();
    evaluate.run().assert_bad_input(&["is of the same case as"]);
    fs::remove_file(p.join("a.nii")).unwrap();
    let postprocess = Adw::new(["postprocess"])
        .path("--predictions", &p)
        .path("--predictions", &p)
        .path("--references", &r)
        .path("--output", &dir.path().join("steps.json"));
    postprocess.run().assert_bad_input(&["is of the same case as"]);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"M\xfcller.nii.gz");
        fs::copy(r.join("a.nii.gz"), p.join(name)).unwrap();
        evaluate.run().assert_bad_input(&["the name is not UTF-8"]);
    }

    let images = names(&data.join("imagesTs"));
    for (folder, image) in ["a", "b"].iter().zip(&images) {
        fs::create_dir_all(data.join("imagesTs").join(folder)).unwrap();
        fs::rename(data.join("imagesTs").join(image), data.join(format!("imagesTs/{folder}/imaging.nii.gz"))).unwrap();
    }
    edit_json(&data, |json| json["test"] = json!(["./imagesTs/a/imaging.nii.gz", "./imagesTs/b/imaging.nii.gz"]));
    Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&["test lists case \"imaging\" twice"]);
}
