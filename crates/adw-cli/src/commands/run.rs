//! `adw run`: search, retrain, score and report; a search checks the dataset of a new run.

use anyhow::Result;

use super::{retrain, search};
use crate::{
    args::{ArchitectureArgs, DatasetArgs, ProcessArgs, RetrainArgs, RunArgs, ScratchArgs, SearchArgs},
    device,
    fold::Fold,
};

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    // Once for all that follows.
    device::set_threads(&args.process)?;
    let process = ProcessArgs { threads: None, ..args.process.clone() };
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
