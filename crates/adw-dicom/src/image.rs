//! Images of CT and MR: one file, with one frame or several.

use std::path::{Path, PathBuf};

use crate::data_set::DataSet;
use crate::error::{Error, Result};
use crate::pixels::PixelFormat;
use crate::reader::{Header, PixelData};
use crate::tags::{self, Tag};

/// A file of a series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) sop_class: String,
    pub(crate) sop_instance: String,
    pub(crate) format: PixelFormat,
    pub(crate) pixels: PixelData,
    /// True for files that may have several frames, by their class.
    pub(crate) is_multi_frame: bool,
    pub(crate) frames: Vec<Frame>,
}

/// Place and scale of a frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// Centre of the first pixel, millimetres to the patient's left, back and head.
    pub(crate) position: [f64; 3],
    /// Directions of a row and of a column, unit vectors.
    pub(crate) orientation: [f64; 6],
    /// Distances of rows and of columns, millimetres.
    pub(crate) spacing_mm: [f64; 2],
    /// Slope and intercept of the intensities; none if they are as stored.
    pub(crate) scale: Option<[f64; 2]>,
}

/// Class of the images that are read; none for others.
fn is_multi_frame(sop_class: &str) -> Option<bool> {
    match sop_class.strip_prefix("1.2.840.10008.5.1.4.1.1.")? {
        // Single frames of CT and MR; several, made so or converted.
        "2" | "4" => Some(false),
        "2.1" | "4.1" | "2.2" | "4.4" => Some(true),
        _ => None,
    }
}

impl Image {
    /// Checks the attributes of a file.
    ///
    /// # Errors
    /// [`Error::Attribute`] for what is missing or not supported, [`Error::TransferSyntax`], [`Error::Damaged`].
    pub(crate) fn new(path: &Path, header: Header) -> Result<(Self, DataSet)> {
        let set = header.data_set;
        let attribute = |tag: Tag, problem: String| Error::attribute(path, tag, problem);
        let text = |tag: Tag| set.text(tag).ok_or_else(|| attribute(tag, "is missing".to_owned()));
        let sop_class = text(tags::SOP_CLASS)?;
        let Some(is_multi_frame) = is_multi_frame(&sop_class) else {
            let modality = set.text(tags::MODALITY).unwrap_or_default();
            let problem = format!("is {sop_class} (modality {modality:?}), neither CT nor MR; name a series of those");
            return Err(attribute(tags::SOP_CLASS, problem));
        };
        for tag in [tags::STUDY_UID, tags::FRAME_OF_REFERENCE] {
            text(tag)?;
        }
        let format = format(path, &set)?;
        let Some(pixels) = header.pixels? else {
            return Err(attribute(tags::PIXEL_DATA, "is missing".to_owned()));
        };
        let frames = if is_multi_frame {
            frames(path, &set)?
        } else {
            vec![Frame::of(path, &Groups { own: &set, shared: None })?]
        };
        let has_unit = |frame: &Frame| frame.scale.is_some();
        if sop_class.starts_with("1.2.840.10008.5.1.4.1.1.2") && !frames.iter().all(has_unit) {
            return Err(attribute(tags::SLOPE, "is missing; CT has one for its Hounsfield units".to_owned()));
        }
        let image = Self {
            path: path.to_owned(),
            sop_instance: text(tags::SOP_INSTANCE)?,
            sop_class,
            format,
            pixels,
            is_multi_frame,
            frames,
        };
        Ok((image, set))
    }
}

/// Size and bits of the pixels.
fn format(path: &Path, set: &DataSet) -> Result<PixelFormat> {
    let short = |tag: Tag| {
        let found = set.short(tag).ok_or_else(|| Error::attribute(path, tag, "is missing"))?;
        Ok((u32::from(found), tag))
    };
    let expect = |(found, tag): (u32, Tag), fits: bool, expected: &str| {
        let problem = || format!("is {found}; expected {expected}");
        if fits { Ok(found) } else { Err(Error::attribute(path, tag, problem())) }
    };
    let samples = short(tags::SAMPLES)?;
    expect(samples, samples.0 == 1, "1: colours are not supported")?;
    if let Some(photometric) = set.text(tags::PHOTOMETRIC).filter(|text| !text.starts_with("MONOCHROME")) {
        return Err(Error::attribute(path, tags::PHOTOMETRIC, format!("is {photometric}; expected MONOCHROME2")));
    }
    let (rows, columns) = (short(tags::ROWS)?, short(tags::COLUMNS)?);
    let (rows, columns) = (expect(rows, rows.0 > 0, "at least 1")?, expect(columns, columns.0 > 0, "at least 1")?);
    let allocated = short(tags::BITS_ALLOCATED)?;
    let bits_allocated = expect(allocated, matches!(allocated.0, 8 | 16 | 32), "8, 16 or 32")?;
    let stored = short(tags::BITS_STORED)?;
    let bits_stored = expect(stored, (1..=bits_allocated).contains(&stored.0), "1 to BitsAllocated")?;
    let high = short(tags::HIGH_BIT)?;
    let high_bit = expect(high, (bits_stored - 1..bits_allocated).contains(&high.0), "BitsStored - 1")?;
    let signed = short(tags::REPRESENTATION)?;
    let signed = expect(signed, signed.0 < 2, "0 or 1")? == 1;
    if !set.items(tags::MODALITY_LUT).is_empty() {
        return Err(Error::attribute(path, tags::MODALITY_LUT, "is a table of intensities, which is not supported"));
    }
    Ok(PixelFormat { rows: rows as usize, columns: columns as usize, bits_allocated, bits_stored, high_bit, signed })
}

