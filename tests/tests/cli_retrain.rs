//! Differences between the trainings of a run, and the settings that a resumed training keeps.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::fs;

use cli_support::{Adw, TINY, names, phantom};
use msd_data::{read_image, read_labels, write_image, write_labels};
use ndarray::{Array3, Array4};

#[test]
fn a_resumed_training_keeps_its_architecture_and_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let retrain = || Adw::new(["retrain", "--name", "plain"]).path("--run", &run);
    retrain().path("--data", &data).args(TINY).args(["--uniform-width", "4", "--seed", "2"]).succeed();
    let folder = run.join("retrain/plain/fold_0");
    let architecture = fs::read(folder.join("architecture.json")).unwrap();
    fs::remove_file(folder.join("metrics.json")).unwrap();

    let resume = || retrain().arg("--resume");
    resume().args(["--uniform-width", "6"]).run().assert_bad_input(&[
        "was started with the architecture",
        "4-4 8-8",
        "6-6 12-12",
    ]);
    resume().args(["--seed", "3"]).run().assert_bad_input(&["seed = 2", "3"]);
    assert_eq!(fs::read(folder.join("architecture.json")).unwrap(), architecture);
    // The same again, segmented otherwise.
    resume().args(["--uniform-width", "4", "--set=predict.step=0.7"]).succeed();
    assert!(folder.join("metrics.json").is_file());
    let picture = fs::read_to_string(folder.join("architecture.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains(">16</text>"));
}

#[test]
fn an_architecture_is_trained_with_several_seeds_on_data_that_moved() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    let moved = dir.path().join("elsewhere");
    fs::rename(&data, &moved).unwrap();
    let retrain =
        |seed: &str| Adw::new(["retrain", "--seed", seed, "--name", seed]).path("--run", &run).path("--data", &moved);
    let model = |seed: &str| {
        retrain(seed).succeed();
        fs::read(run.join(format!("retrain/{seed}/fold_0/model.safetensors"))).unwrap()
    };
    assert!(model("1") != model("2"));

    // One whose cases are others is another one, even with their names.
    let image = moved.join("imagesTr/phantom_001.nii.gz");
    let (volume, bytes) = (read_image(&image).unwrap(), fs::read(&image).unwrap());
    write_image(&image, &volume.data.mapv(|v| 1000.0 * v).view(), &volume.geometry).unwrap();
    retrain("3").run().assert_bad_input(&["elsewhere the case phantom_001 is another"]);
    fs::write(&image, bytes).unwrap();

    // A dataset with other cases is another one.
    let fewer = fs::read_to_string(moved.join("dataset.json")).unwrap();
    let mut fewer: serde_json::Value = serde_json::from_str(&fewer).unwrap();
    fewer["training"].as_array_mut().unwrap().pop();
    fs::write(moved.join("dataset.json"), fewer.to_string()).unwrap();
    retrain("3").run().assert_bad_input(&["has no case"]);
}

/// A plain network has random weights at the beginning, also where the search has found the same one; a found network that the
/// weights of the search do not fit is refused with the remedy.
#[test]
fn baselines_do_not_start_from_the_weights_of_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    Adw::new(["search"]).path("--data", &phantom(dir.path(), 5)).path("--run", &run).args(TINY).succeed();
    let found = run.join("search/fold_0/architecture.json");
    let mut architecture: serde_json::Value = serde_json::from_str(&fs::read_to_string(&found).unwrap()).unwrap();
    let mut write = |blocks: serde_json::Value| {
        architecture["blocks"] = blocks;
        fs::write(&found, architecture.to_string()).unwrap();
    };
    let retrain =
        |name: &str, arguments: &[&str]| Adw::new(["retrain", "--name", name]).path("--run", &run).args(arguments);
    write(serde_json::json!([[4], [8], [16], [8], [4]]));
    let plain = ["--uniform-width", "4", "--uniform-depth", "1"];
    let random = ["--set", "retrain.warm_start=false"];
    let loss = |name: &str| {
        let history = fs::read_to_string(run.join(format!("retrain/{name}/fold_0/history.jsonl"))).unwrap();
        let row: serde_json::Value = serde_json::from_str(history.lines().next().unwrap()).unwrap();
        row["loss"].as_f64().unwrap()
    };
    for (name, arguments) in [("found", &[][..]), ("plain", &plain), ("random", &random)] {
        retrain(name, arguments).succeed();
    }
    assert!(loss("plain") == loss("random") && loss("plain") != loss("found"));

    write(serde_json::json!([[40], [8], [16], [8], [4]]));
    retrain("wide", &[]).run().assert_bad_input(&["architecture.json", "retrain.warm_start=false"]);
    retrain("wide", &random).succeed();
    let both = ["--plain", "nnunet", "--uniform-depth", "3"];
    let refused = retrain("both", &both).run();
    assert!(refused.code == Some(2) && refused.stderr.contains("cannot be used with"), "{refused:?}");
}

