//! Inputs made to harm: too large for the memory, files that are none, names that are paths or commands, planted links.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use cli_support::{Adw, Outcome, TINY, adw, names, phantom, shared_dir};
use msd_data::{Geometry, read_labels, write_image, write_labels};
use ndarray::{Array3, Array4};

/// A phantom dataset and two models of it, made once.
struct Trained {
    dir: PathBuf,
    data: PathBuf,
}

impl Trained {
    fn model(&self, name: &str) -> PathBuf {
        self.dir.join(format!("run/retrain/{name}/fold_0/model.safetensors"))
    }
}

fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let dir = shared_dir("hostile");
        let data = phantom(&dir, 5);
        for (name, width) in [("a", "4"), ("b", "6")] {
            let train = Adw::new(["retrain", "--uniform-depth", "1", "--uniform-width", width, "--name", name]);
            let train = train.path("--run", &dir.join("run"));
            if name == "a" { train.path("--data", &data).args(TINY) } else { train }.succeed();
        }
        Trained { dir, data }
    })
}

fn predict(input: &Path, output: &Path) -> Adw {
    Adw::new(["predict"]).path("--model", &trained().model("a")).path("--input", input).path("--output", output)
}

/// Runs the program; one that waits for a pipe's other end is killed.
fn run_or_kill(adw_call: &Adw) -> Outcome {
    let mut command = Command::new(adw());
    command.args(adw_call.arguments()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn pipe(path: &Path) -> PathBuf {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    path.to_owned()
}

#[test]
fn what_does_not_fit_into_memory_is_refused_before_work_with_the_case_and_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name);
    let coarse = here("coarse.nii.gz");
    write_image(&coarse, &Array4::zeros((1, 40, 40, 40)).view(), &Geometry::new([40; 3], [50.0; 3])).unwrap();
    predict(&coarse, &here("out")).args(["--memory", "2"]).run().assert_bad_input(&[
        "coarse.nii.gz (40x40x40 voxels of 50x50x50 mm)",
        "GB of memory, but",
        "--memory",
    ]);
    predict(&trained().data.join("imagesTs"), &here("out")).args(["--memory", "1e-4"]).run().assert_bad_input(&[
        "imagesTs",
        "phantom_005.nii.gz",
        "100.00 kB may be used",
    ]);
    let submit = Adw::new(["submit"]).path("--data", &trained().data).path("--model", &trained().model("a"));
    submit.path("--output", &here("out")).args(["--memory", "1e-4"]).run().assert_bad_input(&["100.00 kB may be used"]);
    let labels = trained().data.join("labelsTr");
    let evaluate = Adw::new(["evaluate", "--memory", "1e-5"]).path("--predictions", &labels);
    evaluate.path("--references", &labels).run().assert_bad_input(&["labelsTr", "10.00 kB may be used"]);
    let postprocess = Adw::new(["postprocess", "--memory", "1e-5"]).path("--predictions", &labels);
    let postprocess = postprocess.path("--references", &labels).path("--output", &here("steps.json"));
    postprocess.run().assert_bad_input(&["labelsTr", "10.00 kB may be used"]);
    Adw::new(["plan", "--memory", "1e-5"]).path("--data", &trained().data).run().assert_bad_input(&["may be used"]);
    let check = Adw::new(["check", "--memory", "1e-5"]).path("--data", &trained().data).run();
    assert_eq!(check.code, Some(2));
    assert_eq!(check.stdout.matches("10.00 kB may be used").count(), 7, "each case is named: {check:?}");
    assert_eq!(names(dir.path()), ["coarse.nii.gz"], "nothing is left");
    for memory in ["nan", "-1", "0", "inf", "1e300", "much"] {
        let refused = predict(&coarse, &here("out")).arg(format!("--memory={memory}")).run();
        assert!(refused.code == Some(2) && refused.stderr.contains("a number of GB above 0"), "{refused:?}");
    }
}

#[test]
fn the_limit_of_the_address_space_counts() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.nii.gz");
    write_image(&large, &Array4::zeros((1, 300, 300, 300)).view(), &Geometry::new([300; 3], [1.0; 3])).unwrap();
    let call = predict(&large, &dir.path().join("out")).args(["--memory", "100"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 300000; exec \"$@\"", "sh"]).arg(adw()).args(call.arguments());
    let output = shell.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("large.nii.gz (300x300x300 voxels") && message.contains("MB may be used"), "{message}");
}

