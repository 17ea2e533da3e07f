//! Cross-validation as one command: killed and repeated, pooled scores, and the ensemble of its folds.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use cli_support::{Adw, TINY, contents, names, phantom};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn crossval(data: &Path, run: &Path) -> Adw {
    Adw::new(["crossval"]).path("--data", data).path("--run", run).args(TINY).arg("--set=retrain.epochs=1")
}

/// Folder with all label maps of `predict` by the named models.
fn predict(
    models: &[&Path],
    data: &Path,
    output: &Path,
    extra: &[&str],
) -> (String, Vec<(std::path::PathBuf, Vec<u8>)>) {
    let outcome = Adw::new(["predict", "--model"])
        .args(models.iter().map(|model| model.display()))
        .path("--input", &data.join("imagesTs"))
        .path("--output", output)
        .args(extra)
        .succeed();
    (outcome.stderr, contents(output))
}

#[test]
fn all_folds_are_one_run_whatever_interrupts_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let whole = dir.path().join("whole");
    let clock = Instant::now();
    let outcome = crossval(&data, &whole).succeed();
    let duration = clock.elapsed();
    assert!(outcome.stdout.contains("mean: Dice 0.") && outcome.stdout.contains("95 % interval"), "{}", outcome.stdout);
    let trainings = whole.join("retrain");
    assert_eq!(names(&whole.join("search")), [0, 1, 2, 3, 4].map(|fold| format!("fold_{fold}")));

    // Pooled over all cases, each scored by the network that has not seen it.
    let metrics = json(&trainings.join("metrics.json"));
    assert_eq!(metrics["metric_per_case"].as_array().unwrap().len(), 6);
    let dice = |case: &Value| case["metrics"]["1"]["Dice"].as_f64();
    let cases: Vec<f64> = metrics["metric_per_case"].as_array().unwrap().iter().filter_map(dice).collect();
    let mean = cases.iter().sum::<f64>() / cases.len() as f64;
    let spread = &metrics["spread"]["1"]["Dice"];
    for found in [&metrics["mean"]["1"]["Dice"], &spread["mean"]] {
        assert!((found.as_f64().unwrap() - mean).abs() < 1e-12, "{found} {mean}");
    }
    let spread = &metrics["spread"]["foreground_mean"]["Dice"];
    let [low, mean, high] =
        [&spread["interval_95"][0], &spread["mean"], &spread["interval_95"][1]].map(|number| number.as_f64().unwrap());
    assert!(low < mean && mean < high, "{spread}");
    let reports = (0..5).map(|fold| json(&trainings.join(format!("fold_{fold}/metrics.json"))));
    assert_eq!(reports.map(|report| report["metric_per_case"].as_array().unwrap().len()).sum::<usize>(), 6);

    // The run's folder is the ensemble with its postprocessing.
    let models = [0, 1, 2, 3, 4].map(|fold| trainings.join(format!("fold_{fold}/model.safetensors")));
    let models: Vec<&Path> = models.iter().map(AsRef::as_ref).collect();
    fs::write(trainings.join("postprocessing.json"), r#"{"keep_largest": ["foreground"]}"#).unwrap();
    let of_run = predict(&[&whole], &data, &dir.path().join("a"), &[]);
    assert!(of_run.0.contains("fold 0, 1, 2, 3, 4"), "{}", of_run.0);
    let steps = trainings.join("postprocessing.json").display().to_string();
    assert_eq!(of_run.1, predict(&models, &data, &dir.path().join("b"), &["--postprocessing", &steps]).1);
    let plain = predict(&models, &data, &dir.path().join("c"), &[]).1;
    assert!(plain != of_run.1, "postprocessing is part of what a label map says of its origin");
    assert_eq!(plain, predict(&[&whole], &data, &dir.path().join("d"), &["--postprocessing", "none"]).1);
    let submitted = dir.path().join("submitted");
    Adw::new(["submit"]).path("--model", &whole).path("--data", &data).path("--output", &submitted).succeed();
    assert_eq!(contents(&submitted.join("Task00_Phantom")), of_run.1);

    // The command again changes nothing; killed at any time and given again it ends with the same bits.
    crossval(&data, &whole).arg("--resume").succeed();
    let broken = dir.path().join("broken");
    let mut kills = 0;
    for step in 1..=6 {
        let life = duration.mul_f64(0.12 * f64::from(step)).max(Duration::from_millis(50));
        kills += usize::from(crossval(&data, &broken).kill_after(life));
    }
    assert!(kills > 1, "it was never alive to be killed");
    crossval(&data, &broken).succeed();
    let results = |run: &Path| {
        // Times and paths differ, also in event files.
        let differs = |ending: &OsStr| ["toml", "jsonl", "adw"].iter().any(|other| ending == *other);
        let kept = |path: &Path| path.extension().is_some_and(|ending| !differs(ending));
        let files = contents(&run.join("retrain")).into_iter().filter(|(path, _)| kept(path));
        // Reports name files by their paths.
        let place = run.display().to_string();
        let here = |bytes: Vec<u8>| match String::from_utf8(bytes) {
            Ok(text) => text.replace(&place, "RUN").into_bytes(),
            Err(binary) => binary.into_bytes(),
        };
        files.map(|(path, bytes)| (path, here(bytes))).collect::<Vec<_>>()
    };
    let (whole, broken) = (results(&whole), results(&broken));
    assert_eq!(
        whole.iter().map(|file| &file.0).collect::<Vec<_>>(),
        broken.iter().map(|file| &file.0).collect::<Vec<_>>()
    );
    for (a, b) in whole.iter().zip(&broken) {
        assert!(a.1 == b.1, "{} differs", a.0.display());
    }
}

