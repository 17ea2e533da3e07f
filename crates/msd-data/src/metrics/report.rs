//! Reports on folders of predictions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::label::{LabelMetrics, label_metrics, labels_among, nan_if_null};
use crate::dataset::{case_id, described, nifti_files};
use crate::error::{Error, Result};
use crate::grid::Positions;
use crate::json_file;
use crate::memory::Memory;
use crate::nifti::{LabelMap, read_geometry, read_labels};

/// Options of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationOptions {
    /// Labels to report; by default every value above 0 that occurs anywhere.
    pub labels: Option<Vec<u16>>,
    /// Tolerance of the normalised surface Dice, millimetres.
    pub tolerance_mm: f64,
    /// Makes a reference without a prediction an error. By default it is listed in the report, so that the predictions of one
    /// fold can be compared with a folder of all labels.
    pub require_all: bool,
    /// Handling of predictions whose headers place them elsewhere than their references.
    pub positions: Positions,
    /// Limit on the memory of the cases that are compared at once.
    pub memory: Memory,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self {
            labels: None,
            tolerance_mm: 1.0,
            require_all: false,
            positions: Positions::Checked,
            memory: Memory::unlimited(),
        }
    }
}

/// Metrics of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseReport {
    /// File of the prediction.
    pub prediction_file: PathBuf,
    /// File of the reference.
    pub reference_file: PathBuf,
    /// Metrics by label.
    pub metrics: BTreeMap<u16, LabelMetrics>,
}

/// Means over cases (or over labels of such means). In JSON, NaN is `null`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanMetrics {
    /// Mean over the cases where it is a number.
    #[serde(rename = "Dice", deserialize_with = "nan_if_null")]
    pub dice: f64,
    /// Mean over the cases where it is a number.
    #[serde(rename = "IoU", deserialize_with = "nan_if_null")]
    pub iou: f64,
    /// Mean over the cases where it is finite; the others are counted in `HD95_infinite`.
    #[serde(rename = "HD95", deserialize_with = "nan_if_null")]
    pub hd95_mm: f64,
    /// Mean over the cases where it is a number.
    #[serde(rename = "NSD", deserialize_with = "nan_if_null")]
    pub nsd: f64,
    /// Number of cases where only one of prediction and reference has the label, so that no distance exists.
    #[serde(rename = "HD95_infinite")]
    pub hd95_infinite: usize,
}

/// Result of [`evaluate_folder`]. The JSON is nnU-Net's `summary.json` with HD95 and NSD added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Plain mean over the labels of their means: NaN if one label occurs nowhere.
    pub foreground_mean: MeanMetrics,
    /// Metrics by label.
    pub mean: BTreeMap<u16, MeanMetrics>,
    /// Metrics by case, sorted by file name.
    pub metric_per_case: Vec<CaseReport>,
    /// Tolerance of the normalised surface Dice, millimetres.
    pub nsd_tolerance_mm: f64,
    /// Ids of references that have no prediction.
    pub references_without_prediction: Vec<String>,
}

impl Report {
    /// Writes the report as JSON, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        json_file::save(path, self)
    }

    /// Reads a report that [`Self::save`] wrote. Infinite distances become NaN; their number stays in the means.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`].
    pub fn load(path: &Path) -> Result<Self> {
        json_file::load(path)
    }

    /// Joins the reports of disjoint sets of cases, such as the folds of a cross-validation, into that of all cases. The
    /// reports must be of the same labels and tolerance. References without prediction are those that no report has one for.
    ///
    /// # Errors
    /// [`Error::Evaluation`] if they are not, for a reference in two reports, or if there is no report.
    pub fn pooled(reports: &[Self]) -> Result<Self> {
        let wrong = |problem: &str| Error::Evaluation { folder: "reports".to_owned(), problem: problem.to_owned() };
        let first = reports.first().ok_or_else(|| wrong("there is none to join"))?;
        let same =
            |other: &Self| other.nsd_tolerance_mm == first.nsd_tolerance_mm && other.mean.keys().eq(first.mean.keys());
        if !reports.iter().all(same) {
            return Err(wrong("are of different labels or tolerances"));
        }
        let mut seen = BTreeSet::new();
        for report in reports {
            let files: BTreeSet<_> = report.metric_per_case.iter().map(|case| &case.reference_file).collect();
            if let Some(twice) = files.intersection(&seen).next() {
                return Err(wrong(&format!("two of them hold {}; join each case once", twice.display())));
            }
            seen.extend(files);
        }
        let compared: BTreeSet<_> = seen.into_iter().filter_map(|file| case_id(file)).collect();
        let missing: BTreeSet<_> = reports.iter().flat_map(|report| &report.references_without_prediction).collect();
        let metric_per_case: Vec<_> = reports.iter().flat_map(|report| report.metric_per_case.clone()).collect();
        let over_cases = |label: &u16| {
            let cases = metric_per_case.iter().filter_map(|case| case.metrics.get(label).copied());
            let hd95_infinite = reports.iter().map(|report| report.mean[label].hd95_infinite).sum();
            MeanMetrics { hd95_infinite, ..mean_over_cases(&cases) }
        };
        let mean: BTreeMap<_, _> = first.mean.keys().map(|label| (*label, over_cases(label))).collect();
        Ok(Self {
            foreground_mean: mean_over_labels(&mean),
            mean,
            metric_per_case,
            nsd_tolerance_mm: first.nsd_tolerance_mm,
            references_without_prediction: missing.into_iter().filter(|id| !compared.contains(*id)).cloned().collect(),
        })
    }
}