#[test]
fn work_goes_on_with_the_cases_with_which_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let description = fs::read_to_string(data.join("dataset.json")).unwrap();
    let mut fewer: serde_json::Value = serde_json::from_str(&description).unwrap();
    fewer["training"].as_array_mut().unwrap().pop();
    fs::write(data.join("dataset.json"), fewer.to_string()).unwrap();
    let run = dir.path().join("run");
    let search = Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY);
    search.succeed();

    // A case that was added is left out, and named.
    fs::write(data.join("dataset.json"), &description).unwrap();
    let noted = Adw::new(["retrain", "--fold", "all"]).path("--run", &run).succeed().stderr;
    assert!(noted.contains("1 cases of") && noted.contains("such as phantom_005"), "{noted}");

    // The last step again, with other folds.
    fs::remove_file(run.join("search/fold_0/architecture.json")).unwrap();
    let splits = fs::read_to_string(run.join("splits.json")).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&splits).unwrap();
    other["folds"].as_array_mut().unwrap().swap(0, 1);
    fs::write(run.join("splits.json"), other.to_string()).unwrap();
    let resume = search.arg("--resume");
    resume.run().assert_bad_input_last(&["plan and cases"]);
    fs::write(run.join("splits.json"), splits).unwrap();
    resume.succeed();
}

#[test]
fn a_precision_is_a_setting_of_search_training_and_prediction() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let search =
        |set: &str| Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).args(["--set", set]);
    search("search.precision=bf16").succeed();
    search("search.precision=full")
        .arg("--resume")
        .run()
        .assert_bad_input(&["search.precision = \"bf16\", not \"full\""]);
    let model = |name: &str| run.join("retrain").join(name).join("fold_0/model.safetensors");
    let retrain = |name: &str, set: &[&str]| {
        // Layers of fewer than 16 channels are not rounded.
        Adw::new(["retrain", "--uniform-width", "16", "--name", name]).path("--run", &run).args(set)
    };
    retrain("full", &[]).succeed();
    retrain("bf16", &["--set=retrain.precision=bf16"]).succeed();
    assert!(fs::read(model("full")).unwrap() != fs::read(model("bf16")).unwrap());
    // A training is resumed in the precision it was started in.
    fs::remove_file(model("bf16")).unwrap();
    retrain("bf16", &["--resume", "--set=retrain.precision=full"])
        .run()
        .assert_bad_input(&["retrain.precision = \"bf16\", not \"full\""]);
    retrain("bf16", &["--resume"]).succeed();

    let predict = |output: &str, extra: &[&str]| {
        Adw::new(["predict"])
            .path("--model", &model("full"))
            .path("--input", &data.join("imagesTs"))
            .path("--output", &dir.path().join(output))
            .args(extra)
            .succeed()
    };
    predict("in-full", &[]);
    predict("in-bf16", &["--bf16"]);
    assert_eq!(names(&dir.path().join("in-full")), names(&dir.path().join("in-bf16")));
}

/// A validation case that a training never reads as a whole is segmented as a whole at its end.
#[test]
fn a_validation_case_too_large_to_segment_is_refused_before_the_training() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let [image, labels] = ["imagesTr", "labelsTr"].map(|folder| data.join(folder).join("phantom_000.nii.gz"));
    let shape @ [d, h, w] = [160, 120, 100];
    let (small, small_labels) = (read_image(&image).unwrap(), read_labels(&labels).unwrap());
    let mut geometry = small.geometry;
    let [rows, columns, slices] = geometry.shape;
    let at = |i: usize, j: usize, k: usize| [i % rows, j % columns, k % slices];
    geometry.shape = shape;
    let large = Array4::from_shape_fn((1, d, h, w), |(_, i, j, k)| {
        let [i, j, k] = at(i, j, k);
        small.data[[0, i, j, k]]
    });
    write_image(&image, &large.view(), &geometry).unwrap();
    let large = Array3::from_shape_fn((d, h, w), |(i, j, k)| small_labels.data[at(i, j, k)]);
    write_labels(&labels, &large.view(), &geometry).unwrap();
    let run = dir.path().join("run");
    let retrain = Adw::new(["retrain", "--uniform-width", "4", "--uniform-depth", "1"]);
    let retrain = retrain.path("--data", &data).path("--run", &run).args(TINY);
    let outcome = retrain.clone().args(["--memory", "0.02"]).run();
    outcome.assert_bad_input(&["imagesTr/phantom_000.nii.gz (160x120x100 voxels", "20.00 MB may be used"]);
    assert!(!run.exists());
    retrain.args(["--memory", "0.06"]).succeed();
}