#[test]
fn pipes_and_devices_are_refused_at_once_wherever_a_file_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name);
    let pipe = pipe(&here("pipe.nii.gz"));
    let data = &trained().data;
    let (images, labels) = (data.join("imagesTs"), data.join("labelsTr"));
    let out = here("out");
    fs::create_dir(here("data")).unwrap();
    symlink(&pipe, here("data/dataset.json")).unwrap();
    let evaluate = Adw::new(["evaluate"]).path("--predictions", &labels).path("--references", &labels);
    for special in [&pipe, Path::new("/dev/null")] {
        let calls = [
            predict(special, &out),
            predict(&images, special),
            predict(&images, &out).path("--postprocessing", special),
            Adw::new(["predict"]).path("--model", special).path("--input", &images).path("--output", &out),
            Adw::new(["plan"]).path("--data", data).path("--preset", special),
            Adw::new(["plan"]).path("--data", data).path("--output", special),
            Adw::new(["plan"]).path("--data", special),
            evaluate.clone().path("--output", special),
            Adw::new(["retrain"])
                .path("--run", &trained().dir.join("run"))
                .path("--architecture", special)
                .args(["--name", "c"]),
            Adw::new(["search"]).path("--data", data).path("--run", special).args(TINY),
        ];
        for call in calls {
            let outcome = run_or_kill(&call);
            assert_eq!(outcome.code, Some(2), "{call:?}: {outcome:?}");
            assert_eq!(outcome.stderr.lines().count(), 1, "{call:?}: {outcome:?}");
        }
    }
    // Messages say that a path is a pipe or a file where another kind is expected.
    let words = "pipe.nii.gz: is a named pipe, not a regular file; expected an image or a folder of images";
    run_or_kill(&predict(&pipe, &out)).assert_bad_input(&[words]);
    let map = labels.join("phantom_000.nii.gz");
    let evaluate = Adw::new(["evaluate"]).path("--predictions", &map).path("--references", &labels);
    run_or_kill(&evaluate).assert_bad_input(&["phantom_000.nii.gz: is not a folder; expected one with label maps"]);
    assert_eq!(run_or_kill(&Adw::new(["plan"]).path("--data", &here("data"))).code, Some(2));
    assert_eq!(run_or_kill(&Adw::new(["check"]).path("--data", &here("data"))).code, Some(2));
    assert!(!out.exists());
}

#[test]
fn links_in_the_place_of_results_are_neither_followed_nor_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name);
    fs::write(here("victim"), "kept").unwrap();
    fs::create_dir(here("out")).unwrap();
    symlink(here("victim"), here("out/phantom_006.nii.gz")).unwrap();
    predict(&trained().data.join("imagesTs"), &here("out"))
        .run()
        .assert_bad_input(&["phantom_006.nii.gz", "is a symbolic link, not a regular file"]);
    assert_eq!(names(&here("out")), ["phantom_006.nii.gz"], "refused before the first image");
    let labels = trained().data.join("labelsTr");
    symlink(here("victim"), here("metrics.json")).unwrap();
    let evaluate = Adw::new(["evaluate"]).path("--predictions", &labels).path("--references", &labels);
    evaluate.path("--output", &here("metrics.json")).run().assert_bad_input(&["metrics.json", "symbolic link"]);
    symlink(here("nowhere"), here("dangling")).unwrap();
    predict(&trained().data.join("imagesTs"), &here("dangling")).run().assert_bad_input(&["dangling", "not a folder"]);
    assert_eq!(fs::read_to_string(here("victim")).unwrap(), "kept");
    assert!(here("out/phantom_006.nii.gz").is_symlink() && !here("nowhere").exists());
}

