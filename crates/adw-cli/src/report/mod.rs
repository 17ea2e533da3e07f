//! Output of the commands: tables and progress for people, JSON lines for programs.

pub(crate) mod architecture;
pub(crate) mod drawing;
pub(crate) mod html;
pub(crate) mod metrics;
pub(crate) mod plain;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod training;
