//! Sweeps: planned, worked on by several processes that are killed at random, compared, and written as job files.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cli_support::{Adw, contents, phantom, tiny_settings};
use serde_json::Value;

/// Sweep of one dataset and two folds, with a search, a baseline and a random network as large as the found one.
fn sweep(dir: &Path, data: &Path, name: &str) -> PathBuf {
    let settings = [tiny_settings(), vec!["retrain.warm_start=false"]].concat();
    let path = dir.join(format!("{name}.toml"));
    let text = format!(
        "datasets = [{:?}]\nfolds = [0, 1]\nset = {settings:?}\n[[arms]]\nname = \"found\"\n[[arms]]\nname = \"plain\"\n\
         uniform_width = 4\nuniform_depth = 1\n[[arms]]\nname = \"random\"\nrandom = 1\ncost_of = \"found\"\n",
        data.display().to_string()
    );
    fs::write(&path, text).unwrap();
    path
}

fn command(action: &str, sweep: &Path) -> Adw {
    Adw::new(["sweep".to_owned(), action.to_owned(), sweep.display().to_string()])
}

/// Every file of the runs whose bits are promised.
fn results(sweep: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let wanted = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        ["architecture.json", "model.safetensors"].contains(&name) || name.ends_with(".nii.gz")
    };
    contents(&sweep.with_extension("").join("runs")).into_iter().filter(|(path, _)| wanted(path)).collect()
}

