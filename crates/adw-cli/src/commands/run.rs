//! `adw run`: check, search, retrain, score and report.

use anyhow::Result;
use msd_data::{Severity, check_dataset};

use super::{retrain, search};
use crate::{
    args::{ArchitectureArgs, DatasetArgs, ProcessArgs, RetrainArgs, RunArgs, ScratchArgs, SearchArgs},
    device,
    failure::bad_input,
    fold::Fold,
    memory,
    report::progress::note,
    run_config::{self, RunConfig},
    run_folder::{RunFolder, config_path},
    task::Task,
};

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    // Once for all that follows.
    device::set_threads(&args.process)?;
    let process = ProcessArgs { threads: None, ..args.process.clone() };
    check(args)?;
    let (root, fold) = search::run(&SearchArgs {
        dataset: args.dataset.clone(),
        fetch: args.fetch.clone(),
        run: args.run.clone(),
        config: args.config.clone(),
        fold: None,
        resume: args.resume,
        dry_run: false,
        device: args.device.clone(),
        memory: args.memory,
        scratch: ScratchArgs::default(),
        process: process.clone(),
    })?;
    retrain::run(&RetrainArgs {
        // The run has its dataset and its settings.
        dataset: DatasetArgs::default(),
        fetch: args.fetch.clone(),
        config: args.config.clone(),
        fold: Some(Fold::Number(fold)),
        architecture: ArchitectureArgs::default(),
        name: None,
        resume: args.resume,
        dry_run: false,
        device: args.device.clone(),
        memory: args.memory,
        scratch: ScratchArgs::default(),
        process,
        run: Some(root),
    })
}

/// Lists the problems of the dataset on stderr; one that is missing is downloaded first.
///
/// # Errors
/// A problem that makes the dataset unusable.
fn check(args: &RunArgs) -> Result<()> {
    let Some(task) = Task::locate(&args.dataset)? else { return Ok(()) };
    let folder = task.provide(&args.fetch)?;
    let config = match args.run.as_ref().filter(|root| RunFolder::exists(root)) {
        Some(root) => run_config::load(&config_path(root))?.1,
        None => RunConfig::from_args(&args.config)?,
    };
    let problems = check_dataset(folder, config.settings.data.positions(), memory::limit(args.memory));
    for problem in &problems {
        note(&problem.to_string());
    }
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if errors > 0 {
        bad_input!("{}: {errors} to put right before a search", folder.display());
    }
    Ok(())
}
