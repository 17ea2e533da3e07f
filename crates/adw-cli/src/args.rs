//! The command line as typed.

use std::path::PathBuf;

use adw_supernet::GatePosition;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Find, train and apply the 3D U-Net whose depth and width fit a segmentation dataset.
#[derive(Parser, Debug)]
#[command(name = "adw", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One step of the way from a dataset to label maps.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List everything that is wrong with a dataset, and how to put it right
    Check(CheckArgs),
    /// Show what a dataset says about patch size, poolings and normalisation
    Plan(PlanArgs),
    /// Search the architecture that fits a dataset
    Search(SearchArgs),
    /// Train the found architecture and score it on the fold's validation cases
    Retrain(RetrainArgs),
    /// Segment images with trained models
    Predict(PredictArgs),
    /// Segment a dataset's test images into a folder as the decathlon wants it
    Submit(SubmitArgs),
    /// Find out whether keeping only the largest component helps predictions
    Postprocess(PostprocessArgs),
    /// Compare label maps with reference label maps
    Evaluate(EvaluateArgs),
    /// Write a synthetic dataset in decathlon layout
    Phantom(PhantomArgs),
    /// Time the program's work on this machine
    #[command(subcommand)]
    Bench(Bench),
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

/// How the program runs and speaks, the same for all commands.
#[derive(Args, Clone, Debug)]
pub(crate) struct Process {
    /// Threads to use [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// auto, cpu or cuda:N; CUDA in builds with it
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Implementation of convolutions on a CUDA device; cudnn in builds with cuDNN
    #[arg(long, value_enum, default_value_t)]
    pub(crate) convolutions: Convolutions,
    /// Machine-readable lines on stdout, nothing else
    #[arg(long)]
    pub(crate) json: bool,
    /// Memory to stay within, in GB: larger trainings are refused, cases that do not fit go to files of the run [default:
    /// what the system has available]
    #[arg(long, value_name = "GB")]
    pub(crate) memory: Option<f64>,
}

/// Where a configuration comes from: a preset and changes to it.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// quick, standard, paper, or a TOML file [default: quick]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) preset: Option<String>,
    /// Override one value, e.g. `--set search.epochs=80`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Seed of every random draw [default: 1]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

/// `adw check`
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The dataset's folder, or the folder it lies in
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw plan`
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// The dataset's folder, or the folder it lies in
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Write the plan to this file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw search`
#[derive(Args, Debug)]
pub(crate) struct SearchArgs {
    /// The dataset's folder, or the folder it lies in [default with --resume: that of the run]
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    pub(crate) data: Option<PathBuf>,
    /// Folder of the run
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Cross-validation fold, 0 to 4 [default: 0]
    #[arg(long)]
    pub(crate) fold: Option<usize>,
    /// Go on with an interrupted search
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw retrain`
#[derive(Args, Debug)]
pub(crate) struct RetrainArgs {
    /// Folder of the run; data, fold and settings are taken from it
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// The dataset's folder, if it moved or if the run is new
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Cross-validation fold [default: that of the run's search]
    #[arg(long)]
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
    /// Go on with an interrupted training
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// How trained models are applied.
#[derive(Args, Debug)]
pub(crate) struct ModelArgs {
    /// Trained models; the logits of several are averaged
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) model: Vec<PathBuf>,
    /// Average over all mirrorings of each patch: eight times the work, slightly better
    #[arg(long)]
    pub(crate) mirror: bool,
    /// Distance of neighbouring windows as a fraction of the patch
    #[arg(long, default_value_t = 0.5)]
    pub(crate) step: f64,
    /// Multiply in bfloat16: on CUDA devices, and on processors with a matrix unit (Intel AMX); models of any training may be used so
    #[arg(long)]
    pub(crate) bf16: bool,
    /// Apply what `adw postprocess` found
    #[arg(long, value_name = "FILE")]
    pub(crate) postprocessing: Option<PathBuf>,
    /// Keep the label maps that an interrupted call left
    #[arg(long)]
    pub(crate) resume: bool,
}

/// `adw predict`
#[derive(Args, Debug)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// An image, or a folder of images (.nii, .nii.gz; one per image, or `CASE_0000`, `CASE_0001`, ... per channel)
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) input: PathBuf,
    /// Folder the label maps are written to
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw submit`
#[derive(Args, Debug)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The dataset's folder, or the folder it lies in
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Folder for submissions; the label maps go to its subfolder of the dataset's name
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw postprocess`
#[derive(Args, Debug)]
pub(crate) struct PostprocessArgs {
    /// Folders of label maps of cases the models were not trained on, such as the validation cases of each fold
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    pub(crate) predictions: Vec<PathBuf>,
    /// Folder of reference label maps of the same names
    #[arg(long, value_name = "DIR")]
    pub(crate) references: PathBuf,
    /// Write what helps to this file, for `adw predict --postprocessing`
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw evaluate`
#[derive(Args, Debug)]
pub(crate) struct EvaluateArgs {
    /// Folder of label maps to score
    #[arg(long, value_name = "DIR")]
    pub(crate) predictions: PathBuf,
    /// Folder of reference label maps of the same names
    #[arg(long, value_name = "DIR")]
    pub(crate) references: PathBuf,
    /// Write per-case and mean metrics to this JSON file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Surfaces closer than this count as equal in the normalised surface distance, in millimetres
    #[arg(long, value_name = "MM", default_value_t = 1.0)]
    pub(crate) tolerance_mm: f64,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// `adw phantom`
#[derive(Args, Debug)]
pub(crate) struct PhantomArgs {
    /// Folder of the new dataset
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Labelled cases
    #[arg(long, default_value_t = 20)]
    pub(crate) cases: usize,
    /// Unlabelled cases
    #[arg(long, default_value_t = 4)]
    pub(crate) test: usize,
    /// Voxels along z, y, x
    #[arg(long, num_args = 3, value_names = ["D", "H", "W"], default_values_t = [40, 48, 40])]
    pub(crate) shape: Vec<usize>,
    /// Distance of voxels along z, y, x in millimetres
    #[arg(long, num_args = 3, value_names = ["D", "H", "W"], default_values_t = [1.0, 1.0, 1.0])]
    pub(crate) spacing_mm: Vec<f64>,
    /// Structures to segment, besides the background
    #[arg(long, default_value_t = 2)]
    pub(crate) labels: usize,
    /// Image channels
    #[arg(long, default_value_t = 1)]
    pub(crate) modalities: usize,
    /// Seed of the random anatomy
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) process: Process,
}

/// What there is to time.
#[derive(Subcommand, Debug)]
pub(crate) enum Bench {
    /// The passes of one search iteration over the supernet, on random data
    Step(BenchStepArgs),
}

/// A part of a search iteration.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Forward pass without noise
    Inference,
    /// Forward and backward into the weights, clipping, SGD step
    #[value(name = "weight_pass", alias = "weight-pass")]
    Weights,
    /// Forward and backward into alpha and beta, clipping, Adam step
    #[value(name = "arch_pass", alias = "arch-pass")]
    Arch,
}

