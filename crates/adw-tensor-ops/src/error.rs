use candle_core::{DType, Shape};

/// Errors of the ops: mistakes in arguments, found before any work is done, and errors of candle or of a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has a shape that the op does not support.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape {
        /// Name of the op.
        op: &'static str,
        /// Name of the argument.
        what: &'static str,
        /// Shape of the argument.
        got: Shape,
        /// Expected shape, in words.
        expected: String,
    },
    /// A tensor has an element type that the op does not support on the tensor's device.
    #[error("{op}: element type {got:?} is not supported, expected {expected}")]
    DType {
        /// Name of the op.
        op: &'static str,
        /// Element type of the tensor.
        got: DType,
        /// Supported element types.
        expected: &'static str,
    },
    /// A tensor lies on a device that this build has no kernels for.
    #[error("{op}: no implementation for this tensor's device in this build")]
    Device {
        /// Name of the op.
        op: &'static str,
    },
    /// A number is outside the range the op is defined for.
    #[error("{op}: {what}")]
    Argument {
        /// Name of the op.
        op: &'static str,
        /// Name of the argument, its value and the range.
        what: String,
    },
    /// An error of a CUDA device.
    #[error(transparent)]
    Cuda(#[from] adw_cuda::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// Returns true if a CUDA device had no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Cuda(error) => matches!(error, adw_cuda::Error::OutOfMemory { .. }),
            Self::Candle(error) => adw_cuda::device::is_out_of_memory(error),
            _ => false,
        }
    }

    /// [`Error::DType`].
    pub(crate) fn dtype(op: &'static str, got: DType, expected: &'static str) -> Self {
        Self::DType { op, got, expected }
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl From<Error> for candle_core::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Candle(e) => e,
            // Keeps its type, by which a full device is recognised.
            Error::Cuda(e) => candle_core::Error::Cuda(Box::new(e)),
            e => candle_core::Error::wrap(e),
        }
    }
}