#[test]
fn a_sweep_that_is_killed_at_random_ends_with_the_bits_of_one_worker() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let whole = sweep(dir.path(), &data, "whole");
    let plan = command("plan", &whole).succeed();
    assert!(plan.stdout.starts_with("9 tasks: 1 datasets to prepare, 2 searches, 6 trainings"), "{}", plan.stdout);
    let clock = Instant::now();
    let outcome = command("run", &whole).succeed();
    let duration = clock.elapsed();
    assert!(outcome.stderr.contains("[9/9]") && outcome.stdout.contains("found - plain"), "{outcome:?}");

    // Killed again and again, with two workers; its children end with it.
    let broken = sweep(dir.path(), &data, "broken");
    let run = command("run", &broken).args(["--workers", "2"]);
    let kills = (1..=10).filter(|step| run.kill_after(duration.mul_f64(0.03 * f64::from(*step)))).count();
    assert!(kills > 4, "it was never alive to be killed");
    run.succeed();
    let (whole_files, broken_files) = (results(&whole), results(&broken));
    assert_eq!(whole_files.len(), broken_files.len());
    for (a, b) in whole_files.iter().zip(&broken_files) {
        assert!(a == b, "{} differs", a.0.display());
    }
    // No task was done twice, and none is done again.
    let folder = broken.with_extension("");
    for file in fs::read_dir(folder.join("tasks")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.matches("\"finished\"").count() <= 1 && text.matches("\"failed\"").count() == 0, "{text}");
        }
    }
    let before = contents(&folder.join("tasks"));
    command("run", &broken).succeed();
    assert_eq!(before, contents(&folder.join("tasks")));

    // A row per network, with what a comparison needs.
    let rows = fs::read_to_string(folder.join("rows.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(rows.len(), 6);
    let cost = |arm: &str| {
        let of_arm = rows.iter().filter(|row| row["arm"] == arm && row["fold"] == 1);
        of_arm.map(|row| row["macs_per_patch"].as_f64().unwrap()).sum::<f64>()
    };
    assert!((cost("random") / cost("found") - 1.0).abs() < 0.03, "{} {}", cost("random"), cost("found"));
    let drawn = |fold: usize| {
        let architecture = folder.join(format!("runs/phantom/random/seed_1/retrain/fold_{fold}/architecture.json"));
        let text = fs::read_to_string(architecture).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["provenance"]["random"]["seed"].clone()
    };
    assert!(drawn(0).is_u64() && drawn(0) != drawn(1), "another random architecture in every fold");
    for row in &rows {
        assert_eq!(row["steps"], 9);
        assert_eq!(row["search_s"].is_number(), row["arm"] == "found");
        assert!(row["retrain_s"].as_f64().unwrap() > 0.0 && !row["processor"].as_str().unwrap().is_empty());
        let case = row["cases"].as_object().unwrap().values().next().unwrap();
        assert!(case["1"]["Dice"].is_number() && case["2"]["Dice"].is_number(), "{row}");
    }
    assert!(fs::read_to_string(folder.join("summary.md")).unwrap().contains("random"));
    let status = command("status", &broken).succeed().stdout;
    assert!(status.contains("2 of 2") && !status.contains("failed:"), "{status}");

    // A changed file is planned again, once no result of other settings would count for the new ones.
    let text = fs::read_to_string(&broken).unwrap();
    fs::write(&broken, text.replace("name = \"plain\"", "name = \"plain\"\nretrain_set = [\"retrain.epochs=2\"]"))
        .unwrap();
    command("status", &broken).run().assert_bad_input(&["has changed", "sweep plan"]);
    let changed = fs::read_to_string(&broken).unwrap();
    let refused = || command("plan", &broken).run();
    refused().assert_bad_input(&["arm plain has other settings than its results", "another name"]);
    // Nor after a plan without the arm.
    fs::write(&broken, text.split("[[arms]]\nname = \"plain\"").next().unwrap()).unwrap();
    command("plan", &broken).succeed();
    fs::write(&broken, &changed).unwrap();
    refused().assert_bad_input(&["arm plain has other settings than its results", "another name"]);
    for fold in [0, 1] {
        fs::remove_dir_all(folder.join(format!("runs/phantom/plain/seed_1/retrain/fold_{fold}"))).unwrap();
    }
    command("plan", &broken).succeed();
    // Half the steps: the arms are not compared unless that is meant.
    command("run", &broken).run().assert_bad_input_last(&["differ in \"steps\", 9 and 6", "allow_difference"]);
    let text = fs::read_to_string(&broken).unwrap();
    fs::write(&broken, text.replace("uniform_width", "allow_difference = [\"steps\"]\nuniform_width")).unwrap();
    command("plan", &broken).succeed();
    assert!(command("summary", &broken).succeed().stdout.contains("found - plain"));
}

#[test]
fn an_array_job_does_the_task_of_its_index_and_ends_by_a_signal_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let sweep = sweep(dir.path(), &data, "study");
    let work = |stage: &str| command("work", &sweep).args(["--stage", stage]);
    work("search").run().assert_bad_input(&["SLURM_ARRAY_TASK_ID"]);
    work("search").env("SLURM_ARRAY_TASK_ID", 1).run().assert_bad_input(&["prepare.phantom is not done"]);
    work("prepare").env("JOB_COMPLETION_INDEX", 0).succeed();
    work("search").args(["--dataset", "heart"]).env("PBS_ARRAY_INDEX", 1).run().assert_bad_input(&["no such dataset"]);
    work("search")
        .args(["--dataset", "phantom"])
        .env("PBS_ARRAY_INDEX", 3)
        .run()
        .assert_bad_input(&["there are 2 tasks"]);
    work("search").env("LSB_JOBINDEX", 2).succeed();
    let run = dir.path().join("study/runs/phantom/found/seed_1");
    assert!(run.join("search/fold_1/architecture.json").is_file() && !run.join("search/fold_0").exists());
    work("search").env("LSB_JOBINDEX", 2).succeed();

    // As if the process had been killed between its result and its report.
    let attempts = dir.path().join("study/tasks/search.phantom.found.seed_1.fold_1.jsonl");
    let lines = fs::read_to_string(&attempts).unwrap();
    fs::write(&attempts, lines.lines().take_while(|line| !line.contains("finished")).collect::<String>()).unwrap();
    fs::remove_file(run.join("report.html")).unwrap();
    work("search").env("LSB_JOBINDEX", 2).succeed();
    assert!(run.join("report.html").is_file());
    assert_eq!(fs::read_to_string(&attempts).unwrap().matches("finished").count(), 1);

    #[cfg(unix)]
    {
        let text = fs::read_to_string(&sweep).unwrap();
        let long = dir.path().join("long.toml");
        fs::write(&long, text.replace("search.epochs=4", "search.epochs=1000")).unwrap();
        let work = command("work", &long).args(["--task", "search.phantom.found.seed_1.fold_0", "--wait"]);
        command("work", &long).args(["--task", "prepare.phantom"]).succeed();
        let mut child = work.command().stderr(std::process::Stdio::piped()).spawn().unwrap();
        let checkpoint = dir.path().join("long/runs/phantom/found/seed_1/search/fold_0/checkpoint/latest.safetensors");
        while !checkpoint.exists() {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(10));
        }
        work.run().assert_bad_input(&["is in use by another process"]);
        let status = command("status", &long).succeed().stdout;
        assert!(status.lines().any(|line| line.contains("search") && line.contains('1')), "{status}");
        let kill = std::process::Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(child.wait().unwrap().code(), Some(128 + 10), "the code that job files requeue");
        let status = Adw::new(["sweep", "status", "--json"]).arg(long.display()).succeed().stdout;
        assert!(status.contains("\"state\":\"interrupted\""), "{status}");
    }
}

