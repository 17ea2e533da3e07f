//! `adw download`: fetch datasets of the decathlon.

use anyhow::Result;
use serde_json::json;

use crate::{
    args::{DatasetArgs, DownloadArgs, FetchArgs},
    download::Manifest,
    failure::bad_input,
    report::progress::{emit, note, say},
    task::{PHANTOM, Task, data_root},
};

pub(crate) fn run(args: &DownloadArgs) -> Result<()> {
    let root = data_root(args.data.as_deref())?;
    let fetch = FetchArgs { mirror: args.mirror.clone(), ..FetchArgs::default() };
    for task in named_tasks(&args.tasks)? {
        let dataset = DatasetArgs { task: Some(task.clone()), data: Some(root.clone()) };
        let Some(located) = Task::locate(&dataset)? else { continue };
        if located.is_present() {
            note(&format!("{} is there already", located.folder.display()));
        }
        let folder = located.provide(&fetch)?;
        if args.json {
            emit("downloaded", &json!({ "task": task, "dataset": folder }));
        } else {
            say(&format!("{}\n", folder.display()));
        }
    }
    Ok(())
}

/// Names of the tasks to download, `all` spelled out; every name is checked before the first download.
fn named_tasks(tasks: &[String]) -> Result<Vec<String>> {
    let all: Vec<_> = Manifest::all()?.into_iter().map(|manifest| manifest.task).collect();
    if tasks.iter().any(|task| task == "all") {
        return Ok(all);
    }
    for task in tasks {
        if task == PHANTOM {
            bad_input!("the phantom is generated, not downloaded: `adw phantom`");
        }
        if Manifest::find(task)?.is_none() {
            bad_input!("{task:?} is not a task of the decathlon: expected all, {}", all.join(", "));
        }
    }
    Ok(tasks.to_vec())
}
