//! From the facts about a dataset to voxel size, patch, strides and kernels: nnU-Net's planner for `3d_fullres`.
//!
//! Source: nnU-Net v2 (Isensee et al., Nature Methods 2021), `ExperimentPlanner`. All triples of a [`Plan`] are in
//! network order: z, y, x of the plan's orientation, moved so that the coarsest axis comes first
//! ([`Plan::transpose_forward`]).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, Label};
use crate::error::{Error, Result, rounded};
use crate::fingerprint::{Fingerprint, IntensityStatistics, percentile};
use crate::geometry::Geometry;
use crate::json_file;
use crate::orientation::{AxisMap, Orientation};

mod topology;

use topology::{Topology, fit_to_memory};

/// Largest edge of a patch, in voxels: that of the largest NIfTI file.
const MAX_EDGE: usize = 32_767;

/// Parameters of training that follow from the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the dataset.
    pub dataset_name: String,
    /// Names of the image channels.
    pub modalities: Vec<String>,
    /// Labels by ascending value; the first is background.
    pub labels: Vec<Label>,
    /// Voxel size that cases are resampled to, millimetres.
    pub spacing_mm: [f64; 3],
    /// Median shape of the resampled cases, voxels (a median of an even number of cases may end in .5).
    pub median_shape: [f64; 3],
    /// Shape of the patches a network is trained on.
    pub patch_size: [usize; 3],
    /// Patches per batch.
    pub batch_size: usize,
    /// Stride of each pooling; P entries, one fewer than stages.
    pub strides: Vec<[usize; 3]>,
    /// Kernel of each stage; P + 1 entries, the last for the bottleneck.
    pub kernels: Vec<[usize; 3]>,
    /// Normalisation of each channel.
    pub normalization: Vec<Normalization>,
    /// True for channels whose statistics and normalisation leave out the region outside the nonzero mask.
    pub use_mask_for_norm: Vec<bool>,
    /// Foreground intensities of each channel.
    pub intensity: Vec<IntensityStatistics>,
    /// Sums Dice over the batch before it is averaged.
    pub batch_dice: bool,
    /// Orientation that every image is brought to: the most frequent one of the training cases. None, also in files of earlier
    /// versions, leaves images as they are stored.
    #[serde(default)]
    pub orientation: Option<Orientation>,
    /// Axis `i` of the network is axis `transpose_forward[i]` of z, y, x in the plan's orientation.
    pub transpose_forward: [usize; 3],
    /// Inverse of `transpose_forward`.
    pub transpose_backward: [usize; 3],
}

/// Normalisation of a channel's intensities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Clip to the foreground's 0.5 and 99.5 percentiles, subtract its mean, divide by its deviation: the same for
    /// every case, since CT numbers have a physical meaning.
    Ct,
    /// Subtract the image's own mean, divide by its own deviation.
    ZScore,
    /// To 0..1 by the image's minimum and maximum.
    RescaleToUnit,
    /// Divide by 255.
    RgbToUnit,
    /// Leave as it is.
    None,
}

impl Normalization {
    /// Chooses as nnU-Net does by the channel's name: `CT`, `noNorm`, `rescale_to_0_1`, `rgb_to_0_1` in any case, and z-score
    /// for every other name.
    pub fn for_modality(name: &str) -> Self {
        match name.to_lowercase().as_str() {
            "ct" => Self::Ct,
            "nonorm" => Self::None,
            "rescale_to_0_1" => Self::RescaleToUnit,
            "rgb_to_0_1" => Self::RgbToUnit,
            _ => Self::ZScore,
        }
    }
}

/// Values that a user may choose instead of the planner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanOptions {
    /// Memory that nnU-Net's own U-Net may take for training; scales patch and batch. nnU-Net plans for 8.
    pub gpu_memory_gb: f64,
    /// Voxel size in millimetres, z, y, x in the orientation of most cases; by default from the fingerprint.
    pub spacing_mm: Option<[f64; 3]>,
    /// Patches per batch; by default from memory and the size of the dataset.
    pub batch_size: Option<usize>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { gpu_memory_gb: 8.0, spacing_mm: None, batch_size: None }
    }
}

