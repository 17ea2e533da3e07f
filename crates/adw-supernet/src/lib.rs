#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod architecture;
mod choices;
mod cost;
mod error;
mod loss;
mod module;
mod network;
mod noise;
mod parameters;
mod random;
mod space;
mod stages;
mod subnet;
mod supernet;
mod unet;
mod within_budget;

#[cfg(test)]
mod tests;

pub use adw_tensor_ops::Precision;
pub use adw_tensor_ops::loss::{DiceCe, PendingLoss};
pub use adw_tensor_ops::norm_act::GatePosition;
pub use architecture::{Architecture, Encoder, FORMAT, Shortcut, widths_line};
pub use cost::{Cost, CostUnit};
pub use error::{Error, Result};
pub use loss::Loss;
pub use network::Trace;
pub use noise::{BlockNoise, GumbelNoise, GumbelSample, NoiseKey};
pub use parameters::{Gradients, Parameter, Role};
pub use space::{NUM_WIDTHS, SearchSpace, SupernetConfig, width_options};
pub use stages::{FixedSizes, stage_max_width};
pub use supernet::{BlockProbabilities, Supernet, SupernetTrace};
pub use unet::Unet;
