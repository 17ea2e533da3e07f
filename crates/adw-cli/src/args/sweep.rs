//! Arguments of `adw sweep`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{
    examples,
    groups::{DeviceArgs, MemoryArgs, ProcessArgs, ScratchArgs},
};

/// `adw sweep`
#[derive(Args, Debug)]
pub(crate) struct SweepArgs {
    #[command(subcommand)]
    pub(crate) action: SweepAction,
}

/// Work on a sweep.
#[derive(Subcommand, Debug)]
pub(crate) enum SweepAction {
    /// Write the list of tasks
    #[command(after_help = examples::SWEEP_PLAN)]
    Plan(SweepFileArgs),
    /// Do the tasks on this machine
    #[command(after_help = examples::SWEEP_RUN)]
    Run(SweepRunArgs),
    /// Show which tasks are done
    #[command(after_help = examples::SWEEP_STATUS)]
    Status(SweepFileArgs),
    /// Compare the arms: a line per trained network in `rows.jsonl`, tables in `summary.md`, charts in `plots/`, all in
    /// `report.html`
    #[command(after_help = examples::SWEEP_SUMMARY)]
    Summary(SweepFileArgs),
    /// Do one task, such as that of an array job
    #[command(after_help = examples::SWEEP_WORK)]
    Work(SweepWorkArgs),
    /// Print or submit the job files of a cluster
    #[command(after_help = examples::SWEEP_SUBMIT)]
    Submit(SweepSubmitArgs),
}

/// Sweep that a command works on.
#[derive(Args, Debug)]
pub(crate) struct SweepFileArgs {
    /// TOML file of the sweep; docs/cluster.md has an example
    #[arg(value_name = "FILE")]
    pub(crate) sweep: PathBuf,
    /// Print one JSON object per line on stdout, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// `adw sweep run`
#[derive(Args, Debug)]
pub(crate) struct SweepRunArgs {
    /// TOML file of the sweep
    #[arg(value_name = "FILE")]
    pub(crate) sweep: PathBuf,
    /// Tasks done at a time; each gets its share of threads and memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) workers: u16,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
    /// Threads of each worker; results do not depend on it [default: all cores, divided by the workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

/// Kind of a task.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Download and fingerprint of a dataset
    Prepare,
    /// Search of a fold
    Search,
    /// Training of a fold, and its scores
    Retrain,
}

impl Stage {
    /// All stages in their order.
    pub(crate) const ALL: [Self; 3] = [Self::Prepare, Self::Search, Self::Retrain];

    /// Name on the command line and in names of tasks.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Search => "search",
            Self::Retrain => "retrain",
        }
    }
}

/// `adw sweep work`
#[derive(Args, Debug)]
pub(crate) struct SweepWorkArgs {
    /// TOML file of the sweep
    #[arg(value_name = "FILE")]
    pub(crate) sweep: PathBuf,
    /// Name of the task [default: by `SLURM_ARRAY_TASK_ID`, `LSB_JOBINDEX` or `PBS_ARRAY_INDEX`, counted from 1, or
    /// `JOB_COMPLETION_INDEX`, counted from 0]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Count only the tasks of this stage
    #[arg(long, value_enum, conflicts_with = "task")]
    pub(crate) stage: Option<Stage>,
    /// Count only the tasks of the dataset that has this name in names of tasks
    #[arg(long, value_name = "NAME", conflicts_with = "task")]
    pub(crate) dataset: Option<String>,
    /// Wait until the tasks that this one needs are done; with --stage, only for tasks of that stage that have not begun
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw sweep submit`
#[derive(Args, Debug)]
pub(crate) struct SweepSubmitArgs {
    /// TOML file of the sweep
    #[arg(value_name = "FILE")]
    pub(crate) sweep: PathBuf,
    #[command(flatten)]
    pub(crate) system: BatchSystemArgs,
    /// Print the job files and submit nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Array tasks of a dataset that run at a time
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) at_a_time: u16,
    /// Cores of each task
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) cores: u16,
    /// Memory of each task in GB [default: estimated from the networks]
    #[arg(long, value_name = "GB")]
    pub(crate) memory: Option<u32>,
    /// Time limit of each task in hours; a task that takes longer is requeued and goes on [default: estimated]
    #[arg(long, value_name = "HOURS")]
    pub(crate) hours: Option<u32>,
    /// `--scratch` of the tasks, expanded by the shell of the job: '$TMPDIR' in quotation marks
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<String>,
    /// Line added to the head of every job file, such as `#SBATCH --partition=gpu --gres=gpu:1`; repeatable
    #[arg(long, value_name = "LINE")]
    pub(crate) directive: Vec<String>,
    /// Kubernetes: image of a container that has `adw`
    #[arg(long, value_name = "NAME", default_value = "adw:latest")]
    pub(crate) image: String,
    /// Kubernetes: claim of the volume that is mounted at the current folder, with sweep and datasets in it
    #[arg(long, value_name = "NAME", default_value = "adw")]
    pub(crate) claim: String,
}

/// Batch system that runs the tasks.
#[derive(Args, Clone, Copy, Debug)]
#[group(required = true, multiple = false)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line, one of which is given")]
pub(crate) struct BatchSystemArgs {
    /// Slurm, by `sbatch`
    #[arg(long)]
    pub(crate) slurm: bool,
    /// LSF, by `bsub`
    #[arg(long)]
    pub(crate) lsf: bool,
    /// PBS Professional, by `qsub`
    #[arg(long)]
    pub(crate) pbs: bool,
    /// Kubernetes, by `kubectl apply`
    #[arg(long)]
    pub(crate) kubernetes: bool,
}
