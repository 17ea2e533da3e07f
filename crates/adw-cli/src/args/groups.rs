//! Groups of options that several commands share.

use std::path::PathBuf;

use adw_cuda::device::{has_cuda, has_cudnn};
use clap::{Args, ValueEnum};

/// Dataset that a command works on.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DatasetArgs {
    /// Task of the decathlon such as `hippocampus`, `phantom`, or the folder of a dataset
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Folder of the dataset, or the folder that datasets lie in [default: `$ADW_DATA`, else `data`]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// Download of a missing dataset.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FetchArgs {
    /// Download `URL/TaskNN_Name.tar` instead of the published archive; `file://` URLs work too
    #[arg(long, value_name = "URL")]
    pub(crate) mirror: Option<String>,
    /// Fail instead of downloading a missing dataset
    #[arg(long)]
    pub(crate) offline: bool,
    /// Fingerprint of the dataset, computed by another process
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) fingerprint: Option<PathBuf>,
}

/// Configuration: a preset and changes to it.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// quick, standard, paper, or a TOML file [default: quick]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) preset: Option<String>,
    /// Override one value, e.g. `--set search.epochs=80`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Seed of every random draw [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// Device that networks run on.
#[derive(Args, Clone, Debug)]
pub(crate) struct DeviceArgs {
    #[arg(long, default_value = "auto", help = device_help())]
    pub(crate) device: String,
    /// Implementation of convolutions on a CUDA device
    #[arg(long, value_enum, default_value_t, hide = !has_cudnn())]
    pub(crate) convolutions: Convolutions,
}

fn device_help() -> &'static str {
    if has_cuda() {
        "auto (a CUDA device if there is one), cpu, or cuda:N"
    } else {
        "auto or cpu; this build has no CUDA"
    }
}

/// Implementation of convolutions on a CUDA device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Convolutions {
    /// The program's own kernels
    #[default]
    Own,
    /// cuDNN's first deterministic algorithm for each shape; own kernels where it has none
    Cudnn,
}

/// Limit of the host's memory.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct MemoryArgs {
    /// Memory to stay within, in GB; cases that do not fit are kept in files where that is possible, other work is refused
    /// [default: what the system has available]
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    pub(crate) memory: Option<f64>,
}

fn gigabytes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(gb) if gb > 0.0 && gb <= 1e9 => Ok(gb),
        _ => Err("expected a number of GB above 0, such as 8 or 0.5".to_owned()),
    }
}

/// Place of prepared cases.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ScratchArgs {
    /// Folder on a local disk, such as `$TMPDIR`: training cases that do not fit into memory are prepared into files there
    /// rather than in the run's folder, once for all runs with the same plan. The files stay until they are deleted
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProcessArgs {
    /// Number of threads; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Print one JSON object per line on stdout, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}
