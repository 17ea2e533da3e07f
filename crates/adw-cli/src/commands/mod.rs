//! Commands of the program, one file each.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod crossval;
pub(crate) mod doctor;
pub(crate) mod download;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod manual;
pub(crate) mod phantom;
pub(crate) mod plan;
pub(crate) mod postprocess;
pub(crate) mod predict;
pub(crate) mod rank;
pub(crate) mod report;
pub(crate) mod retrain;
pub(crate) mod run;
pub(crate) mod search;
pub(crate) mod submit;
pub(crate) mod sweep;
pub(crate) mod watch;