/// Plans training for a dataset.
///
/// # Errors
/// [`Error::Invalid`] if an option is no positive number or the fingerprint is of no case.
pub fn plan(fingerprint: &Fingerprint, dataset: &Dataset, options: &PlanOptions) -> Result<Plan> {
    check(fingerprint, options)?;
    let spacing = options.spacing_mm.unwrap_or_else(|| target_spacing(fingerprint));
    let median = median_resampled_shape(fingerprint, spacing);
    let coarsest = first_argmax(spacing);
    let mut transpose_forward = [coarsest, 0, 0];
    for (slot, axis) in transpose_forward[1..].iter_mut().zip((0..3).filter(|&axis| axis != coarsest)) {
        *slot = axis;
    }
    let mut transpose_backward = [0; 3];
    for (i, &axis) in transpose_forward.iter().enumerate() {
        transpose_backward[axis] = i;
    }
    let (spacing_mm, median_shape) = (transpose_forward.map(|a| spacing[a]), transpose_forward.map(|a| median[a]));

    let network = NetworkPlan::of(spacing_mm, median_shape, dataset.training.len(), dataset.labels.len(), options);
    let (shown_spacing, shown_median) = (rounded(spacing), rounded(median));
    if network.topology.strides.is_empty() {
        return Err(Error::Invalid(format!(
            "{}: the cases are too small: {shown_median:?} voxels (z, y, x) of {shown_spacing:?} mm in the median, but at \
             least 8 are needed along an axis; give a smaller spacing",
            dataset.name
        )));
    }
    if !is_patch(network.topology.patch()) {
        return Err(Error::Invalid(format!(
            "{}: voxels of {shown_spacing:?} mm (z, y, x) make cases of {shown_median:?} voxels in the median; give a spacing \
             near that of the cases",
            dataset.name
        )));
    }
    let normalization: Vec<_> = dataset.modalities.iter().map(|name| Normalization::for_modality(name)).collect();
    let mask =
        |n: &Normalization| *n == Normalization::ZScore && fingerprint.median_relative_size_after_cropping < 0.75;
    Ok(Plan {
        dataset_name: dataset.name.clone(),
        modalities: dataset.modalities.clone(),
        labels: dataset.labels.clone(),
        spacing_mm,
        median_shape,
        patch_size: network.topology.patch(),
        batch_size: options.batch_size.unwrap_or(network.batch_size),
        use_mask_for_norm: normalization.iter().map(mask).collect(),
        normalization,
        intensity: fingerprint.intensity.clone(),
        batch_dice: network.low_resolution_exists,
        strides: network.topology.strides,
        kernels: network.topology.kernels,
        orientation: fingerprint.orientation,
        transpose_forward,
        transpose_backward,
    })
}

impl Plan {
    /// Axes of a prepared case in terms of the image's z, y, x.
    pub(crate) fn axes_of(&self, geometry: &Geometry) -> AxisMap {
        AxisMap::between_known(geometry.orientation(), self.orientation).reordered(self.transpose_forward)
    }

