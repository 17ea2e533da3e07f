//! Shapes, voxel sizes and foreground intensities of a dataset.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use ndarray::{Array3, ArrayView3};
use serde::{Deserialize, Serialize};

use crate::checksum;
use crate::dataset::{Case, Dataset, described, reading_bytes};
use crate::error::{Error, Result};
use crate::json_file;
use crate::memory::Memory;
use crate::nifti::{LabelMap, Volume, read_geometry};
use crate::orientation::{AxisMap, Orientation};
use crate::preprocess::crop::nonzero_bounds;

/// Facts about a training set that the planner needs. Triples are z, y, x in the orientation of most cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Most frequent orientation of the cases; none if no header gives one.
    #[serde(default)]
    pub orientation: Option<Orientation>,
    /// Voxel size of each case, millimetres.
    pub spacings: Vec<[f64; 3]>,
    /// Shape of each case after cropping to its nonzero region.
    pub shapes_after_crop: Vec<[usize; 3]>,
    /// Foreground intensities per channel, over all cases.
    pub intensity: Vec<IntensityStatistics>,
    /// Median over the cases of (voxels after cropping) / (voxels before).
    pub median_relative_size_after_cropping: f64,
    /// Each case by itself, for people who look at the data; nothing is planned by it. Empty in files of earlier versions.
    #[serde(default)]
    pub cases: Vec<CaseFingerprint>,
}

/// Facts about a case as its files hold it. Triples are z, y, x of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseFingerprint {
    /// Id of the case.
    pub id: String,
    /// Orientation of the file's axes; none if the header gives none.
    pub orientation: Option<Orientation>,
    /// Shape, voxels.
    pub shape: [usize; 3],
    /// Voxel size, millimetres.
    pub spacing_mm: [f64; 3],
    /// Number of voxels of each label that occurs, background left out.
    pub label_voxels: BTreeMap<u16, u64>,
    /// 5, 50 and 95 percentile of the foreground's intensities in each channel; none for a case without foreground.
    pub intensity: Vec<Option<[f64; 3]>>,
    /// Checksum of the files' contents: those that gzip files hold, of others the sizes and pieces. None in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<u32>,
}

/// Statistics of the voxels of one channel whose label is not background; every case weighs the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct IntensityStatistics {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Value that 0.5 % of the voxels do not exceed.
    pub percentile_00_5: f64,
    /// Value that 99.5 % of the voxels do not exceed.
    pub percentile_99_5: f64,
}

/// Computes the fingerprint of the training cases; reads every one of them, as many at a time as `memory` allows.
///
/// Deviation: nnU-Net draws `1e8 / num_cases` foreground voxels per case at random with replacement and computes
/// statistics of the pool. Here every voxel of a case weighs `1 / (foreground voxels of the case)`, which is what
/// that draw estimates, so the result is exact and has no seed.
///
/// # Errors
/// Those of [`Dataset::load_case`]; [`Error::NoForeground`]; [`Error::Invalid`] without training cases or for one
/// that does not fit into `memory`.
pub fn fingerprint(dataset: &Dataset, memory: Memory) -> Result<Fingerprint> {
    // In order of the cases, so sums and the first error do not depend on threads.
    let cases = memory.each(
        &dataset.training,
        |case| described(&case.image),
        |case| reading_bytes(&case.image, dataset.modalities.len() + FACTS_CHANNELS),
        |case| {
            let (image, labels) = dataset.load_case(case)?;
            CaseFacts::of(dataset, case, &image, &labels, &nonzero_bounds(&image.data.view()))
        },
    )?;
    Fingerprint::of_cases(dataset, &cases.iter().collect::<Vec<_>>())
}

