//! One comparison and one gradient check for all tests of this crate.

use crate::simd::Element;
use candle_core::{Tensor, Var};

/// Reproducible numbers in (-1, 1).
pub(crate) fn numbers(seed: u32, n: usize) -> Vec<f64> {
    use crate::philox::{Purpose, Stream};
    let stream = Stream { seed: 0, purpose: Purpose::Other, epoch: 0, iteration: 0, index: seed };
    stream.uniform().take(n).map(|u| 2.0 * u - 1.0).collect()
}

/// The relative L2 error is at most `tolerance`; the worst element is named if not.
pub(crate) fn assert_close<T: Element>(what: &str, got: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let error = |i: usize| (got[i].to_f64() - expected[i]).abs();
    let norm = expected.iter().map(|e| e * e).sum::<f64>().sqrt();
    let total = (0..got.len()).map(|i| error(i).powi(2)).sum::<f64>().sqrt();
    let worst = (0..got.len()).max_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(0);
    assert!(
        total <= tolerance * norm.max(1e-30),
        "{what}: relative error {:e} > {tolerance:e}; worst at {worst}: got {}, expected {}",
        total / norm,
        got[worst],
        expected[worst]
    );
}

/// Compares candle's gradient of the scalar `f` by `x` (f64) with central differences, at up to 40 elements.
pub(crate) fn finite_difference(what: &str, x: &Var, f: impl Fn(&Tensor) -> Tensor) {
    let grad = f(x).backward().unwrap().get(x).unwrap_or_else(|| panic!("{what}: no gradient")).clone();
    let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let values = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let step = 1e-5;
    let picked: Vec<usize> = (0..values.len()).step_by(values.len().div_ceil(40)).collect();
    let numeric: Vec<f64> = picked
        .iter()
        .map(|&i| {
            let at = |d: f64| {
                let mut v = values.clone();
                v[i] += d;
                f(&Tensor::from_vec(v, x.shape(), x.device()).unwrap()).to_scalar::<f64>().unwrap()
            };
            (at(step) - at(-step)) / (2.0 * step)
        })
        .collect();
    let picked_grad: Vec<f64> = picked.iter().map(|&i| grad[i]).collect();
    assert_close(what, &picked_grad, &numeric, 1e-6);
}
