//! Optimisers that update candle variables in place.
//!
//! A step walks `gradients`, one entry per parameter in the order the optimiser was built with. A parameter whose
//! gradient is `None` is left alone entirely, without decay or momentum, as `PyTorch` does. All arithmetic is elementwise in
//! the parameter's dtype (F32 or F64), so results do not depend on the number of threads.

mod adam;
mod clip;
#[allow(unsafe_code, reason = "launches of kernels")]
pub mod cuda;
mod ema;
mod in_place;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "launches of kernels")]
mod on_device;
mod sgd;

pub use adam::{Adam, AdamConfig};
pub use clip::{Scale, clip, clip_scale, global_norm};
pub use ema::{Ema, EmaConfig};
pub use sgd::{Sgd, SgdConfig};

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::{Error, NamedTensors, Result};

/// What all optimisers do.
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

    /// Everything but the parameters that a resumed run needs.
    fn state(&self) -> Result<NamedTensors>;

    /// Restores what [`Optimizer::state`] gave; state that is absent starts afresh.
    ///
    /// # Errors
    /// When a tensor has another shape than its parameter.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;
}

/// The choice of an optimiser in a configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Stochastic gradient descent with Nesterov momentum.
    Sgd(SgdConfig),
    /// Adam.
    Adam(AdamConfig),
}

impl OptimizerConfig {
    /// An optimiser of `parameters` (name and variable).
    pub fn build<'a>(&self, parameters: impl IntoIterator<Item = (&'a str, &'a Var)>) -> Box<dyn Optimizer> {
        match self {
            Self::Sgd(config) => Box::new(Sgd::new(parameters, config.clone())),
            Self::Adam(config) => Box::new(Adam::new(parameters, config.clone())),
        }
    }
}

/// Refuses a number of gradients other than that of parameters.
fn check_count(parameters: usize, gradients: usize) -> Result<()> {
    if parameters == gradients {
        return Ok(());
    }
    Err(Error::Shape {
        what: "gradients".into(),
        expected: format!("{parameters} entries, one per parameter"),
        got: gradients.to_string(),
    })
}

/// `gradient` laid out like its parameter.
fn matching(name: &str, var: &Var, gradient: &Tensor) -> Result<Tensor> {
    if gradient.shape() != var.shape() || gradient.dtype() != var.dtype() {
        return Err(Error::Shape {
            what: format!("gradient of {name}"),
            expected: format!("{:?} {:?}", var.dtype(), var.shape()),
            got: format!("{:?} {:?}", gradient.dtype(), gradient.shape()),
        });
    }
    Ok(gradient.contiguous()?)
}

/// A copy of `state[key]` that owns its storage, checked against the parameter it belongs to.
fn restored(state: &NamedTensors, key: &str, var: &Var) -> Result<Option<Tensor>> {
    let Some(tensor) = state.get(key) else {
        return Ok(None);
    };
    if tensor.shape() != var.shape() || tensor.dtype() != var.dtype() {
        return Err(Error::Shape {
            what: format!("stored {key}"),
            expected: format!("{:?} {:?}", var.dtype(), var.shape()),
            got: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
        });
    }
    Ok(Some(tensor.to_device(var.device())?.copy()?))
}

#[cfg(test)]
mod tests;
