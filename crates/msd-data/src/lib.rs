#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
mod augment;
mod case_bytes;
pub mod check;
mod checksum;
pub mod dataset;
mod error;
mod fingerprint;
mod geometry;
mod grid;
mod json_file;
pub mod loader;
mod memory;
pub mod metrics;
pub mod nifti;
mod orientation;
pub mod phantom;
pub mod plan;
pub mod postprocess;
pub mod preprocess;
mod random;
pub mod sampler;
pub mod split;
pub mod store;
mod training_case;

pub use crate::nifti::{LabelMap, Volume, read_image, read_labels, write_image, write_labels};
pub use augment::{Augmentation, MirrorAxes};
pub use case_bytes::CaseBytes;
pub use check::{Problem, Severity, Survey, check_dataset, survey};
pub use dataset::{Case, Dataset, Label, Paths, TestCase};
pub use error::{Error, NiftiProblem, Result};
pub use fingerprint::{CaseFingerprint, Fingerprint, IntensityStatistics, fingerprint};
pub use geometry::Geometry;
pub use grid::Positions;
pub use loader::Loader;
pub use memory::Memory;
pub use metrics::{EvaluationOptions, Report, dice, evaluate_folder, evaluate_pairs};
pub use orientation::{AxisMap, Orientation};
pub use phantom::{PhantomFamily, PhantomOptions, write_dataset as write_phantom};
pub use plan::{Normalization, Plan, PlanOptions, plan};
pub use postprocess::{FoundPostprocessing, Postprocessing};
pub use preprocess::{CaseProperties, ClassLocations, LabelRestorer, PreparedCase, prepare_training_cases, preprocess};
pub use random::Purpose;
pub use sampler::{BatchKey, PatchSampler, SampledBatch};
pub use split::{Fold, NUM_FOLDS, five_folds, halves};
pub use store::{StoredCase, TrainingCasesBytes, store_training_cases, training_cases_bytes};
pub use training_case::TrainingCase;
