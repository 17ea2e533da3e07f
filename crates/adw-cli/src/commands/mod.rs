//! One file per command.

pub(crate) mod bench;
pub(crate) mod evaluate;
pub(crate) mod phantom;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod retrain;
pub(crate) mod search;
