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

#[test]
fn baselines_follow_the_plan_and_foreign_searches_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    let retrain = |name: &str, args: &[&str]| {
        let outcome = Adw::new(["retrain", "--name", name]).path("--run", &run).args(args).run();
        (outcome, run.join("retrain").join(name))
    };
    let random = |name: &str, seed: &str| {
        let (outcome, folder) = retrain(name, &["--random", seed, "--cost", "12M"]);
        outcome.assert_success();
        json(&folder.join("fold_0/architecture.json"))
    };
    let first = random("first", "1");
    assert_eq!(first["provenance"]["random"]["macs_per_patch"], 12e6);
    assert_ne!(first["blocks"], random("second", "2")["blocks"]);
    retrain("none", &["--random", "1", "--cost", "12T"])
        .0
        .assert_bad_input(&["no random architecture of 12000.0000 G"]);
    assert_eq!(retrain("none", &["--random", "1"]).0.code, Some(2), "without a cost");
    assert_eq!(retrain("none", &["--plain", "nnunet", "--random", "1", "--cost", "1G"]).0.code, Some(2));

    // The search of fold 0 has trained on the validation cases of fold 1.
    let found = run.join("search/fold_0/architecture.json");
    assert_eq!(json(&found)["provenance"]["fold"], 0);
    let path = found.display().to_string();
    let (own, _) = retrain("own", &["--architecture", &path]);
    assert!(!own.assert_success().stderr.contains("too good"));
    let (other, _) = retrain("other", &["--architecture", &path, "--fold", "1"]);
    let stderr = other.assert_success().stderr;
    assert!(stderr.contains("search of fold 0, which has seen the validation cases of fold 1"), "{stderr}");
    let mut elsewhere = json(&found);
    elsewhere["provenance"]["dataset"] = "another".into();
    let path = dir.path().join("elsewhere.json");
    fs::write(&path, elsewhere.to_string()).unwrap();
    let (outcome, _) = retrain("elsewhere", &["--architecture", &path.display().to_string()]);
    assert!(outcome.assert_success().stderr.contains("with other cases or splits"));
}

/// The found architecture starts from the weights of its search, baselines from random ones.
#[test]
fn found_architectures_start_warm_and_baselines_cold() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    let first_loss = |name: &str, args: &[&str]| {
        Adw::new(["retrain", "--name", name]).path("--run", &run).args(args).succeed();
        let history = fs::read_to_string(run.join("retrain").join(name).join("fold_0/history.jsonl")).unwrap();
        serde_json::from_str::<Value>(history.lines().next().unwrap()).unwrap()["loss"].clone()
    };
    let cold = "--set=retrain.warm_start=false";
    let found = first_loss("warm", &[]);
    assert_eq!(first_loss("warm-again", &[]), found);
    assert_ne!(first_loss("cold", &[cold]), found);
    let baseline = ["--uniform-width", "4"];
    assert_eq!(first_loss("plain", &baseline), first_loss("plain-cold", &[baseline[0], baseline[1], cold]));

    // Without training, the shared weights say how good an architecture is.
    let rank = |args: &[&str]| Adw::new(["rank", "--batches", "1"]).path("--run", &run).args(args).run();
    let lines = rank(&["--json", "--random", "3", "--cost", "12M"]).assert_success().stdout;
    let scores: Vec<f64> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["dice"].as_f64().expect("a Dice"))
        .collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{lines}");
    assert!(rank(&[]).assert_success().stdout.contains("Dice on half B"));
    assert_eq!(Adw::new(["rank", "--batches", "0"]).path("--run", &run).run().code, Some(2), "a mean of nothing");
    fs::remove_dir_all(run.join("search/fold_0/checkpoint")).unwrap();
    let outcome = Adw::new(["retrain", "--name", "lost"]).path("--run", &run).run();
    outcome.assert_bad_input(&["retrain.warm_start=false", "latest.safetensors"]);
}

