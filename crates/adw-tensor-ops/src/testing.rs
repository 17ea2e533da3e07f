//! Numbers and gradient check for the tests of this crate.

use adw_testing::{assert_close, central_differences, tolerance};
use candle_core::{Tensor, Var};

/// Reproducible numbers in (-1, 1).
pub(crate) fn numbers(seed: u32, n: usize) -> Vec<f64> {
    use crate::philox::{Purpose, Stream};
    let stream = Stream { seed: 0, purpose: Purpose::Other, epoch: 0, iteration: 0, index: seed };
    stream.uniform().take(n).map(|u| 2.0 * u - 1.0).collect()
}

/// Compares candle's gradient of the scalar `f` by `x` (f64) with central differences, at up to 40 elements.
pub(crate) fn finite_difference(what: &str, x: &Var, f: impl Fn(&Tensor) -> Tensor) {
    let grad = f(x).backward().unwrap().get(x).unwrap_or_else(|| panic!("{what}: no gradient")).clone();
    let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let values = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let indices = (0..values.len()).step_by(values.len().div_ceil(40));
    let numeric = central_differences(&values, indices.clone(), 1e-5, |values| {
        f(&Tensor::from_slice(values, x.shape(), x.device()).unwrap()).to_scalar::<f64>().unwrap()
    });
    let grad: Vec<f64> = indices.map(|i| grad[i]).collect();
    assert_close(what, &grad, &numeric, tolerance::FINITE_DIFFERENCE);
}
