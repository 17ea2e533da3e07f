//! Command lines of the READMEs and of docs/: the example of adw-cli runs, and all others have options that exist.
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
    let command = |line: &str| Some(words(line.strip_prefix("adw ")?.split(" #").next()?));
    paragraphs.map(|paragraph| paragraph.lines().filter_map(command).collect()).collect()
}

/// Words of a command line, of which some are quoted.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut is_quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
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
    let pages = ["first-search", "your-dataset", "choosing", "cluster", "export"].map(|page| format!("docs/{page}.md"));
    for file in ["README.md", "crates/adw-cli/README.md"].into_iter().chain(pages.iter().map(String::as_str)) {
        let lines: Vec<Vec<String>> = commands(file).concat();
        assert!(lines.len() > 1, "{file}: {lines:?}");
        for line in lines {
            // Help is shown once all that precedes it has been read.
            Adw::new(&line).arg("--help").succeed();
        }
    }
}
