//! Output of the commands: tables and progress for people, JSON lines for programs.

pub(crate) mod architecture;
pub(crate) mod drawing;
pub(crate) mod forecast;
pub(crate) mod html;
pub(crate) mod metrics;
pub(crate) mod number;
pub(crate) mod plain;
mod png;
pub(crate) mod progress;
pub(crate) mod run_data;
pub(crate) mod table;
pub(crate) mod tensorboard;
pub(crate) mod training;