/// Compares every label map in `predictions` with the one of the same name in `references`, several at a time. A prediction
/// stored along other axes than its reference is brought to the reference's.
///
/// # Errors
/// [`Error::Evaluation`] if there are no predictions, predictions without reference, or two files of one name;
/// [`Error::ShapeMismatch`], [`Error::SpacingMismatch`], [`Error::PositionMismatch`]; those of [`read_labels`].
pub fn evaluate_folder(predictions: &Path, references: &Path, options: &EvaluationOptions) -> Result<Report> {
    let MatchedFiles { pairs, missing } = matched_files(predictions, references)?;
    if options.require_all && !missing.is_empty() {
        let problem = format!("no prediction for {}", list(&missing));
        return Err(Error::Evaluation { folder: predictions.display().to_string(), problem });
    }
    let report = evaluate_pairs(&pairs, options)?;
    Ok(Report { references_without_prediction: missing, ..report })
}

/// Compares label maps, each a prediction with its reference, several at a time.
///
/// # Errors
/// Those of [`evaluate_folder`] that concern a pair; [`Error::Evaluation`] if no map has a label.
pub fn evaluate_pairs(pairs: &[(PathBuf, PathBuf)], options: &EvaluationOptions) -> Result<Report> {
    let mut compared =
        each_pair(pairs, options.memory, |(prediction, reference)| compare(prediction, reference, options))?;
    let labels: BTreeSet<u16> = match &options.labels {
        Some(labels) => labels.iter().copied().collect(),
        None => compared.iter().flat_map(|case| case.metrics.keys().copied()).collect(),
    };
    if labels.is_empty() {
        let folder = pairs.first().map(|(_, reference)| reference.display().to_string()).unwrap_or_default();
        let problem = match options.labels {
            Some(_) => "no label to score is named",
            None => "no voxel above 0 in any reference or prediction",
        }
        .to_owned();
        return Err(Error::Evaluation { folder, problem });
    }
    for case in &mut compared {
        for &label in &labels {
            case.metrics.entry(label).or_insert(case.absent);
        }
    }
    let metric_per_case: Vec<_> = compared.into_iter().map(Compared::report).collect();
    let over_cases = |label: &u16| mean_over_cases(&metric_per_case.iter().map(|case| case.metrics[label]));
    let mean: BTreeMap<_, _> = labels.iter().map(|label| (*label, over_cases(label))).collect();
    Ok(Report {
        foreground_mean: mean_over_labels(&mean),
        mean,
        metric_per_case,
        nsd_tolerance_mm: options.tolerance_mm,
        references_without_prediction: Vec::new(),
    })
}

/// A compared case.
struct Compared {
    prediction_file: PathBuf,
    reference_file: PathBuf,
    /// Metrics of the labels that occur.
    metrics: BTreeMap<u16, LabelMetrics>,
    /// Metrics of every other label.
    absent: LabelMetrics,
}

impl Compared {
    fn report(self) -> CaseReport {
        let Self { prediction_file, reference_file, metrics, .. } = self;
        CaseReport { prediction_file, reference_file, metrics }
    }
}

/// Works on pairs of a prediction and its reference, as many at a time as `memory` allows. Results are in the order of the
/// pairs.
///
/// # Errors
/// The first of `work` in that order; [`Error::Memory`] for a pair that alone exceeds the memory.
pub(crate) fn each_pair<T: Send>(
    pairs: &[(PathBuf, PathBuf)],
    memory: Memory,
    work: impl Fn(&(PathBuf, PathBuf)) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    // Two label maps, their surfaces, squared distances (f64) and the distances on the surfaces: at most 28 bytes per voxel.
    let need = |(prediction, reference): &(PathBuf, PathBuf)| {
        let voxels = |path: &PathBuf| Ok(read_geometry(path)?.0.shape.iter().map(|&n| n as u64).product::<u64>());
        Ok(28 * voxels(reference)?.max(voxels(prediction)?))
    };
    memory.each(pairs, |(_, reference)| described(std::slice::from_ref(reference)), need, work)
}

