//! Values that can be used but are hardly meant: contradictory headers, absurd intensities, cases unlike all others.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Result, length, rounded};
use crate::fingerprint::percentile;
use crate::geometry::Geometry;
use crate::grid::{displacement_mm, half_voxel_mm};
use crate::nifti::{LabelMap, Volume, read_geometry};
use crate::orientation::{AxisMap, Orientation};
use crate::plan::{Normalization, Plan};

/// Intensities beyond this are taken for a fault. Counts of radiation, the largest in use, stay below 1e9.
const ABSURD_INTENSITY: f32 = 1e10;

/// Ratio to the median beyond which a voxel size or an extent is taken for a fault.
const UNUSUAL_RATIO: f64 = 10.0;

/// Distance from the typical intensities, in their width, beyond which a CT is taken for one in other units; at least this many
/// Hounsfield units wide.
const UNUSUAL_WIDTHS: f64 = 2.0;
const MIN_WIDTH: f64 = 100.0;

/// Cosine between two axes from which on they are taken for sheared; rounding in a header stays below.
const SHEAR: f64 = 0.01;

/// Describes what is implausible in an image that a network is applied to, by itself and beside the cases that the plan was made
/// for: contradictory headers, an extent far from theirs, constant channels, absurd intensities. An absent orientation is not
/// described, since the plan may have none either.
pub fn implausible(path: &Path, volume: &Volume<f32>, plan: &Plan) -> Vec<String> {
    let grid = &volume.geometry;
    let file = [path.to_owned()];
    let mut found = if grid.orientation().is_some() { image(&file, volume) } else { intensities(&file, volume) };
    // Along the plan's axes, but in the order of the images.
    let in_order = |of_network: [f64; 3]| plan.transpose_backward.map(|i| of_network[i]);
    let own = in_order(plan.axes_of(grid).triple(extent_mm(grid)));
    let typical = in_order([0, 1, 2].map(|a| plan.median_shape[a] * plan.spacing_mm[a]));
    found.extend(far_from(path, ("extent", own), typical, "the training"));
    found
}

/// Describes what is implausible in the header of a file: absent forms, forms that contradict each other or the voxel sizes.
///
/// # Errors
/// Those of [`read_geometry`].
pub fn implausible_header(path: &Path) -> Result<Vec<String>> {
    Ok(header(&read_geometry(path)?.0))
}

/// Describes what is implausible in an image by itself, which one file or a file per channel holds.
pub(super) fn image(files: &[PathBuf], image: &Volume<f32>) -> Vec<String> {
    let file = files[0].display();
    let header = header(&image.geometry).into_iter().map(|problem| format!("{file}: {problem}"));
    header.chain(intensities(files, image)).collect()
}

/// Describes channels without content, the same channel twice, and absurd intensities.
fn intensities(files: &[PathBuf], image: &Volume<f32>) -> Vec<String> {
    let mut found = Vec::new();
    for (c, channel) in image.data.outer_iter().enumerate() {
        let file = files.get(c).unwrap_or(&files[0]).display();
        if channel.iter().all(|v| Some(v) == channel.first()) {
            found.push(format!("{file}: every voxel of channel {c} is the same"));
        } else if let Some(same) = image.data.outer_iter().take(c).position(|earlier| earlier == channel) {
            found.push(format!("{file}: channel {c} has the same voxels as channel {same}"));
        }
        let largest = channel.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        if largest > ABSURD_INTENSITY {
            found.push(format!("{file}: channel {c} has intensities up to {largest:e}, which no scanner measures"));
        }
    }
    found
}

/// Describes contradictions between the voxel sizes, the sform and the qform of a header, and axes that are not at right angles.
pub(super) fn header(geometry: &Geometry) -> Vec<String> {
    let mut found = Vec::new();
    let forms = [("sform", geometry.sform()), ("qform", geometry.qform())];
    if forms.iter().all(|(_, form)| form.is_none()) {
        found.push("has neither sform nor qform, so its orientation is unknown and taken as stored".to_owned());
    }
    let mut usable = Vec::new();
    for (name, form) in forms.into_iter().filter_map(|(name, form)| Some((name, form?))) {
        let matrix = form.map(|[x, y, z, _]| [x, y, z]);
        if form.as_flattened().iter().any(|v| !v.is_finite()) || Orientation::nearest(matrix).is_none() {
            found.push(format!("its {name} is singular or holds no numbers; it is ignored"));
            continue;
        }
        let lengths = [2, 1, 0].map(|j| matrix.iter().map(|row| row[j] * row[j]).sum::<f64>().sqrt());
        let pixdim = geometry.spacing_mm;
        if lengths.iter().zip(pixdim).any(|(a, b)| (a - b).abs() > 0.01 * b) {
            let (by_form, by_pixdim) = (rounded(lengths), rounded(pixdim));
            found.push(format!(
                "voxels measure {by_form:?} mm (z, y, x) by its {name}, but {by_pixdim:?} by its pixdim, which is used"
            ));
        }
        let cosine = |a: usize, b: usize| {
            let product: f64 = matrix.iter().map(|row| row[a] * row[b]).sum();
            (product / (lengths[2 - a] * lengths[2 - b])).abs()
        };
        let cosine = cosine(0, 1).max(cosine(0, 2)).max(cosine(1, 2));
        if cosine > SHEAR {
            let degrees = length(cosine.asin().to_degrees());
            found.push(format!(
                "the axes of its {name} are {degrees} degrees off right angles, but are used as if they were upright: distances \
                 are wrong, and ITK does not open it; resample it onto an upright grid"
            ));
        }
        usable.push(form);
    }
    if let [sform, qform] = usable.as_slice() {
        let mm = displacement_mm(geometry.shape, sform, qform);
        if mm > half_voxel_mm(geometry) {
            let mm = length(mm);
            found.push(format!("its sform and its qform place voxels up to {mm} mm apart; the sform places them"));
        }
    }
    found
}

