//! Arguments of `adw bench`.

use std::path::PathBuf;

use adw_supernet::GatePosition;
use clap::{Args, Subcommand, ValueEnum};

use super::{
    examples,
    groups::{DeviceArgs, ProcessArgs},
};

/// `adw bench`
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) subject: Subject,
}

/// Subject of a measurement.
#[derive(Subcommand, Debug)]
pub(crate) enum Subject {
    /// Time the passes of one search iteration, or of one training step of a discrete network, on random data
    #[command(after_help = examples::BENCH)]
    Step(BenchStepArgs),
}

/// Part of a search iteration.
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
    /// All passes, in the order in which they are timed.
    pub(crate) const ALL: [Self; 3] = [Self::Inference, Self::Weights, Self::Arch];

    /// Key of the pass in the JSON line.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Weights => "weight_pass",
            Self::Arch => "arch_pass",
        }
    }
}

/// Reads a gate's position as configuration files spell it.
fn gate_position(name: &str) -> Result<GatePosition, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
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
    /// Number of poolings of the U-Net
    #[arg(long, default_value_t = 3)]
    pub(crate) poolings: usize,
    /// Use kernel 1x3x3 and stride 1,2,2 in the first stage
    #[arg(long)]
    pub(crate) anisotropic: bool,
    /// Number of image channels
    #[arg(long, default_value_t = 1)]
    pub(crate) in_channels: usize,
    /// Number of classes, background included
    #[arg(long, default_value_t = 3)]
    pub(crate) classes: usize,
    /// Widest choice at full resolution
    #[arg(long, default_value_t = 48)]
    pub(crate) max_width: usize,
    /// Time a plain U-Net of this width at full resolution instead of the supernet, with two convolutions per block
    #[arg(long, value_name = "N", conflicts_with_all = ["max_width", "mask"])]
    pub(crate) uniform_width: Option<usize>,
    /// Time the network of this file instead of the supernet
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "uniform_width", "max_width", "mask", "poolings", "anisotropic", "in_channels", "classes",
    ])]
    pub(crate) architecture: Option<PathBuf>,
    /// Position of the width gate relative to the normalisation: `pre_norm` (as published) or `post_norm`
    #[arg(long, value_name = "POSITION", value_parser = gate_position, default_value = "pre_norm")]
    pub(crate) mask: GatePosition,
    /// Multiply in bfloat16: faster on CUDA devices and with a matrix unit (Intel AMX)
    #[arg(long)]
    pub(crate) bf16: bool,
    /// On a CUDA device: show the bytes and operations of every kernel of a pass, and the least time they take
    #[arg(long)]
    pub(crate) kernels: bool,
    /// Passes to time [default: all that the network has]
    #[arg(long, value_enum, num_args = 1.., value_delimiter = ',')]
    pub(crate) passes: Vec<Pass>,
    /// Timed calls of each pass; the median is reported
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,
    /// Untimed calls of each pass before the timed ones
    #[arg(long, default_value_t = 2)]
    pub(crate) warmup: usize,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}
