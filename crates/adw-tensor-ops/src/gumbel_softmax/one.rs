//! One softmax as an op of candle's graph.

use super::kernels::{OP, check_index, check_tau};
use crate::error::{Error, Result};
use crate::philox::Stream;
use candle_core::{D, DType, Device, Tensor};

/// `softmax((logits + noise) / tau)` over the last dimension; differentiable in `logits`. Zero noise gives the
/// temperature-scaled softmax.
///
/// # Errors
/// If `tau` is not positive or the shapes differ.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[0f64, 1., 2.], &Device::Cpu)?;
/// let g = adw_tensor_ops::gumbel_softmax(&logits, &logits.zeros_like()?, 0.1)?;
/// assert!(g.to_vec1::<f64>()?[2] > 0.99);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gumbel_softmax(logits: &Tensor, noise: &Tensor, tau: f64) -> Result<Tensor> {
    check_tau(tau)?;
    if logits.dims() != noise.dims() {
        return Err(Error::Shape {
            op: OP,
            what: "noise",
            got: noise.shape().clone(),
            expected: format!("{:?}, as the logits", logits.shape()),
        });
    }
    let x = ((logits + noise)? / tau)?;
    let x = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(x.broadcast_div(&x.sum_keepdim(D::Minus1)?)?)
}

/// Draws `n` standard Gumbel numbers of a stream.
///
/// # Errors
/// If the stream's index is not below [`Stream::INDICES`], or the tensor cannot be made on `device`.
pub fn noise(stream: Stream, n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    check_index(stream.index)?;
    let values: Vec<f64> = stream.gumbel().take(n).collect();
    Ok(Tensor::from_vec(values, n, device)?.to_dtype(dtype)?)
}