#[test]
fn job_files_ask_for_what_the_networks_need() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let sweep = sweep(dir.path(), &data, "study");
    let dry = |system: &str, extra: &[&str]| {
        command("submit", &sweep).args([system, "--dry-run"]).args(extra).succeed().stdout
    };
    let slurm = dry("--slurm", &["--at-a-time", "3", "--directive", "#SBATCH --partition=gpu"]);
    for line in [
        "#SBATCH --array=1-1%3",
        "#SBATCH --array=1-2%3",
        "#SBATCH --array=1-6%3",
        "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue",
        "#SBATCH --partition=gpu",
        "--dependency=afterany:JOB_search.phantom",
        "scontrol requeue",
    ] {
        assert!(slurm.contains(line), "{line} is not in {slurm}");
    }
    let megabytes: Vec<u64> =
        slurm.lines().filter_map(|line| line.strip_prefix("#SBATCH --mem=")?.strip_suffix('M')?.parse().ok()).collect();
    assert!(megabytes.len() == 3 && megabytes.iter().all(|mb| (500..8000).contains(mb)), "{megabytes:?}");
    assert!(!dir.path().join("study/data").exists(), "no image is read for an estimate");
    // An architecture step of half B alone is half the work.
    let hours = |arch_batches: &str| {
        let path = dir.path().join(format!("{arch_batches}.toml"));
        let setting =
            format!("\"search.arch_batches={arch_batches}\", \"search.epochs=100000\", \"search.warmup_epochs=0\"");
        let text =
            format!("datasets = [{:?}]\nset = [{setting}]\n[[arms]]\nname = \"found\"\n", data.display().to_string());
        fs::write(&path, text).unwrap();
        let files = command("submit", &path).args(["--slurm", "--dry-run"]).succeed().stdout;
        let line = files.lines().find(|line| line.starts_with("# search.phantom: 5 tasks, each about")).unwrap();
        line.split(' ').rev().nth(5).unwrap().parse::<f64>().unwrap()
    };
    let [one, two] = ["b_only", "a_and_b"].map(hours);
    assert!((two / one - 7.0 / 5.0).abs() < 0.02, "{one} h and {two} h");
    let wide = dry("--slurm", &["--memory", "64", "--hours", "30"]);
    assert!(wide.contains("--mem=64000M") && wide.contains("--time=1800"), "{wide}");
    assert!(dry("--lsf", &[]).contains("#BSUB -w ended(study-phantom-search)"));
    let pbs = dry("--pbs", &[]);
    assert!(pbs.contains("#PBS -J 1-6%16") && !slurm.contains("--wait"));
    assert!(pbs.contains("export PBS_ARRAY_INDEX=1") && !pbs.contains("-J 1-1"), "an array of one is refused: {pbs}");
    // No search to wait for; and trainings that wait for others of their array.
    let others = dir.path().join("others.toml");
    let of = |arms: &str| format!("datasets = [{:?}]\n[[arms]]\n{arms}", data.display().to_string());
    fs::write(&others, of("name = \"plain\"\nuniform_width = 4\n")).unwrap();
    let lsf = command("submit", &others).args(["--lsf", "--dry-run"]).succeed().stdout;
    assert!(lsf.contains("#BSUB -w ended(others-phantom-prepare)") && !lsf.contains("phantom-search"), "{lsf}");
    let others = dir.path().join("warm.toml");
    fs::write(&others, of("name = \"found\"\n[[arms]]\nname = \"warm\"\nsearch_of = \"found\"\n")).unwrap();
    let slurm = command("submit", &others).args(["--slurm", "--dry-run"]).succeed().stdout;
    let waits =
        |stage: &str| slurm.lines().any(|line| line.contains(&format!("--stage {stage}")) && line.contains(" --wait"));
    assert!(waits("retrain") && !waits("search"), "{slurm}");
    let kubernetes = dry("--kubernetes", &["--image", "registry/adw:1"]);
    for line in ["completionMode: Indexed", "completions: 9", "image: \"registry/adw:1\"", "values: [138, 143]"] {
        assert!(kubernetes.contains(line), "{line} is not in {kubernetes}");
    }
    command("submit", &sweep).args(["--slurm", "--lsf"]).run().code.filter(|code| *code == 2).unwrap();
    assert!(!dir.path().join("study/jobs").exists(), "a dry run leaves no job file");
}

