//! Errors of this crate.

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason why a network cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An export of nothing.
    #[error("no network to export, expected at least one")]
    NoNetwork,
    /// Networks whose logits cannot be averaged.
    #[error("a network has {found:?} channels and classes, the first one {expected:?}; export them one by one")]
    Networks {
        /// Channels and classes of the network.
        found: [usize; 2],
        /// Channels and classes of the first network.
        expected: [usize; 2],
    },
    /// Weights that exceed the format.
    #[error("{bytes} bytes of weights, but a file of ONNX holds less than 2 GiB; export fewer networks at once")]
    TooLarge {
        /// Bytes of all weights.
        bytes: usize,
    },
    /// Network of nnU-Net that has no counterpart.
    #[error("{problem}")]
    Nnunet {
        /// Property that is found, and what is expected.
        problem: String,
    },
    /// Weights that cannot be read.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Error of a network of nnU-Net that has no counterpart.
pub(crate) fn wrong(problem: String) -> Error {
    Error::Nnunet { problem }
}
