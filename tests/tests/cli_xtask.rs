//! `cargo xtask`: builds `adw` and hands all arguments over.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{path::Path, process::Command};

use cli_support::{TINY, build, names};

fn xtask(arguments: &[&str], paths: &[(&str, &Path)]) -> std::process::Output {
    let mut command = Command::new(build("xtask", "xtask"));
    command.args(arguments);
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command.output().unwrap()
}

#[test]
fn a_search_makes_its_phantom_and_a_retraining_continues_from_it() {
    if cfg!(debug_assertions) {
        println!("SKIPPED: xtask builds adw in release mode; run this test so too");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (dir.path().join("data"), dir.path().join("run"));
    let search = [&["search", "phantom", "--threads", "2"], TINY].concat();
    let output = xtask(&search, &[("--data", &data), ("--run", &run)]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(names(&data), ["Task00_Phantom"]);
    assert!(run.join("search/fold_0/architecture.json").is_file());
    let output = xtask(&["retrain", "--json"], &[("--run", &run)]);
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "metrics");
    assert!(run.join("retrain/fold_0/model.safetensors").is_file());

    // The exit code of adw is that of xtask.
    let output = xtask(&["retrain", "--set", "search.epochs=9"], &[("--run", &run)]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    // And so is the end by a signal.
    #[cfg(unix)]
    {
        use std::io::{BufRead, BufReader};
        let mut command = Command::new(build("xtask", "xtask"));
        command.args(["retrain", "--json", "--name=again", "--set=retrain.epochs=90"]).arg("--run").arg(&run);
        let piped = std::process::Stdio::piped;
        let mut child = command.stdout(piped()).stderr(piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("\"event\":\"epoch\"")));
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(143), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("interrupted by SIGTERM; to continue: cargo xtask retrain "), "{stderr}");
    }

    // The help, too, with the command as it is typed.
    let help = String::from_utf8(xtask(&["retrain", "--help"], &[]).stdout).unwrap();
    assert!(help.contains("Usage: cargo xtask retrain") && help.contains("--uniform-width"), "{help}");
    let output = xtask(&["serach"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
