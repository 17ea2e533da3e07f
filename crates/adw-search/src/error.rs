//! Error type of the crate.

use std::path::{Path, PathBuf};

use crate::BoxError;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of a search, a training, an inference or their files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// A CUDA device failed.
    #[error(transparent)]
    Cuda(#[from] adw_cuda::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A file has the wrong content.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Fault of the file, and what would be right.
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
    /// Neither the latest checkpoint nor the one before can be read.
    #[error("{latest}; {previous}; remove {} to start again from the beginning", folder.display())]
    CheckpointsLost {
        /// Fault of the latest.
        latest: String,
        /// Fault of the one before.
        previous: String,
        /// Folder of both.
        folder: PathBuf,
    },
    /// A folder holds a run already, and [`RunOptions::resume`](crate::RunOptions::resume) is not set.
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
        /// Values that would be right.
        expected: &'static str,
    },
    /// The batch source failed.
    #[error("batch {request}: {source}")]
    Batch {
        /// Request that failed.
        request: crate::BatchRequest,
        /// Error of the source.
        source: BoxError,
    },
    /// A loss or gradient norm is NaN or infinite: training has diverged or the data hold such values.
    #[error(
        "epoch {epoch}, iteration {iteration}: {what} is {value}; lower the learning rate or check the data{}{}",
        of_cases(cases),
        last_good(kept.as_deref())
    )]
    NotFinite {
        /// Name of the number.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Epoch, from 0.
        epoch: usize,
        /// Iteration in the epoch, from 0.
        iteration: usize,
        /// Cases of the iteration's batches.
        cases: Vec<String>,
        /// Checkpoint from before, if there is one.
        kept: Option<PathBuf>,
    },
    /// A state is not worth a checkpoint: training has diverged, and the next steps would overflow.
    #[error(
        "epoch {epoch}, iteration {iteration}: {what} has grown to {value:e}: the training has diverged; lower the learning \
         rate{}",
        last_good(kept.as_deref())
    )]
    Diverged {
        /// Name of the tensor.
        what: String,
        /// Value in it.
        value: f64,
        /// Epoch, from 0.
        epoch: usize,
        /// Iterations of that epoch done.
        iteration: usize,
        /// Checkpoint from before, if there is one.
        kept: Option<PathBuf>,
    },
    /// A target holds a class that the logits lack.
    #[error("the target holds class {class}, but the logits have {num_classes} classes")]
    UnknownClass {
        /// Class in the target.
        class: usize,
        /// Classes of the logits.
        num_classes: usize,
    },
    /// Shapes do not fit together.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Name of the tensor.
        what: String,
        /// Shape that would be right.
        expected: String,
        /// Shape of the tensor.
        got: String,
    },
    /// A batch cannot be shared, sample by sample, among this many ranks.
    #[error("{ranks} ranks for batches of {batch_size} samples: expected at most one rank per sample")]
    TooManyRanks {
        /// Number of ranks.
        ranks: usize,
        /// Samples of a batch.
        batch_size: usize,
    },
    /// Ranks have read different checkpoints.
    #[error(
        "{}: rank {rank} reads another checkpoint here than rank 0; all ranks need the same folder, on a disk that they share",
        path.display()
    )]
    OtherCheckpoint {
        /// Folder of the run.
        path: PathBuf,
        /// Number of the rank.
        rank: usize,
    },
    /// Another rank has failed or cannot be reached.
    #[error(transparent)]
    Ranks(BoxError),
    /// The caller's callback stopped the run.
    #[error("stopped at epoch {epoch}, iteration {iteration}")]
    Stopped {
        /// Epoch, from 0.
        epoch: usize,
        /// Iterations of that epoch already done.
        iteration: usize,
    },
}

fn of_cases(cases: &[String]) -> String {
    if cases.is_empty() { String::new() } else { format!(" of {}", cases.join(", ")) }
}

fn last_good(checkpoint: Option<&Path>) -> String {
    checkpoint.map_or(String::new(), |path| format!("; the last good checkpoint is {}", path.display()))
}

impl Error {
    /// Returns true if a CUDA device had no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Tensor(error) => adw_cuda::device::is_out_of_memory(error),
            Self::Op(error) => error.is_out_of_memory(),
            Self::Supernet(error) => error.is_out_of_memory(),
            Self::Cuda(error) => matches!(error, adw_cuda::Error::OutOfMemory { .. }),
            _ => false,
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), reason: reason.into() }
    }
}
