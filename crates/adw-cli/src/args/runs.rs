//! Arguments of the commands that work on runs.

use std::path::PathBuf;

use clap::Args;

use super::groups::{ConfigArgs, DatasetArgs, DeviceArgs, FetchArgs, MemoryArgs, ProcessArgs};

/// `adw search`
#[derive(Args, Debug)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    /// Folder of the run [default: a new one, `runs/TASK/PRESET-NNN`]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Cross-validation fold, 0 to 4 [default: 0]
    #[arg(long, value_name = "K")]
    pub(crate) fold: Option<usize>,
    /// Continue an interrupted search: that of --run, else the newest of TASK
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw retrain`
#[derive(Args, Debug)]
pub(crate) struct RetrainArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    /// Folder of the run; data, fold and settings are taken from it [default: the newest finished search of TASK]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Cross-validation fold [default: that of the run's search]
    #[arg(long, value_name = "K")]
    pub(crate) fold: Option<usize>,
    /// Train this architecture instead of the found one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uniform_width", "uniform_depth"])]
    pub(crate) architecture: Option<PathBuf>,
    /// Train a plain U-Net with this many channels at full resolution instead of the found architecture
    #[arg(long, value_name = "CHANNELS")]
    pub(crate) uniform_width: Option<usize>,
    /// Convolutions per block of the plain U-Net
    #[arg(long, value_name = "CONVS", default_value_t = 2, requires = "uniform_width")]
    pub(crate) uniform_depth: usize,
    /// Keep the result in `retrain/NAME/fold_K` rather than `retrain/fold_K`: for several trainings of one run
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Continue an interrupted training
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}
