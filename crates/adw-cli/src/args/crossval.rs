//! Arguments of `adw crossval`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{
    groups::{ConfigArgs, DatasetArgs, DeviceArgs, FetchArgs, MemoryArgs, ProcessArgs, ScratchArgs},
    runs::ArchitectureArgs,
};

/// `adw crossval`
#[derive(Args, Clone, Debug)]
pub(crate) struct CrossvalArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    /// Folder of the run; one that was interrupted goes on [default: `runs/TASK/crossval-PRESET`]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Search an architecture in every fold, or only in fold 0 for all
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) search: SearchPer,
    #[command(flatten)]
    pub(crate) architecture: ArchitectureArgs,
    /// Keep the trainings in `retrain/NAME/` rather than `retrain/`: for several cross-validations of one run
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Accepted for habit: an interrupted cross-validation goes on anyway
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// Number of searches of a cross-validation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SearchPer {
    /// A search in each fold: scores are those of cases that neither search nor training has seen
    #[default]
    Fold,
    /// One search, in fold 0: a fifth of the time, but it has seen the validation cases of the other folds
    Once,
}