#[test]
fn a_task_that_cannot_be_started_does_not_keep_the_other_workers_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let stuck = sweep(dir.path(), &data, "stuck");
    command("plan", &stuck).succeed();
    // In the place of the first task's log.
    fs::create_dir_all(dir.path().join("stuck/tasks/prepare.phantom.log")).unwrap();
    let outcome = command("run", &stuck).args(["--workers", "2"]).run();
    assert!(outcome.stderr.contains("prepare.phantom failed: cannot start prepare.phantom: "), "{outcome:?}");
    assert!(outcome.stderr.contains("9 of 9 tasks are not done, 1 have failed"), "{outcome:?}");
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    // Batch systems read blanks in the paths of directives in their own ways.
    let blank = dir.path().join("a b");
    fs::create_dir(&blank).unwrap();
    let apart = sweep(&blank, &data, "study");
    let submit = command("submit", &apart).args(["--slurm", "--dry-run", "--memory=1", "--hours=1"]);
    submit.run().assert_bad_input(&["a b", "without blanks"]);
}

#[test]
fn a_thousand_tasks_are_planned_and_listed_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let sweep = dir.path().join("many.toml");
    let tasks = "\"heart\", \"liver\", \"hippocampus\", \"prostate\", \"lung\", \"pancreas\", \"spleen\", \"colon\"";
    let seeds: Vec<String> = (1..=13).map(|seed| seed.to_string()).collect();
    let text = format!("datasets = [{tasks}]\nseeds = [{}]\n[[arms]]\nname = \"found\"\n", seeds.join(", "));
    fs::write(&sweep, text).unwrap();
    for action in ["plan", "status"] {
        // The least of five: other tests run at the same time.
        let seconds = (0..5).map(|_| {
            let clock = Instant::now();
            let outcome = command(action, &sweep).in_folder(dir.path()).succeed();
            let duration = clock.elapsed();
            assert!(
                outcome.stdout.contains(if action == "plan" { "1048 tasks" } else { "0 of 65" }),
                "{}",
                outcome.stdout
            );
            duration
        });
        let least = seconds.min().unwrap();
        assert!(least < Duration::from_secs(1), "{action}: {least:?}");
    }
}
