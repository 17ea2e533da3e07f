#![doc = include_str!("../README.md")]
// Launches of kernels (`optim::cuda`) are the one exception.
#![deny(unsafe_code)]

mod batch;
mod bilevel;
mod budget;
mod checkpoint;
pub mod config;
mod dice;
mod error;
mod events;
mod loop_schedule;
mod model_file;
pub mod optim;
mod parameters;
mod passes;
mod ranks;
mod retrain;
mod run_files;
pub mod schedule;
mod search;
mod shared_weights;
mod tensor_file;
mod training_loop;

pub use batch::{Batch, BatchRequest, BatchRequests, BatchSource, BoxError, Part};
pub use bilevel::{
    BilevelOptimizers, BilevelReport, BilevelSettings, HalfBatches, StepReport, arch_step, bilevel_step, weight_step,
};
pub use budget::CostPenalty;
pub use config::{ArchBatches, Budget, CostConfig, Half, RetrainConfig, SearchConfig};
pub use dice::{DiceCounts, argmax_labels};
pub use error::{Error, Result};
pub use events::{Event, IterationReport, OnEvent, Stop};
pub use model_file::ModelFile;
pub use ranks::{Alone, Ranks};
pub use retrain::{RetrainRow, Trained, retrain, training_step};
pub use run_files::RunOptions;
pub use search::{Phase, SearchRow, search};
pub use shared_weights::{load_shared_weights, pseudo_dice};
pub use tensor_file::{load_tensors, save_tensors};

/// Tensors by name, in the order of their names.
pub type NamedTensors = std::collections::BTreeMap<String, candle_core::Tensor>;
