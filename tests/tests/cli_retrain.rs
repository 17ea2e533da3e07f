//! What may differ between the trainings of a run, and what a resumed training keeps.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::fs;

use cli_support::{Adw, TINY, phantom};

#[test]
fn a_resumed_training_keeps_its_architecture_and_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let retrain = || Adw::new(["retrain", "--name", "plain"]).path("--run", &run);
    retrain()
        .path("--data", &data)
        .args(TINY)
        .args(["--uniform-width", "4", "--seed", "2"])
        .succeed();
    let folder = run.join("retrain/plain/fold_0");
    let architecture = fs::read(folder.join("architecture.json")).unwrap();
    fs::remove_file(folder.join("metrics.json")).unwrap();

    let resume = || retrain().arg("--resume");
    resume()
        .args(["--uniform-width", "6"])
        .run()
        .assert_bad_input(&["was started with the architecture", "4-4 8-8", "6-6 12-12"]);
    resume()
        .args(["--seed", "3"])
        .run()
        .assert_bad_input(&["seed = 2", "3"]);
    assert_eq!(
        fs::read(folder.join("architecture.json")).unwrap(),
        architecture
    );
    // The same again, segmented otherwise.
    resume()
        .args(["--uniform-width", "4", "--set=predict.step=0.7"])
        .succeed();
    assert!(folder.join("metrics.json").is_file());
    let picture = fs::read_to_string(folder.join("architecture.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains(">16</text>"));
}

#[test]
fn an_architecture_is_trained_with_several_seeds_on_data_that_moved() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    Adw::new(["search"])
        .path("--data", &data)
        .path("--run", &run)
        .args(TINY)
        .succeed();
    let moved = dir.path().join("elsewhere");
    fs::rename(&data, &moved).unwrap();
    let retrain = |seed: &str| {
        Adw::new(["retrain", "--seed", seed, "--name", seed])
            .path("--run", &run)
            .path("--data", &moved)
    };
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
