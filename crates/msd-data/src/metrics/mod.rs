//! Agreement of a segmentation with its reference: overlap and surface distances, in the image's own grid.
//!
//! | metric | both empty | one empty |
//! |---|---|---|
//! | Dice, IoU | NaN | 0 |
//! | HD95 | NaN | infinite |
//! | NSD | NaN | 0 |
//!
//! Dice and IoU follow nnU-Net (NaN where there is nothing to find and nothing was found). Surface metrics follow
//! MONAI and DeepMind's `surface-distance` (Nikolov et al. 2018); see [`surface`].

pub(crate) mod distance;
mod label;
pub mod report;
pub mod surface;

use ndarray::{ArrayView3, Zip};

pub use label::{LabelMetrics, label_metrics, labels_in};
pub use report::{CaseReport, EvaluationOptions, MeanMetrics, Report, evaluate_folder, evaluate_pairs};
pub use surface::{SurfaceDistances, hd95_mm, nsd, surface_distances};

use crate::error::{Error, Result};

/// Numbers of voxels of a label by agreement of prediction and reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overlap {
    /// Voxels in both.
    pub true_positives: u64,
    /// Voxels in the prediction only.
    pub false_positives: u64,
    /// Voxels in the reference only.
    pub false_negatives: u64,
    /// Voxels in neither.
    pub true_negatives: u64,
}

impl Overlap {
    /// Dice coefficient 2 TP / (2 TP + FP + FN); NaN without voxels.
    pub fn dice(&self) -> f64 {
        let tp = 2.0 * self.true_positives as f64;
        tp / (tp + (self.false_positives + self.false_negatives) as f64)
    }

    /// Intersection over union TP / (TP + FP + FN); NaN without voxels.
    pub fn iou(&self) -> f64 {
        let tp = self.true_positives as f64;
        tp / (tp + (self.false_positives + self.false_negatives) as f64)
    }
}

/// Counts the voxels of `label` by agreement; both `[z, y, x]`.
///
/// ```
/// use ndarray::arr3;
/// let (prediction, reference) = (arr3(&[[[0, 1, 1, 2]]]), arr3(&[[[1, 1, 0, 2]]]));
/// let overlap = msd_data::metrics::overlap(&prediction.view(), &reference.view(), 1)?;
/// assert_eq!(overlap.dice(), 0.5);
/// # Ok::<(), msd_data::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn overlap(prediction: &ArrayView3<u16>, reference: &ArrayView3<u16>, label: u16) -> Result<Overlap> {
    check_shapes(prediction, reference)?;
    let mut counts = [0u64; 4];
    Zip::from(prediction).and(reference).for_each(|&p, &r| {
        counts[usize::from(p == label) * 2 + usize::from(r == label)] += 1;
    });
    let [true_negatives, false_negatives, false_positives, true_positives] = counts;
    Ok(Overlap { true_positives, false_positives, false_negatives, true_negatives })
}

/// Computes the Dice coefficient of `label` ([`Overlap::dice`]); both maps are `[z, y, x]`.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn dice(prediction: &ArrayView3<u16>, reference: &ArrayView3<u16>, label: u16) -> Result<f64> {
    Ok(overlap(prediction, reference, label)?.dice())
}

fn check_shapes(prediction: &ArrayView3<u16>, reference: &ArrayView3<u16>) -> Result<()> {
    let (found, expected) = (prediction.shape().to_vec(), reference.shape().to_vec());
    if found == expected { Ok(()) } else { Err(Error::Shape { what: "prediction", found, expected }) }
}

#[cfg(test)]
mod tests;
