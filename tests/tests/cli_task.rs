//! Tasks by name: datasets and runs in the current folder, where only the binary is installed.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path};

use cli_support::{Adw, TINY, names, phantom};

#[test]
fn a_search_and_a_training_need_no_argument() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let adw = |arguments: &[&str]| Adw::new(arguments).in_folder(here);
    let searched = adw(&["search"]).args(TINY).succeed();
    assert!(searched.stdout.contains("runs/phantom/quick-001/search/fold_0/architecture.json"), "{searched:?}");
    assert_eq!(names(here), ["data", "runs"]);
    assert_eq!(names(&here.join("data")), ["Task00_Phantom"]);

    // With --resume, a finished run is shown again; without it, a new run starts.
    let shown = adw(&["search", "phantom", "--resume"]).succeed();
    assert_eq!(shown.stdout, searched.stdout);
    adw(&["search", "--fold", "1"]).args(TINY).succeed();
    assert_eq!(names(&here.join("runs/phantom")), ["quick-001", "quick-002"]);

    // The newest search, or that of a fold, or no search at all.
    let trained = adw(&["retrain"]).succeed();
    assert!(trained.stdout.contains("runs/phantom/quick-002/retrain/fold_1/model.safetensors"), "{trained:?}");
    adw(&["retrain", "--fold", "0"]).succeed();
    assert!(here.join("runs/phantom/quick-001/retrain/fold_0/model.safetensors").is_file());
    adw(&["retrain", "--fold", "4"]).run().assert_bad_input(&["no finished search of fold 4", "search phantom"]);
    let again = adw(&["retrain"]).run();
    assert!(again.code == Some(2) && again.stderr.contains("give another --name"), "{again:?}");
    adw(&["retrain", "--resume"]).succeed();
}

#[test]
fn a_task_is_found_in_the_folder_of_datasets_or_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let root = here.join("datasets");
    fs::create_dir(&root).unwrap();
    let mine = root.join("Task04_Hippocampus");
    fs::rename(phantom(here, 5), &mine).unwrap();
    let adw = |arguments: &[&str]| Adw::new(arguments).in_folder(here);

    let plan = adw(&["plan", "hippocampus", "--data", "datasets"]).succeed();
    for other in [&["plan", "--data", "datasets"][..], &["plan", "datasets/Task04_Hippocampus"], &["plan", "datasets"]]
    {
        assert_eq!(adw(other).succeed().stdout, plan.stdout);
    }
    let plan_by_variable = adw(&["plan", "Task04"]).env("ADW_DATA", "datasets").succeed();
    assert_eq!(plan_by_variable.stdout, plan.stdout);
    assert!(adw(&["check", "hippocampus", "--data", "datasets"]).succeed().stdout.contains("sound"));
    let present = adw(&["download", "hippocampus", "--data", "datasets", "--mirror", "file:///nowhere"]).succeed();
    assert_eq!(Path::new(present.stdout.trim_end()), mine);

    // A training without a search makes its run; the run remembers where its data are.
    let train = adw(&["retrain", "hippocampus", "--uniform-width", "4", "--uniform-depth", "1"]);
    train.clone().args(["--data", "datasets", "--name", "plain"]).args(TINY).env("ADW_RUNS", "elsewhere").succeed();
    let model = here.join("elsewhere/hippocampus/quick-001/retrain/plain/fold_0/model.safetensors");
    assert!(model.is_file());
    train.args(["--name", "second", "--offline"]).env("ADW_RUNS", "elsewhere").succeed();
    assert_eq!(names(&here.join("elsewhere/hippocampus")), ["quick-001"]);
    adw(&["submit", "hippocampus", "--data", "datasets", "--output", "submission"]).path("--model", &model).succeed();
    assert_eq!(names(&here.join("submission")), ["Task04_Hippocampus"]);
}