impl Fingerprint {
    /// Fingerprint of a dataset whose training cases these are.
    ///
    /// # Errors
    /// [`Error::Invalid`] without cases, [`Error::NoForeground`].
    pub(crate) fn of_cases(dataset: &Dataset, cases: &[&CaseFacts]) -> Result<Self> {
        if cases.is_empty() {
            return Err(no_training_case(dataset));
        }
        let intensity = (0..dataset.modalities.len())
            .map(|c| pool(cases.iter().map(|case| &case.foreground[c])))
            .collect::<Option<_>>()
            .ok_or_else(|| Error::NoForeground { dataset: dataset.name.clone() })?;
        let orientation = Orientation::most_frequent(cases.iter().map(|case| case.own.orientation));
        let axes = || cases.iter().map(|case| AxisMap::between_known(case.own.orientation, orientation));
        let voxels = |shape: [usize; 3]| shape.iter().product::<usize>() as f64;
        let mut relative: Vec<f64> =
            cases.iter().map(|case| voxels(case.shape_after_crop) / voxels(case.own.shape)).collect();
        Ok(Self {
            orientation,
            spacings: axes().zip(cases).map(|(axes, case)| axes.triple(case.own.spacing_mm)).collect(),
            shapes_after_crop: axes().zip(cases).map(|(axes, case)| axes.triple(case.shape_after_crop)).collect(),
            intensity,
            median_relative_size_after_cropping: percentile(&mut relative, 50.0),
            cases: cases.iter().map(|case| case.own.clone()).collect(),
        })
    }

    /// Fingerprint from the headers of the images alone, for estimates of size: as if nothing were cropped, with intensities of 0.
    ///
    /// # Errors
    /// Those of [`read_geometry`]; [`Error::Invalid`] without training cases.
    pub fn of_headers(dataset: &Dataset) -> Result<Self> {
        let orientation = dataset.orientation()?;
        let geometry = |case: &Case| Ok(read_geometry(&case.image[0])?.0);
        let geometries = dataset.training.iter().map(geometry).collect::<Result<Vec<_>>>()?;
        if geometries.is_empty() {
            return Err(no_training_case(dataset));
        }
        let axes = geometries.iter().map(|geometry| AxisMap::between_known(geometry.orientation(), orientation));
        let (spacings, shapes_after_crop) =
            geometries.iter().zip(axes).map(|(of, axes)| (axes.triple(of.spacing_mm), axes.triple(of.shape))).unzip();
        Ok(Self {
            orientation,
            spacings,
            shapes_after_crop,
            intensity: vec![IntensityStatistics::default(); dataset.modalities.len()],
            median_relative_size_after_cropping: 1.0,
            cases: Vec::new(),
        })
    }

    /// Reads the fingerprint of `dataset` from a file that [`Self::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`]; [`Error::Invalid`] for another number of cases or channels, or other cases.
    pub fn load(path: &Path, dataset: &Dataset) -> Result<Self> {
        let found: Self = json_file::load(path)?;
        let of_file = (found.spacings.len(), found.intensity.len());
        let expected = (dataset.training.len(), dataset.modalities.len());
        if of_file != expected || found.shapes_after_crop.len() != expected.0 {
            let root = dataset.root.display();
            let problem = format!("is of {of_file:?} cases and channels, {root} has {expected:?}; remove it");
            return Err(Error::Invalid(format!("{}: {problem}", path.display())));
        }
        // Files of earlier versions name no case.
        let mut cases = found.cases.iter().zip(&dataset.training);
        if let Some((known, case)) = cases.find(|(known, case)| known.id != case.id) {
            let (file, root) = (path.display(), dataset.root.display());
            let problem = format!("{file}: is of case {}, {root} has {}; remove it", known.id, case.id);
            return Err(Error::Invalid(problem));
        }
        Ok(found)
    }

    /// Returns the id of a case of `dataset` whose files are not what they were, by [`CaseFingerprint::checksum`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for a case that is gone.
    pub fn changed_case(&self, dataset: &Dataset) -> Result<Option<&str>> {
        for known in &self.cases {
            let Some(checksum) = known.checksum else { continue };
            if checksum::of_case(dataset.training_case(&known.id)?)? != checksum {
                return Ok(Some(&known.id));
            }
        }
        Ok(None)
    }

