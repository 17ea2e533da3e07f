//! Closed, full and cut streams: progress never ends work, lost results are an error, a full disk or quota is one line.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs::File, path::Path};

use cli_support::{Adw, TINY, contents, phantom};

#[test]
fn a_full_or_closed_stderr_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    // The others hold times or paths.
    let is_result = |path: &Path| path.extension().is_some_and(|ending| ending == "safetensors" || ending == "gz");
    let files = |run: &Path| contents(run).into_iter().filter(|(path, _)| is_result(path)).collect::<Vec<_>>();
    let mut outcomes = Vec::new();
    for (nth, stderr) in ["", "2>/dev/full", "2>&-", "0<&- 1>&- 2>&-", "2> >(head -1 >/dev/null)"].iter().enumerate() {
        let run = dir.path().join(nth.to_string());
        let search = Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY);
        search.after(&format!("exec {stderr}")).succeed();
        Adw::new(["retrain"]).path("--run", &run).after(&format!("exec {stderr}")).succeed();
        for (path, content) in contents(&run) {
            let text = String::from_utf8_lossy(&content);
            assert!(!text.contains("epoch 1/"), "a message in {}", path.display());
        }
        outcomes.push(files(&run));
    }
    assert_eq!(outcomes[0].len(), 6, "two checkpoints of each, the model, a label map");
    assert!(outcomes.iter().all(|files| *files == outcomes[0]));
}

#[test]
fn results_that_stdout_does_not_take_are_an_error_and_a_reader_that_leaves_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let search = Adw::new(["search", "--json"]).path("--data", &data).path("--run", &run).args(TINY);
    let plan = Adw::new(["plan"]).path("--data", &data);
    for command in [search, plan, Adw::new(["--help"]), Adw::new(["--version"])] {
        let outcome = command.after("exec >/dev/full").run();
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        let last = outcome.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: stdout: No space left on device"), "{outcome:?}");
        assert_eq!(outcome.stderr.matches("error:").count(), 1, "{outcome:?}");
    }
    assert!(run.join("search/fold_0/architecture.json").is_file(), "the search itself went on");

    // The other end of this pipe is closed before the program starts.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Adw::new(["plan"]).path("--data", &data).command().stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_quota_is_an_error_with_one_line_and_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let search = Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY);
    // In blocks of 512 or 1024 bytes: enough for the plan, not for a checkpoint.
    search.clone().after("ulimit -f 20").run().assert_bad_input(&["latest.safetensors", "File too large"]);
    assert!(contents(&run).iter().all(|(path, _)| !path.display().to_string().contains("tmp")));
    search.arg("--resume").succeed();

    let phantom = Adw::new(["phantom", "--shape", "64", "64", "64", "--cases", "1"]);
    let target = dir.path().join("Task01_Large");
    phantom.path("--output", &target).after("ulimit -f 20").run().assert_bad_input(&["File too large"]);
    assert!(!target.exists());
    File::open(data.join("dataset.json")).unwrap();
}