#[test]
fn a_run_may_be_an_empty_folder() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    Adw::new(["search", "--run", "."]).in_folder(&run).path("--data", &data).args(TINY).succeed();
    assert!(run.join("search/fold_0/architecture.json").is_file() && run.join("config.toml").is_file());
    // With the run, the dataset is known.
    Adw::new(["search", "--fold", "1"]).path("--run", &run).succeed();
    assert_eq!(names(&run.join("search")), ["fold_0", "fold_1"]);
}

#[test]
fn what_cannot_be_found_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, complaint) in [
        (["search", "kidneys"].as_slice(), "neither a task"),
        (&["search", "heart", "--offline"], "Task02_Heart is missing"),
        (&["search", "heart", "--offline", "--set", "search.epoch=1"], "did you mean \"search.epochs\""),
        (&["retrain", "heart"], "no finished search in runs/heart"),
        (&["check"], "no dataset is named"),
        (&["plan", "nowhere/at/all"], "neither a task"),
        (&["plan", "heart"], "adw download heart"),
        (&["download", "phantom"], "adw phantom"),
        (&["download", "heart", "kidneys"], "\"kidneys\" is not a task of the decathlon"),
    ] {
        Adw::new(arguments).in_folder(dir.path()).run().assert_bad_input(&[complaint]);
    }
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    let download = Adw::new(["download", "heart", "--mirror", "file:///nowhere"]).in_folder(dir.path()).run();
    assert_eq!(download.code, Some(2), "{download:?}");
    assert!(download.stderr.contains("cannot read /nowhere/Task02_Heart.tar"), "{download:?}");
    assert_eq!(fs::read_dir(dir.path().join("data")).unwrap().count(), 0);
}

#[test]
fn commands_have_only_the_options_that_they_use() {
    for arguments in [["evaluate", "--device"], ["check", "--device"], ["phantom", "--preset"], ["download", "--fold"]]
    {
        let outcome = Adw::new(arguments).arg("1").run();
        assert!(outcome.code == Some(2) && outcome.stderr.contains("unexpected argument"), "{outcome:?}");
    }
}

/// A dataset of a lab's own server.
#[test]
fn an_archive_that_a_manifest_describes_is_downloaded_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let mut archive = tar::Builder::new(fs::File::create(here.join("a.tar")).unwrap());
    archive.append_dir_all("Task00_Phantom", phantom(&here.join("lab"), 5)).unwrap();
    archive.finish().unwrap();
    let size = fs::metadata(here.join("a.tar")).unwrap().len();
    let manifest = |md5: &str| {
        let url = format!("file://{}", here.join("a.tar").display());
        let text = format!("folder = \"Task00_Phantom\"\nurl = {url:?}\nmd5 = {md5:?}\napproximate_bytes = {size}\n");
        fs::write(here.join("phantom.toml"), text).unwrap();
    };
    let download = Adw::new(["download", "--manifest", "phantom.toml", "--data", "data"]).in_folder(here);
    manifest("9d24dba78a72977dbd1d2e110310f31b");
    let outcome = download.run();
    assert!(outcome.code == Some(2) && names(&here.join("data")).is_empty(), "{outcome:?}");
    let (_, sum) = outcome.stderr.split_once("its MD5 is ").unwrap();
    manifest(&sum[..32].to_uppercase());
    let dataset = here.join("data/Task00_Phantom");
    assert_eq!(Path::new(download.succeed().stdout.trim_end()), dataset);
    Adw::new(["check"]).path("--data", &dataset).succeed();

    // Leftovers of a download that was killed at its very end are removed by the next call.
    fs::write(here.join("data/.Task00_Phantom.tar.part"), "x").unwrap();
    fs::create_dir(here.join("data/.Task00_Phantom.1-0.adw-tmp.d")).unwrap();
    fs::write(here.join("data/.Task00_Phantom.1-0.adw-tmp"), "").unwrap();
    assert!(download.succeed().stderr.contains("is there already"));
    assert_eq!(names(&here.join("data")), ["Task00_Phantom"]);

    fs::write(here.join("phantom.toml"), "folder = \"../x\"").unwrap();
    download.run().assert_bad_input(&["phantom.toml", "missing field"]);
    download.arg("heart").run().code.filter(|code| *code == 2).unwrap();
}
