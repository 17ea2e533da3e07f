//! Stochastic gradient descent with Nesterov momentum and weight decay.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::in_place::{InPlace, Real, Update3};
#[cfg(feature = "cuda")]
use super::on_device;
use super::{Optimizer, Scale, check_count, matching, restored};
use crate::{NamedTensors, Result};
#[cfg(feature = "cuda")]
use adw_cuda::device::CudaRuntime;

/// Settings of [`Sgd`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SgdConfig {
    /// Momentum in [0, 1).
    pub momentum: f64,
    /// Weight decay, added to the gradient as `weight_decay * w`.
    pub weight_decay: f64,
}

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
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    velocity: Option<Tensor>,
}

impl Sgd {
    /// An optimiser of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: SgdConfig) -> Self {
        let slots = parameters
            .into_iter()
            .map(|(name, var)| Slot { name: name.to_owned(), var: var.clone(), velocity: None })
            .collect();
        Self { config, slots }
    }
}

#[cfg(feature = "cuda")]
impl Sgd {
    fn step_on_device(&mut self, rt: &CudaRuntime, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        let mut entries = Vec::new();
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let gradient = matching(&slot.name, &slot.var, gradient)?;
            let velocity = match slot.velocity.take() {
                Some(v) => v,
                None => slot.var.zeros_like()?,
            };
            entries.push(on_device::Entry {
                weight: slot.var.as_tensor().clone(),
                grad: Some(gradient),
                first: Some(velocity.clone()),
                second: None,
            });
            slot.velocity = Some(velocity);
        }
        on_device::sgd(rt, &entries, &self.config, lr, scale)
    }
}

impl Optimizer for Sgd {
    fn step_scaled(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        check_count(self.slots.len(), gradients.len())?;
        #[cfg(feature = "cuda")]
        if let Some(rt) = self.slots.first().and_then(|s| CudaRuntime::of_tensor(&s.var)) {
            return self.step_on_device(&rt, gradients, lr, scale);
        }
        let scale = scale.known();
        let SgdConfig { momentum, weight_decay } = self.config;
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let gradient = matching(&slot.name, &slot.var, gradient)?;
            let velocity = match slot.velocity.take() {
                Some(v) => v,
                None => slot.var.zeros_like()?,
            };
            velocity.inplace_op3(&gradient, &slot.var, &InPlace(Velocity { momentum, decay: weight_decay, scale }))?;
            slot.var.inplace_op3(
                &gradient,
                &velocity,
                &InPlace(Weight { lr, momentum, decay: weight_decay, scale }),
            )?;
            slot.velocity = Some(velocity);
        }
        Ok(())
    }

    fn state(&self) -> Result<NamedTensors> {
        let slots = self.slots.iter();
        Ok(slots.filter_map(|s| Some((format!("velocity.{}", s.name), s.velocity.clone()?))).collect())
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        for slot in &mut self.slots {
            slot.velocity = restored(state, &format!("velocity.{}", slot.name), &slot.var)?;
        }
        Ok(())
    }
}

/// v <- momentum v + (scale g + decay w)
struct Velocity {
    momentum: f64,
    decay: f64,
    scale: f64,
}

impl Update3 for Velocity {
    const NAME: &'static str = "sgd-velocity";
    fn apply<T: Real>(&self, v: T, g: T, w: T) -> T {
        T::of(self.momentum) * v + (g * T::of(self.scale) + T::of(self.decay) * w)
    }
}

/// w <- w - lr (scale g + decay w + momentum v)
struct Weight {
    lr: f64,
    momentum: f64,
    decay: f64,
    scale: f64,
}

impl Update3 for Weight {
    const NAME: &'static str = "sgd-weight";
    fn apply<T: Real>(&self, w: T, g: T, v: T) -> T {
        let g = g * T::of(self.scale) + T::of(self.decay) * w;
        w - T::of(self.lr) * (g + T::of(self.momentum) * v)
    }
}