    /// Checks the values of a plan that was read from a file, on which preprocessing and networks rely.
    ///
    /// # Errors
    /// The first key with an impossible value, and what is expected.
    pub fn check(&self) -> std::result::Result<(), String> {
        let channels = self.modalities.len();
        let wrong = |key: &str, found: String, expected: &str| Err(format!("{key} is {found}; expected {expected}"));
        if channels == 0 {
            return wrong("modalities", "empty".to_owned(), "a name per channel");
        }
        let values: Vec<u16> = self.labels.iter().map(|label| label.value).collect();
        if !(2..=255).contains(&values.len()) || values.iter().enumerate().any(|(i, &value)| i != usize::from(value)) {
            let found = format!("of {} values", values.len());
            return wrong("labels", found, "2 to 255 labels with the values 0, 1, 2, ...");
        }
        let sizes = [
            ("normalization", self.normalization.len()),
            ("use_mask_for_norm", self.use_mask_for_norm.len()),
            ("intensity", self.intensity.len()),
        ];
        if let Some((key, found)) = sizes.into_iter().find(|(_, found)| *found != channels) {
            return wrong(key, format!("of {found} channels"), &format!("{channels}, as many as modalities"));
        }
        let is_usable = |s: &IntensityStatistics| {
            let values = [s.mean, s.std, s.percentile_00_5, s.percentile_99_5];
            values.iter().all(|v| (*v as f32).is_finite()) && s.percentile_00_5 <= s.percentile_99_5
        };
        if let Some(statistics) = self.intensity.iter().find(|s| !is_usable(s)) {
            let expected = "numbers, percentile_00_5 at most percentile_99_5";
            return wrong("intensity", format!("{statistics:?}"), expected);
        }
        if self.spacing_mm.iter().any(|mm| !(1e-6..=1e6).contains(mm)) {
            return wrong("spacing_mm", format!("{:?}", self.spacing_mm), "millimetres from 1e-6 to 1e6");
        }
        if !is_patch(self.patch_size) {
            return wrong("patch_size", format!("{:?}", self.patch_size), "1 to 32767 voxels along each axis");
        }
        if self.batch_size == 0 {
            return wrong("batch_size", "0".to_owned(), "at least 1");
        }
        if self.strides.is_empty() || self.kernels.len() != self.strides.len() + 1 {
            let found = format!("of {} entries", self.strides.len());
            return wrong(
                "strides",
                found,
                &format!("at least one, and one fewer than the {} kernels", self.kernels.len()),
            );
        }
        let triples = self.strides.iter().chain(&self.kernels);
        if let Some(triple) = triples.clone().find(|triple| triple.iter().any(|n| !(1..=MAX_EDGE).contains(n))) {
            return wrong("strides or kernels", format!("{triple:?}"), "numbers of at least 1");
        }
        let (forward, backward) = (self.transpose_forward, self.transpose_backward);
        let inverse = |i: usize| forward.get(backward[i]).is_some_and(|&axis| axis == i);
        if !(0..3).all(inverse) {
            let found = format!("{forward:?}, and transpose_backward {backward:?}");
            return wrong("transpose_forward", found, "an order of the axes 0, 1, 2, and its inverse");
        }
        Ok(())
    }

    /// Reads a `plan.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`]; [`Error::Invalid`] for values that [`Self::check`] refuses.
    pub fn load(path: &Path) -> Result<Self> {
        let plan: Self = json_file::load(path)?;
        plan.check().map_err(|problem| Error::Invalid(format!("{}: {problem}", path.display())))?;
        Ok(plan)
    }

    /// Writes a `plan.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        json_file::save(path, self)
    }
}

/// Returns true if every edge of a patch can occur.
fn is_patch(patch: [usize; 3]) -> bool {
    patch.iter().all(|n| (1..=MAX_EDGE).contains(n))
}

/// Shape of the network and its batch, as they follow from the spacing.
struct NetworkPlan {
    topology: Topology,
    batch_size: usize,
    low_resolution_exists: bool,
}

impl NetworkPlan {
    fn of(spacing: [f64; 3], median: [f64; 3], num_cases: usize, num_labels: usize, options: &PlanOptions) -> Self {
        let reference = 560e6 * options.gpu_memory_gb / 8.0;
        let (topology, elements) = fit_to_memory(spacing, median, num_labels, reference);
        let patch_voxels = volume(topology.patch);
        let by_memory = (2.0 * reference / elements).round_ties_even();
        // No batch shows more than a twentieth of the dataset.
        let by_dataset = (0.05 * volume(median) * num_cases as f64 / patch_voxels).round_ties_even();
        let batch_size = by_memory.min(by_dataset).max(2.0) as usize;
        let low_resolution_exists = low_resolution_exists(spacing, median, patch_voxels, |spacing, median| {
            volume(fit_to_memory(spacing, median, num_labels, reference).0.patch)
        });
        Self { topology, batch_size, low_resolution_exists }
    }
}

