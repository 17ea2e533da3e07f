//! Commands about the program and its runs: doctor, manual pages, completions, forecasts, watching, everything in one command.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use cli_support::{Adw, TINY, names, phantom};
use serde_json::Value;

#[test]
fn one_command_does_everything_and_its_run_can_be_watched() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("empty");
    // An empty folder is a fine place for a run.
    fs::create_dir(&run).unwrap();
    let all = Adw::new(["run", "--threads", "1"]).path("--data", &data).path("--run", &run);
    let outcome = all.clone().args(TINY).succeed();
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("search epoch")).collect();
    let undecided: Vec<bool> = lines.iter().map(|line| line.contains("undecided")).collect();
    assert_eq!(undecided, [true, false, false, false], "one epoch of warm-up: {}", outcome.stderr);
    assert!(outcome.stdout.contains("mean"), "{}", outcome.stdout);
    assert!(run.join("report.html").is_file() && run.join("retrain/fold_0/metrics.json").is_file());

    let watched = Adw::new(["watch"]).arg(run.display()).succeed().stdout;
    assert_eq!(watched.lines().filter(|line| line.starts_with("search fold 0  epoch")).count(), 4, "{watched}");
    assert!(watched.contains("epoch 3/3") && watched.matches("finished").count() == 2, "{watched}");
    let rows = Adw::new(["watch", "--once", "--json"]).arg(run.display()).succeed().stdout;
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4 + 3);
    assert!(rows[0]["row"]["probabilities"][0]["width"].is_array(), "{}", rows[0]);

    // A finished run is shown again, not made again.
    let before = fs::read(run.join("retrain/fold_0/model.safetensors")).unwrap();
    all.arg("--resume").succeed();
    assert!(before == fs::read(run.join("retrain/fold_0/model.safetensors")).unwrap());

    for (folder, kinds) in
        [("search/fold_0", &["scalars", "histograms"][..]), ("retrain/fold_0", &["scalars", "images"])]
    {
        read_events(&run.join(folder).join("tensorboard"), kinds);
    }
}

/// Reads event files with the package `tensorboard` of the Python in `$ADW_PYTHON`, else `python3`, where it is installed.
fn read_events(folder: &Path, kinds: &[&str]) {
    assert!(!names(folder).is_empty());
    let script = "import json, sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1]); events.Reload(); tags = events.Tags()\n\
        loss = [tag for tag in tags['scalars'] if tag.startswith('loss/')][0]\n\
        print(json.dumps({'tags': {k: len(v) for k, v in tags.items() if isinstance(v, list)},\n\
                          'steps': [event.step for event in events.Scalars(loss)],\n\
                          'sums': [sum(events.Histograms(tag)[-1].histogram_value.bucket) for tag in tags['histograms']],\n\
                          'png': [events.Images(tag)[0].encoded_image_string[:4].hex() for tag in tags['images']]}))";
    let python = std::env::var("ADW_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(&python).args(["-c", script]).arg(folder).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        eprintln!(
            "skipped: {python} has no package tensorboard; name one that has in ADW_PYTHON to read event files back"
        );
        return;
    };
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for kind in kinds {
        assert!(found["tags"][kind].as_u64().unwrap() > 2, "{kind}: {found}");
    }
    let steps: Vec<u64> = found["steps"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap()).collect();
    assert!(!steps.is_empty() && steps.iter().copied().eq(1..=steps.len() as u64), "{found}");
    assert!(found["sums"].as_array().unwrap().iter().all(|sum| (sum.as_f64().unwrap() - 1.0).abs() < 1e-5), "{found}");
    assert!(found["png"].as_array().unwrap().iter().all(|png| png == "89504e47"), "{found}");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let search = Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY);
    let shown = search.clone().arg("--dry-run").succeed().stdout;
    for part in ["16x", "4 epochs of 2 iterations", "multiply-adds", "memory", "disk", "about"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let retrain = Adw::new(["retrain", "--uniform-width", "4", "--dry-run", "--json"]).path("--run", &run).args(TINY);
    let forecast = retrain.path("--data", &data).succeed().stdout;
    let forecast: Value = serde_json::from_str(&forecast).unwrap();
    assert!(forecast["seconds"].as_f64().unwrap() > 0.0 && forecast["epochs"] == 3, "{forecast}");
    assert_eq!(names(dir.path()), ["Task00_Phantom"]);
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for (task, command) in [("phantom", "phantom"), ("hippocampus", "download hippocampus")] {
        let search = Adw::new(["search", task, "--dry-run"]).in_folder(&empty);
        search.run().assert_bad_input(&["is missing", &format!("adw {command}`")]);
    }
    assert!(names(&empty).is_empty());
}

