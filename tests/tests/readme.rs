//! Command lines of the READMEs: the example of adw-cli runs, and all others have options that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli_support;

use std::path::{Path, PathBuf};

use cli_support::{Adw, TINY, phantom};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Paragraphs of the `sh` blocks of a Markdown file, as command lines of `adw` without comments, by words.
fn commands(file: &str) -> Vec<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(repository().join(file)).unwrap().replace("\\\n", "");
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let paragraphs = blocks.flat_map(|block| block.split("\n\n"));
    let words = |line: &str| {
        let line = line.strip_prefix("adw ")?;
        let command = line.split(" #").next()?;
        Some(command.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect())
    };
    paragraphs.map(|paragraph| paragraph.lines().filter_map(words).collect()).collect()
}

#[test]
fn the_example_of_adw_cli_runs() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    phantom(&dir.path().join("data"), 5);
    let example = commands("crates/adw-cli/README.md").remove(0);
    assert!(example.len() >= 3, "{example:?}");
    for command in example {
        let adw = Adw::new(&command).in_folder(dir.path());
        // The smallest network and schedule; a training takes those of its search.
        if command[0] == "search" { adw.args(TINY) } else { adw }.succeed();
    }
}

#[test]
fn options_of_all_examples_exist() {
    for file in ["README.md", "crates/adw-cli/README.md"] {
        let lines: Vec<Vec<String>> = commands(file).concat();
        assert!(lines.len() > 3, "{file}: {lines:?}");
        for line in lines {
            // Help is shown once all that precedes it has been read.
            Adw::new(&line).arg("--help").succeed();
        }
    }
}
