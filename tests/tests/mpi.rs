//! Searches and trainings that several processes share: killed, continued with another number of processes, the same bits.
//!
//! Started by `cargo xtask test --mpi` where Open MPI is installed: on Debian `apt-get install openmpi-bin libopenmpi-dev`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use cli_support::{Adw, Outcome, TINY, adw, build_with, contents, phantom};

/// Program with MPI, and the command that starts it several times.
struct Mpi {
    program: PathBuf,
}

impl Mpi {
    fn command(&self, num_ranks: usize, arguments: &Adw) -> Command {
        Self::launch(&self.program, num_ranks, arguments)
    }

    fn launch(program: &Path, num_ranks: usize, arguments: &Adw) -> Command {
        let mut command = Command::new("mpirun");
        // More processes than cores, also as root in a container.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.args(["--oversubscribe", "--bind-to", "none", "-np", &num_ranks.to_string()]).arg(program);
        command.args(arguments.arguments()).args(["--threads", "1"]);
        command
    }

    fn run(&self, num_ranks: usize, arguments: &Adw) -> Outcome {
        outcome(&mut self.command(num_ranks, arguments))
    }

    /// Starts a command and calls `then` with the launcher as soon as `file` exists.
    fn interrupt(&self, num_ranks: usize, arguments: &Adw, file: &Path, then: impl FnOnce(&Child)) -> Outcome {
        let mut command = self.command(num_ranks, arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let clock = Instant::now();
        while !file.exists() {
            assert!(clock.elapsed() < Duration::from_mins(1), "no {}", file.display());
            sleep(Duration::from_millis(5));
        }
        then(&child);
        let output = child.wait_with_output().unwrap();
        read(&output)
    }
}

fn outcome(command: &mut Command) -> Outcome {
    read(&command.output().unwrap())
}

fn read(output: &std::process::Output) -> Outcome {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The lines that the program has printed, without those of the launcher.
fn errors(outcome: &Outcome) -> Vec<&str> {
    outcome.stderr.lines().filter(|line| line.starts_with("error: ")).collect()
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

/// Process ids of the ranks, children of the launcher.
fn ranks(launcher: &Child) -> Vec<u32> {
    let pid = launcher.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn search(data: &Path, run: &Path) -> Adw {
    let settings = ["--set=search.epochs=30", "--set=search.batch_size=4", "--set=retrain.epochs=12"];
    Adw::new(["search"])
        .path("--data", data)
        .path("--run", run)
        .args(TINY)
        .args(settings)
        .arg("--set=retrain.batch_size=4")
}

fn retrain(run: &Path) -> Adw {
    Adw::new(["retrain"]).path("--run", run)
}

/// Files of a search or training without those that hold times or the paths of files.
fn results(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let differs = |path: &Path| {
        path.starts_with("tensorboard")
            || ["history.jsonl", "config.toml", "metrics.json"].iter().any(|name| path.ends_with(name))
    };
    contents(folder).into_iter().filter(|(path, _)| !differs(path)).collect()
}

#[test]
#[ignore = "needs Open MPI: cargo xtask test --mpi"]
fn ranks_share_a_search_and_a_training_and_any_number_of_them_continues_to_the_same_bits() {
    let is_there = |program: &str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_there("mpirun") || !is_there("mpicc") {
        println!("skipped: no mpirun and mpicc (apt-get install openmpi-bin libopenmpi-dev)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("adw");
    fs::copy(build_with("adw-cli", "adw", "mpi"), &program).unwrap();
    let mpi = Mpi { program };
    // From here on the program without MPI is in its place again.
    let data = phantom(dir.path(), 5);
    let (alone, shared) = (dir.path().join("alone"), dir.path().join("shared"));
    let [found, trained] = ["search/fold_0", "retrain/fold_0"];
    search(&data, &alone).arg("--set=search.per_sample=true").succeed();
    retrain(&alone).arg("--set=retrain.per_sample=true").succeed();

    // The second rank is killed; one more continues.
    let checkpoint = shared.join(found).join("checkpoint/latest.safetensors");
    let killed = mpi.interrupt(2, &search(&data, &shared), &checkpoint, |launcher| {
        let ranks = ranks(launcher);
        assert_eq!(ranks.len(), 2);
        signal("KILL", ranks[1]);
    });
    assert_ne!(killed.code, Some(0), "{killed:?}");
    assert!(!shared.join(found).join("architecture.json").exists(), "the search was too fast");
    let resumed = mpi.run(3, &search(&data, &shared).arg("--resume")).assert_success();
    assert!(resumed.stderr.contains("3 ranks; this one has sent"), "{resumed:?}");
    assert_eq!(resumed.stdout.matches("multiply-adds per patch").count(), 1, "rank 0 alone prints: {resumed:?}");
    assert!(results(&alone.join(found)) == results(&shared.join(found)), "the searches differ");

    // A signal reaches all ranks through the launcher; a process without MPI continues.
    let checkpoint = shared.join(trained).join("checkpoint/latest.safetensors");
    let stopped = mpi.interrupt(4, &retrain(&shared), &checkpoint, |launcher| signal("USR1", launcher.id()));
    assert_eq!(stopped.code, Some(128 + 10), "{stopped:?}");
    assert_eq!(stopped.stderr.matches("interrupted by SIGUSR1; to continue: ").count(), 1, "{stopped:?}");
    assert!(!shared.join(trained).join("model.safetensors").exists(), "the training was too fast");
    retrain(&shared).arg("--resume").succeed();
    assert!(results(&alone.join(trained)) == results(&shared.join(trained)), "the trainings differ");

    // Errors of all ranks, of one, and of a program without MPI: one line, and the exit code of bad input.
    let new = dir.path().join("new");
    let five = mpi.run(5, &search(&data, &new));
    assert_eq!(five.code, Some(2), "{five:?}");
    assert_eq!(errors(&five), ["error: 5 ranks for batches of 4 samples: expected at most one rank per sample"]);
    let joint = mpi.run(2, &retrain(&shared).args(["--name", "joint", "--set=retrain.per_sample=false"]));
    assert_eq!((joint.code, errors(&joint).len()), (Some(2), 1), "{joint:?}");
    let mut unequal = mpi.command(1, &search(&data, &new));
    unequal.args([":", "-np", "1"]).arg(&mpi.program).args(search(&data, &new).arg("--memory=0.001").arguments());
    let unequal = outcome(&mut unequal);
    assert_eq!(unequal.code, Some(2), "{unequal:?}");
    assert!(matches!(errors(&unequal)[..], [line] if line.starts_with("error: rank 1: patches of ")), "{unequal:?}");
    let without = outcome(&mut Mpi::launch(adw(), 2, &search(&data, &new)));
    assert_eq!(without.code, Some(2), "{without:?}");
    assert!(matches!(errors(&without)[..], [line] if line.contains("built without MPI")), "{without:?}");
}
