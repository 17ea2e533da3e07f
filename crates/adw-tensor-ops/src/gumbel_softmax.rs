//! Gumbel-softmax (Jang, Gu, Poole: *Categorical reparameterization with Gumbel-softmax*, ICLR 2017).

pub mod cuda;
#[cfg(feature = "cuda")]
pub mod on_device;

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
    if !tau.is_finite() || tau <= 0.0 {
        return Err(Error::Argument {
            op: "gumbel_softmax",
            what: format!("tau is {tau}, expected a positive number"),
        });
    }
    if logits.dims() != noise.dims() {
        return Err(Error::Shape {
            op: "gumbel_softmax",
            what: "noise",
            got: noise.shape().clone(),
            expected: format!("{:?}, as the logits", logits.shape()),
        });
    }
    let x = ((logits + noise)? / tau)?;
    let x = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(x.broadcast_div(&x.sum_keepdim(D::Minus1)?)?)
}

/// `n` standard Gumbel numbers of a stream.
///
/// # Errors
/// If the tensor cannot be made on `device`.
pub fn noise(stream: Stream, n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let values: Vec<f64> = stream.gumbel().take(n).collect();
    Ok(Tensor::from_vec(values, n, device)?.to_dtype(dtype)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use adw_testing::{assert_close, central_differences, tolerance};
    use candle_core::Var;

    #[test]
    fn value_and_gradient() {
        let logits = Var::new(&[0.3f64, -1.2, 0.8, 0.1], &Device::Cpu).unwrap();
        let noise = Tensor::new(&[0.5f64, 1.5, -0.3, 0.2], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1.0f64, -2.0, 0.5, 3.0], &Device::Cpu).unwrap();
        let f = |x: &Tensor| (gumbel_softmax(x, &noise, 0.7).unwrap() * &weight).unwrap().sum_all().unwrap();
        let y = gumbel_softmax(&logits, &noise, 0.7).unwrap().to_vec1::<f64>().unwrap();
        let e = [0.8f64, 0.3, 0.5, 0.3].map(|x| (x / 0.7).exp());
        let sum: f64 = e.iter().sum();
        assert_close("value", &y, &e.map(|e| e / sum), tolerance::F64_CLOSED_FORM);
        let gradient = f(&logits).backward().unwrap().get(&logits).unwrap().to_vec1::<f64>().unwrap();
        let numeric = central_differences(&logits.to_vec1().unwrap(), 0..4, 1e-5, |x| {
            f(&Tensor::new(x, &Device::Cpu).unwrap()).to_scalar().unwrap()
        });
        assert_close("gradient", &gradient, &numeric, tolerance::FINITE_DIFFERENCE_FEW_TERMS);
    }

    #[test]
    fn bad_arguments() {
        let x = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        for tau in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(gumbel_softmax(&x, &x, tau).is_err());
        }
        assert!(gumbel_softmax(&x, &x.narrow(0, 0, 2).unwrap(), 1.0).is_err());
    }
}