#[test]
fn names_that_are_paths_are_refused_and_commands_to_the_terminal_are_not_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    for folder in ["imagesTr", "labelsTr", "imagesTs"] {
        symlink(trained().data.join(folder), data.join(folder)).unwrap();
    }
    let text = fs::read_to_string(trained().data.join("dataset.json")).unwrap();
    let write = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut json);
        fs::write(data.join("dataset.json"), json.to_string()).unwrap();
    };
    for name in ["../../x", "/tmp/x", "..", ".", "a/b", "a\\b", "a\0b", "a\u{1b}[2Jb", &"n".repeat(300)] {
        write(&|json| json["name"] = name.into());
        let submit = Adw::new(["submit"]).path("--data", &data).path("--model", &trained().model("a"));
        let outcome = submit.path("--output", &dir.path().join("out")).run();
        outcome.assert_bad_input(&["dataset.json", "name", "without slashes"]);
        write(&|json| {
            json["channel_names"] = serde_json::json!({ "0": "MRI" });
            let files = serde_json::json!({ "images": ["imagesTr/phantom_000.nii.gz"], "label": "labelsTr/phantom_000.nii.gz" });
            json["dataset"] = serde_json::json!({ name: files });
        });
        Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&["dataset.json", "case", "without slashes"]);
    }
    write(&|json| {
        json["labels"] = serde_json::json!({ "0": "background", "1": "\u{1b}]0;owned\u{7}", "2": "\u{202e}x" });
    });
    let plan = Adw::new(["plan"]).path("--data", &data).succeed();
    assert!(plan.stdout.contains("\\u{1b}]0;owned\\u{7}, \\u{202e}x"), "{plan:?}");
    write(&|json| json["training"][0]["image"] = format!("./imagesTr/\u{1b}[2J{}.nii.gz", "x".repeat(1 << 20)).into());
    let refused = Adw::new(["plan"]).path("--data", &data).run();
    refused.assert_bad_input(&["dataset.json", "\\u{1b}[2Jxxx", "characters"]);
    assert!(refused.stderr.len() < 3000 && !refused.stderr.contains('\u{1b}'), "{}", refused.stderr.len());
    assert_eq!(names(dir.path()), ["data"]);
}

#[test]
fn a_resumed_prediction_keeps_whole_maps_of_the_same_models_settings_and_images_only() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("images"), dir.path().join("out"));
    fs::create_dir(&input).unwrap();
    for name in names(&trained().data.join("imagesTs")) {
        fs::copy(trained().data.join("imagesTs").join(&name), input.join(&name)).unwrap();
    }
    let maps = || names(&out).into_iter().map(|name| fs::read(out.join(name)).unwrap()).collect::<Vec<_>>();
    let times =
        || names(&out).iter().map(|name| out.join(name).metadata().unwrap().modified().unwrap()).collect::<Vec<_>>();
    predict(&input, &out).succeed();
    let (first, written) = (maps(), times());
    let resume = || predict(&input, &out).arg("--resume");
    assert_eq!(resume().succeed().stderr.lines().count(), 0);
    assert_eq!(times(), written, "all are kept");

    let torn = out.join("phantom_005.nii.gz");
    fs::write(&torn, &first[0][..first[0].len() - 5]).unwrap();
    let outcome = resume().succeed();
    assert!(outcome.stderr.contains("phantom_005.nii.gz") && outcome.stderr.contains("made anew"), "{outcome:?}");
    assert_eq!((maps(), times()[1]), (first.clone(), written[1]), "the torn one alone");

    let changed = resume().args(["--step", "0.25"]).succeed();
    assert_eq!(changed.stderr.matches("other settings").count(), 2, "{changed:?}");
    let other = Adw::new(["predict", "--resume"]).path("--model", &trained().model("b"));
    let other = other.path("--input", &input).path("--output", &out).succeed();
    assert_eq!(other.stderr.matches("another model").count(), 2, "{other:?}");
    let geometry = read_labels(&torn).unwrap().geometry;
    write_labels(&torn, &Array3::zeros(geometry.shape).view(), &geometry).unwrap();
    resume().run().assert_bad_input(&["phantom_005.nii.gz: exists and is not of"]);
    // An image is no torn label map.
    fs::copy(input.join("phantom_005.nii.gz"), &torn).unwrap();
    resume().run().assert_bad_input(&["phantom_005.nii.gz: exists and is not of"]);
    fs::remove_file(&torn).unwrap();
    assert_eq!(resume().succeed().stderr.matches("another model").count(), 1);
    assert_eq!(maps(), first);
}

#[test]
fn an_image_in_the_place_of_a_label_map_is_no_evaluation_of_hours() {
    let dir = tempfile::tempdir().unwrap();
    let noise = Array3::from_shape_fn([16, 16, 16], |(z, y, x)| (z * 256 + y * 16 + x) as u16);
    write_labels(dir.path().join("a.nii.gz"), &noise.view(), &Geometry::new([16; 3], [1.0; 3])).unwrap();
    let evaluate = Adw::new(["evaluate"]).path("--predictions", dir.path()).path("--references", dir.path());
    evaluate.run().assert_bad_input(&["a.nii.gz", "4095 labels", "is it an image?"]);
}