    /// Writes the fingerprint as JSON, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        json_file::save(path, self)
    }
}

fn no_training_case(dataset: &Dataset) -> Error {
    Error::Invalid(format!("{}: dataset.json lists no training case", dataset.root.display()))
}

/// Facts about a case; triples are z, y, x of the file.
pub(crate) struct CaseFacts {
    shape_after_crop: [usize; 3],
    /// Intensities per channel.
    foreground: Vec<Foreground>,
    pub(crate) own: CaseFingerprint,
}

/// Memory for finding a case's facts, beside the image and its labels, in channels of the image: the values of one channel's
/// foreground, at most all.
pub(crate) const FACTS_CHANNELS: usize = 1;

/// Foreground intensities of a channel of a case.
struct Foreground {
    mean: f64,
    variance: f64,
    /// Values in ascending order, at most `MAX_SAMPLES`.
    sorted: Vec<f32>,
}

/// Number of values of a case and channel for its percentiles; organs with more voxels are thinned regularly, which moves a
/// percentile by far less than noise.
const MAX_SAMPLES: usize = 200_000;

/// Number of values of all cases and channels for the percentiles of the dataset: 40 MB, and 16 bytes for each value of a channel
/// while it is pooled.
const MAX_POOLED: usize = 10_000_000;

impl CaseFacts {
    /// Finds the facts of a case that was read; `content` is its nonzero region.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn of(
        dataset: &Dataset,
        case: &Case,
        image: &Volume<f32>,
        labels: &LabelMap,
        content: &[Range<usize>; 3],
    ) -> Result<Self> {
        // Labelled voxels outside the crop count, too. nnU-Net leaves them out; that they exist is a fault of the data, of
        // which `check_dataset` warns.
        let mut foreground: Vec<_> =
            image.data.outer_iter().map(|channel| Foreground::of_channel(&channel, &labels.data)).collect();
        let mut label_voxels = BTreeMap::new();
        for &label in labels.data.iter().filter(|&&label| label > 0) {
            *label_voxels.entry(label).or_insert(0) += 1;
        }
        let own = CaseFingerprint {
            id: case.id.clone(),
            orientation: image.geometry.orientation(),
            shape: image.geometry.shape,
            spacing_mm: image.geometry.spacing_mm,
            label_voxels,
            intensity: foreground.iter().map(Foreground::spread).collect(),
            checksum: Some(checksum::of_case(case)?),
        };
        let samples = (MAX_POOLED / (dataset.training.len() * dataset.modalities.len()).max(1)).max(1000);
        for channel in &mut foreground {
            thin(&mut channel.sorted, samples);
        }
        Ok(Self { shape_after_crop: content.each_ref().map(Range::len), foreground, own })
    }
}

impl Foreground {
    fn of_channel(channel: &ArrayView3<'_, f32>, labels: &Array3<u16>) -> Self {
        let labelled = channel.iter().zip(labels).filter(|&(_, &label)| label > 0);
        Self::of(labelled.map(|(&value, _)| value).collect())
    }

    fn of(mut values: Vec<f32>) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        values.sort_unstable_by(f32::total_cmp);
        thin(&mut values, MAX_SAMPLES);
        Self { mean, variance, sorted: values }
    }

    /// 5, 50 and 95 percentile, each the value of the rank below; none without voxels.
    fn spread(&self) -> Option<[f64; 3]> {
        let last = self.sorted.len().checked_sub(1)?;
        Some([5, 50, 95].map(|q| f64::from(self.sorted[last * q / 100])))
    }
}

/// Keeps `most` of the sorted values at regular distances, so the extremes and every percentile stay where they are.
fn thin(sorted: &mut Vec<f32>, most: usize) {
    if sorted.len() > most {
        let last = sorted.len() - 1;
        *sorted = (0..most).map(|i| sorted[i * last / (most - 1)]).collect();
    }
}

