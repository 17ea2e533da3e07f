//! What a person or a program reads of a run.

pub(crate) mod architecture;
pub(crate) mod drawing;
pub(crate) mod metrics;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod training;