/// Counts labelled voxels outside the nonzero box of the image, which preprocessing cuts off.
pub(super) fn labels_outside(path: &Path, labels: &LabelMap, bounds: &[Range<usize>; 3]) -> Option<String> {
    let labelled = labels.data.indexed_iter().filter(|(_, label)| **label > 0);
    let (mut outside, mut all) = (0, 0);
    for ((z, y, x), _) in labelled {
        all += 1;
        outside += usize::from(!(bounds[0].contains(&z) && bounds[1].contains(&y) && bounds[2].contains(&x)));
    }
    let file = path.display();
    (outside > 0).then(|| {
        format!(
            "{file}: {outside} of {all} labelled voxels lie where the image is 0, outside its content, and are cut off"
        )
    })
}

/// Orientation, voxel size and extent of most cases.
pub(super) struct TypicalGrid {
    orientation: Option<Orientation>,
    spacing_mm: [f64; 3],
    extent_mm: [f64; 3],
}

impl TypicalGrid {
    /// Medians over the grids; none without any.
    pub(super) fn of(grids: &[&(PathBuf, Geometry)]) -> Option<Self> {
        if grids.is_empty() {
            return None;
        }
        let orientation = Orientation::most_frequent(grids.iter().map(|(_, grid)| grid.orientation()));
        let median = |of: fn(&Geometry) -> [f64; 3]| {
            let values: Vec<_> = grids
                .iter()
                .map(|(_, grid)| AxisMap::between_known(grid.orientation(), orientation).triple(of(grid)))
                .collect();
            [0, 1, 2].map(|a| percentile(&mut values.iter().map(|triple| triple[a]).collect::<Vec<_>>(), 50.0))
        };
        Some(Self { orientation, spacing_mm: median(|grid| grid.spacing_mm), extent_mm: median(extent_mm) })
    }

    /// Describes what distinguishes a grid from the typical one.
    pub(super) fn compare(&self, path: &Path, grid: &Geometry) -> Vec<String> {
        let file = path.display();
        let mut found = Vec::new();
        if let (Some(own), Some(most)) = (grid.orientation(), self.orientation)
            && own != most
        {
            found
                .push(format!("{file}: is stored in orientation {own}, most cases in {most}; it is brought to theirs"));
        }
        let axes = AxisMap::between_known(grid.orientation(), self.orientation);
        for (what, own, typical) in
            [("voxel size", grid.spacing_mm, self.spacing_mm), ("extent", extent_mm(grid), self.extent_mm)]
        {
            found.extend(far_from(path, (what, axes.triple(own)), typical, "all"));
        }
        found
    }
}

/// Describes a length in millimetres along each axis that is far from the typical one of `whose` cases.
fn far_from(path: &Path, (what, own): (&str, [f64; 3]), typical: [f64; 3], whose: &str) -> Option<String> {
    let ratio = |a: usize| (own[a] / typical[a]).max(typical[a] / own[a]);
    (0..3).any(|a| ratio(a) > UNUSUAL_RATIO).then(|| {
        format!(
            "{}: its {what} {:?} mm (z, y, x) is far from the median of {whose} cases, {:?} mm; are its units right?",
            path.display(),
            rounded(own),
            rounded(typical)
        )
    })
}

/// Intensities of labelled voxels in most cases, of the channels that hold Hounsfield units. Others have no units.
pub(super) struct TypicalIntensities<'a> {
    /// Index and name of a channel, and its 5, 50 and 95 percentile.
    channels: Vec<(usize, &'a str, [f64; 3])>,
}

impl<'a> TypicalIntensities<'a> {
    /// Medians over the cases' percentiles ([`crate::CaseFingerprint::intensity`]) in each channel.
    pub(super) fn of(modalities: &'a [String], cases: &[&[Option<[f64; 3]>]]) -> Self {
        let typical = |(c, name): (usize, &'a String)| {
            let known: Vec<_> = cases.iter().filter_map(|case| *case.get(c)?).collect();
            let is_ct = Normalization::for_modality(name) == Normalization::Ct;
            let median = |i: usize| percentile(&mut known.iter().map(|of| of[i]).collect::<Vec<_>>(), 50.0);
            (is_ct && !known.is_empty()).then(|| (c, name.as_str(), [0, 1, 2].map(median)))
        };
        Self { channels: modalities.iter().enumerate().filter_map(typical).collect() }
    }

    /// Describes intensities far from the typical ones: a rescaling that is missing, or applied twice.
    pub(super) fn compare(&self, path: &Path, own: &[Option<[f64; 3]>]) -> Vec<String> {
        let describe = |&(c, name, [low, typical, high]): &(usize, &str, [f64; 3])| {
            let [_, median, _] = (*own.get(c)?)?;
            let margin = UNUSUAL_WIDTHS * (high - low).max(MIN_WIDTH);
            (median < low - margin || median > high + margin).then(|| {
                format!(
                    "{}: the median of its labelled voxels in channel {c} ({name}) is {median}, that of most cases {typical}: is it \
                     in Hounsfield units?",
                    path.display()
                )
            })
        };
        self.channels.iter().filter_map(describe).collect()
    }
}

fn extent_mm(grid: &Geometry) -> [f64; 3] {
    [0, 1, 2].map(|a| grid.spacing_mm[a] * grid.shape[a] as f64)
}
