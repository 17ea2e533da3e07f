//! Choices of method that follow from the plan and the configuration: loss, search space, baselines, mirroring.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path};

use cli_support::{Adw, TINY, phantom};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_plan_decides_between_dice_per_sample_and_of_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let retrain = |name: &str| {
        let adw = Adw::new(["retrain", "--uniform-width", "4", "--name", name]).path("--run", &run);
        if run.exists() { adw } else { adw.path("--data", &data).args(TINY) }
    };
    let losses = |name: &str| {
        retrain(name).succeed();
        let history = fs::read_to_string(run.join("retrain").join(name).join("fold_0/history.jsonl")).unwrap();
        let rows = history.lines().map(|row| serde_json::from_str::<Value>(row).unwrap()["loss"].clone());
        rows.collect::<Vec<_>>()
    };
    let per_sample = losses("per-sample");
    assert_eq!(losses("again"), per_sample);
    let path = run.join("plan.json");
    let mut plan = json(&path);
    assert_eq!(plan["batch_dice"], false, "a plan of one stage");
    plan["batch_dice"] = true.into();
    fs::write(&path, plan.to_string()).unwrap();
    assert_ne!(losses("of-the-batch"), per_sample);
    // A training goes on with the loss that it was started with.
    let folder = run.join("retrain/per-sample/fold_0");
    for file in ["metrics.json", "model.safetensors"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    let outcome = retrain("per-sample").arg("--resume").run();
    assert!(outcome.code != Some(0) && outcome.stderr.contains("Dice per sample"), "{outcome:?}");
}