/// Frames of a multi-frame image.
fn frames(path: &Path, set: &DataSet) -> Result<Vec<Frame>> {
    let [declared] = set.decimals(tags::NUM_FRAMES).unwrap_or_default();
    let groups = set.items(tags::FRAME_GROUPS);
    if declared != groups.len() as f64 || groups.is_empty() {
        let problem = format!("has {} items, but NumberOfFrames is {declared}", groups.len());
        return Err(Error::attribute(path, tags::FRAME_GROUPS, problem));
    }
    let empty = DataSet::default();
    let shared = set.items(tags::SHARED_GROUPS).first().unwrap_or(&empty);
    groups.iter().map(|own| Frame::of(path, &Groups { own, shared: Some(shared) })).collect()
}

/// Attributes of a frame: in the data set itself, or in items of its own and of all frames.
struct Groups<'a> {
    own: &'a DataSet,
    /// Items of all frames; none for an image of one.
    shared: Option<&'a DataSet>,
}

impl Groups<'_> {
    fn decimals<const N: usize>(&self, group: Tag, tag: Tag) -> Option<[f64; N]> {
        let Some(shared) = self.shared else { return self.own.decimals(tag) };
        [self.own, shared].into_iter().find_map(|set| set.items(group).first()).and_then(|item| item.decimals(tag))
    }
}

impl Frame {
    fn of(path: &Path, groups: &Groups<'_>) -> Result<Self> {
        let unusable = |tag, what: &str| Error::attribute(path, tag, format!("is missing or does not hold {what}"));
        let position = groups.decimals(tags::PLANE_POSITION, tags::POSITION);
        let position = position.ok_or_else(|| unusable(tags::POSITION, "three numbers"))?;
        let orientation: Option<[f64; 6]> = groups.decimals(tags::PLANE_ORIENTATION, tags::ORIENTATION);
        let orientation = orientation.filter(is_orthonormal);
        let orientation = orientation.ok_or_else(|| unusable(tags::ORIENTATION, "two perpendicular unit vectors"))?;
        let spacing: Option<[f64; 2]> = groups.decimals(tags::PIXEL_MEASURES, tags::PIXEL_SPACING);
        let spacing = spacing.filter(|spacing| spacing.iter().all(|&mm| mm > 0.0));
        let spacing_mm = spacing.ok_or_else(|| unusable(tags::PIXEL_SPACING, "two lengths above 0"))?;
        let scale = |tag| groups.decimals(tags::VALUE_TRANSFORMATION, tag).map(|[value]| value);
        let scale = match (scale(tags::SLOPE), scale(tags::INTERCEPT)) {
            (Some(slope), Some(intercept)) if slope != 0.0 => Some([slope, intercept]),
            (None, None) => None,
            (slope, intercept) => {
                let number =
                    |found: Option<f64>| found.map_or_else(|| "missing or no number".to_owned(), |v| v.to_string());
                let (slope, intercept) = (number(slope), number(intercept));
                let problem = format!("is {slope}, RescaleIntercept {intercept}; expected two numbers, a slope not 0");
                return Err(Error::attribute(path, tags::SLOPE, problem));
            }
        };
        Ok(Self { position, orientation, spacing_mm, scale })
    }
}

fn is_orthonormal(orientation: &[f64; 6]) -> bool {
    /// Deviation of lengths and of the cosine, for files with few digits.
    const TOLERANCE: f64 = 1e-3;
    let (row, column) = (&orientation[..3], &orientation[3..]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    (dot(row, row) - 1.0).abs() < TOLERANCE
        && (dot(column, column) - 1.0).abs() < TOLERANCE
        && dot(row, column).abs() < TOLERANCE
}
