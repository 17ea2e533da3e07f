use std::path::PathBuf;

/// What can go wrong in building, running or describing a network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration value makes no network.
    #[error("{0}")]
    Config(String),
    /// An architecture that is not one.
    #[error("architecture: {0}")]
    Architecture(String),
    /// An architecture file that cannot be used.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// An input that the network cannot take.
    #[error("input: {0}")]
    Input(String),
    /// An error of an op.
    #[error(transparent)]
    Op(#[from] adw_tensor_ops::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
