//! Exponential moving average of the weights.

use candle_core::{Device, Tensor, Var};

use super::backend;
use super::config::EmaConfig;
use super::slots::Slots;
use crate::{Error, NamedTensors, Result};

/// Exponential moving average of parameters: after update t (from 1),
/// ```text
/// d = min(decay, (1 + t) / (10 + t)),    average <- d average + (1 - d) w
/// ```
/// The rising decay keeps the random first weights from lingering in the average (as in `TensorFlow`'s
/// `ExponentialMovingAverage(num_updates)`).
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    /// Parameters with their average, which is always there.
    slots: Slots<1>,
    updates: u64,
}

const UPDATES: &str = "updates";

impl Ema {
    /// An average that starts at the current values of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: EmaConfig) -> Result<Self> {
        let mut slots = Slots::new(["average"], parameters);
        for slot in &mut slots.slots {
            slot.state = Some([slot.var.as_detached_tensor().copy()?]);
        }
        Ok(Self { config, slots, updates: 0 })
    }

    /// Parameters and their average.
    fn pairs(&self) -> impl Iterator<Item = (&Var, &Tensor)> {
        self.slots.slots.iter().flat_map(|slot| slot.state.iter().map(|[average]| (&slot.var, average)))
    }

    /// Takes the current parameters into the average.
    pub fn update(&mut self) -> Result<()> {
        self.updates += 1;
        let t = self.updates as f64;
        let decay = self.config.decay.min((1.0 + t) / (10.0 + t));
        let pairs: Vec<_> = self.pairs().map(|(var, average)| (var.as_tensor(), average)).collect();
        match pairs.first() {
            None => Ok(()),
            Some((weight, _)) => backend::of(weight)?.ema(&pairs, decay),
        }
    }

    /// Runs `f` while the parameters hold the average, then gives them back their own values, also when `f` fails.
    pub fn with_average<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let own = self.pairs().map(|(var, _)| var.as_detached_tensor().copy()).collect::<Result<Vec<_>, _>>()?;
        self.store_in_parameters()?;
        let result = f();
        for ((var, _), own) in self.pairs().zip(&own) {
            var.set(own)?;
        }
        result
    }

    /// Overwrites the parameters with the average.
    pub fn store_in_parameters(&self) -> Result<()> {
        for (var, average) in self.pairs() {
            var.set(average)?;
        }
        Ok(())
    }

    /// The average by parameter name, and the number of updates. The tensors share the average's memory, and the next update
    /// changes them.
    pub fn state(&self) -> Result<NamedTensors> {
        let mut state = self.slots.save();
        state.insert(UPDATES.into(), Tensor::new(self.updates as i64, &Device::Cpu)?);
        Ok(state)
    }

    /// Restores what [`Ema::state`] gave.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than its parameter.
    pub fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        let missing =
            |key: &str| Error::Shape { what: format!("stored {key}"), expected: "a tensor".into(), got: "none".into() };
        let updates = state.get(UPDATES).ok_or_else(|| missing(UPDATES))?;
        for slot in &self.slots.slots {
            let key = format!("average.{}", slot.name);
            if !state.contains_key(&key) {
                return Err(missing(&key));
            }
        }
        self.slots.load(state)?;
        self.updates = updates.to_scalar::<i64>()? as u64;
        Ok(())
    }
}
