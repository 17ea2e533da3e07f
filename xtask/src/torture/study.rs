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

/// Checks that no task of the sweep in `folder` was finished twice. A process that is killed while it notes the end leaves half a
/// line, and the next notes it.
pub(super) fn check_tasks(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder.join("study/tasks"))? {
        let path = entry?.path();
        let is_record = path.extension().is_some_and(|ending| ending == "jsonl");
        let is_end = |line: &&str| line.contains("\"finished\"") && line.ends_with('}');
        if is_record && fs::read_to_string(&path)?.lines().filter(is_end).count() > 1 {
            bail!("{} was finished twice", path.display());
        }
    }
    Ok(())
}
