//! Preparation of a dataset's training cases into files.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::StoredCase;
use crate::case_bytes::CaseBytes;
use crate::dataset::{Case, Dataset, described};
use crate::error::{Error, Result};
use crate::grid::Positions;
use crate::memory::Memory;
use crate::plan::Plan;
use crate::preprocess::preprocess;

/// Prepares training cases into files in `folder`, several at a time as far as `memory` allows, and opens them in the
/// order of `ids`. Files that are there already, prepared from the same images for the same plan and handling of positions, are
/// kept, so an interrupted preparation continues where it ended.
///
/// # Errors
/// The first in the order of `ids`, of [`Dataset::load_case`], [`preprocess`] or the disk; [`Error::Memory`] for a case
/// that cannot be prepared within `memory`.
pub fn store_training_cases(
    dataset: &Dataset,
    ids: &[String],
    plan: &Plan,
    folder: &Path,
    memory: Memory,
) -> Result<Vec<StoredCase>> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    adw_files::remove_stale(folder).map_err(Error::io(folder))?;
    let cases = dataset.training_cases(ids)?;
    memory.each(
        &cases,
        |case| described(&case.image),
        |case| Ok(CaseBytes::of(&case.image, plan)?.preparing),
        |case| {
            let key = key(dataset, case, plan)?;
            let path = folder.join(format!("{}.case", case.id));
            // A file of another key or a damaged one is made anew.
            if path.is_file()
                && let Ok(stored) = StoredCase::open(&path, &key)
            {
                return Ok(stored);
            }
            let (image, labels) = dataset.load_case(case)?;
            StoredCase::write(&path, &preprocess(image, Some(labels), plan)?, &key)
        },
    )
}

/// Memory that training cases take, estimated from their headers; upper bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingCasesBytes {
    /// Bytes of all cases together once they are prepared.
    pub prepared: u64,
    /// Bytes taken while the largest case is read and prepared.
    pub preparing_largest: u64,
    /// File and size of that case.
    pub largest: String,
}

/// Estimates the memory that the training cases called `ids` take.
///
/// # Errors
/// Those of [`crate::nifti::read_geometry`]; [`Error::Invalid`] for an id that the dataset does not have.
pub fn training_cases_bytes(dataset: &Dataset, ids: &[String], plan: &Plan) -> Result<TrainingCasesBytes> {
    let mut all = TrainingCasesBytes { prepared: 0, preparing_largest: 0, largest: String::new() };
    for case in dataset.training_cases(ids)? {
        let bytes = CaseBytes::of(&case.image, plan)?;
        all.prepared = all.prepared.saturating_add(bytes.prepared);
        if bytes.preparing > all.preparing_largest {
            all.preparing_largest = bytes.preparing;
            all.largest = described(&case.image);
        }
    }
    Ok(all)
}

/// Key of a prepared case: its files' names, sizes and times of modification, and the values of plan and dataset that voxels
/// depend on, or that decide which labels are refused.
fn key(dataset: &Dataset, case: &Case, plan: &Plan) -> Result<String> {
    let files = case.image.iter().chain([&case.label]).map(|path| {
        let data = fs::metadata(path).map_err(Error::io(path))?;
        let modified = data.modified().ok();
        let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let name = path.strip_prefix(&dataset.root).unwrap_or(path).to_string_lossy();
        Ok((name, data.len(), since.map(|since| since.as_nanos().to_string())))
    });
    let (axes, num_labels) = ((plan.orientation, plan.transpose_forward), plan.labels.len());
    let plan = (plan.spacing_mm, &plan.normalization, &plan.use_mask_for_norm, &plan.intensity, axes);
    let labels = (dataset.positions == Positions::Ignored, dataset.labels.len(), num_labels);
    let key = (files.collect::<Result<Vec<_>>>()?, plan, labels);
    Ok(serde_json::to_string(&key).expect("numbers and names"))
}
