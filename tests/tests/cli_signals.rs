//! Signals: a training saves its state and resumes to the same bits, everything else ends at once and leaves nothing.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use cli_support::{Adw, Outcome, TINY, adw, contents, phantom};

/// Names and numbers of the signals that end the program. Under `nohup`, SIGHUP is none of them.
fn signals() -> Vec<(&'static str, i32)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = |number: i32| ignored.is_some_and(|ignored| ignored >> (number - 1) & 1 == 1);
    let all = [("INT", 2), ("TERM", 15), ("HUP", 1), ("USR1", 10)];
    all.into_iter().filter(|&(_, number)| number != 1 || !is_ignored(number)).collect()
}

/// A schedule that lasts long enough to be interrupted.
const LONG: [&str; 4] = [
    "--set=search.epochs=12",
    "--set=retrain.epochs=12",
    "--set=search.checkpoint_every_iterations=0",
    "--set=retrain.checkpoint_every_iterations=0",
];

fn search(data: &Path, run: &Path) -> Adw {
    Adw::new(["search", "--json"]).path("--data", data).path("--run", run).args(TINY).args(LONG)
}

fn retrain(run: &Path) -> Adw {
    Adw::new(["retrain", "--json"]).path("--run", run)
}

/// Child whose output has reached the `count`th event called `event`.
struct Started {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Started {
    fn new(command: &Adw, event: &str, count: usize) -> Self {
        let mut child = command.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut seen = 0;
        while seen < count {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "{event} {count} never came");
            seen += usize::from(line.contains(&format!("\"event\":\"{event}\"")));
        }
        Self { child, output }
    }

    fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    fn wait(mut self) -> Outcome {
        let stdout = self.output.lines().map(Result::unwrap).collect();
        self.child.stdout = None;
        let output = self.child.wait_with_output().unwrap();
        Outcome { code: output.status.code(), stdout, stderr: String::from_utf8(output.stderr).unwrap() }
    }
}

/// Asserts that the process ended by signal `number` with one line, which ends in the command that continues.
#[track_caller]
fn assert_interrupted(outcome: &Outcome, (name, number): (&str, i32)) {
    assert_eq!(outcome.code, Some(128 + number), "{outcome:?}");
    let line = outcome.stderr.lines().last().unwrap();
    let command = format!("interrupted by SIG{name}; to continue: {} ", adw().display());
    assert!(line.starts_with(&command), "{outcome:?}");
    assert!(line.ends_with(" --resume"), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("interrupted").count(), 1, "{outcome:?}");
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = contents(dir).into_iter().map(|(path, _)| path.display().to_string());
    names.filter(|name| name.contains("adw-tmp")).collect()
}

#[test]
fn a_training_that_a_signal_ends_resumes_to_the_bits_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let unbroken = dir.path().join("unbroken");
    search(&data, &unbroken).succeed();
    retrain(&unbroken).succeed();
    for (nth, signal) in signals().into_iter().enumerate() {
        let run = dir.path().join(signal.0);
        // At another point of the run each time.
        for command in [search(&data, &run), retrain(&run)] {
            let started = Started::new(&command, "epoch", 1 + nth);
            started.send(signal.0);
            assert_interrupted(&started.wait(), signal);
            assert_eq!(leftovers(&run), [""; 0]);
            // Once more, before the first step.
            let started = Started::new(&command.clone().arg("--resume"), "started", 1);
            started.send(signal.0);
            assert_interrupted(&started.wait(), signal);
            command.arg("--resume").succeed();
        }
        for file in ["search/fold_0/architecture.json", "retrain/fold_0/model.safetensors"] {
            assert!(fs::read(unbroken.join(file)).unwrap() == fs::read(run.join(file)).unwrap(), "{signal:?}: {file}");
        }
        let validation = "retrain/fold_0/validation";
        assert!(contents(&unbroken.join(validation)) == contents(&run.join(validation)), "{signal:?}");
    }
}

#[test]
fn a_second_interrupt_ends_a_training_within_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Phantom");
    Adw::new(["phantom", "--shape", "64", "64", "64", "--cases", "5"]).path("--output", &data).succeed();
    let run = dir.path().join("run");
    // A step takes many seconds.
    let command = Adw::new(["search", "--json", "--threads=1", "--set=data.patch_size=[64,64,64]"])
        .args(["--set=network.max_width=48", "--set=search.warmup_epochs=0"]);
    let started = Started::new(&command.path("--data", &data).path("--run", &run), "started", 1);
    std::thread::sleep(Duration::from_millis(300));
    started.send("INT");
    std::thread::sleep(Duration::from_millis(300));
    let clock = Instant::now();
    started.send("INT");
    let outcome = started.wait();
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
    assert_interrupted(&outcome, ("INT", 2));
    assert!(!run.join("search/fold_0/checkpoint/latest.safetensors").exists());
}

#[test]
fn what_nohup_ignores_does_not_end_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let started = Started::new(&search(&data, &run).after("trap '' HUP"), "epoch", 1);
    started.send("HUP");
    started.wait().assert_success();
    assert!(run.join("search/fold_0/architecture.json").is_file());
}

/// So many that a signal arrives before the last of them is segmented, on a busy machine, too.
const NUM_IMAGES: usize = 40;

#[test]
fn a_prediction_ends_at_once_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    retrain(&run).path("--data", &data).args(TINY).args(["--uniform-width", "8"]).succeed();
    let output = |name: &str| dir.path().join(name);
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let first = fs::read_dir(data.join("imagesTs")).unwrap().next().unwrap().unwrap().path();
    for i in 0..NUM_IMAGES {
        fs::copy(&first, images.join(format!("image_{i:02}.nii.gz"))).unwrap();
    }
    let predict = |name: &str| {
        Adw::new(["predict", "--json", "--step=0.2", "--mirror"])
            .path("--model", &run.join("retrain/fold_0/model.safetensors"))
            .path("--input", &images)
            .path("--output", &output(name))
    };
    predict("whole").succeed();
    for signal in signals() {
        let started = Started::new(&predict(signal.0), "predicted", 1);
        started.send(signal.0);
        assert_interrupted(&started.wait(), signal);
        assert_eq!(leftovers(dir.path()), [""; 0]);
        let num_done = contents(&output(signal.0)).len();
        assert!((1..NUM_IMAGES).contains(&num_done), "{num_done} of {NUM_IMAGES} images");
        predict(signal.0).arg("--resume").succeed();
        assert!(contents(&output("whole")) == contents(&output(signal.0)));
    }
}

#[test]
fn before_a_run_has_begun_the_same_command_starts_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Phantom");
    let command = Adw::new(["phantom", "--shape", "160", "160", "160", "--cases", "40"]).path("--output", &data);
    let mut child = command.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while fs::read_dir(dir.path()).unwrap().next().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it is still generating");
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().last(), Some("interrupted by SIGTERM; to go on, give the same command again"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays");
}
