//! Error type of the crate.

/// Error of a network, whatever it is made of.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of an inference.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The network failed.
    #[error("the network failed")]
    Network(#[source] BoxError),
    /// A setting has a value that makes no sense.
    #[error("{key} = {value}: expected {expected}")]
    Config {
        /// Name of the setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// Values that would be right.
        expected: &'static str,
    },
    /// Shapes do not fit together.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Name of the tensor.
        what: &'static str,
        /// Shape that would be right.
        expected: String,
        /// Shape of the tensor.
        got: String,
    },
    /// Logits of an image are NaN or infinite.
    #[error("the logits are not finite: the weights or the image hold NaN or infinite values")]
    NotFinite,
}
