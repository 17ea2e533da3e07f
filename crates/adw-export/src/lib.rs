#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
pub mod inference;
pub mod monai;
pub mod nnunet;
pub mod onnx;
pub mod pytorch;

pub use error::{Error, Result};
pub use inference::Inference;
