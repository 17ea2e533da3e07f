//! Preparation of a case for a network, and the way back to the image's grid.
//!
//! The order is nnU-Net's: transpose, crop to the nonzero region, normalise, resample. Images stored in another orientation
//! than the training cases are first brought to theirs. Normalising comes first, so
//! its statistics are those of the scanner's own voxels.

use std::path::Path;

use ndarray::{Array, Array3, Array4, Dimension, Slice, Zip};
use serde::{Deserialize, Serialize};

use crate::case_bytes::CaseBytes;
use crate::dataset::{Dataset, described};
use crate::error::{Error, Result};
use crate::grid::Positions;
use crate::memory::Memory;
use crate::nifti::{LabelMap, Volume};
use crate::orientation::AxisMap;
use crate::plan::Plan;

pub(crate) mod crop;
mod locations;
mod normalize;
mod resample;
mod restore;

pub use locations::ClassLocations;
pub(crate) use resample::resampled_shape;
pub use restore::LabelRestorer;

/// A case ready for training or prediction. Spatial axes D, H, W are the plan's
/// (z, y, x moved by [`Plan::transpose_forward`]).
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedCase {
    /// Normalised intensities, `[C, D, H, W]`.
    pub image: Array4<f32>,
    /// Labels, `[D, H, W]`; -1 where nothing is labelled and every channel was 0.
    pub labels: Option<Array3<i16>>,
    /// Voxels of every label above 0 that occurs.
    pub locations: Vec<ClassLocations>,
    /// Cropping and resampling, needed to bring a prediction back to the image's grid.
    pub properties: CaseProperties,
}

/// Cropping and resampling of a case, undone by [`CaseProperties::restore_labels`] and
/// [`CaseProperties::restore_logits`]. Triples are in network order unless noted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseProperties {
    /// Voxel size of the image, millimetres.
    pub spacing_mm: [f64; 3],
    /// Voxel size after resampling, millimetres.
    pub target_spacing_mm: [f64; 3],
    /// Shape of the image.
    pub shape_before_cropping: [usize; 3],
    /// Kept part: first voxel and one past the last, per axis.
    pub crop: [[usize; 2]; 3],
    /// Shape after resampling: that of [`PreparedCase::image`].
    pub shape: [usize; 3],
    /// Axes of the prepared case in terms of the image's z, y, x.
    pub axes: AxisMap,
}

impl CaseProperties {
    /// Shape of the kept part, before resampling, of properties that [`Self::check`] accepts.
    pub fn shape_after_cropping(&self) -> [usize; 3] {
        self.crop.map(|[start, end]| end - start)
    }

    /// Checks properties that were read from a file: a crop within the image, a shape without 0, and an order of three axes.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self) -> Result<()> {
        let Self { crop, shape_before_cropping: before, shape, axes, .. } = self;
        let mut order = axes.from;
        order.sort_unstable();
        let fits = (0..3).all(|a| crop[a][0] < crop[a][1] && crop[a][1] <= before[a]);
        if fits && order == [0, 1, 2] && !shape.contains(&0) {
            return Ok(());
        }
        Err(Error::Invalid(format!("{self:?}; expected the properties of a prepared case")))
    }
}

/// Prepares a case for a plan: brings it to the plan's orientation, crops it to the nonzero region, normalises it, resamples it
/// to the plan's voxel size, and lists the voxels of each label. Labels lie on the image's grid.
///
/// Images are resampled with interpolating cubic B-splines and clipped to their own range; labels by linear
/// interpolation of each label's indicator. Cases whose voxels are more than three times longer along one axis are
/// resampled in-plane, and nearest-neighbour across.
///
/// Takes its arguments by value, so that few copies of the largest cases exist at once: at most twice the larger
/// of the volumes before and after, labels included.
///
/// # Errors
/// [`Error::Shape`] if image, labels and plan do not fit each other; those of [`Positions::Checked`] for labels that lie
/// elsewhere than the image; [`Error::Invalid`] for labels along other axes, or a label that the plan does not have.
pub fn preprocess(image: Volume<f32>, labels: Option<LabelMap>, plan: &Plan) -> Result<PreparedCase> {
    check(&image, labels.as_ref(), plan)?;
    let axes = plan.axes_of(&image.geometry);
    let spacing_mm = axes.triple(image.geometry.spacing_mm);
    let data = axes.apply(image.data);
    let (_, d, h, w) = data.dim();
    let crop = crop::nonzero_bounds(&data.view()).map(|b| [b.start, b.end]);
    let mut image = cut(data, &[&[[0, plan.normalization.len()]], crop.as_slice()].concat());
    let outside = crop::outside(&image.view());
    let has_labels = labels.is_some();
    // Without labels only the sign matters, which separates inside from outside.
    let mut labels = match labels {
        Some(labels) => Some(as_signed(&cut(axes.apply(labels.data), &crop))),
        None => outside.as_ref().map(|outside| Array3::zeros(outside.dim())),
    };
    if let (Some(labels), Some(outside)) = (&mut labels, outside) {
        Zip::from(labels).and(&outside).par_for_each(|label, &outside| {
            if outside && *label == 0 {
                *label = -1;
            }
        });
    }
    for (c, mut channel) in image.outer_iter_mut().enumerate() {
        let masked = labels.as_ref().filter(|_| plan.use_mask_for_norm[c]);
        normalize::normalize(
            &mut channel,
            masked.map(|labels| labels.view()).as_ref(),
            plan.normalization[c],
            plan.intensity.get(c),
        )?;
    }

    let target_mm = plan.spacing_mm;
    let cropped = crop.map(|[start, end]| end - start);
    let shape = resample::resampled_shape(cropped, spacing_mm, target_mm);
    let separate = resample::separate_axis(spacing_mm, target_mm);
    let properties = CaseProperties {
        spacing_mm,
        target_spacing_mm: target_mm,
        shape_before_cropping: [d, h, w],
        crop,
        shape,
        axes,
    };
    let image = resample::resample_image(image, shape, separate);
    let labels = labels.filter(|_| has_labels).map(|labels| resample::resample_labels(labels, shape, separate));
    let locations = labels.as_ref().map(|l| locations::class_locations(&l.view())).unwrap_or_default();
    Ok(PreparedCase { image, labels, locations, properties })
}

