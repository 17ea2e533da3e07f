//! Search for a dataset's folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use msd_data::{Dataset, Fingerprint, Memory, Positions, Severity, fingerprint, survey};

use crate::{
    failure::{bad_input, program},
    report::progress::note,
};

/// Opens the dataset in `dir`, or the only one among its subfolders.
///
/// # Errors
/// None or several there; those of [`Dataset::open`].
pub(crate) fn open(dir: &Path) -> Result<Dataset> {
    Ok(Dataset::open(&find(dir)?)?)
}

/// Number of warnings that [`check`] prints.
const MAX_WARNINGS: usize = 10;

/// Result of checking a dataset.
pub(crate) struct Checked {
    /// The first error.
    pub(crate) error: Option<String>,
    /// Fingerprint, if all training cases could be read.
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// Checks the dataset in `dir` and prints the first warnings.
///
/// # Errors
/// No dataset there, or several.
pub(crate) fn check(dir: &Path, positions: Positions, memory: Memory) -> Result<Checked> {
    let dir = find(dir)?;
    let found = survey(&dir, positions, memory);
    let (errors, warnings): (Vec<_>, Vec<_>) =
        found.problems.into_iter().partition(|problem| problem.severity == Severity::Error);
    for problem in warnings.iter().take(MAX_WARNINGS) {
        note(&problem.to_string());
    }
    let lists_all = || format!("`{} check {}` lists all", program(), dir.display());
    if warnings.len() > MAX_WARNINGS {
        note(&format!("{} warnings: {}", warnings.len(), lists_all()));
    }
    if errors.len() > 1 {
        note(&format!("{} errors: {}", errors.len(), lists_all()));
    }
    Ok(Checked { error: errors.into_iter().next().map(|problem| problem.message), fingerprint: found.fingerprint })
}

/// Returns `known`, the fingerprint of `dataset` that [`check`] found. If it found none, the cases are read again, and the error
/// says which of them is at fault.
///
/// # Errors
/// Those of [`fingerprint()`].
pub(crate) fn checked_fingerprint(
    dataset: &Dataset,
    known: Option<Fingerprint>,
    memory: Memory,
) -> Result<Fingerprint> {
    Ok(known.map_or_else(|| fingerprint(dataset, memory), Ok)?)
}

/// Returns true if `dir` is a dataset's folder.
pub(crate) fn is_dataset(dir: &Path) -> bool {
    dir.join("dataset.json").is_file()
}

/// Folder of the dataset in `dir`: `dir` itself, or the only dataset among its subfolders.
///
/// # Errors
/// None or several there.
pub(crate) fn find(dir: &Path) -> Result<PathBuf> {
    if is_dataset(dir) {
        return Ok(dir.to_owned());
    }
    if !dir.is_dir() {
        bad_input!("{}: no such folder", dir.display());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if is_dataset(&path) {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 => bad_input!("{}: no dataset.json there or in a folder below", dir.display()),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
            bad_input!("{}: several datasets, choose one: {}", dir.display(), names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_itself_or_the_only_one_below() {
        let dir = tempfile::tempdir().unwrap();
        let message = || find(dir.path()).unwrap_err().to_string();
        assert!(message().contains("no dataset.json"));
        for name in ["A", "B"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("A/dataset.json"), "{}").unwrap();
        assert_eq!(find(dir.path()).unwrap(), dir.path().join("A"));
        assert_eq!(find(&dir.path().join("A")).unwrap(), dir.path().join("A"));
        fs::write(dir.path().join("B/dataset.json"), "{}").unwrap();
        assert!(message().contains("several datasets"));
    }
}
