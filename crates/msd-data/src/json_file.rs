//! JSON files of this crate's types.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Reads a file of one value.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`].
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = adw_files::read_small(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|cause| Error::Json { path: path.to_path_buf(), cause })
}

/// Writes a file of one value, whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let write = |file: &mut _| Ok(serde_json::to_writer_pretty(file, value)?);
    adw_files::write_atomic(path, write).map_err(Error::io(path))
}
