#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod tolerance;

#[cfg(test)]
mod tests;

use std::fmt;
use tolerance::Measure;
pub use tolerance::Tolerance;

/// Result of comparing two lists of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// Error of the worst element, or of all elements, as [`Measure`] says.
    pub error: f64,
    /// Largest error that the tolerance allows, measured alike.
    pub allowed: f64,
    /// Index of the element that exceeds its own bound by most.
    pub worst_idx: usize,
    /// Computed value of that element.
    pub got: f64,
    /// Expected value of that element.
    pub expected: f64,
    measure: Measure,
}

impl Difference {
    /// Returns true if the error is within the tolerance. NaN never is.
    pub fn is_close(&self) -> bool {
        self.error <= self.allowed
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.measure {
            Measure::Elements => "this element",
            Measure::RootMeanSquare => "root mean square of all elements",
        };
        write!(
            f,
            "{:.1e} where {:.1e} is allowed ({of}); worst element {}: got {}, expected {}",
            self.error, self.allowed, self.worst_idx, self.got, self.expected
        )
    }
}

/// Compares two lists of numbers: `|got - expected| <= abs + rel |expected|`, for every element or for the root mean
/// squares of both sides, as the tolerance says. Equal infinities are close, NaN is close to nothing.
///
/// # Panics
/// If the lists have different lengths.
#[track_caller]
pub fn difference<G, E>(got: &[G], expected: &[E], tolerance: Tolerance) -> Difference
where
    G: Copy + Into<f64>,
    E: Copy + Into<f64>,
{
    assert_eq!(got.len(), expected.len(), "number of elements");
    let value = |i: usize| -> (f64, f64) { (got[i].into(), expected[i].into()) };
    let error = |i: usize| match value(i) {
        (g, e) if g == e => 0.0,
        (g, e) if g.is_finite() && e.is_finite() => (g - e).abs(),
        _ => f64::NAN,
    };
    let bound = |i: usize| tolerance.abs + tolerance.rel * value(i).1.abs();
    let excess = |i: usize| if error(i).is_nan() { f64::INFINITY } else { error(i) - bound(i) };
    let n = got.len();
    let Some(worst_idx) = (0..n).max_by(|&a, &b| excess(a).total_cmp(&excess(b))) else {
        return Difference {
            error: 0.0,
            allowed: 0.0,
            worst_idx: 0,
            got: 0.0,
            expected: 0.0,
            measure: tolerance.measure,
        };
    };
    let root_mean = |squares: f64| (squares / n as f64).sqrt();
    let (error, allowed) = match tolerance.measure {
        Measure::Elements => (error(worst_idx), bound(worst_idx)),
        Measure::RootMeanSquare => {
            let finite = (0..n).map(|i| value(i).1).filter(|e| e.is_finite());
            let scale = root_mean(finite.map(|e| e * e).sum());
            (root_mean((0..n).map(|i| error(i).powi(2)).sum()), tolerance.abs + tolerance.rel * scale)
        }
    };
    let (got, expected) = value(worst_idx);
    Difference { error, allowed, worst_idx, got, expected, measure: tolerance.measure }
}

/// Panics with the worst element and both its values unless `got` is as close to `expected` as `tolerance` demands.
///
/// # Panics
/// If the lists have different lengths or are not close.
#[track_caller]
pub fn assert_close<G, E>(what: impl fmt::Display, got: &[G], expected: &[E], tolerance: Tolerance)
where
    G: Copy + Into<f64>,
    E: Copy + Into<f64>,
{
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let difference = difference(got, expected, tolerance);
    assert!(difference.is_close(), "{what}: {difference}");
}

/// Derivatives of `f` at `x` by the elements `indices`: `(f(x + step) - f(x - step)) / (2 step)`.
pub fn central_differences(
    x: &[f64],
    indices: impl IntoIterator<Item = usize>,
    step: f64,
    mut f: impl FnMut(&[f64]) -> f64,
) -> Vec<f64> {
    let mut moved = x.to_vec();
    let mut at = |i: usize, value: f64| {
        moved[i] = value;
        let f = f(&moved);
        moved[i] = x[i];
        f
    };
    indices.into_iter().map(|i| (at(i, x[i] + step) - at(i, x[i] - step)) / (2.0 * step)).collect()
}
