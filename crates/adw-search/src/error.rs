//! The crate's error type.

use std::path::PathBuf;

use crate::BoxError;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a search, a training, an inference or their files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// An op, such as the loss, failed.
    #[error(transparent)]
    Op(#[from] adw_tensor_ops::Error),
    /// A network could not be built or run.
    #[error(transparent)]
    Supernet(#[from] adw_supernet::Error),
    /// An error of a CUDA device.
    #[error(transparent)]
    Cuda(#[from] adw_cuda::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A checkpoint was made by a run with other settings.
    #[error(
        "{}: this checkpoint belongs to another run; start in a new folder or restore the setting ({difference})",
        path.display()
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// The first setting that differs, with both values.
        difference: String,
    },
    /// A folder holds a run already, and resuming was not asked for.
    #[error("{}: a run was started here before; resume it or choose another folder", path.display())]
    AlreadyStarted {
        /// The checkpoint or history that was found.
        path: PathBuf,
    },
    /// A setting has a value that makes no sense.
    #[error("{key} = {value}: expected {expected}")]
    Config {
        /// The setting, dotted.
        key: String,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The batch source failed.
    #[error("batch {request}: {source}")]
    Batch {
        /// Which batch was asked for.
        request: crate::BatchRequest,
        /// What the source said.
        source: BoxError,
    },
    /// A loss or gradient norm is NaN or infinite: training has diverged or the data holds such values.
    #[error("epoch {epoch}, iteration {iteration}: {what} is {value}; lower the learning rate or check the data")]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Epoch, from 0.
        epoch: usize,
        /// Iteration in the epoch, from 0.
        iteration: usize,
    },
    /// Shapes do not fit together.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Which tensor.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The caller's callback asked to stop.
    #[error("stopped at epoch {epoch}, iteration {iteration}")]
    Stopped {
        /// Epoch, from 0.
        epoch: usize,
        /// Iterations of that epoch already done.
        iteration: usize,
    },
}

impl Error {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &std::path::Path, reason: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), reason: reason.into() }
    }
}
