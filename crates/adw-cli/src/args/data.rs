//! Arguments of the commands that make and inspect datasets.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use msd_data::PhantomFamily;

use super::groups::{ConfigArgs, DatasetArgs, MemoryArgs, ProcessArgs};
use crate::phantom;

/// `adw download`
#[derive(Args, Debug)]
pub(crate) struct DownloadArgs {
    /// Tasks such as `heart` and `hippocampus`, or `all`
    #[arg(value_name = "TASK", required_unless_present = "manifest")]
    pub(crate) tasks: Vec<String>,
    /// The archive that this TOML file describes, of another server or another dataset
    ///
    /// Fields: `folder` (the folder inside the archive, a tar file, and of the dataset), `url` (http, https or file), `md5` (of the
    /// archive), `approximate_bytes` (its size; nothing much larger is taken), and to be printed `modality`, `target`, `licence`,
    /// `citation`.
    #[arg(long, value_name = "FILE", conflicts_with = "tasks")]
    pub(crate) manifest: Option<PathBuf>,
    /// Folder that the datasets are put in [default: `$ADW_DATA`, else `data`]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Download `URL/TaskNN_Name.tar` instead of the published archive; `file://` URLs work too
    #[arg(long, value_name = "URL")]
    pub(crate) mirror: Option<String>,
    /// Print one JSON object per dataset on stdout, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// Kind of a phantom's volumes.
#[derive(ValueEnum, Clone, Copy, Debug, Default)]
pub(crate) enum Family {
    /// Organs in pairs
    #[default]
    Anatomy,
    /// Small balls told apart by a pattern that changes from voxel to voxel
    Texture,
}

impl From<Family> for PhantomFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Anatomy => Self::Anatomy,
            Family::Texture => Self::Texture,
        }
    }
}

/// `adw phantom`
#[derive(Args, Debug)]
pub(crate) struct PhantomArgs {
    /// Folder of the new dataset [default: `Task00_Phantom` in `$ADW_DATA`, else in `data`]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Kind of the volumes; those of texture need a network with its capacity at full resolution
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub(crate) family: Family,
    /// Number of labelled cases
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) cases: usize,
    /// Number of unlabelled cases
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) test: usize,
    /// Voxels along z, y, x
    #[arg(long, num_args = 3, value_names = ["D", "H", "W"], default_values_t = phantom::SHAPE)]
    pub(crate) shape: Vec<usize>,
    /// Distance between voxels along z, y, x in millimetres
    #[arg(long, num_args = 3, value_names = ["D", "H", "W"], default_values_t = [1.0, 1.0, 1.0])]
    pub(crate) spacing_mm: Vec<f64>,
    /// Number of structures to segment, besides the background
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) labels: usize,
    /// Number of image channels
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) modalities: usize,
    /// Seed of the random anatomy
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw check`
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    /// Use labels and channels voxel by voxel, wherever their headers place them in the scanner
    #[arg(long)]
    pub(crate) ignore_positions: bool,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw plan`
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Write the plan to this JSON file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}
