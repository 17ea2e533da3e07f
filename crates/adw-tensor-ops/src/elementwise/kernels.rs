//! Kernels of operations element by element.

use crate::error::Result;
use candle_core::Tensor;

/// Kernels on one kind of device.
pub(crate) trait ElementwiseKernels {
    /// Sum of two tensors of one shape.
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
}
