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
    let step = msd_data::Postprocessing::load(&steps).unwrap();
    for name in names(&plain) {
        let mut labels = read_labels(plain.join(&name)).unwrap().data;
        step.apply(&mut labels);
        assert_eq!(labels, read_labels(submitted.join(&name)).unwrap().data);
    }

    // An interrupted call goes on: what is there is kept, what is missing is made.
    let [first, second] = names(&plain).try_into().unwrap();
    let map = read_labels(plain.join(&first)).unwrap();
    let (whole, marked) = (map.data.clone(), map.data.mapv(|_| 1));
    write_labels(plain.join(&first), &marked.view(), &map.geometry).unwrap();
    fs::remove_file(plain.join(&second)).unwrap();
    predict.clone().arg("--resume").succeed();
    assert_eq!(read_labels(plain.join(&first)).unwrap().data, marked);
    assert!(plain.join(&second).is_file());
    predict.succeed();
    assert_eq!(read_labels(plain.join(&first)).unwrap().data, whole);

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

    let tiny = search("tiny").args(["--memory", "0.001"]).run();
    tiny.assert_bad_input(&["GB"]);
    assert!(!dir.path().join("tiny").exists());
}
