//! Arguments of the commands that exchange models with other programs.

use std::path::PathBuf;

use clap::Args;

use super::groups::ProcessArgs;

/// `adw import`
#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// File that `examples/nnunet_to_safetensors.py` made of a network of nnU-Net
    #[arg(long, value_name = "FILE")]
    pub(crate) nnunet: PathBuf,
    /// Model file to write, for `adw predict --model`
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw export`
#[derive(Args, Debug)]
#[group(id = "target", required = true, multiple = true, args = ["onnx", "safetensors", "monai"])]
pub(crate) struct ExportArgs {
    /// Trained models, or the folder of a run: the models of its folds, with its postprocessing; the logits of several are averaged
    #[arg(long, value_name = "FILE|RUN", required = true, num_args = 1..)]
    pub(crate) model: Vec<PathBuf>,
    /// Write the networks to this ONNX file, and `inference.json` beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) onnx: Option<PathBuf>,
    /// Write the weights with PyTorch's names to this safetensors file, the architecture in its metadata
    #[arg(long, value_name = "FILE")]
    pub(crate) safetensors: Option<PathBuf>,
    /// Write a bundle of MONAI to this new folder
    #[arg(long, value_name = "DIR")]
    pub(crate) monai: Option<PathBuf>,
    /// Average over mirrored windows [default: as the model was scored after its training]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) mirror: Option<bool>,
    /// Distance between neighbouring windows as a fraction of the patch [default: as the model was scored after its training]
    #[arg(long, value_name = "FRACTION")]
    pub(crate) step: Option<f64>,
    /// Describe the steps that `adw postprocess` found, or `none` [default: those of the run that `--model` names]
    #[arg(long, value_name = "FILE|none")]
    pub(crate) postprocessing: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}
