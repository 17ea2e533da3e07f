#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod codes;
mod data_set;
mod error;
mod image;
mod jpeg;
mod pixels;
mod reader;
mod segmentation;
mod series;
mod tags;

pub use codes::{Code, SegmentCodes};
pub use error::{Error, Result};
pub use segmentation::{Description, encode, is_own};
pub use series::{Series, is_dicom};
