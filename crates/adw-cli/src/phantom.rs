//! Phantom dataset: generated for tests and first steps.

use std::path::Path;

use anyhow::{Context, Result};
use msd_data::{PhantomOptions, write_phantom};

use crate::run_folder::{check_writable, new_folder};

/// Voxels along z, y, x: few enough for a search in three minutes on two cores, enough for three poolings.
pub(crate) const SHAPE: [usize; 3] = [24, 32, 24];

/// Options of the phantom that a search generates for itself.
pub(crate) fn options() -> PhantomOptions {
    PhantomOptions { shape: SHAPE, ..PhantomOptions::default() }
}

/// Writes a phantom dataset to `folder`, which is absent or empty; a failure leaves nothing there.
///
/// # Errors
/// Options that describe no volume; a disk that is full or read-only.
pub(crate) fn write(folder: &Path, options: &PhantomOptions) -> Result<()> {
    check_writable(folder)?;
    let new = new_folder(folder)?;
    write_phantom(new.path(), options)?;
    new.commit().with_context(|| format!("cannot create {}", folder.display()))
}
