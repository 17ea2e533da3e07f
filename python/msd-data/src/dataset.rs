//! Datasets, their check and their plan.

use std::path::PathBuf;

use msd_data::{PhantomOptions, PlanOptions, Positions, check_dataset, fingerprint, five_folds};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::call::{exception, from_python, interruptible, memory, released, to_python};

/// A dataset in the layout of the Medical Segmentation Decathlon (MSD) or of nnU-Net v2.
///
/// Args:
///     path: The folder that holds ``dataset.json``.
///     ignore_positions: Use labels and channels voxel by voxel, wherever their headers place them in the scanner.
///
/// Raises:
///     FileNotFoundError: There is no ``dataset.json``, or a file that it lists is missing.
///     ValueError: ``dataset.json`` says something impossible.
#[pyclass(frozen, module = "msd_data")]
pub(crate) struct Dataset {
    pub(crate) dataset: msd_data::Dataset,
}

#[pymethods]
impl Dataset {
    #[new]
    #[pyo3(signature = (path, *, ignore_positions=false))]
    fn new(py: Python<'_>, path: PathBuf, ignore_positions: bool) -> PyResult<Self> {
        let dataset = released(py, || msd_data::Dataset::open(&path))?;
        Ok(Self { dataset: msd_data::Dataset { positions: Positions::ignored_if(ignore_positions), ..dataset } })
    }

    /// The folder that holds ``dataset.json``.
    #[getter]
    fn root(&self) -> PathBuf {
        self.dataset.root.clone()
    }

    /// The dataset's name.
    #[getter]
    fn name(&self) -> &str {
        &self.dataset.name
    }

    /// Names of the image channels.
    #[getter]
    fn channels(&self) -> Vec<String> {
        self.dataset.modalities.clone()
    }

    /// Names of the labels by value; 0 is the background.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let labels = PyDict::new(py);
        self.dataset.labels.iter().try_for_each(|label| labels.set_item(label.value, &label.name))?;
        Ok(labels)
    }

    /// Ids of the cases with labels, sorted.
    #[getter]
    fn cases(&self) -> Vec<String> {
        self.dataset.training_ids()
    }

    /// Ids of the cases without labels, sorted.
    #[getter]
    fn test_cases(&self) -> Vec<String> {
        self.dataset.test.iter().map(|case| case.id.clone()).collect()
    }

    /// The files of a case's image: one that holds all channels, or one for each.
    fn image(&self, case: &str) -> PyResult<Vec<PathBuf>> {
        if let Some(case) = self.dataset.test.iter().find(|test| test.id == case) {
            return Ok(case.image.clone());
        }
        Ok(self.labelled(case)?.image.clone())
    }

    /// The file of a case's label map.
    fn label(&self, case: &str) -> PyResult<PathBuf> {
        Ok(self.labelled(case)?.label.clone())
    }

    /// nnU-Net's five folds, each a pair of the ids to train on and the ids to validate on.
    fn folds(&self) -> PyResult<Vec<(Vec<String>, Vec<String>)>> {
        let folds = five_folds(&self.dataset.training_ids()).map_err(|error| exception(&error))?;
        Ok(folds.into_iter().map(|fold| (fold.train, fold.validation)).collect())
    }

    fn __repr__(&self) -> String {
        let msd_data::Dataset { name, training, test, .. } = &self.dataset;
        format!("<msd_data.Dataset {name}: {} cases with labels, {} without>", training.len(), test.len())
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let options = PyDict::new(py);
        options.set_item("ignore_positions", self.dataset.positions == Positions::Ignored)?;
        Ok(((self.root(),).into_pyobject(py)?, options))
    }
}

impl Dataset {
    fn labelled(&self, case: &str) -> PyResult<&msd_data::Case> {
        self.dataset.training_case(case).map_err(|error| PyKeyError::new_err(error.to_string()))
    }
}

#[pyfunction]
pub(crate) fn check(
    py: Python<'_>,
    path: PathBuf,
    ignore_positions: bool,
    memory_gb: Option<f64>,
) -> PyResult<Bound<'_, PyAny>> {
    let positions = Positions::ignored_if(ignore_positions);
    let problems = interruptible(py, memory(memory_gb)?, |memory| Ok(check_dataset(&path, positions, memory)))?;
    to_python(py, &problems)
}

#[pyfunction]
pub(crate) fn plan<'py>(
    py: Python<'py>,
    dataset: &Bound<'py, Dataset>,
    gpu_memory_gb: f64,
    spacing_mm: Option<[f64; 3]>,
    batch_size: Option<usize>,
    memory_gb: Option<f64>,
) -> PyResult<Bound<'py, PyAny>> {
    let dataset = &dataset.get().dataset;
    let options = PlanOptions { gpu_memory_gb, spacing_mm, batch_size };
    let plan = interruptible(py, memory(memory_gb)?, |memory| {
        msd_data::plan(&fingerprint(dataset, memory)?, dataset, &options)
    })?;
    to_python(py, &plan)
}

#[pyfunction]
#[pyo3(signature = (path, **options))]
pub(crate) fn write_phantom(py: Python<'_>, path: PathBuf, options: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let options: PhantomOptions = match options {
        Some(options) => from_python("phantom", options)?,
        None => PhantomOptions::default(),
    };
    released(py, || msd_data::write_phantom(&path, &options))
}
