//! Parameters of a network, and their gradients.

use crate::error::Result;
use adw_tensor_ops::philox::{Purpose, Stream};
use candle_core::{DType, Device, Shape, Tensor, Var};

/// Kind of a parameter. In a search, each kind has an optimiser of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Convolution weights, scales and shifts of the normalisations.
    Weight,
    /// Logits of the choices among widths (alpha) and depths (beta).
    Architecture,
}

/// A named parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name, unique within the network; also that of the tensor in files.
    pub name: String,
    /// Kind of the parameter.
    pub role: Role,
    /// Value.
    pub var: Var,
}

/// One gradient per parameter, in the order of `parameters()`. None for parameters of a role that was not requested,
/// and for those that the loss does not depend on; optimisers leave such a parameter unchanged, as PyTorch's do.
pub type Gradients = Vec<Option<Tensor>>;

/// Origin of the parameters' values.
enum Values<'a> {
    /// Initial values, a function of the seed.
    Initial(u64),
    /// Values by name and shape.
    Given(&'a dyn Fn(&str, &Shape) -> Result<Tensor>),
}

/// Parameters of a network under construction.
pub(crate) struct ParameterBuilder<'a> {
    pub(crate) parameters: Vec<Parameter>,
    values: Values<'a>,
    dtype: DType,
    device: &'a Device,
}

impl<'a> ParameterBuilder<'a> {
    /// Parameters with initial values, a function of `seed`.
    pub(crate) fn new(seed: u64, dtype: DType, device: &'a Device) -> Self {
        Self { parameters: Vec::new(), values: Values::Initial(seed), dtype, device }
    }

    /// Parameters with the values that `value(name, shape)` returns.
    pub(crate) fn of(value: &'a dyn Fn(&str, &Shape) -> Result<Tensor>, dtype: DType, device: &'a Device) -> Self {
        Self { parameters: Vec::new(), values: Values::Given(value), dtype, device }
    }

    fn push(
        &mut self,
        name: String,
        role: Role,
        shape: &Shape,
        initial: impl FnOnce(u64) -> Result<Tensor>,
    ) -> Result<usize> {
        let value = match self.values {
            Values::Initial(seed) => initial(seed)?,
            Values::Given(value) => value(&name, shape)?,
        };
        let var = Var::from_tensor(&value.to_dtype(self.dtype)?.to_device(self.device)?)?;
        self.parameters.push(Parameter { name, role, var });
        Ok(self.parameters.len() - 1)
    }

    /// Adds a vector of `n` equal values and returns its index.
    pub(crate) fn constant(&mut self, name: String, role: Role, n: usize, value: f64) -> Result<usize> {
        self.push(name, role, &n.into(), |_| Ok(Tensor::full(value, n, &Device::Cpu)?))
    }

    /// Adds a weight and returns its index. He initialisation for LeakyReLU(0.01), as in nnU-Net (PyTorch's
    /// `kaiming_normal_`): normal with variance `2 / (1.0001 fan_in)`, where the fan is the product of all dimensions
    /// but the first, also for transposed convolutions.
    pub(crate) fn he_normal(&mut self, name: String, shape: impl Into<Shape>) -> Result<usize> {
        let shape = shape.into();
        let index = self.parameters.len() as u32;
        self.push(name, Role::Weight, &shape, |seed| {
            let fan_in = shape.elem_count() / shape.dims()[0];
            let std = (2.0 / (1.0 + 0.01f64.powi(2)) / fan_in as f64).sqrt();
            let stream = Stream { seed, purpose: Purpose::Initialisation, epoch: 0, iteration: 0, index };
            let values: Vec<f32> = stream.normal().take(shape.elem_count()).map(|x| (x * std) as f32).collect();
            Ok(Tensor::from_vec(values, &shape, &Device::Cpu)?)
        })
    }
}
