//! Stochastic gradient descent with Nesterov momentum and weight decay.

use candle_core::{Tensor, Var};

use super::Optimizer;
use super::backend::{self, Scale};
use super::config::SgdConfig;
use super::slots::{Slots, Update};
use crate::{NamedTensors, Result};

/// `torch.optim.SGD(nesterov=True)`:
/// ```text
/// g <- scale * g + weight_decay * w
/// v <- momentum * v + g
/// w <- w - lr * (g + momentum * v)
/// ```
/// `v` starts at zero, at a parameter's first gradient.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    slots: Slots<1>,
}

impl Sgd {
    /// An optimiser of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: SgdConfig) -> Self {
        Self { config, slots: Slots::new(["velocity"], parameters) }
    }
}

impl Optimizer for Sgd {
    fn step_scaled(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        descend(&self.slots.updates(gradients)?, &self.config, lr, scale)
    }

    fn state(&self) -> Result<NamedTensors> {
        Ok(self.slots.save())
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.slots.load(state)
    }
}

/// A step of [`Sgd`] on the device of the parameters.
pub(super) fn descend(updates: &[Update<1>], config: &SgdConfig, lr: f64, scale: &Scale) -> Result<()> {
    match updates.first() {
        None => Ok(()),
        Some(first) => backend::of(&first.weight)?.sgd(updates, config, lr, scale),
    }
}
