//! Parameters of an optimiser and the state it keeps for each.

use candle_core::{Tensor, Var};

use crate::{Error, NamedTensors, Result};

/// Parameters with `N` state tensors each, of the parameter's shape.
#[derive(Debug)]
pub(super) struct Slots<const N: usize> {
    /// Names of the state tensors; a saved one is called `{name}.{parameter}`.
    names: [&'static str; N],
    pub(super) slots: Vec<Slot<N>>,
}

/// One parameter with its state.
#[derive(Debug)]
pub(super) struct Slot<const N: usize> {
    pub(super) name: String,
    pub(super) var: Var,
    /// State tensors; `None` before the first update.
    pub(super) state: Option<[Tensor; N]>,
    /// Number of updates.
    pub(super) steps: i32,
}

/// Tensors that the update of one parameter reads and writes, all of its shape and contiguous.
#[derive(Debug)]
pub(super) struct Update<const N: usize> {
    pub(super) weight: Tensor,
    pub(super) gradient: Tensor,
    pub(super) state: [Tensor; N],
    /// Number of updates, this one included.
    pub(super) steps: i32,
}

impl<const N: usize> Slots<N> {
    /// Slots of `parameters` (name and variable), without state.
    pub(super) fn new<'a>(names: [&'static str; N], parameters: impl IntoIterator<Item = (&'a str, &'a Var)>) -> Self {
        let slot = |(name, var): (&str, &Var)| Slot { name: name.to_owned(), var: var.clone(), state: None, steps: 0 };
        Self { names, slots: parameters.into_iter().map(slot).collect() }
    }

    /// Updates of all parameters that have a gradient; state begins as zeros.
    ///
    /// # Errors
    /// If the number of gradients is not that of parameters, or a gradient has another shape or type than its parameter.
    pub(super) fn updates(&mut self, gradients: &[Option<Tensor>]) -> Result<Vec<Update<N>>> {
        if self.slots.len() != gradients.len() {
            return Err(Error::Shape {
                what: "gradients".into(),
                expected: format!("{} entries, one per parameter", self.slots.len()),
                got: gradients.len().to_string(),
            });
        }
        for (slot, gradient) in self.slots.iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            check(|| format!("gradient of {}", slot.name), gradient, &slot.var)?;
        }
        let with_gradient = self.slots.iter_mut().zip(gradients).filter_map(|(slot, g)| Some((slot, g.as_ref()?)));
        let updates = with_gradient.map(|(slot, gradient)| {
            let state = match &slot.state {
                Some(state) => state.clone(),
                None => zeros(&slot.var)?,
            };
            slot.state = Some(state.clone());
            slot.steps += 1;
            let weight = slot.var.as_tensor().clone();
            Ok(Update { weight, gradient: gradient.contiguous()?, state, steps: slot.steps })
        });
        updates.collect()
    }

    /// State of all parameters that have one, by name.
    pub(super) fn save(&self) -> NamedTensors {
        let tensors = self.slots.iter().flat_map(|slot| {
            let state = self.names.iter().zip(slot.state.iter().flatten());
            state.map(|(kind, tensor)| (format!("{kind}.{}", slot.name), tensor.clone()))
        });
        tensors.collect()
    }

    /// Restores what [`Self::save`] gave; a parameter without saved state has none afterwards.
    ///
    /// # Errors
    /// If a tensor has another shape or type than its parameter, or only some tensors of a parameter are there.
    pub(super) fn load(&mut self, saved: &NamedTensors) -> Result<()> {
        for slot in &mut self.slots {
            let mut state = Vec::with_capacity(N);
            for kind in self.names {
                state.extend(restored(saved, &format!("{kind}.{}", slot.name), &slot.var)?);
            }
            let is_absent = state.is_empty();
            slot.state = match state.try_into() {
                Ok(state) => Some(state),
                Err(_) if is_absent => None,
                Err(_) => {
                    return Err(Error::Shape {
                        what: format!("stored state of {}", slot.name),
                        expected: self.names.join(" and "),
                        got: "only some of them".into(),
                    });
                }
            };
        }
        Ok(())
    }
}

fn zeros<const N: usize>(var: &Var) -> Result<[Tensor; N]> {
    let zeros = (0..N).map(|_| var.zeros_like()).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(zeros.try_into().expect("N tensors"))
}

/// Checks that a tensor has the shape and type of its parameter.
fn check(what: impl FnOnce() -> String, tensor: &Tensor, var: &Var) -> Result<()> {
    if tensor.shape() == var.shape() && tensor.dtype() == var.dtype() {
        return Ok(());
    }
    Err(Error::Shape {
        what: what(),
        expected: format!("{:?} {:?}", var.dtype(), var.shape()),
        got: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
    })
}

/// Copy of a saved tensor that owns its storage, checked against its parameter.
fn restored(saved: &NamedTensors, key: &str, var: &Var) -> Result<Option<Tensor>> {
    let Some(tensor) = saved.get(key) else {
        return Ok(None);
    };
    check(|| format!("stored {key}"), tensor, var)?;
    Ok(Some(tensor.to_device(var.device())?.copy()?))
}