/// Reads and prepares training cases, as many at a time as `memory` allows; the result is in the order of `ids`.
///
/// The limit is for the work; prepared cases stay in memory besides (see [`crate::training_cases_bytes`], and
/// [`crate::store_training_cases`] for cases that do not fit).
///
/// # Errors
/// The first error in the order of `ids`, of [`Dataset::load_case`] or [`preprocess`]; [`Error::Memory`] for a case that
/// cannot be prepared within `memory`.
pub fn prepare_training_cases(
    dataset: &Dataset,
    ids: &[String],
    plan: &Plan,
    memory: Memory,
) -> Result<Vec<PreparedCase>> {
    let cases = dataset.training_cases(ids)?;
    memory.each(
        &cases,
        |case| described(&case.image),
        |case| Ok(CaseBytes::of(&case.image, plan)?.preparing),
        |case| {
            let (image, labels) = dataset.load_case(case)?;
            preprocess(image, Some(labels), plan)
        },
    )
}

fn check(image: &Volume<f32>, labels: Option<&LabelMap>, plan: &Plan) -> Result<()> {
    let expected = image.geometry.shape;
    let arrays = [("image", Some(&image.data.shape()[1..])), ("label map", labels.map(|labels| labels.data.shape()))];
    if let Some((what, Some(found))) =
        arrays.into_iter().find(|(_, found)| found.is_some_and(|found| found != expected))
    {
        return Err(Error::Shape { what, found: found.to_vec(), expected: expected.to_vec() });
    }
    if let Some(labels) = labels {
        let (image, labels) = ((Path::new("image"), &image.geometry), (Path::new("label map"), &labels.geometry));
        if Positions::Checked.compare(image, labels)? != AxisMap::IDENTITY {
            let problem = "the label map is stored along other axes than its image; bring it to the image's axes";
            return Err(Error::Invalid(problem.to_owned()));
        }
    }
    let known = plan.labels.len();
    if let Some(&label) = labels.and_then(|labels| labels.data.iter().find(|&&label| usize::from(label) >= known)) {
        return Err(Error::Invalid(format!(
            "label {label}, which the plan does not have; its labels are below {known}"
        )));
    }
    let (channels, planned) = (image.data.shape()[0], plan.normalization.len());
    if channels != planned || plan.use_mask_for_norm.len() != planned {
        return Err(Error::Shape { what: "image channels", found: vec![channels], expected: vec![planned] });
    }
    Ok(())
}

/// Checks that patches can be drawn from a prepared case, and returns its labels.
///
/// # Errors
/// [`Error::Invalid`] without labels or for a label above 255; [`Error::Shape`] for labels of another shape.
pub(crate) fn check_prepared(case: &PreparedCase) -> Result<&Array3<i16>> {
    let missing = || Error::Invalid("a case to draw patches from has no labels".to_owned());
    let labels = case.labels.as_ref().ok_or_else(missing)?;
    let (found, expected) = (labels.shape(), &case.image.shape()[1..]);
    if found != expected {
        let (found, expected) = (found.to_vec(), expected.to_vec());
        return Err(Error::Shape { what: "labels of a prepared case", found, expected });
    }
    let is_readable = case.image.is_standard_layout() && labels.is_standard_layout();
    if !is_readable || case.locations.iter().any(|class| class.voxels.is_empty()) {
        let fault = "a prepared case whose arrays are not in standard layout, or with a class without voxels";
        return Err(Error::Invalid(fault.to_owned()));
    }
    check_highest_label(labels.iter().copied().max().unwrap_or(0))?;
    Ok(labels)
}

/// Checks that batches can hold labels up to this.
pub(crate) fn check_highest_label(label: i16) -> Result<()> {
    if label > 255 {
        return Err(Error::Invalid(format!("label {label}; batches hold labels up to 255")));
    }
    Ok(())
}

/// A box of an array, in standard layout; the array itself if that is what it is.
fn cut<T: Clone + Send + Sync, D: Dimension>(array: Array<T, D>, bounds: &[[usize; 2]]) -> Array<T, D> {
    let whole = bounds.iter().zip(array.shape()).all(|([start, end], n)| *start == 0 && end == n);
    if whole && array.is_standard_layout() {
        return array;
    }
    let part = array.slice_each_axis(|ax| {
        let [start, end] = bounds[ax.axis.0];
        Slice::from(start..end)
    });
    part.as_standard_layout().into_owned()
}

/// Casts labels, which are below 256.
fn as_signed(labels: &Array3<u16>) -> Array3<i16> {
    labels.mapv(|v| v as i16)
}

#[cfg(test)]
mod tests;
