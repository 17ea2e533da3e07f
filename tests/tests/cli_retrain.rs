//! Differences between the trainings of a run, and the settings that a resumed training keeps.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::fs;

use adw_supernet::Precision;
use cli_support::{Adw, TINY, names, phantom};

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

    // A dataset with other cases is another one.
    let fewer = fs::read_to_string(moved.join("dataset.json")).unwrap();
    let mut fewer: serde_json::Value = serde_json::from_str(&fewer).unwrap();
    fewer["training"].as_array_mut().unwrap().pop();
    fs::write(moved.join("dataset.json"), fewer.to_string()).unwrap();
    retrain("3").run().assert_bad_input(&["has no case"]);
}

#[test]
fn a_precision_is_a_setting_of_search_training_and_prediction() {
    if !Precision::Bf16.is_available() {
        return;
    }
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
        // The matrix unit is for layers of 16 channels and more.
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
