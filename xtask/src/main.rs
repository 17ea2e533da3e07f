//! Tasks of this project's developers: tests, CI, measurements, CUDA checks. The commands of `adw` are built and started.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod cuda;
mod cuda_build;
mod cuda_check;
mod cuda_stubs;
mod failure;
mod gpu_bundle;
mod launch;
mod output;
#[cfg(target_os = "linux")]
mod torture;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    about = "Build and run adw, test, measure",
    before_help = "Commands of adw, which is built and started with all arguments as they are:\n  \
                   search    Search the architecture for a dataset; for a phantom without further arguments\n  \
                   retrain   Train the architecture that a search found\n  \
                   run, crossval, sweep, rank, download, phantom, check, plan, predict, submit, postprocess, evaluate, \
                   report, watch, export, import, doctor: see --help of each",
    subcommand_help_heading = "Commands for developers"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all tests in release mode
    Test {
        /// Only the test of a sweep on a real Slurm, started on this machine; it is skipped where Slurm is not installed
        #[arg(long, conflicts_with_all = ["rest", "mpi"])]
        slurm: bool,
        /// Only the test of a training that several processes share; it is skipped where Open MPI is not installed
        #[arg(long, conflicts_with = "rest")]
        mpi: bool,
        /// Arguments for `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Run every check that a change has to pass: format, clippy, tests, documentation
    Ci,
    /// Time one search iteration beside PyTorch, in turns
    Bench(bench::BenchArgs),
    /// Compile and assemble every CUDA kernel, without a GPU; fetches a toolkit where there is none
    CudaCheck(cuda_check::CudaCheckArgs),
    /// Make a folder that checks and times `adw` on a machine with a GPU but no Rust
    GpuBundle(gpu_bundle::GpuBundleArgs),
    /// Run `adw` under faults: kills, failing writes, full streams, signals, damaged files
    #[cfg(target_os = "linux")]
    Torture(torture::TortureArgs),
    #[command(external_subcommand)]
    Adw(Vec<OsString>),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::bench(&args),
        Command::CudaCheck(args) => cuda_check::cuda_check(&args),
        Command::GpuBundle(args) => gpu_bundle::gpu_bundle(&args),
        #[cfg(target_os = "linux")]
        Command::Torture(args) => torture::torture(&args),
        Command::Test { slurm: true, .. } => ci::test_alone("slurm"),
        Command::Test { mpi: true, .. } => ci::test_alone("mpi"),
        Command::Test { rest, .. } => ci::test(&rest),
        Command::Ci => ci::ci(),
        Command::Adw(arguments) => launch::hand_over(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}