/// Returns true if nnU-Net would also plan a `3d_lowres`: the full-resolution patch covers less than a quarter of a case, and
/// coarsening until it covers that much saves at least half of the voxels. Decides `batch_dice`.
fn low_resolution_exists(
    full_spacing: [f64; 3],
    full_median: [f64; 3],
    full_patch_voxels: f64,
    patch_voxels: impl Fn([f64; 3], [f64; 3]) -> f64,
) -> bool {
    let (mut spacing, mut in_patch, mut in_case) = (full_spacing, full_patch_voxels, volume(full_median));
    while in_patch / in_case < 0.25 {
        let coarsest = spacing.iter().copied().fold(f64::MIN, f64::max);
        let anisotropic = spacing.iter().any(|s| coarsest / s > 2.0);
        spacing = spacing.map(|s| if !anisotropic || coarsest / s > 2.0 { s * 1.03 } else { s });
        let median = [0, 1, 2].map(|i| full_spacing[i] / spacing[i] * full_median[i]);
        in_case = volume(median);
        in_patch = patch_voxels(spacing, median.map(f64::round_ties_even));
    }
    volume(full_median) / in_case >= 2.0
}

fn check(fingerprint: &Fingerprint, options: &PlanOptions) -> Result<()> {
    let positive = |v: f64| v.is_finite() && v > 0.0;
    if !positive(options.gpu_memory_gb) {
        return Err(Error::Invalid(format!("gpu_memory_gb is {}; expected a positive number", options.gpu_memory_gb)));
    }
    if let Some(mm) = options.spacing_mm.filter(|mm| !mm.iter().all(|&v| positive(v))) {
        return Err(Error::Invalid(format!("spacing_mm is {mm:?}; expected three positive numbers")));
    }
    if options.batch_size == Some(0) {
        return Err(Error::Invalid("batch_size is 0; expected at least 1".to_owned()));
    }
    if fingerprint.spacings.is_empty() || fingerprint.spacings.len() != fingerprint.shapes_after_crop.len() {
        return Err(Error::Invalid(
            "the fingerprint is of no case; expected one spacing and shape per case".to_owned(),
        ));
    }
    Ok(())
}

/// Chooses the median voxel size, except along an axis that is much coarser *and* much shorter than the others: there the
/// 10th percentile, so that most cases are not thinned further.
fn target_spacing(fingerprint: &Fingerprint) -> [f64; 3] {
    let along = |axis: usize| fingerprint.spacings.iter().map(|mm| mm[axis]).collect::<Vec<_>>();
    let mut target = [0, 1, 2].map(|axis| percentile(&mut along(axis), 50.0));
    let sizes = [0, 1, 2].map(|axis| {
        percentile(&mut fingerprint.shapes_after_crop.iter().map(|s| s[axis] as f64).collect::<Vec<_>>(), 50.0)
    });
    let worst = first_argmax(target);
    let others = [0, 1, 2].into_iter().filter(|&axis| axis != worst);
    let coarsest_other = others.clone().map(|axis| target[axis]).fold(f64::MIN, f64::max);
    let shortest_other = others.map(|axis| sizes[axis]).fold(f64::MAX, f64::min);
    if target[worst] > 3.0 * coarsest_other && 3.0 * sizes[worst] < shortest_other {
        let fine = percentile(&mut along(worst), 10.0);
        target[worst] = if fine < coarsest_other { coarsest_other + 1e-5 } else { fine };
    }
    target
}

fn median_resampled_shape(fingerprint: &Fingerprint, target: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|axis| {
        let cases = fingerprint.spacings.iter().zip(&fingerprint.shapes_after_crop);
        let mut sizes: Vec<f64> =
            cases.map(|(mm, shape)| (mm[axis] / target[axis] * shape[axis] as f64).round_ties_even()).collect();
        percentile(&mut sizes, 50.0)
    })
}

fn first_argmax(v: [f64; 3]) -> usize {
    (1..3).fold(0, |best, axis| if v[axis] > v[best] { axis } else { best })
}

fn volume(edges: [f64; 3]) -> f64 {
    edges.iter().product()
}

#[cfg(test)]
mod tests;
