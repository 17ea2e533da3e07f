//! Architecture search, training and inference for candle 3D segmentation networks.
//!
//! Data arrives through the [`BatchSource`] trait, so the crate knows no file of any dataset. See the crate's README
//! for a first example.
#![forbid(unsafe_code)]

mod atomic_file;
mod batch;
mod checkpoint;
mod dice;
mod error;
mod events;
pub mod infer;
pub mod optim;
mod run_files;
pub mod schedule;
mod tensor_file;
mod training_loop;

pub use batch::{Batch, BatchSource, BoxError, Part, Request, Requests};
pub use dice::{DiceCounts, argmax_labels};
pub use error::{Error, Result};
pub use events::{Event, IterationReport, OnEvent, Reaction};
pub use run_files::RunOptions;

/// Tensors by name, in the order of their names.
pub type NamedTensors = std::collections::BTreeMap<String, candle_core::Tensor>;
