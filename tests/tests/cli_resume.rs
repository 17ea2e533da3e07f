//! A run killed at any instant and resumed ends with the bits of an unbroken one; so does one on other threads.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use cli_support::{Adw, TINY, contents, phantom};

/// The files whose bits are promised.
const RESULTS: [&str; 2] = ["search/fold_0/architecture.json", "retrain/fold_0/model.safetensors"];

fn search(data: &Path, run: &Path) -> Adw {
    Adw::new(["search"]).path("--data", data).path("--run", run).args(TINY)
}

fn retrain(run: &Path) -> Adw {
    Adw::new(["retrain"]).path("--run", run)
}

#[track_caller]
fn assert_same_results(a: &Path, b: &Path) {
    for file in RESULTS {
        let (a, b) = (fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
    let validation = "retrain/fold_0/validation";
    assert!(contents(&a.join(validation)) == contents(&b.join(validation)), "label maps differ");
}

/// Kills `command` again and again, a little later in its life each time, resuming in between, then lets it finish.
/// Returns how often it was alive to be killed.
fn finish_through_kills(command: &Adw, run: &Path, started: &str, whole: Duration) -> usize {
    let mut kills = 0;
    for step in 1..=8 {
        let life = whole.mul_f64(0.15 * f64::from(step));
        // A run that was killed before its folder existed is started again, not resumed.
        let command = if run.join(started).exists() { command.clone().arg("--resume") } else { command.clone() };
        if !command.kill_after(life) {
            break;
        }
        kills += 1;
    }
    let command = if run.join(started).exists() { command.clone().arg("--resume") } else { command.clone() };
    command.succeed();
    kills
}

#[test]
fn killed_and_resumed_equals_unbroken_and_threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let unbroken = dir.path().join("unbroken");
    let clock = Instant::now();
    search(&data, &unbroken).succeed();
    let search_time = clock.elapsed();
    let clock = Instant::now();
    retrain(&unbroken).succeed();
    let retrain_time = clock.elapsed();

    let broken = dir.path().join("broken");
    let kills = finish_through_kills(&search(&data, &broken), &broken, "search/fold_0", search_time);
    assert!(kills > 0, "the search was never alive to be killed");
    let kills = finish_through_kills(&retrain(&broken), &broken, "retrain/fold_0", retrain_time);
    assert!(kills > 0, "the training was never alive to be killed");
    assert_same_results(&unbroken, &broken);

    // Resuming what is finished changes nothing and succeeds.
    let before = contents(&broken);
    search(&data, &broken).arg("--resume").succeed();
    retrain(&broken).arg("--resume").succeed();
    assert!(before == contents(&broken));

    for threads in ["1", "2"] {
        let run = dir.path().join(format!("threads-{threads}"));
        search(&data, &run).args(["--threads", threads]).succeed();
        retrain(&run).args(["--threads", threads]).succeed();
        assert_same_results(&unbroken, &run);
    }

    // The comparisons above could see a difference: another seed makes one.
    let other = dir.path().join("other-seed");
    search(&data, &other).args(["--seed", "2"]).succeed();
    retrain(&other).succeed();
    let model = |run: &Path| fs::read(run.join(RESULTS[1])).unwrap();
    assert!(model(&unbroken) != model(&other));
}
