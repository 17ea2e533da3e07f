//! Volumes and prepared cases as NumPy arrays that own the memory the crate has filled.

use std::path::PathBuf;

use msd_data::dataset::load_image;
use msd_data::{Case, CaseBytes, CaseProperties, Dataset, Geometry, LabelMap, Positions, Volume};
use numpy::{IntoPyArray, PyArray3, PyArray4, PyReadonlyArray3, PyReadonlyArray4};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::call::{from_python, memory, plan_of, released, to_python};

/// Voxel size (z, y, x, millimetres) and matrix from voxel indices (x, y, z) to millimetres in the scanner.
type Grid = ((f64, f64, f64), [[f64; 4]; 4]);

fn grid(geometry: &Geometry) -> Grid {
    let [x, y, z] = geometry.affine();
    (geometry.spacing_mm.into(), [x, y, z, [0.0, 0.0, 0.0, 1.0]])
}

#[pyfunction]
pub(crate) fn read_image(py: Python<'_>, path: PathBuf) -> PyResult<(Bound<'_, PyArray4<f32>>, Grid)> {
    let Volume { data, geometry } = released(py, || msd_data::read_image(&path))?;
    Ok((data.into_pyarray(py), grid(&geometry)))
}

#[pyfunction]
pub(crate) fn read_labels(py: Python<'_>, path: PathBuf) -> PyResult<(Bound<'_, PyArray3<u16>>, Grid)> {
    let LabelMap { data, geometry } = released(py, || msd_data::read_labels(&path))?;
    Ok((data.into_pyarray(py), grid(&geometry)))
}

#[pyfunction]
pub(crate) fn write_labels(
    py: Python<'_>,
    path: PathBuf,
    labels: PyReadonlyArray3<'_, u16>,
    like: PathBuf,
) -> PyResult<()> {
    let labels = labels.as_array();
    released(py, || {
        let (geometry, _) = msd_data::nifti::read_geometry(&like)?;
        msd_data::write_labels(&path, &labels, &geometry)
    })
}

/// Image, labels and properties of a prepared case.
type Prepared<'py> = (Bound<'py, PyArray4<f32>>, Option<Bound<'py, PyArray3<i16>>>, Bound<'py, PyAny>);

#[pyfunction]
pub(crate) fn preprocess<'py>(
    py: Python<'py>,
    image: Vec<PathBuf>,
    labels: Option<PathBuf>,
    plan: &Bound<'py, PyAny>,
    ignore_positions: bool,
    memory_gb: Option<f64>,
) -> PyResult<Prepared<'py>> {
    if image.is_empty() {
        return Err(PyValueError::new_err("image: no file; expected one with all channels, or one for each"));
    }
    let plan = plan_of(plan)?;
    let memory = memory(memory_gb)?;
    let case = released(py, || {
        memory.check(CaseBytes::of(&image, &plan)?.preparing, || msd_data::dataset::described(&image))?;
        let positions = Positions::ignored_if(ignore_positions);
        let (image, labels) = match labels {
            None => (load_image(&image, plan.modalities.len(), positions)?, None),
            Some(label) => {
                // The plan's own channels and labels decide, so that files of any origin are checked as a dataset's are.
                let dataset = Dataset {
                    root: PathBuf::new(),
                    name: plan.dataset_name.clone(),
                    modalities: plan.modalities.clone(),
                    labels: plan.labels.clone(),
                    training: Vec::new(),
                    test: Vec::new(),
                    paths: msd_data::Paths::Listed,
                    positions,
                };
                let (image, labels) = dataset.load_case(&Case { id: String::new(), image, label })?;
                (image, Some(labels))
            }
        };
        msd_data::preprocess(image, labels, &plan)
    })?;
    let properties = to_python(py, &case.properties)?;
    Ok((case.image.into_pyarray(py), case.labels.map(|labels| labels.into_pyarray(py)), properties))
}

#[pyfunction]
pub(crate) fn restore<'py>(
    py: Python<'py>,
    logits: PyReadonlyArray4<'py, f32>,
    properties: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyArray3<u16>>> {
    let properties: CaseProperties = from_python("properties", properties)?;
    check(&properties)?;
    let logits = logits.as_array();
    Ok(released(py, || properties.restore_logits(&logits))?.into_pyarray(py))
}

/// Checks that a crop lies in its image, and that axes are those of an array.
fn check(properties: &CaseProperties) -> PyResult<()> {
    let CaseProperties { crop, shape_before_cropping: before, axes, .. } = properties;
    let bytes = before.iter().try_fold(2u64, |bytes, &n| bytes.checked_mul(n as u64));
    let fits = bytes.is_some_and(|bytes| memory(None).is_ok_and(|memory| memory.holds(bytes)));
    if fits && properties.check().is_ok() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "properties: crop {crop:?} of an image of shape {before:?}, axes {:?}; expected those of a prepared case",
        axes.from
    )))
}
