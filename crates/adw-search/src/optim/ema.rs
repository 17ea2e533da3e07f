//! Exponential moving average of the weights.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::in_place::{InPlace, Real, Update2};
#[cfg(feature = "cuda")]
use super::on_device;
use super::restored;
use crate::{Error, NamedTensors, Result};
#[cfg(feature = "cuda")]
use adw_cuda::device::CudaRuntime;

/// Settings of [`Ema`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Decay per update once warm, in [0, 1).
    pub decay: f64,
}

/// Exponential moving average of parameters: after update t (from 1),
/// ```text
/// d = min(decay, (1 + t) / (10 + t)),    average <- d average + (1 - d) w
/// ```
/// The rising decay keeps the random first weights from lingering in the average (as in `TensorFlow`'s
/// `ExponentialMovingAverage(num_updates)`).
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    slots: Vec<Slot>,
    updates: u64,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    average: Tensor,
}

const UPDATES: &str = "updates";

impl Ema {
    /// An average that starts at the current values of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: EmaConfig) -> Result<Self> {
        let slots = parameters
            .into_iter()
            .map(|(name, var)| {
                Ok(Slot { name: name.to_owned(), var: var.clone(), average: var.as_detached_tensor().copy()? })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, slots, updates: 0 })
    }

    /// Takes the current parameters into the average.
    pub fn update(&mut self) -> Result<()> {
        self.updates += 1;
        let t = self.updates as f64;
        let decay = self.config.decay.min((1.0 + t) / (10.0 + t));
        #[cfg(feature = "cuda")]
        if let Some(rt) = self.slots.first().and_then(|s| CudaRuntime::of_tensor(&s.var)) {
            let entries: Vec<_> = self
                .slots
                .iter()
                .map(|s| on_device::Entry {
                    weight: s.var.as_tensor().clone(),
                    grad: None,
                    first: Some(s.average.clone()),
                    second: None,
                })
                .collect();
            return on_device::ema(&rt, &entries, decay);
        }
        for slot in &self.slots {
            slot.average.inplace_op2(&slot.var, &InPlace(Average { decay }))?;
        }
        Ok(())
    }

    /// Runs `f` while the parameters hold the average, then gives them back their own values, also when `f` fails.
    pub fn with_average<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let own: Vec<Tensor> =
            self.slots.iter().map(|s| s.var.as_detached_tensor().copy()).collect::<Result<_, _>>()?;
        self.store_in_parameters()?;
        let result = f();
        for (slot, own) in self.slots.iter().zip(&own) {
            slot.var.set(own)?;
        }
        result
    }

    /// Overwrites the parameters with the average.
    pub fn store_in_parameters(&self) -> Result<()> {
        for slot in &self.slots {
            slot.var.set(&slot.average)?;
        }
        Ok(())
    }

    /// The average by parameter name, and the number of updates.
    pub fn state(&self) -> Result<NamedTensors> {
        let mut state: NamedTensors =
            self.slots.iter().map(|s| (format!("average.{}", s.name), s.average.clone())).collect();
        let updates = Tensor::new(self.updates as i64, &candle_core::Device::Cpu)?;
        state.insert(UPDATES.into(), updates);
        Ok(state)
    }

    /// Restores what [`Ema::state`] gave.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than its parameter.
    pub fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        let missing =
            |key: &str| Error::Shape { what: format!("stored {key}"), expected: "a tensor".into(), got: "none".into() };
        for slot in &mut self.slots {
            let key = format!("average.{}", slot.name);
            slot.average = restored(state, &key, &slot.var)?.ok_or_else(|| missing(&key))?;
        }
        let updates = state.get(UPDATES).ok_or_else(|| missing(UPDATES))?;
        self.updates = updates.to_scalar::<i64>()? as u64;
        Ok(())
    }
}

/// average <- decay average + (1 - decay) w
struct Average {
    decay: f64,
}

impl Update2 for Average {
    const NAME: &'static str = "ema";
    fn apply<T: Real>(&self, average: T, w: T) -> T {
        T::of(self.decay) * average + T::of(1.0 - self.decay) * w
    }
}
