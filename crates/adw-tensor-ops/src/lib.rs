//! Differentiable 3D operations for candle.
#![doc = include_str!("../README.md")]
#![allow(
    clippy::inline_always,
    reason = "an instruction set reaches a kernel's body only if the body is inlined into the dispatching function"
)]

pub mod allocation;
mod autograd;
mod backend;
pub mod conv3d;
pub mod conv_transpose3d;
mod cuda;
pub mod elementwise;
mod error;
mod geometry;
pub mod gumbel_softmax;
pub mod loss;
mod map;
pub mod nn;
pub mod norm_act;
pub mod peak;
pub mod philox;
mod precision;
mod raw_output;
mod simd;
mod storage;
#[cfg(test)]
mod testing;
pub mod width_mask;

pub use autograd::record;
pub use conv_transpose3d::conv_transpose3d;
pub use conv3d::conv3d;
pub use error::{Error, Result};
pub use geometry::Conv3dGeometry;
pub use gumbel_softmax::gumbel_softmax;
pub use norm_act::norm_act;
pub use precision::Precision;
pub use simd::InstructionSet;
