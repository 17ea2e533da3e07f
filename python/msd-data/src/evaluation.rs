//! Metrics of arrays and of folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use msd_data::metrics::{label_metrics, labels_in};
use msd_data::{EvaluationOptions, Positions, evaluate_folder};
use numpy::PyReadonlyArray3;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::call::{interruptible, memory, released, to_python};

fn check_lengths(name: &str, lengths: &[f64], is_valid: impl Fn(f64) -> bool, expected: &str) -> PyResult<()> {
    if lengths.iter().all(|&mm| mm.is_finite() && is_valid(mm)) {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{name} is {lengths:?}; expected {expected}")))
}

#[pyfunction]
pub(crate) fn metrics<'py>(
    py: Python<'py>,
    prediction: PyReadonlyArray3<'py, u16>,
    reference: PyReadonlyArray3<'py, u16>,
    spacing_mm: [f64; 3],
    labels: Option<Vec<u16>>,
    tolerance_mm: f64,
) -> PyResult<Bound<'py, PyAny>> {
    check_lengths("spacing_mm", &spacing_mm, |mm| mm > 0.0, "three positive numbers")?;
    check_lengths("tolerance_mm", &[tolerance_mm], |mm| mm >= 0.0, "a length of at least 0")?;
    let (prediction, reference) = (prediction.as_array(), reference.as_array());
    if prediction.shape() != reference.shape() {
        let (found, expected) = (prediction.shape(), reference.shape());
        return Err(PyValueError::new_err(format!("prediction: shape {found:?}, the reference's is {expected:?}")));
    }
    let found = released(py, || {
        let labels: BTreeSet<u16> = match labels {
            Some(labels) => labels.into_iter().collect(),
            None => &labels_in(&prediction, Path::new("prediction"))? | &labels_in(&reference, Path::new("reference"))?,
        };
        let of_label = |label| Ok((label, label_metrics(&prediction, &reference, label, spacing_mm, tolerance_mm)?));
        labels.into_iter().map(of_label).collect::<msd_data::Result<BTreeMap<_, _>>>()
    })?;
    to_python(py, &found)
}

#[pyfunction]
pub(crate) fn evaluate(
    py: Python<'_>,
    predictions: PathBuf,
    references: PathBuf,
    labels: Option<Vec<u16>>,
    tolerance_mm: f64,
    require_all: bool,
    ignore_positions: bool,
    memory_gb: Option<f64>,
) -> PyResult<Bound<'_, PyAny>> {
    check_lengths("tolerance_mm", &[tolerance_mm], |mm| mm >= 0.0, "a length of at least 0")?;
    let report = interruptible(py, memory(memory_gb)?, |memory| {
        let positions = Positions::ignored_if(ignore_positions);
        let options = EvaluationOptions { labels, tolerance_mm, require_all, positions, memory };
        evaluate_folder(&predictions, &references, &options)
    })?;
    to_python(py, &report)
}