/// Reads a prediction and its reference, and brings the prediction to the reference's axes.
///
/// # Errors
/// Those of [`read_labels`]; [`Error::ShapeMismatch`], [`Error::SpacingMismatch`], [`Error::PositionMismatch`].
pub(crate) fn read_pair(prediction: &Path, reference: &Path, positions: Positions) -> Result<(LabelMap, LabelMap)> {
    // By their headers first: maps of other sizes are not read.
    positions.compare((reference, &read_geometry(reference)?.0), (prediction, &read_geometry(prediction)?.0))?;
    let expected = read_labels(reference)?;
    let found = read_labels(prediction)?.onto(prediction, (reference, &expected.geometry), positions)?;
    Ok((found, expected))
}

fn compare(prediction_file: &Path, reference_file: &Path, options: &EvaluationOptions) -> Result<Compared> {
    let (prediction, reference) = read_pair(prediction_file, reference_file, options.positions)?;
    let spacing_mm = reference.geometry.spacing_mm;
    let (prediction, reference) = (prediction.data.view(), reference.data.view());
    let wanted = |label| options.labels.as_ref().map_or(label > 0, |labels| labels.contains(&label));
    let present =
        &labels_among(&prediction, prediction_file, wanted)? | &labels_among(&reference, reference_file, wanted)?;
    let mut metrics = BTreeMap::new();
    for label in present {
        metrics.insert(label, label_metrics(&prediction, &reference, label, spacing_mm, options.tolerance_mm)?);
    }
    let nan = f64::NAN;
    let true_negatives = reference.len() as u64;
    let absent = LabelMetrics {
        dice: nan,
        iou: nan,
        hd95_mm: nan,
        nsd: nan,
        true_positives: 0,
        false_positives: 0,
        false_negatives: 0,
        true_negatives,
        n_pred: 0,
        n_ref: 0,
    };
    let (prediction_file, reference_file) = (prediction_file.to_path_buf(), reference_file.to_path_buf());
    Ok(Compared { prediction_file, reference_file, metrics, absent })
}

fn mean_over_cases(cases: &(impl Iterator<Item = LabelMetrics> + Clone)) -> MeanMetrics {
    let mean = |value: fn(&LabelMetrics) -> f64| {
        let finite: Vec<f64> = cases.clone().map(|m| value(&m)).filter(|v| v.is_finite()).collect();
        finite.iter().sum::<f64>() / finite.len() as f64
    };
    MeanMetrics {
        dice: mean(|m| m.dice),
        iou: mean(|m| m.iou),
        hd95_mm: mean(|m| m.hd95_mm),
        nsd: mean(|m| m.nsd),
        hd95_infinite: cases.clone().filter(|m| m.hd95_mm.is_infinite()).count(),
    }
}

fn mean_over_labels(labels: &BTreeMap<u16, MeanMetrics>) -> MeanMetrics {
    let mean = |value: fn(&MeanMetrics) -> f64| labels.values().map(value).sum::<f64>() / labels.len() as f64;
    MeanMetrics {
        dice: mean(|m| m.dice),
        iou: mean(|m| m.iou),
        hd95_mm: mean(|m| m.hd95_mm),
        nsd: mean(|m| m.nsd),
        hd95_infinite: labels.values().map(|m| m.hd95_infinite).sum(),
    }
}

/// Predictions with their references.
pub(crate) struct MatchedFiles {
    /// Prediction and reference, sorted by case id.
    pub(crate) pairs: Vec<(PathBuf, PathBuf)>,
    /// Ids of references without prediction.
    missing: Vec<String>,
}

/// Matches the label maps of two folders by case id.
pub(crate) fn matched_files(predictions: &Path, references: &Path) -> Result<MatchedFiles> {
    let (predicted, mut known) = (label_maps(predictions)?, label_maps(references)?);
    let wrong = |problem| Err(Error::Evaluation { folder: predictions.display().to_string(), problem });
    if predicted.is_empty() {
        return wrong("no .nii or .nii.gz file to evaluate".to_owned());
    }
    let strangers: Vec<&String> = predicted.keys().filter(|id| !known.contains_key(*id)).collect();
    if !strangers.is_empty() {
        return wrong(format!("no reference in {} for {}", references.display(), list(&strangers)));
    }
    let pairs = predicted.into_iter().filter_map(|(id, prediction)| Some((prediction, known.remove(&id)?))).collect();
    Ok(MatchedFiles { pairs, missing: known.into_keys().collect() })
}

/// Finds the NIfTI files of a folder by case id.
fn label_maps(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut maps = BTreeMap::new();
    for path in nifti_files(folder)? {
        let id = case_id(&path).unwrap_or_default();
        if let Some(other) = maps.insert(id, path.clone()) {
            let problem = format!("is of the same case as {}; one of them has to go", other.display());
            return Err(Error::FileName { path, problem });
        }
    }
    Ok(maps)
}

/// Lists the first names and the number of the others.
fn list(names: &[impl AsRef<str>]) -> String {
    let shown = names.iter().take(5).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(5);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
