//! The sweep that is disturbed: a search and two trainings of one fold.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

/// File of the sweep; its folder has the name without the ending.
pub(super) const FILE: &str = "study.toml";

/// Writes the sweep into `folder`, with the command line's options `settings`.
pub(super) fn write(folder: &Path, data: &Path, settings: &[&str]) -> Result<()> {
    let settings: Vec<_> = settings.iter().map(|option| option.trim_start_matches("--set=")).collect();
    let text = format!(
        "datasets = [{:?}]\nfolds = [0]\nset = {settings:?}\n[[arms]]\nname = \"found\"\n[[arms]]\nname = \"plain\"\n\
         uniform_width = 4\nuniform_depth = 1\nallow_difference = [\"initial_weights\"]\n",
        data.display().to_string()
    );
    fs::write(folder.join(FILE), text).with_context(|| folder.display().to_string())
}

/// Checks that every task of the sweep in `folder` has been finished, and none twice.
pub(super) fn check_tasks(folder: &Path) -> Result<()> {
    let mut num_finished = 0;
    for entry in fs::read_dir(folder.join("study/tasks"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "jsonl") {
            continue;
        }
        match fs::read_to_string(&path)?.matches("\"finished\"").count() {
            1 => num_finished += 1,
            times => bail!("{} was finished {times} times", path.display()),
        }
    }
    if num_finished != 4 {
        bail!("{num_finished} of 4 tasks were finished");
    }
    Ok(())
}
