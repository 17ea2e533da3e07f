use std::path::PathBuf;

/// Errors of building, running or describing a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value makes no network.
    #[error("{0}")]
    Config(String),
    /// An architecture makes no network.
    #[error("architecture: {0}")]
    Architecture(String),
    /// An architecture file cannot be used.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// Fault of the file, and what would be right.
        message: String,
    },
    /// Weights are not those of the network.
    #[error("weight {0}")]
    Weights(String),
    /// An input does not fit the network.
    #[error("input: {0}")]
    Input(String),
    /// An op failed, also one of candle.
    #[error(transparent)]
    Op(#[from] adw_tensor_ops::Error),
}

impl Error {
    /// Returns true if a CUDA device had no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Op(error) if error.is_out_of_memory())
    }

    /// The error as one of an op in candle's graph.
    pub(crate) fn into_op(self) -> adw_tensor_ops::Error {
        match self {
            Self::Op(error) => error,
            error => candle_core::Error::wrap(error).into(),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Op(error.into())
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
