//! Batches of augmented patches.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use msd_data::{
    Augmentation, BatchKey, Loader, Memory, MirrorAxes, Plan, Purpose, SampledBatch, TrainingCase,
    prepare_training_cases, store_training_cases, training_cases_bytes,
};
use ndarray::Array;
use numpy::{IntoPyArray, PyArray4, PyArray5};
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::call::{exception, from_python, interruptible, memory, plan_of, released, to_python};
use crate::dataset::Dataset;

/// Images `[B, C, D, H, W]` and labels `[B, D, H, W]` of a batch.
type Batch<'py> = (Bound<'py, PyArray5<f32>>, Bound<'py, PyArray4<u8>>);

fn to_arrays(py: Python<'_>, batch: SampledBatch) -> Batch<'_> {
    let SampledBatch { x, x_shape, target, target_shape, .. } = batch;
    let x = Array::from_shape_vec(x_shape, x).expect("the batch has its shape");
    let target = Array::from_shape_vec(target_shape, target).expect("the batch has its shape");
    (x.into_pyarray(py), target.into_pyarray(py))
}

/// Augmented patches of labelled cases, drawn by the rules of nnU-Net's data loader.
///
/// Cases are drawn uniformly with replacement; the last third of a batch is centred on foreground; patches may reach beyond
/// the image, where they are 0 and background. A batch is a function of (seed, purpose, epoch, iteration) alone: the same on
/// every thread, in every process, after every restart.
///
/// The cases are prepared when the sampler is made, and kept in memory, or in files of ``folder``. A sampler can be
/// pickled; the copy prepares its cases again, or opens the files of ``folder``. A forked process shares memory instead.
///
/// Args:
///     dataset: The dataset.
///     plan: Its plan, as :func:`plan` returns it.
///     cases: Ids of the cases, by default all with labels.
///     patch_size: Voxels along D, H, W, by default the plan's.
///     batch_size: Patches per batch, by default the plan's.
///     augmentation: ``"full"`` (nnU-Net's transforms and probabilities), ``"light"``, ``"none"``, or probabilities that
///         differ from those of ``"full"``; see :func:`augmentation`.
///     seed: The seed.
///     purpose: ``"weights"``, ``"architecture"`` or ``"validation"``: batches of different purposes share no numbers.
///     forced_foreground: Part of each batch whose patches must show foreground.
///     folder: Folder for prepared cases, of which patches read what they need; files that fit are used again.
///     memory_gb: Limit of memory, by default what is available.
///
/// Raises:
///     ValueError: A case that does not exist or cannot be used; an impossible size or probability.
///     MemoryError: The cases do not fit into memory.
#[pyclass(frozen, module = "msd_data")]
pub(crate) struct PatchSampler {
    sampler: Arc<msd_data::PatchSampler>,
    /// Ids of the cases.
    cases: Vec<String>,
    seed: u64,
    purpose: Purpose,
    /// Shape of an image batch.
    shape: [usize; 5],
    /// Arguments of the constructor, for pickles.
    arguments: Py<PyDict>,
}

fn purpose_of(name: &str) -> PyResult<Purpose> {
    match name {
        "weights" => Ok(Purpose::Weights),
        "architecture" => Ok(Purpose::Architecture),
        "validation" => Ok(Purpose::Validation),
        _ => Err(PyValueError::new_err(format!(
            "purpose is {name:?}; expected \"weights\", \"architecture\" or \"validation\""
        ))),
    }
}

/// Probabilities of a preset's name, or of a mapping that changes those of the preset `full`.
fn augmentation_of(value: &Bound<'_, PyAny>, plan: &Plan) -> PyResult<Augmentation> {
    let mut found = if let Ok(name) = value.cast::<PyString>() {
        Augmentation::preset(&name.to_cow()?).map_err(|error| exception(&error))?
    } else {
        let all = to_python(value.py(), &Augmentation::full())?.cast_into::<PyDict>()?;
        all.call_method1("update", (value,))?;
        from_python("augmentation", &all)?
    };
    let axes = found.mirror_axes.in_plan(plan).map_err(|error| exception(&error))?;
    found.mirror_axes = MirrorAxes::of_patch(axes);
    Ok(found)
}

/// Prepares cases: in memory if there is no folder for them.
fn prepare(
    dataset: &msd_data::Dataset,
    ids: &[String],
    plan: &Plan,
    folder: Option<&Path>,
    memory: Memory,
) -> msd_data::Result<Vec<TrainingCase>> {
    if let Some(folder) = folder {
        let stored = store_training_cases(dataset, ids, plan, folder, memory)?;
        return Ok(stored.into_iter().map(TrainingCase::from).collect());
    }
    let need = training_cases_bytes(dataset, ids, plan)?;
    let all = need.prepared.saturating_add(need.preparing_largest);
    memory.check(all, || format!("{} prepared cases (a folder keeps them in files)", ids.len()))?;
    let prepared = prepare_training_cases(dataset, ids, plan, memory.less(need.prepared))?;
    Ok(prepared.into_iter().map(TrainingCase::from).collect())
}

#[pyfunction]
pub(crate) fn augmentation<'py>(py: Python<'py>, preset: &str) -> PyResult<Bound<'py, PyAny>> {
    to_python(py, &Augmentation::preset(preset).map_err(|error| exception(&error))?)
}

