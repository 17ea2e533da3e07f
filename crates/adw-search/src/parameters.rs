//! Parameters of a network as named tensors.

use adw_supernet::Parameter;
use candle_core::{Device, Tensor, Var};

use crate::{Error, NamedTensors, Result};

/// Name and variable of each parameter.
pub(crate) fn named(parameters: &[Parameter]) -> impl Iterator<Item = (&str, &Var)> {
    parameters.iter().map(|p| (p.name.as_str(), &p.var))
}

/// Device of the parameters.
pub(crate) fn device(parameters: &[Parameter]) -> Device {
    let first = parameters.first();
    first.map_or(Device::Cpu, |p| p.var.device().clone())
}

/// Copies of the parameters' values.
pub(crate) fn values(parameters: &[Parameter]) -> Result<NamedTensors> {
    named(parameters).map(|(name, var)| Ok((name.to_owned(), var.as_detached_tensor().copy()?))).collect()
}

/// Sets every parameter to the tensor of its name.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub(crate) fn set(parameters: &[Parameter], values: &NamedTensors) -> Result<()> {
    for (name, var) in named(parameters) {
        let error = |got: String| Error::Shape {
            what: format!("parameter {name}"),
            expected: format!("{:?}", var.dims()),
            got,
        };
        let value = values.get(name).ok_or_else(|| error("none".into()))?;
        if value.dims() != var.dims() {
            return Err(error(format!("{:?}", value.dims())));
        }
        let value: Tensor = value.to_device(var.device())?.to_dtype(var.dtype())?;
        var.set(&value)?;
    }
    Ok(())
}

/// Group of the parameters in a task's state.
pub(crate) const PARAMETER_GROUP: &str = "parameter";

/// Groups of tensors in one map, under the names `{group}/{name}`.
#[derive(Debug, Default)]
pub(crate) struct TensorGroups(pub(crate) NamedTensors);

impl TensorGroups {
    pub(crate) fn insert(&mut self, group: &str, tensors: NamedTensors) {
        let named = tensors.into_iter().map(|(name, t)| (format!("{group}/{name}"), t));
        self.0.extend(named);
    }

    /// Tensors of one group under their own names.
    pub(crate) fn get(tensors: &NamedTensors, group: &str) -> NamedTensors {
        let own = |(name, t): (&String, &Tensor)| {
            let name = name.strip_prefix(group)?.strip_prefix('/')?;
            Some((name.to_owned(), t.clone()))
        };
        tensors.iter().filter_map(own).collect()
    }
}
