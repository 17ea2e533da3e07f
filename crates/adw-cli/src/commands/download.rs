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
    if let Some(path) = &args.manifest {
        return provide(&Task::of_archive(Manifest::load(path)?, root), &fetch, args.json);
    }
    for task in named_tasks(&args.tasks)? {
        let dataset = DatasetArgs { task: Some(task), data: Some(root.clone()) };
        let Some(located) = Task::locate(&dataset)? else { continue };
        provide(&located, &fetch, args.json)?;
    }
    Ok(())
}

/// Downloads a dataset that is missing, and prints its folder.
fn provide(task: &Task, fetch: &FetchArgs, json: bool) -> Result<()> {
    if task.is_present() {
        note(&format!("{} is there already", task.folder.display()));
    }
    let folder = task.provide(fetch)?;
    if json {
        emit("downloaded", &json!({ "task": task.name, "dataset": folder }));
    } else {
        say(&format!("{}\n", folder.display()));
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
