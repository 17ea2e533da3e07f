//! Project tasks: fetch datasets, build `adw` and launch it on explicit paths, run the tests and the CI steps.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod cuda;
mod cuda_build;
mod cuda_check;
mod dataset;
mod download;
mod fetch;
mod gpu_bundle;
mod launch;
mod manifest;
mod runs;
mod unpack;
#[cfg(test)]
mod web_server;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// What the person at the keyboard can put right: exit code 2. Everything else exits with 1.
#[derive(Debug)]
struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A program that was started has said what is wrong; this is its exit code.
#[derive(Debug)]
struct Reported(u8);

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}", self.0)
    }
}

impl std::error::Error for Reported {}

/// 2 for bad arguments and for what the system refuses: a read-only folder, a full disk.
fn exit_code(error: &anyhow::Error) -> u8 {
    let theirs = |cause: &(dyn std::error::Error + 'static)| cause.is::<std::io::Error>();
    if error.is::<UsageError>() || error.chain().any(theirs) { 2 } else { 1 }
}

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    about = "Fetch data, search, retrain, test, measure",
    after_help = "TASK: one of the ten decathlon tasks (braintumour heart liver hippocampus prostate lung pancreas \
                  hepaticvessel spleen colon), `phantom` (the default: made on the spot, nothing to download), or the \
                  path of a dataset folder in decathlon layout."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download, check and unpack a decathlon task; an interrupted download goes on where it stopped
    Download {
        /// heart, hippocampus, ... or `all`
        task: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Find the architecture for a task
    Search(SearchArgs),
    /// Train the architecture that the newest search of a task found, and score it on the fold's validation cases
    Retrain(RetrainArgs),
    /// Time one search iteration beside PyTorch, in turns
    Bench(bench::BenchArgs),
    /// Compile and assemble every CUDA kernel, without a GPU; fetches a toolkit where there is none
    CudaCheck(cuda_check::CudaCheckArgs),
    /// Make a folder that checks and times `adw` on a machine with a GPU but no Rust
    GpuBundle(gpu_bundle::GpuBundleArgs),
    /// Run all tests in release mode
    Test {
        /// Passed to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Everything a change has to pass: format, clippy, tests, documentation
    Ci,
}

/// Where datasets lie and where they come from.
#[derive(Args, Clone, Debug, Default)]
struct DataArgs {
    /// Folder the datasets lie in, or one dataset's folder [default: `$ADW_DATA`, else `data/`]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Fetch `URL/TaskNN_Name.tar` instead of the published archive; `file://` works too
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Never download
    #[arg(long)]
    offline: bool,
}

/// Options `adw search` and `adw retrain` share; passed through as they are.
#[derive(Args, Clone, Debug, Default)]
struct PassThrough {
    /// Cross-validation fold, 0 to 4
    #[arg(long)]
    fold: Option<u32>,
    /// Override one value of the preset; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of every random draw
    #[arg(long)]
    seed: Option<u64>,
    /// Threads to use [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// auto or cpu
    #[arg(long)]
    device: Option<String>,
    /// Refuse work that needs more memory than this [default: what is available]
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// Machine-readable lines on stdout
    #[arg(long)]
    json: bool,
    /// Passed to `adw` as they are
    #[arg(last = true, value_name = "ADW OPTIONS")]
    rest: Vec<String>,
}

#[derive(Args, Clone, Debug)]
struct SearchArgs {
    #[arg(default_value = "phantom")]
    task: String,
    #[command(flatten)]
    data: DataArgs,
    /// quick, standard, paper, or a TOML file
    #[arg(long)]
    preset: Option<String>,
    /// Run folder [default: a new one in runs/TASK/]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Go on with an interrupted search: that of --run, else the newest of the task; a finished one shows its result
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    pass: PassThrough,
}

#[derive(Args, Clone, Debug)]
struct RetrainArgs {
    #[arg(default_value = "phantom")]
    task: String,
    #[command(flatten)]
    data: DataArgs,
    /// Run folder [default: the newest finished search of the task]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Train this architecture instead of the found one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uniform_width", "uniform_depth"])]
    architecture: Option<PathBuf>,
    /// Train a plain U-Net with this many channels at full resolution instead of the found architecture
    #[arg(long, value_name = "CHANNELS")]
    uniform_width: Option<usize>,
    /// Convolutions per block of the plain U-Net
    #[arg(long, value_name = "CONVS", requires = "uniform_width")]
    uniform_depth: Option<usize>,
    /// Keep the result apart under this name: for several trainings of one run
    #[arg(long)]
    name: Option<String>,
    /// Go on with an interrupted training
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    pass: PassThrough,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Download { task, data } => dataset::download_command(&task, &data),
        Command::Search(args) => launch::search(&args),
        Command::Retrain(args) => launch::retrain(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::CudaCheck(args) => cuda_check::cuda_check(&args),
        Command::GpuBundle(args) => gpu_bundle::gpu_bundle(&args),
        Command::Test { rest } => ci::test(&rest),
        Command::Ci => ci::ci(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            if let Some(Reported(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}
