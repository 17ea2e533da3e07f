use candle_core::{DType, Shape};

/// What can go wrong when an op is called: always a mistake in the arguments, found before any work is done, or an
/// error of candle itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor has a shape that the op cannot take.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The op that was called.
        op: &'static str,
        /// Which of its arguments.
        what: &'static str,
        /// The shape it has.
        got: Shape,
        /// What it should have been, in words.
        expected: String,
    },
    /// A tensor has an element type that the op does not compute in.
    #[error("{op}: element type {got:?} is not supported, expected f32 or f64 (all arguments alike)")]
    DType {
        /// The op that was called.
        op: &'static str,
        /// The type it was given.
        got: DType,
    },
    /// A tensor lies on a device that this build cannot compute on.
    #[error("{op}: no implementation for this tensor's device in this build")]
    Device {
        /// The op that was called.
        op: &'static str,
    },
    /// A number is outside the range the op is defined for.
    #[error("{op}: {what}")]
    Argument {
        /// The op that was called.
        op: &'static str,
        /// Which argument, its value and what would be right.
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
    pub(crate) fn dtype(op: &'static str, got: DType) -> Self {
        Self::DType { op, got }
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