#[test]
fn a_baseline_and_one_search_for_all_folds_share_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let outcome = crossval(&data, &run).args(["--search", "once"]).succeed();
    assert!(outcome.stderr.contains("their scores will be too good"), "{}", outcome.stderr);
    assert_eq!(names(&run.join("search")), ["fold_0"]);
    let architecture = |fold: usize| fs::read(run.join(format!("retrain/fold_{fold}/architecture.json"))).unwrap();
    assert!(architecture(0) == architecture(4));
    // All folds start from random weights, and are scored again when settings of prediction change.
    let config = |fold: usize| fs::read_to_string(run.join(format!("retrain/fold_{fold}/config.toml"))).unwrap();
    assert!(config(0).contains("warm_start = false") && !config(3).contains("step = 0.75"));
    let again = |extra: &[&str]| crossval(&data, &run).args(["--search", "once"]).args(extra).succeed().stderr;
    assert!(!again(&[]).contains("fold 3: training"));
    assert!(again(&["--set=predict.step=0.75"]).contains("fold 3: training") && config(3).contains("step = 0.75"));
    // No mean is taken over folds that are scored, or whose networks are found, in different ways.
    let once = crossval(&data, &run).args(["--search", "once"]);
    once.run().assert_bad_input_last(&["was scored with predict.step = 0.75, the run has 0.5", "to score it again"]);
    let per_fold = crossval(&data, &run).args(["--set=predict.step=0.75", "--set=retrain.warm_start=false"]);
    per_fold.run().assert_bad_input(&[
        "fold_1 trained another network than",
        "search/fold_1/architecture.json",
        "another --name",
    ]);
    assert_eq!(names(&run.join("search")), ["fold_0"]);

    let plain = |extra: &[&str]| {
        let plain = Adw::new(["crossval", "--name", "plain", "--uniform-width", "4", "--uniform-depth", "1"]);
        plain.path("--run", &run).args(extra)
    };
    plain(&["--set=retrain.epochs=2"]).succeed();
    let metrics = json(&run.join("retrain/plain/metrics.json"));
    assert_eq!(metrics["searches"], "none");
    assert_eq!(metrics["folds"].as_array().unwrap().len(), 5);
    // No mean is taken over trainings of different settings.
    plain(&[]).run().assert_bad_input(&["retrain.epochs", "= 2, not 1", "another --name"]);
    let other = Adw::new(["crossval", "--name", "plain", "--uniform-width", "6", "--set=retrain.epochs=2"]);
    other.path("--run", &run).run().assert_bad_input(&["was started with the architecture"]);

    // All cases, of which none is left to score.
    let all = Adw::new(["retrain", "--fold", "all", "--name", "everything"]).path("--run", &run);
    let outcome = all.succeed();
    assert!(outcome.stderr.contains("trained on all cases"), "{}", outcome.stderr);
    let folder = run.join("retrain/everything/fold_all");
    assert!(folder.join("model.safetensors").is_file() && !folder.join("metrics.json").exists());
    all.run().assert_bad_input(&["is finished"]);
    let (stderr, maps) = predict(&[&run.join("retrain/everything")], &data, &dir.path().join("a"), &[]);
    assert!(stderr.contains("fold all") && maps.len() == 2, "{stderr}");
    Adw::new(["search", "--fold", "all"]).path("--run", &run).run().code.filter(|code| *code == 2).unwrap();
    plain(&["--fold", "1"]).run().code.filter(|code| *code == 2).unwrap();
}

/// Signals reach the process that works, which saves its state; the parent's code is that of the signal.
#[cfg(unix)]
#[test]
fn a_signal_ends_parent_and_child() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let long = crossval(&data, &run).arg("--set=search.epochs=1000");
    let mut child = long.command().stderr(std::process::Stdio::piped()).spawn().unwrap();
    let checkpoint = run.join("search/fold_0/checkpoint/latest.safetensors");
    while !checkpoint.exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    let kill = std::process::Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(128 + 10), "{stderr}");
    assert_eq!(stderr.matches("interrupted by SIGUSR1; to continue: ").count(), 1, "{stderr}");
    // The child is gone, and with it its lock.
    let held = Adw::new(["search", "--fold", "0"]).path("--run", &run).run();
    held.assert_bad_input(&["was interrupted"]);
}

/// The process that works prints the error, and the one that waits for it ends with its exit code.
#[cfg(unix)]
#[test]
fn an_error_of_a_fold_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    // A name that a training would refuse is refused before the search.
    let name = |name: &str| crossval(&data, &run).args(["--name", name]).run();
    name("../x").assert_bad_input(&["--name ../x: expected the name of a new folder"]);
    name("a\nb").assert_bad_input(&["--name a b"]);
    name(&"x".repeat(300)).assert_bad_input(&["of at most 200 bytes"]);
    assert!(!run.exists());
    let outcome = crossval(&data, &run).after("ulimit -f 4").run();
    let errors: Vec<_> = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(outcome.code == Some(2) && errors.len() == 1 && errors[0].contains("File too large"), "{outcome:?}");
    assert!(outcome.stderr.contains("the same command goes on"), "{outcome:?}");
}
