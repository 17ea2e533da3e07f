//! Parameters of a network, and their gradients.

use crate::error::Result;
use adw_tensor_ops::philox::{Purpose, Stream};
use candle_core::{DType, Device, Shape, Tensor, Var};

/// Kind of a parameter. In a search, each kind has an optimiser of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Convolution weights, gamma, beta.
    Weight,
    /// Alpha and beta: the logits of the choices among widths and depths.
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

/// Parameters of a network under construction, with the seed of their initial values.
pub(crate) struct ParameterBuilder<'a> {
    pub(crate) parameters: Vec<Parameter>,
    seed: u64,
    dtype: DType,
    device: &'a Device,
}

impl<'a> ParameterBuilder<'a> {
    pub(crate) fn new(seed: u64, dtype: DType, device: &'a Device) -> Self {
        Self { parameters: Vec::new(), seed, dtype, device }
    }

    fn push(&mut self, name: String, role: Role, value: &Tensor) -> Result<usize> {
        self.parameters.push(Parameter {
            name,
            role,
            var: Var::from_tensor(&value.to_dtype(self.dtype)?.to_device(self.device)?)?,
        });
        Ok(self.parameters.len() - 1)
    }

    /// Adds a vector of `n` equal values and returns its index.
    pub(crate) fn constant(&mut self, name: String, role: Role, n: usize, value: f64) -> Result<usize> {
        let t = Tensor::full(value, n, &Device::Cpu)?;
        self.push(name, role, &t)
    }

    /// Adds a weight and returns its index. He initialisation for LeakyReLU(0.01), as in nnU-Net (PyTorch's
    /// `kaiming_normal_`): normal with variance `2 / (1.0001 fan_in)`, where the fan is the product of all dimensions
    /// but the first, also for transposed convolutions.
    pub(crate) fn he_normal(&mut self, name: String, shape: impl Into<Shape>) -> Result<usize> {
        let shape = shape.into();
        let fan_in = shape.elem_count() / shape.dims()[0];
        let std = (2.0 / (1.0 + 0.01f64.powi(2)) / fan_in as f64).sqrt();
        let stream = Stream {
            seed: self.seed,
            purpose: Purpose::Initialisation,
            epoch: 0,
            iteration: 0,
            index: self.parameters.len() as u32,
        };
        let values: Vec<f32> = stream.normal().take(shape.elem_count()).map(|x| (x * std) as f32).collect();
        let t = Tensor::from_vec(values, shape, &Device::Cpu)?;
        self.push(name, Role::Weight, &t)
    }
}
