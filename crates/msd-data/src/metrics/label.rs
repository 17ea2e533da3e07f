//! All metrics of one label.

use std::collections::BTreeSet;
use std::path::Path;

use ndarray::ArrayView3;
use serde::{Deserialize, Deserializer, Serialize};

use super::{overlap, surface_distances};
use crate::error::{Error, Result};

/// Metrics of one label in one case. In JSON, NaN and infinity are `null`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelMetrics {
    /// Dice coefficient, 2 TP / (2 TP + FP + FN).
    #[serde(rename = "Dice", deserialize_with = "nan_if_null")]
    pub dice: f64,
    /// Intersection over union, TP / (TP + FP + FN).
    #[serde(rename = "IoU", deserialize_with = "nan_if_null")]
    pub iou: f64,
    /// 95 % Hausdorff distance, millimetres.
    #[serde(rename = "HD95", deserialize_with = "nan_if_null")]
    pub hd95_mm: f64,
    /// Normalised surface Dice at the report's tolerance.
    #[serde(rename = "NSD", deserialize_with = "nan_if_null")]
    pub nsd: f64,
    /// True positives, voxels.
    #[serde(rename = "TP")]
    pub true_positives: u64,
    /// False positives, voxels.
    #[serde(rename = "FP")]
    pub false_positives: u64,
    /// False negatives, voxels.
    #[serde(rename = "FN")]
    pub false_negatives: u64,
    /// True negatives, voxels.
    #[serde(rename = "TN")]
    pub true_negatives: u64,
    /// Voxels of the prediction.
    pub n_pred: u64,
    /// Voxels of the reference.
    pub n_ref: u64,
}

/// Computes all metrics of `label`; both maps are `[z, y, x]`, as is `spacing_mm`.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn label_metrics(
    prediction: &ArrayView3<u16>,
    reference: &ArrayView3<u16>,
    label: u16,
    spacing_mm: [f64; 3],
    tolerance_mm: f64,
) -> Result<LabelMetrics> {
    let overlap = overlap(prediction, reference, label)?;
    let distances = surface_distances(prediction, reference, label, spacing_mm)?;
    Ok(LabelMetrics {
        dice: overlap.dice(),
        iou: overlap.iou(),
        hd95_mm: distances.hd95_mm(),
        nsd: distances.nsd(tolerance_mm),
        true_positives: overlap.true_positives,
        false_positives: overlap.false_positives,
        false_negatives: overlap.false_negatives,
        true_negatives: overlap.true_negatives,
        n_pred: overlap.true_positives + overlap.false_positives,
        n_ref: overlap.true_positives + overlap.false_negatives,
    })
}

/// Labels above 0 that occur in a label map, `[z, y, x]`. Errors call it `file`.
///
/// # Errors
/// [`Error::Evaluation`] for more than a label map of any use has: each is measured by itself, and hours would pass on an
/// image that was taken for a label map.
pub fn labels_in(map: &ArrayView3<u16>, file: &Path) -> Result<BTreeSet<u16>> {
    labels_among(map, file, |label| label > 0)
}

/// [`labels_in`] of the labels that `wanted` selects, which may be 0.
pub(super) fn labels_among(map: &ArrayView3<u16>, file: &Path, wanted: impl Fn(u16) -> bool) -> Result<BTreeSet<u16>> {
    const MAX_LABELS: usize = 1000;
    let mut seen = vec![false; 1 << 16];
    map.iter().for_each(|&label| seen[usize::from(label)] = true);
    let labels: BTreeSet<u16> = (0..=u16::MAX).filter(|&label| seen[usize::from(label)] && wanted(label)).collect();
    if labels.len() > MAX_LABELS {
        let problem = format!("holds {} labels, at most {MAX_LABELS} are compared; is it an image?", labels.len());
        return Err(Error::Evaluation { folder: file.display().to_string(), problem });
    }
    Ok(labels)
}

pub(super) fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
