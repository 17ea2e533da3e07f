//! Medical image segmentation datasets in Medical Segmentation Decathlon (MSD) layout, from files to training
//! batches and from predictions to metrics.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod atomic_file;
pub mod dataset;
mod error;
mod fingerprint;
mod geometry;
#[cfg(test)]
mod golden;
pub mod nifti;
pub mod plan;
pub mod preprocess;
mod random;
pub mod split;

pub use crate::nifti::{LabelMap, Volume, read_image, read_labels, write_image, write_labels};
pub use atomic_file::write_atomically;
pub use dataset::{Case, Dataset, Label, TestCase};
pub use error::{Error, NiftiProblem, Result};
pub use fingerprint::{Fingerprint, IntensityStatistics, fingerprint};
pub use geometry::Geometry;
pub use plan::{Normalization, Plan, PlanOptions, plan};
pub use random::Purpose;
pub use split::{Fold, five_folds, halves};
pub use preprocess::{CaseProperties, ClassLocations, PreparedCase, prepare_training_cases, preprocess};
