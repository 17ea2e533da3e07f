//! Python module `msd_data._native`: the crate `msd-data` for NumPy. `msd_data/__init__.py` is what users see.

mod arrays;
mod call;
mod dataset;
mod evaluation;
mod sampler;

/// Functions and classes behind the package `msd_data`.
#[pyo3::pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::arrays::{preprocess, read_image, read_labels, restore, write_labels};
    #[pymodule_export]
    use crate::dataset::{Dataset, check, plan, write_phantom};
    #[pymodule_export]
    use crate::evaluation::{evaluate, metrics};
    #[pymodule_export]
    use crate::sampler::{Batches, PatchSampler, augmentation};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::call::remember_process();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