#[pymethods]
impl PatchSampler {
    #[new]
    #[pyo3(signature = (dataset, plan, cases=None, *, patch_size=None, batch_size=None, augmentation=None, seed=0,
        purpose="weights", forced_foreground=0.33, folder=None, memory_gb=None))]
    fn new(
        dataset: &Bound<'_, Dataset>,
        plan: &Bound<'_, PyAny>,
        cases: Option<Vec<String>>,
        patch_size: Option<[usize; 3]>,
        batch_size: Option<usize>,
        augmentation: Option<&Bound<'_, PyAny>>,
        seed: u64,
        purpose: &str,
        forced_foreground: f64,
        folder: Option<PathBuf>,
        memory_gb: Option<f64>,
    ) -> PyResult<Self> {
        let py = dataset.py();
        let plan = plan_of(plan)?;
        let arguments = PyDict::new(py);
        arguments.set_item("dataset", dataset)?;
        arguments.set_item("plan", to_python(py, &plan)?)?;
        arguments.set_item("cases", &cases)?;
        arguments.set_item("patch_size", patch_size)?;
        arguments.set_item("batch_size", batch_size)?;
        arguments.set_item("augmentation", augmentation)?;
        arguments.set_item("seed", seed)?;
        arguments.set_item("purpose", purpose)?;
        arguments.set_item("forced_foreground", forced_foreground)?;
        arguments.set_item("folder", &folder)?;
        arguments.set_item("memory_gb", memory_gb)?;

        let purpose = purpose_of(purpose)?;
        if !(0.0..=1.0).contains(&forced_foreground) {
            return Err(PyValueError::new_err(format!("forced_foreground is {forced_foreground}; expected 0 to 1")));
        }
        let augmentation = match augmentation {
            Some(value) => augmentation_of(value, &plan)?,
            None => Augmentation::full(),
        };
        let (patch_size, batch_size) = (patch_size.unwrap_or(plan.patch_size), batch_size.unwrap_or(plan.batch_size));
        let [d, h, w] = patch_size;
        let shape = [batch_size, plan.modalities.len(), d, h, w];
        let memory = memory(memory_gb)?;
        // A patch with room for its rotation, as it is drawn and as it is transformed, besides the batch.
        let bytes = shape.iter().try_fold(16u64, |bytes, &n| bytes.checked_mul(n as u64));
        if !bytes.is_some_and(|bytes| memory.holds(bytes)) {
            return Err(PyMemoryError::new_err(format!(
                "batches of {batch_size} patches of {patch_size:?} voxels do not fit into memory"
            )));
        }
        let dataset = &dataset.get().dataset;
        let cases = cases.unwrap_or_else(|| dataset.training_ids());
        let sampler = interruptible(py, memory, |memory| {
            let prepared = prepare(dataset, &cases, &plan, folder.as_deref(), memory)?;
            let masked = &plan.use_mask_for_norm;
            msd_data::PatchSampler::new(prepared, patch_size, batch_size, augmentation, masked)
        })?;
        let sampler = Arc::new(sampler.with_forced_foreground(forced_foreground));
        Ok(Self { sampler, cases, seed, purpose, shape, arguments: arguments.unbind() })
    }

    /// Ids of the cases that patches are drawn from.
    #[getter]
    fn cases(&self) -> Vec<String> {
        self.cases.clone()
    }

    /// Shape of an image batch, (B, C, D, H, W).
    #[getter]
    fn shape(&self) -> (usize, usize, usize, usize, usize) {
        self.shape.into()
    }

    /// Draw a batch: images (float32, [B, C, D, H, W]) and labels (uint8, [B, D, H, W]).
    ///
    /// The arrays own the memory that was filled: nothing is copied, and ``torch.from_numpy`` shares it. Other Python
    /// threads run meanwhile.
    fn batch<'py>(&self, py: Python<'py>, epoch: u64, iteration: u64) -> PyResult<Batch<'py>> {
        let batch = released(py, || self.sampler.batch(self.key(epoch, iteration)))?;
        Ok(to_arrays(py, batch))
    }

    /// Return the ids of the cases of a batch's patches, without drawing it.
    fn batch_cases(&self, epoch: u64, iteration: u64) -> Vec<&str> {
        let indices = self.sampler.cases(self.key(epoch, iteration));
        indices.into_iter().map(|case| self.cases[case].as_str()).collect()
    }

    /// Iterate over the batches of an epoch, which threads draw ahead.
    ///
    /// Args:
    ///     epoch: The epoch.
    ///     num_batches: Batches of the epoch; nnU-Net's epochs have 250.
    ///     start: Iteration to begin with, to go on within an epoch.
    ///     num_threads: Threads that draw; with 0 each batch is drawn when it is fetched.
    ///     prefetch: Batches that may wait to be fetched.
    #[pyo3(signature = (epoch, num_batches=250, *, start=0, num_threads=2, prefetch=4))]
    fn batches(&self, epoch: u64, num_batches: u64, start: u64, num_threads: usize, prefetch: usize) -> Batches {
        let (seed, purpose) = (self.seed, self.purpose);
        let keys = (start..num_batches).map(move |iteration| BatchKey { seed, purpose, epoch, iteration });
        let loader = Loader::new(Arc::clone(&self.sampler), keys, num_threads.min(256), prefetch);
        let len = usize::try_from(num_batches.saturating_sub(start)).unwrap_or(usize::MAX);
        Batches { loader: Mutex::new(Some(loader)), len, process: process::id() }
    }

    fn __repr__(&self) -> String {
        format!("<msd_data.PatchSampler of {} cases, batches {:?}>", self.cases.len(), self.shape)
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> ((), Bound<'py, PyDict>) {
        ((), self.arguments.bind(py).clone())
    }
}

impl PatchSampler {
    fn key(&self, epoch: u64, iteration: u64) -> BatchKey {
        BatchKey { seed: self.seed, purpose: self.purpose, epoch, iteration }
    }
}

/// Iterator over the batches of an epoch.
#[pyclass(frozen, module = "msd_data")]
pub(crate) struct Batches {
    loader: Mutex<Option<Loader>>,
    /// Number of batches, those that were fetched included.
    len: usize,
    /// Process that has the loader's threads.
    process: u32,
}

#[pymethods]
impl Batches {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __len__(&self) -> usize {
        self.len
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Batch<'py>>> {
        if self.process != process::id() {
            return Err(PyRuntimeError::new_err("batches of another process; call PatchSampler.batches in this one"));
        }
        let next = || self.loader.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(Iterator::next);
        let batch = released(py, || next().transpose())?;
        Ok(batch.map(|batch| to_arrays(py, batch)))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // Threads do not survive a fork, so a forked process cannot wait for their end.
        let loader = self.loader.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.process != process::id() {
            std::mem::forget(loader);
        }
    }
}