#[test]
fn the_program_describes_itself_and_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let findings = Adw::new(["doctor", "--json", "--threads", "1"]).in_folder(dir.path()).succeed().stdout;
    let findings: Value = serde_json::from_str(&findings).unwrap();
    for key in ["processor", "threads", "memory", "CUDA", "datasets", "runs"] {
        assert!(!findings[key].as_str().unwrap().is_empty(), "{key}: {findings}");
    }
    assert!(findings["threads"].as_str().unwrap().starts_with("1 of"), "{findings}");
    // Limits of a Slurm job, from its variables where control groups set none.
    let job = Adw::new(["doctor", "--json"]).env("SLURM_CPUS_PER_TASK", 1).env("SLURM_MEM_PER_NODE", 100);
    let findings: Value = serde_json::from_str(&job.in_folder(dir.path()).succeed().stdout).unwrap();
    assert!(findings["threads"].as_str().unwrap().starts_with("1 of 1 cores (SLURM_CPUS_PER_TASK)"), "{findings}");
    assert!(findings["memory limit"].as_str().unwrap().ends_with("what SLURM_MEM_PER_NODE leaves"), "{findings}");
    let run = Adw::new(["run", "phantom", "--data"]).arg(dir.path().join("data").display());
    let run = run.path("--run", &dir.path().join("run")).env("SLURM_CPUS_PER_TASK", 1).env("SLURM_MEM_PER_NODE", 40);
    run.run().assert_bad_input_last(&["GB are available"]);
    for shell in ["bash", "zsh", "fish"] {
        let script = Adw::new(["completions", shell]).succeed().stdout;
        assert!(script.contains("dry-run") && script.contains("doctor"), "{shell}");
    }
    let pages = dir.path().join("man/man1");
    Adw::new(["man"]).path("--output", &pages).succeed();
    assert!(names(&pages).contains(&"adw.1".to_owned()) && names(&pages).contains(&"adw-search.1".to_owned()));
    assert!(fs::read_to_string(pages.join("adw-search.1")).unwrap().contains("dry"));
}

#[test]
fn bench_times_the_supernet_or_a_discrete_network() {
    let dir = tempfile::tempdir().unwrap();
    let tiny =
        ["bench", "step", "--patch", "8", "8", "8", "--poolings", "1", "--batch", "1", "--repeats", "1", "--json"];
    let keys = |arguments: &[&str]| {
        let line: Value = serde_json::from_str(&Adw::new(tiny).args(arguments).succeed().stdout).unwrap();
        ["inference", "weight_pass", "arch_pass"].map(|pass| line[pass].as_f64().is_some_and(|seconds| seconds > 0.0))
    };
    assert_eq!(keys(&["--max-width", "6"]), [true; 3]);
    assert_eq!(keys(&["--uniform-width", "4"]), [true, true, false]);
    assert_eq!(keys(&["--uniform-width", "4", "--passes", "inference"]), [true, false, false]);
    let refused = Adw::new(tiny).args(["--uniform-width", "4", "--passes", "arch_pass"]).run();
    refused.assert_bad_input(&["a discrete network has no architecture to search"]);

    let file = dir.path().join("architecture.json");
    fs::write(
        &file,
        r#"{"format": "adw-architecture/1", "in_channels": 2, "num_classes": 3, "strides": [[2, 2, 2]],
            "kernels": [[3, 3, 3], [3, 3, 3]], "blocks": [[4], [6, 8], [4]]}"#,
    )
    .unwrap();
    let bench = Adw::new(["bench", "step", "--patch", "8", "8", "8", "--batch", "1", "--repeats", "1", "--json"]);
    let line: Value = serde_json::from_str(&bench.path("--architecture", &file).succeed().stdout).unwrap();
    assert!(line["weight_pass"].is_f64(), "{line}");
}

/// Operations on large tensors keep to the threads that were asked for.
#[cfg(target_os = "linux")]
#[test]
fn one_thread_computes_where_one_is_allowed() {
    let step = Adw::new(["bench", "step", "--threads", "1", "--patch", "16", "16", "16", "--batch", "1"]);
    let mut child = step.args(["--max-width", "24", "--repeats", "2"]).command().stdout(Stdio::null()).spawn().unwrap();
    let tasks = Path::new("/proc").join(child.id().to_string()).join("task");
    let mut seen = BTreeSet::new();
    while child.try_wait().unwrap().is_none() {
        let names = fs::read_dir(&tasks).into_iter().flatten().flatten();
        seen.extend(names.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()));
        thread::sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success() && seen.contains("adw\n"), "{seen:?}");
    assert!(!seen.iter().any(|name| name.starts_with("candle")), "{seen:?}");
}