#[test]
fn ablations_fix_depth_and_widths() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let blocks = |space: &str| {
        let run = dir.path().join(space);
        let space = format!("--set=network.space={space}");
        let fixed = "--set=network.fixed={depth=1, width=8, max_features=12}";
        Adw::new(["search", &space, fixed]).path("--data", &data).path("--run", &run).args(TINY).succeed();
        let found = json(&run.join("search/fold_0/architecture.json"));
        serde_json::from_value::<Vec<Vec<usize>>>(found["blocks"].clone()).unwrap()
    };
    assert!(blocks("width_only").iter().all(|block| block.len() == 1));
    let depth_only = blocks("depth_only");
    assert!(depth_only[0].iter().all(|&width| width == 8), "{depth_only:?}");
    assert!(depth_only[1..depth_only.len() - 1].iter().flatten().all(|&width| width == 12), "{depth_only:?}");
}

/// A model is applied as it was scored: prediction gives the label maps of the scoring, unless options say otherwise.
#[test]
fn windows_and_mirrored_axes_travel_with_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let mirrored = [
        "--set=data.augmentation.mirror=0.5",
        "--set=data.augmentation.mirror_axes=[\"left-right\"]",
        "--set=predict.mirror=true",
        "--set=predict.step=0.3",
        "--set=data.patch_size=[8, 8, 8]",
        "--set=retrain.batch_size=plan",
    ];
    let retrain = |name: &str| Adw::new(["retrain", "--uniform-width", "4", "--name", name]).path("--run", &run);
    retrain("left-right").path("--data", &data).args(TINY).args(mirrored).succeed();
    let folder = run.join("retrain/left-right/fold_0");
    let model = folder.join("model.safetensors");
    let predict = |model: &Path, output: &str, options: &[&str]| {
        let output = dir.path().join(output);
        Adw::new(["predict"])
            .path("--model", model)
            .path("--input", &data.join("imagesTr"))
            .path("--output", &output)
            .args(options)
            .succeed();
        output
    };
    let validation = |folder: &Path| {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        // Voxels, not bytes: label maps of `predict` carry a digest of models, settings and image.
        let named = |path: &std::path::PathBuf| {
            (path.file_name().unwrap().to_owned(), msd_data::nifti::read_labels(path).unwrap().data)
        };
        files.iter().map(named).collect::<std::collections::BTreeMap<_, _>>()
    };
    let scored = validation(&folder.join("validation"));
    let agrees =
        |output: &Path| validation(output).iter().filter(|(name, _)| scored.contains_key(*name)).eq(scored.iter());
    assert!(agrees(&predict(&model, "default", &[])));
    assert!(!agrees(&predict(&model, "plain", &["--mirror=false", "--step", "1"])));

    // Scored again in another way, the model changes with it.
    retrain("left-right").args(["--resume", "--set=predict.mirror=false"]).succeed();
    assert!(validation(&folder.join("validation")) != scored);
    assert!(fs::read_to_string(folder.join("config.toml")).unwrap().contains("mirror = false"));
    let scored = validation(&folder.join("validation"));
    let output = predict(&model, "again", &[]);
    assert!(validation(&output).iter().filter(|(name, _)| scored.contains_key(*name)).eq(scored.iter()));

    // A direction that is none, and models that were scored differently.
    let names = "--set=data.augmentation.mirror_axes=[\"sideways\"]";
    retrain("wrong").arg(names).run().assert_bad_input(&["sideways", "left-right"]);
    retrain("coarse").arg("--set=predict.step=1").succeed();
    let coarse = run.join("retrain/coarse/fold_0/model.safetensors");
    let both = Adw::new(["predict", "--model"]).args([model.display(), coarse.display()]);
    let both = both.path("--input", &data.join("imagesTr")).path("--output", &dir.path().join("both"));
    both.run().assert_bad_input(&["0.3, 1", "--step"]);
    both.args(["--step", "0.5", "--mirror"]).succeed();
}
