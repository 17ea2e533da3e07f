//! Adam.

#[cfg(feature = "cuda")]
use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::in_place::{InPlace, Real, Update2, Update3};
#[cfg(feature = "cuda")]
use super::on_device;
use super::{Optimizer, Scale, check_count, matching, restored};
use crate::{Error, NamedTensors, Result};
#[cfg(feature = "cuda")]
use adw_cuda::device::CudaRuntime;

/// Settings of [`Adam`]; the defaults are those of `torch.optim.Adam`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// `torch.optim.Adam` without weight decay:
/// ```text
/// m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2,   g = scale * gradient
/// w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
/// `t` counts a parameter's own updates.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    moments: Option<Moments>,
}

#[derive(Debug)]
struct Moments {
    mean: Tensor,
    square: Tensor,
    steps: i32,
}

impl Moments {
    fn zero(var: &Var) -> Result<Self> {
        Ok(Self { mean: var.zeros_like()?, square: var.zeros_like()?, steps: 0 })
    }
}

impl Adam {
    /// An optimiser of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: AdamConfig) -> Self {
        let slots = parameters
            .into_iter()
            .map(|(name, var)| Slot { name: name.to_owned(), var: var.clone(), moments: None })
            .collect();
        Self { config, slots }
    }
}

#[cfg(feature = "cuda")]
impl Adam {
    /// One launch for all parameters that have had the same number of updates.
    fn step_on_device(&mut self, rt: &CudaRuntime, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        let mut by_steps: BTreeMap<i32, Vec<on_device::Entry>> = BTreeMap::new();
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let gradient = matching(&slot.name, &slot.var, gradient)?;
            let mut moments = match slot.moments.take() {
                Some(m) => m,
                None => Moments::zero(&slot.var)?,
            };
            moments.steps += 1;
            by_steps.entry(moments.steps).or_default().push(on_device::Entry {
                weight: slot.var.as_tensor().clone(),
                grad: Some(gradient),
                first: Some(moments.mean.clone()),
                second: Some(moments.square.clone()),
            });
            slot.moments = Some(moments);
        }
        for (steps, entries) in by_steps {
            on_device::adam(rt, &entries, &self.config, steps, lr, scale)?;
        }
        Ok(())
    }
}

impl Optimizer for Adam {
    fn step_scaled(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        check_count(self.slots.len(), gradients.len())?;
        #[cfg(feature = "cuda")]
        if let Some(rt) = self.slots.first().and_then(|s| CudaRuntime::of_tensor(&s.var)) {
            return self.step_on_device(&rt, gradients, lr, scale);
        }
        let scale = scale.known();
        let AdamConfig { beta1, beta2, eps } = self.config;
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let gradient = matching(&slot.name, &slot.var, gradient)?;
            let mut moments = match slot.moments.take() {
                Some(m) => m,
                None => Moments::zero(&slot.var)?,
            };
            moments.steps += 1;
            moments.mean.inplace_op2(&gradient, &InPlace(Mean { beta1, scale }))?;
            moments.square.inplace_op2(&gradient, &InPlace(Square { beta2, scale }))?;
            let update = Weight {
                step_size: lr / (1.0 - beta1.powi(moments.steps)),
                root_correction: (1.0 - beta2.powi(moments.steps)).sqrt(),
                eps,
            };
            slot.var.inplace_op3(&moments.mean, &moments.square, &InPlace(update))?;
            slot.moments = Some(moments);
        }
        Ok(())
    }

    fn state(&self) -> Result<NamedTensors> {
        let mut state = NamedTensors::new();
        for Slot { name, moments, .. } in &self.slots {
            let Some(m) = moments else { continue };
            state.insert(format!("mean.{name}"), m.mean.clone());
            state.insert(format!("square.{name}"), m.square.clone());
            let steps = Tensor::new(i64::from(m.steps), &Device::Cpu)?;
            state.insert(format!("steps.{name}"), steps);
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        for slot in &mut self.slots {
            let name = &slot.name;
            let mean = restored(state, &format!("mean.{name}"), &slot.var)?;
            let square = restored(state, &format!("square.{name}"), &slot.var)?;
            let steps = state.get(&format!("steps.{name}"));
            slot.moments = match (mean, square, steps) {
                (None, None, None) => None,
                (Some(mean), Some(square), Some(steps)) => {
                    Some(Moments { mean, square, steps: steps.to_scalar::<i64>()? as i32 })
                }
                _ => {
                    return Err(Error::Shape {
                        what: format!("stored state of {name}"),
                        expected: "mean, square and steps".into(),
                        got: "only some of them".into(),
                    });
                }
            };
        }
        Ok(())
    }
}

/// m <- beta1 m + (1 - beta1) g
struct Mean {
    beta1: f64,
    scale: f64,
}

impl Update2 for Mean {
    const NAME: &'static str = "adam-mean";
    fn apply<T: Real>(&self, m: T, g: T) -> T {
        T::of(self.beta1) * m + T::of(1.0 - self.beta1) * (g * T::of(self.scale))
    }
}

/// v <- beta2 v + (1 - beta2) g^2
struct Square {
    beta2: f64,
    scale: f64,
}

impl Update2 for Square {
    const NAME: &'static str = "adam-square";
    fn apply<T: Real>(&self, v: T, g: T) -> T {
        let g = g * T::of(self.scale);
        T::of(self.beta2) * v + T::of(1.0 - self.beta2) * (g * g)
    }
}

/// w <- w - `step_size` m / (sqrt(v) / `root_correction` + eps)
struct Weight {
    step_size: f64,
    root_correction: f64,
    eps: f64,
}

impl Update3 for Weight {
    const NAME: &'static str = "adam-weight";
    fn apply<T: Real>(&self, w: T, m: T, v: T) -> T {
        let denominator = v.sqrt() / T::of(self.root_correction) + T::of(self.eps);
        w - T::of(self.step_size) * m / denominator
    }
}
