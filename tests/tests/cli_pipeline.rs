//! Whole pipeline from a dataset to scored label maps: plan, search, retrain, predict, evaluate.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path};

use cli_support::{Adw, TINY, names, phantom};
use msd_data::{read_image, read_labels};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every line of stdout as JSON.
fn json_lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

#[test]
fn every_command_reads_what_the_one_before_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let run = dir.path().join("runs/phantom/tiny");

    // `--data` may be the root that the dataset lies in.
    let plan = Adw::new(["plan", "--json"]).path("--data", dir.path()).succeed();
    let plan = json_lines(&plan.stdout).remove(0);
    assert_eq!(plan["patch_size"].as_array().unwrap().len(), 3);

    let search =
        Adw::new(["search", "--json", "--seed", "3"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    assert!(search.stderr.is_empty(), "{}", search.stderr);
    let events = json_lines(&search.stdout);
    assert!(events.iter().filter(|event| event["event"] == "epoch").count() == 4, "{events:?}");
    let found = run.join("search/fold_0/architecture.json");
    let architecture = json(&found);
    assert_eq!(architecture["format"], "adw-architecture/1");
    assert_eq!(architecture["provenance"]["task"], "Task00_Phantom");
    assert_eq!(architecture["provenance"]["seed"], 3);
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.contains("epochs = 4") && config.contains("seed = 3") && config.contains("version = "), "{config}");
    assert_eq!(fs::read_to_string(run.join("search/fold_0/history.jsonl")).unwrap().lines().count(), 4);
    for file in ["plan.json", "splits.json", "search/fold_0/checkpoint"] {
        assert!(run.join(file).exists(), "{file}");
    }

    let retrain = Adw::new(["retrain"]).path("--run", &run).succeed();
    let folder = run.join("retrain/fold_0");
    let metrics = json(&folder.join("metrics.json"));
    assert!(metrics["mean"]["1"]["Dice"].is_number(), "{metrics}");
    for label in plan["labels"].as_array().unwrap().iter().skip(1) {
        assert!(retrain.stdout.contains(label["name"].as_str().unwrap()), "a row per label: {}", retrain.stdout);
    }
    let splits = json(&run.join("splits.json"));
    let fold = &splits["folds"][0];
    let validation: Vec<String> =
        fold["validation"].as_array().unwrap().iter().map(|id| format!("{}.nii.gz", id.as_str().unwrap())).collect();
    assert_eq!(names(&folder.join("validation")), validation);
    let ids = |key: &str| fold[key].as_array().unwrap().clone();
    let mut halves = [ids("train_a"), ids("train_b")].concat();
    halves.sort_by_key(ToString::to_string);
    assert_eq!(halves, ids("train"), "A and B are the training cases");

    // The model alone segments new images, in their geometry, and the same cases to the same voxels.
    let model = folder.join("model.safetensors");
    let segmented = dir.path().join("segmented");
    Adw::new(["predict"])
        .path("--model", &model)
        .path("--input", &data.join("imagesTs"))
        .path("--output", &segmented)
        .succeed();
    assert_eq!(names(&segmented), names(&data.join("imagesTs")));
    for name in names(&segmented) {
        let (labels, image) =
            (read_labels(segmented.join(&name)).unwrap(), read_image(data.join("imagesTs").join(&name)).unwrap());
        assert_eq!(
            (labels.geometry.shape, labels.geometry.spacing_mm),
            (image.geometry.shape, image.geometry.spacing_mm)
        );
    }
    let one = dir.path().join("one");
    let input = data.join("imagesTr").join(&validation[0]);
    Adw::new(["predict"]).path("--model", &model).path("--input", &input).path("--output", &one).succeed();
    let again = read_labels(one.join(&validation[0])).unwrap();
    assert_eq!(again.data, read_labels(folder.join("validation").join(&validation[0])).unwrap().data);

    // Scoring the validation folder gives the training's own metrics.
    let report = dir.path().join("metrics.json");
    let evaluate = Adw::new(["evaluate"])
        .path("--predictions", &folder.join("validation"))
        .path("--references", &data.join("labelsTr"))
        .path("--output", &report)
        .succeed();
    assert!(evaluate.stdout.contains("Dice"), "{}", evaluate.stdout);
    assert_eq!(json(&report)["mean"], metrics["mean"]);
}

#[test]
fn several_models_and_mirroring_give_their_mean() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    // A plain U-Net needs no search.
    let plain = Adw::new(["retrain", "--uniform-width", "4", "--uniform-depth", "1"]).path("--run", &run);
    plain.clone().path("--data", &data).args(TINY).args(["--name", "plain"]).succeed();
    let wider = Adw::new(["retrain", "--uniform-width", "6", "--name", "wider"]).path("--run", &run);
    wider.succeed();
    let models = ["plain", "wider"].map(|name| run.join(format!("retrain/{name}/fold_0/model.safetensors")));
    let predict = |models: &[&Path], output: &str, extra: &[&str]| {
        let output = dir.path().join(output);
        let models = models.iter().map(|model| model.display().to_string());
        Adw::new(["predict", "--model"])
            .args(models)
            .path("--input", &data.join("imagesTs"))
            .path("--output", &output)
            .args(extra)
            .succeed();
        let name = names(&output).remove(0);
        read_labels(output.join(name)).unwrap().data
    };
    let [a, b] = [0, 1].map(|i| predict(&[&models[i]], &format!("only{i}"), &[]));
    assert_eq!(predict(&[&models[0], &models[0]], "twice", &[]), a, "the mean of a model with itself is the model");
    let both = predict(&[&models[0], &models[1]], "both", &[]);
    assert!(both != a || both != b || a == b);
    assert_eq!(both, predict(&[&models[1], &models[0]], "swapped", &[]));
    assert_eq!(predict(&[&models[0]], "mirrored", &["--mirror"]).shape(), a.shape());
}

#[test]
fn further_folds_join_a_run_and_share_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let search = Adw::new(["search"]).path("--data", &data).path("--run", &run);
    search.clone().args(TINY).args(["--fold", "1"]).succeed();
    search.clone().args(["--fold", "3"]).succeed();
    assert_eq!(names(&run.join("search")), ["fold_1", "fold_3"]);
    // Without --fold, retraining takes the fold that the run was made for.
    Adw::new(["retrain"]).path("--run", &run).succeed();
    assert_eq!(names(&run.join("retrain")), ["fold_1"]);
    let other = search.args(TINY).args(["--fold", "2", "--set", "network.max_width=12"]).run();
    other.assert_bad_input(&["network.max_width", "6", "12"]);
}
