//! Gumbel-softmax (Jang, Gu, Poole: *Categorical reparameterization with Gumbel-softmax*, ICLR 2017).

mod cpu;
mod cuda;
pub(crate) mod kernels;
mod one;

use crate::backend;
use crate::error::{Error, Result};
use candle_core::Tensor;
use kernels::{OP, check_index, check_tau};

pub use kernels::{GumbelDraw, SoftmaxGradient, SoftmaxNoise, SoftmaxOutput, SoftmaxSpec};
pub use one::{gumbel_softmax, noise};

/// Checks what kernels rely on.
fn check(softmaxes: &[SoftmaxSpec], draw: &GumbelDraw) -> Result<()> {
    check_tau(draw.tau)?;
    for s in softmaxes {
        let n = s.logits.elem_count();
        if s.logits.rank() != 1 || n == 0 {
            let (got, expected) = (s.logits.shape().clone(), "[n], at least one option".into());
            return Err(Error::Shape { op: OP, what: "logits", got, expected });
        }
        if let Some(widths) = s.widths.as_ref().filter(|w| w.len() != n || w.iter().any(|&w| w > s.channels)) {
            let what = format!("widths {widths:?}, expected {n} of at most {} channels", s.channels);
            return Err(Error::Argument { op: OP, what });
        }
        check_index(s.index)?;
    }
    Ok(())
}

/// Value of every softmax of a pass, without gradient: `softmax((logits + noise) / tau)` of each choice, and the gates of
/// widths. On a CUDA device this is one launch.
///
/// # Errors
/// If the temperature is not positive, a softmax has too many options, or shapes or element types do not fit together.
pub fn forward(softmaxes: &[SoftmaxSpec], draw: &GumbelDraw) -> Result<Vec<SoftmaxOutput>> {
    match softmaxes.first() {
        None => Ok(Vec::new()),
        Some(first) => {
            check(softmaxes, draw)?;
            backend::of(OP, first.logits)?.gumbel_softmaxes(softmaxes, draw)
        }
    }
}

/// Gradient with respect to the logits of every softmax, `[n]` each: `outputs` are those of [`forward`] for the same
/// draw, `gradients` the gradients by each.
///
/// # Errors
/// If a gradient or an output does not belong to its softmax, or lies elsewhere.
///
/// # Panics
/// If there is not one output and one gradient per softmax.
pub fn backward(
    softmaxes: &[SoftmaxSpec],
    draw: &GumbelDraw,
    outputs: &[SoftmaxOutput],
    gradients: &[SoftmaxGradient],
) -> Result<Vec<Tensor>> {
    assert_eq!([outputs.len(), gradients.len()], [softmaxes.len(); 2], "one output and one gradient per softmax");
    match softmaxes.first() {
        None => Ok(Vec::new()),
        Some(first) => {
            check(softmaxes, draw)?;
            for (s, output) in softmaxes.iter().zip(outputs) {
                let gate = output.gate.as_ref().map(Tensor::elem_count);
                if output.probabilities.elem_count() != s.logits.elem_count()
                    || gate != s.widths.as_ref().map(|_| s.channels)
                {
                    return Err(Error::Argument { op: OP, what: "an output of another softmax".into() });
                }
            }
            backend::of(OP, first.logits)?.gumbel_softmaxes_backward(softmaxes, draw, outputs, gradients)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adw_testing::{assert_close, central_differences, tolerance};
    use candle_core::{DType, Device, Tensor, Var};

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
    fn specifications_that_do_not_fit_are_refused() {
        let logits = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let spec = |widths: &[usize], index| SoftmaxSpec {
            logits: &logits,
            purpose: crate::philox::Purpose::WidthNoise,
            index,
            widths: Some(widths.to_vec()),
            channels: 8,
        };
        let run = |spec: SoftmaxSpec, tau| forward(&[spec], &GumbelDraw { noise: SoftmaxNoise::Zero, tau });
        let outputs = run(spec(&[4, 8], 0), 1.0).unwrap();
        assert!(run(spec(&[4, 9], 0), 1.0).is_err(), "more channels than the gate has");
        assert!(run(spec(&[4], 0), 1.0).is_err(), "another number of widths");
        assert!(run(spec(&[4, 8], 1 << 24), 1.0).is_err(), "an index beyond the streams'");
        assert!(run(spec(&[4, 8], 0), 0.0).is_err(), "no temperature");
        let gradient = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
        let narrow = SoftmaxSpec { channels: 8, widths: None, ..spec(&[4, 8], 0) };
        let draw = GumbelDraw { noise: SoftmaxNoise::Zero, tau: 1.0 };
        assert!(backward(&[narrow], &draw, &outputs, &[SoftmaxGradient::Gate(&gradient)]).is_err());
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
