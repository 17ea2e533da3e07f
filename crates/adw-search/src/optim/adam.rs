//! Adam.

use candle_core::{Device, Tensor, Var};

use super::Optimizer;
use super::backend::{self, Scale};
use super::config::AdamConfig;
use super::slots::Slots;
use crate::{Error, NamedTensors, Result};

/// `torch.optim.Adam` without weight decay:
/// ```text
/// m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2,   g = scale * gradient
/// w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
/// `t` counts a parameter's own updates.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    slots: Slots<2>,
}

impl Adam {
    /// An optimiser of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: AdamConfig) -> Self {
        Self { config, slots: Slots::new(["mean", "square"], parameters) }
    }
}

impl Optimizer for Adam {
    fn step_scaled(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        let updates = self.slots.updates(gradients)?;
        match updates.first() {
            None => Ok(()),
            Some(first) => backend::of(&first.weight)?.adam(&updates, &self.config, lr, scale),
        }
    }

    fn state(&self) -> Result<NamedTensors> {
        let mut state = self.slots.save();
        for slot in self.slots.slots.iter().filter(|slot| slot.state.is_some()) {
            let steps = Tensor::new(i64::from(slot.steps), &Device::Cpu)?;
            state.insert(format!("steps.{}", slot.name), steps);
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.slots.load(state)?;
        for slot in &mut self.slots.slots {
            let steps = state.get(&format!("steps.{}", slot.name));
            if steps.is_some() != slot.state.is_some() {
                return Err(Error::Shape {
                    what: format!("stored state of {}", slot.name),
                    expected: "mean, square and steps".into(),
                    got: "only some of them".into(),
                });
            }
            slot.steps = match steps {
                Some(steps) => steps.to_scalar::<i64>()? as i32,
                None => 0,
            };
        }
        Ok(())
    }
}
