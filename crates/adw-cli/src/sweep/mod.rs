//! Sweeps: searches and trainings over datasets, folds, seeds and arms, as tasks that any number of processes share.

pub(crate) mod config;
pub(crate) mod estimate;
pub(crate) mod jobs;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod state;
pub(crate) mod summary;
pub(crate) mod work;