/// Computes the statistics of the mixture of all cases with foreground, in equal parts; `None` if there is none.
fn pool<'a>(cases: impl Iterator<Item = &'a Foreground>) -> Option<IntensityStatistics> {
    let cases: Vec<_> = cases.filter(|case| !case.sorted.is_empty()).collect();
    let n = cases.len() as f64;
    let mean = cases.iter().map(|case| case.mean).sum::<f64>() / n;
    let variance = cases.iter().map(|case| case.variance + (case.mean - mean).powi(2)).sum::<f64>() / n;
    let weighted = |case: &&Foreground| {
        let weight = 1.0 / (n * case.sorted.len() as f64);
        case.sorted.iter().map(|&v| (v, weight)).collect::<Vec<_>>()
    };
    let mut values: Vec<(f32, f64)> = cases.iter().flat_map(weighted).collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let quantile = |q: f64| {
        let mut below = 0.0;
        let found = values.iter().find(|(_, weight)| {
            below += weight;
            below >= q
        });
        f64::from(found.or(values.last()).expect("some case has foreground").0)
    };
    let (min, max) = (values.first()?.0, values.last()?.0);
    Some(IntensityStatistics {
        mean,
        median: quantile(0.5),
        std: variance.sqrt(),
        min: f64::from(min),
        max: f64::from(max),
        percentile_00_5: quantile(0.005),
        percentile_99_5: quantile(0.995),
    })
}

/// Computes the `q`-th percentile with linear interpolation between ranks, as NumPy's default; sorts `values`.
///
/// # Panics
/// On an empty slice.
pub(crate) fn percentile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = q / 100.0 * (values.len() - 1) as f64;
    let (low, part) = (rank.floor() as usize, rank.fract());
    let (a, b) = (values[low], values[(low + 1).min(values.len() - 1)]);
    // From the nearer rank, which is what decides the last bit.
    if part < 0.5 { a + (b - a) * part } else { b - (b - a) * (1.0 - part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let mut values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.0, 50.0, 100.0].map(|q| percentile(&mut values, q)), [1.0, 2.5, 4.0]);
        assert!((percentile(&mut values, 10.0) - 1.3).abs() < 1e-12);
    }

    #[test]
    fn thinned_values_keep_extremes_and_percentiles() {
        let mut values: Vec<f32> = (0..=100_000_u32).map(|v| v as f32).collect();
        thin(&mut values, 1001);
        assert_eq!((values.len(), values[0], values[50], values[1000]), (1001, 0.0, 5000.0, 100_000.0));
        thin(&mut values, 2000);
        assert_eq!(values.len(), 1001);
    }

    #[test]
    fn a_file_of_other_cases_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::PhantomOptions { num_cases: 2, num_test: 0, shape: [10, 12, 14], ..Default::default() };
        crate::write_phantom(dir.path(), &options).unwrap();
        let mut dataset = Dataset::open(dir.path()).unwrap();
        let file = dir.path().join("fingerprint.json");
        fingerprint(&dataset, Memory::unlimited()).unwrap().save(&file).unwrap();
        Fingerprint::load(&file, &dataset).unwrap();
        dataset.training[1].id = "other".to_owned();
        let message = Fingerprint::load(&file, &dataset).unwrap_err().to_string();
        assert!(message.contains("is of case phantom_001, ") && message.ends_with("has other; remove it"), "{message}");
    }

    #[test]
    fn cases_weigh_the_same_whatever_their_size() {
        let (small, large) = (Foreground::of(vec![10.0]), Foreground::of(vec![0.0; 1000]));
        let stats = pool([&small, &large, &Foreground::of(vec![])].into_iter()).unwrap();
        assert_eq!((stats.mean, stats.std, stats.min, stats.max), (5.0, 5.0, 0.0, 10.0));
        assert_eq!(Foreground::of((0..=100).map(|v| v as f32).collect()).spread(), Some([5.0, 50.0, 95.0]));
        assert_eq!(Foreground::of(vec![]).spread(), None);
        assert!(pool([&Foreground::of(vec![])].into_iter()).is_none());
    }
}
