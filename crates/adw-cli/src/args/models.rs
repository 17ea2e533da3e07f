//! Arguments of the commands that apply trained models and judge label maps.

use std::path::PathBuf;

use clap::Args;

use super::groups::{DatasetArgs, DeviceArgs, MemoryArgs, ProcessArgs};

/// Trained models and how they are applied.
#[derive(Args, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct ModelArgs {
    /// Trained models, or the folder of a run: the models of its folds, with its postprocessing; the logits of several are
    /// averaged
    #[arg(long, value_name = "FILE|RUN", required = true, num_args = 1..)]
    pub(crate) model: Vec<PathBuf>,
    /// Average over all mirrorings of each patch along the axes that training mirrored: up to eight times the work,
    /// slightly better; `--mirror=false` turns it off [default: as the model was scored after its training]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) mirror: Option<bool>,
    /// Distance between neighbouring windows as a fraction of the patch [default: as the model was scored after its training]
    #[arg(long, value_name = "FRACTION")]
    pub(crate) step: Option<f64>,
    /// Multiply in bfloat16, whatever the training did: faster on CUDA devices and with a matrix unit (Intel AMX)
    #[arg(long)]
    pub(crate) bf16: bool,
    /// Apply the steps that `adw postprocess` found, or `none` [default: those of the run that `--model` names]
    #[arg(long, value_name = "FILE|none")]
    pub(crate) postprocessing: Option<PathBuf>,
    /// Write the probability of every class, too: `CASE.npz` with the array `probabilities` [class, z, y, x], f16
    #[arg(long)]
    pub(crate) probabilities: bool,
    /// Keep the label maps that an earlier call has written from the same images with the same models and settings
    #[arg(long, visible_alias = "skip-existing")]
    pub(crate) resume: bool,
    /// Use the channels of an image voxel by voxel, wherever their headers place them in the scanner
    #[arg(long)]
    pub(crate) ignore_positions: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw predict`
#[derive(Args, Debug)]
pub(crate) struct PredictArgs {
    /// An image, or a folder of images (.nii, .nii.gz; one per image, or `CASE_0000`, `CASE_0001`, ... per channel); a DICOM
    /// series of CT or MR, or a folder of such series, for which a DICOM segmentation is written, too
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) input: PathBuf,
    /// Folder that the label maps are written to
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) dicom: DicomArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Choices for images in DICOM.
#[derive(Args, Debug)]
pub(crate) struct DicomArgs {
    /// Series of those in the folder, by its `SeriesInstanceUID` or the end of it
    #[arg(long, value_name = "UID")]
    pub(crate) series: Option<String>,
    /// Codes for labels in DICOM segmentations: `{"LABEL": {"category": [VALUE, SCHEME, MEANING], "type": [...]}}` [default:
    /// SNOMED CT by the labels' names]
    #[arg(long, value_name = "FILE")]
    pub(crate) segments: Option<PathBuf>,
}

/// `adw submit`
#[derive(Args, Debug)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) dataset: DatasetArgs,
    /// Folder for submissions; the label maps go to its subfolder of the dataset's name
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
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
    /// Write the steps that help to this file, for `adw predict --postprocessing`
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Compare voxel by voxel, wherever the headers place the label maps in the scanner
    #[arg(long)]
    pub(crate) ignore_positions: bool,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
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
    /// Tolerance of the surface Dice (NSD): surfaces closer than this count as equal, in millimetres
    #[arg(long, value_name = "MM", default_value_t = 1.0)]
    pub(crate) tolerance_mm: f64,
    /// Compare voxel by voxel, wherever the headers place the label maps in the scanner
    #[arg(long)]
    pub(crate) ignore_positions: bool,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}
