//! Optimisers that update candle variables in place.
//!
//! A step walks `gradients`, one entry per parameter in the order the optimiser was built with. A parameter whose
//! gradient is `None` is left alone entirely, without decay or momentum, as `PyTorch` does. Arithmetic is in the parameter's
//! dtype (F32 or F64), element by element, or a product of matrices by one thread: results do not depend on their number.

mod adam;
mod backend;
mod clip;
mod config;
mod cpu;
#[allow(unsafe_code, reason = "launches of kernels")]
mod cuda;
mod ema;
mod in_place;
mod muon;
mod sgd;
mod slots;

pub use adam::Adam;
pub use backend::Scale;
pub use clip::{clip, clip_scale, global_norm};
pub use config::{AdamConfig, EmaConfig, SgdConfig};
pub use ema::Ema;
pub use muon::Muon;
pub use sgd::Sgd;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::{NamedTensors, Result};

/// Updates of parameters from their gradients, and the state behind them.
pub trait Optimizer {
    /// One update with learning rate `lr` on gradients multiplied by `scale` (see [`clip_scale`]; 1 leaves them).
    ///
    /// # Errors
    /// When a gradient's shape is not that of its parameter, or their number differs.
    fn step(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: f64) -> Result<()> {
        self.step_scaled(gradients, lr, &Scale::Known(scale))
    }

    /// [`Optimizer::step`] with a factor that may lie on the parameters' device.
    ///
    /// # Errors
    /// As [`Optimizer::step`].
    fn step_scaled(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()>;

    /// State that a resumed run needs besides the parameters. The tensors share the optimiser's memory, and its next step
    /// changes them: write them, or copy them, before.
    fn state(&self) -> Result<NamedTensors>;

    /// Restores what [`Optimizer::state`] gave; state that is absent starts afresh.
    ///
    /// # Errors
    /// When a tensor has another shape than its parameter.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;
}

/// Choice of an optimiser in a configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Stochastic gradient descent with Nesterov momentum.
    Sgd(SgdConfig),
    /// Muon for the kernels of convolutions, stochastic gradient descent for the rest.
    Muon(SgdConfig),
    /// Adam.
    Adam(AdamConfig),
}

impl OptimizerConfig {
    /// An optimiser of `parameters` (name and variable).
    pub fn build<'a>(&self, parameters: impl IntoIterator<Item = (&'a str, &'a Var)>) -> Box<dyn Optimizer> {
        match self {
            Self::Sgd(config) => Box::new(Sgd::new(parameters, config.clone())),
            Self::Muon(config) => Box::new(Muon::new(parameters, config.clone())),
            Self::Adam(config) => Box::new(Adam::new(parameters, config.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
