//! Arguments of the commands that work on runs.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, ValueEnum};

use super::groups::{ConfigArgs, DatasetArgs, DeviceArgs, FetchArgs, MemoryArgs, ProcessArgs, ScratchArgs};
use crate::fold::Fold;

/// `adw search`
#[derive(Args, Clone, Debug)]
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
    /// Print plan, cost, memory, disk and expected time, and end before anything is written
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw retrain`
#[derive(Args, Clone, Debug)]
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
    /// Cross-validation fold, or `all` to train on every case [default: that of the run's search]
    #[arg(long, value_name = "K|all")]
    pub(crate) fold: Option<Fold>,
    #[command(flatten)]
    pub(crate) architecture: ArchitectureArgs,
    /// Keep the result in `retrain/NAME/fold_K` rather than `retrain/fold_K`: for several trainings of one run
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Continue an interrupted training
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print plan, cost, memory, disk and expected time, and end before anything is written
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw watch`
#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Folder of a run, which a process of this or another machine works on
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Show the present state and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON object per line on stdout, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// `adw report`
#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    /// Folder of a run, finished or in progress; or folder or TOML file of a sweep
    #[arg(value_name = "RUN|SWEEP")]
    pub(crate) run: PathBuf,
    /// HTML file to write [default: `report.html` in the folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw rank`
#[derive(Args, Debug)]
pub(crate) struct RankArgs {
    /// Folder of a run whose search is finished
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// Cross-validation fold [default: that of the run's search]
    #[arg(long, value_name = "K")]
    pub(crate) fold: Option<usize>,
    /// Architectures to compare; repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) architecture: Vec<PathBuf>,
    /// Number of architectures to draw at random from the search space, with seeds from 1
    #[arg(long, value_name = "N", requires = "cost")]
    pub(crate) random: Option<u64>,
    /// Multiply-adds per patch of the random architectures, within 2 %, such as 3.75G
    #[arg(long, value_name = "MACS", requires = "random", value_parser = multiply_adds)]
    pub(crate) cost: Option<f64>,
    /// Batches of patches to score on, of half B of the fold's training cases
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) batches: NonZeroUsize,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw run`
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    /// Folder of the run [default: a new one, `runs/TASK/PRESET-NNN`]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Continue where an earlier call was interrupted
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// Architecture that is trained instead of the found one.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ArchitectureArgs {
    /// Train this architecture instead of the found one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uniform_width", "plain", "random"])]
    pub(crate) architecture: Option<PathBuf>,
    /// Train a plain U-Net with this many channels at full resolution, doubling with every pooling, instead of the found
    /// architecture
    #[arg(long, value_name = "CHANNELS", conflicts_with_all = ["plain", "random"], value_parser = count)]
    pub(crate) uniform_width: Option<usize>,
    /// Convolutions per block of the plain U-Net
    // clap does not require what conflicts with something that is given.
    #[arg(long, value_name = "CONVS", default_value_t = 2, requires = "uniform_width", value_parser = count)]
    #[arg(conflicts_with_all = ["architecture", "plain", "random"])]
    pub(crate) uniform_depth: usize,
    /// Channels that no stage of the plain U-Net exceeds
    #[arg(long, value_name = "CHANNELS", default_value_t = 320, requires = "uniform_width", value_parser = count)]
    #[arg(conflicts_with_all = ["architecture", "plain", "random"])]
    pub(crate) uniform_max_features: usize,
    /// Train a plain U-Net that is known by name
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "random")]
    pub(crate) plain: Option<PlainNetwork>,
    /// Train an architecture drawn at random from the search space with this seed
    #[arg(long, value_name = "SEED", requires = "cost")]
    pub(crate) random: Option<u64>,
    /// Multiply-adds per patch of the random architecture, within 2 %, such as 3.75G
    #[arg(conflicts_with_all = ["architecture", "plain", "uniform_width"])]
    #[arg(long, value_name = "MACS", requires = "random", value_parser = multiply_adds)]
    pub(crate) cost: Option<f64>,
}

impl ArchitectureArgs {
    /// Returns true if the command line names an architecture.
    pub(crate) fn is_given(&self) -> bool {
        self.architecture.is_some() || self.uniform_width.is_some() || self.plain.is_some() || self.random.is_some()
    }
}

/// Plain U-Net that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlainNetwork {
    /// nnU-Net's: 32 channels at full resolution, doubling up to 320, 2 convolutions per block
    Nnunet,
}

/// Reads a whole number above 0.
fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected a whole number above 0".into())
}

/// Reads a positive number, which may end in k, M, G or T.
fn multiply_adds(text: &str) -> Result<f64, String> {
    let factors = [('k', 1e3), ('M', 1e6), ('G', 1e9), ('T', 1e12)];
    let unit = factors.iter().find_map(|(unit, factor)| Some((text.strip_suffix(*unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1.0));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * factor),
        _ => Err("expected a number above 0, such as 3.75G".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::multiply_adds;

    #[test]
    fn multiply_adds_have_units() {
        assert_eq!(multiply_adds("3.75G"), Ok(3.75e9));
        assert_eq!(multiply_adds("250 M"), Ok(2.5e8));
        assert_eq!(multiply_adds("1e9"), Ok(1e9));
        for wrong in ["", "G", "-1G", "0", "3.75X", "nan", "inf"] {
            assert!(multiply_adds(wrong).is_err(), "{wrong}");
        }
    }
}