impl Pass {
    /// In the JSON line.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Weights => "weight_pass",
            Self::Arch => "arch_pass",
        }
    }
}

/// Where the width gate stands.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Mask {
    /// In front of the normalisation, as published
    #[value(name = "pre_norm")]
    PreNorm,
    /// Behind it
    #[value(name = "post_norm")]
    PostNorm,
}

impl Mask {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PreNorm => "pre_norm",
            Self::PostNorm => "post_norm",
        }
    }
}

impl From<Mask> for GatePosition {
    fn from(mask: Mask) -> Self {
        match mask {
            Mask::PreNorm => Self::PreNorm,
            Mask::PostNorm => Self::PostNorm,
        }
    }
}

/// `adw bench step`
#[derive(Args, Debug)]
pub(crate) struct BenchStepArgs {
    /// Voxels of a patch
    #[arg(long, num_args = 3, value_names = ["D", "H", "W"], default_values_t = [40, 56, 40])]
    pub(crate) patch: Vec<usize>,
    /// Patches per batch
    #[arg(long, default_value_t = 2)]
    pub(crate) batch: usize,
    /// Poolings of the U-Net
    #[arg(long, default_value_t = 3)]
    pub(crate) poolings: usize,
    /// First stage: kernel 1x3x3, stride 1,2,2
    #[arg(long)]
    pub(crate) anisotropic: bool,
    /// Image channels
    #[arg(long, default_value_t = 1)]
    pub(crate) in_channels: usize,
    /// Classes, background included
    #[arg(long, default_value_t = 3)]
    pub(crate) classes: usize,
    /// Widest choice at full resolution
    #[arg(long, default_value_t = 48)]
    pub(crate) max_width: usize,
    /// Where the width gate stands
    #[arg(long, value_enum, default_value = "pre_norm")]
    pub(crate) mask: Mask,
    /// Multiply in bfloat16: on CUDA devices, and on processors with a matrix unit (Intel AMX)
    #[arg(long)]
    pub(crate) bf16: bool,
    /// On a CUDA device: for every kernel of a pass, what it has to move and to compute, and the least time that takes
    #[arg(long)]
    pub(crate) kernels: bool,
    /// Passes to time [default: all]
    #[arg(long, value_enum, num_args = 1.., value_delimiter = ',')]
    pub(crate) passes: Vec<Pass>,
    /// Timed calls of each pass; the median is reported
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,
    /// Calls of each pass before those
    #[arg(long, default_value_t = 2)]
    pub(crate) warmup: usize,
    #[command(flatten)]
    pub(crate) process: Process,
}
