//! A series of CT or MR images as one volume.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ndarray::Array3;

use crate::data_set::DataSet;
use crate::error::{Error, Result};
use crate::image::{Frame, Image};
use crate::pixels::Pixels;
use crate::reader::{Header, read_header};
use crate::tags;

/// A series whose images make one volume. The voxels are not read yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Folder, or the only file.
    pub(crate) path: PathBuf,
    pub(crate) images: Vec<Image>,
    /// Image and frame of each plane, in the direction of the planes' normal.
    pub(crate) planes: Vec<(usize, usize)>,
    /// Attributes of the first plane's file.
    pub(crate) attributes: DataSet,
    pub(crate) slice_spacing_mm: f64,
    skipped: Vec<PathBuf>,
}

impl Series {
    /// Reads the headers of the files in a folder, whatever their names, or of one file, and checks that they make a volume:
    /// planes of one orientation, size and voxel size, at equal distances along their normal. Of several series in the folder it
    /// takes the one whose `SeriesInstanceUID` is or ends with `uid`.
    ///
    /// # Errors
    /// [`Error::NotDicom`], [`Error::SeveralSeries`], [`Error::NotAVolume`]; those of single files.
    pub fn open(path: &Path, uid: Option<&str>) -> Result<Self> {
        let (files, skipped) = dicom_files(path)?;
        if files.is_empty() {
            return Err(Error::NotDicom { path: path.to_owned() });
        }
        let mut images = Vec::new();
        let mut sets = Vec::new();
        for (file, header) in choose(path, files, uid)? {
            let (image, set) = Image::new(&file, header)?;
            images.push(image);
            sets.push(set);
        }
        let frames = |image: usize| (0..images[image].frames.len()).map(move |frame| (image, frame));
        let mut planes: Vec<(usize, usize)> = (0..images.len()).flat_map(frames).collect();
        let slice_spacing_mm = sort_planes(path, &images, &mut planes)?;
        check_same(&images, &sets)?;
        let attributes = sets.swap_remove(planes[0].0);
        Ok(Self { path: path.to_owned(), images, planes, attributes, slice_spacing_mm, skipped })
    }

    /// Folder of the series, or its only file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Files of the images, in the order of the planes.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.planes.iter().map(|&(image, _)| self.images[image].path.clone()).collect();
        files.dedup();
        files
    }

    /// Files in the folder that hold no DICOM image, such as licences and directories.
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// Number of planes, rows and columns.
    pub fn shape(&self) -> [usize; 3] {
        let format = self.images[0].format;
        [self.planes.len(), format.rows, format.columns]
    }

    /// Matrix from voxel indices (column, row, plane, 1) to millimetres to the patient's right, front and head, as in NIfTI.
    pub fn affine(&self) -> [[f64; 4]; 3] {
        let Frame { position, orientation, spacing_mm: [row_mm, column_mm], .. } = *self.frame(0);
        let [row, column] = directions(&orientation);
        let normal = cross(row, column);
        [0, 1, 2].map(|axis| {
            // DICOM counts to the left and to the back.
            let sign = if axis < 2 { -1.0 } else { 1.0 };
            let along =
                [row[axis] * column_mm, column[axis] * row_mm, normal[axis] * self.slice_spacing_mm, position[axis]];
            along.map(|v| sign * v)
        })
    }

    /// Reads the voxels, `[plane, row, column]`, in the scanner's units: Hounsfield units for CT.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`].
    pub fn voxels(&self) -> Result<Array3<f32>> {
        let [num_planes, rows, columns] = self.shape();
        let mut voxels = Vec::with_capacity(num_planes * rows * columns);
        let mut opened: Option<(usize, Pixels)> = None;
        for &(image, frame) in &self.planes {
            let Image { path, pixels, format, frames, .. } = &self.images[image];
            let reader = match &mut opened {
                Some((of, reader)) if *of == image => reader,
                slot => &mut slot.insert((image, Pixels::open(path, *pixels, *format, frames.len())?)).1,
            };
            let [slope, intercept] = frames[frame].scale.unwrap_or([1.0, 0.0]);
            reader.read(path, frame, |stored| voxels.push((stored as f64 * slope + intercept) as f32))?;
        }
        if let Some(at) = voxels.iter().position(|v| !v.is_finite()) {
            let path = &self.images[self.planes[at / (rows * columns)].0].path;
            return Err(Error::attribute(path, tags::SLOPE, "makes infinite intensities"));
        }
        Ok(Array3::from_shape_vec([num_planes, rows, columns], voxels).expect("each plane has as many pixels"))
    }

    pub(crate) fn frame(&self, plane: usize) -> &Frame {
        let (image, frame) = self.planes[plane];
        &self.images[image].frames[frame]
    }
}

/// Returns true if a folder has a DICOM file, or if a file is one.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read.
pub fn is_dicom(path: &Path) -> Result<bool> {
    let is_one = |path: &Path| {
        // The directory of a medium, whose series are elsewhere.
        if path.file_name() == Some("DICOMDIR".as_ref()) {
            return Ok(false);
        }
        let mut start = [0; 132];
        let mut file = adw_files::open_regular(path)?;
        file.read_exact(&mut start)?;
        io::Result::Ok(&start[128..] == b"DICM")
    };
    if !path.is_dir() {
        return Ok(is_one(path).unwrap_or(false));
    }
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        if is_one(&entry.map_err(Error::io(path))?.path()).unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Headers of DICOM files by path.
type Headers = Vec<(PathBuf, Header)>;

/// Reads the headers of a file or of the files in a folder, by name; and the names of files that hold no image.
fn dicom_files(path: &Path) -> Result<(Headers, Vec<PathBuf>)> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(Error::io(path))?;
        let files = entries.map(|entry| entry.map(|entry| entry.path()));
        paths = files.collect::<io::Result<_>>().map_err(Error::io(path))?;
        paths.retain(|path| !path.is_dir());
        paths.sort();
    }
    let (mut headers, mut skipped) = (Vec::new(), Vec::new());
    for file in paths {
        match read_header(&file)? {
            Some(header) => headers.push((file, header)),
            None => skipped.push(file),
        }
    }
    Ok((headers, skipped))
}

/// Takes the files of one series.
fn choose(path: &Path, files: Headers, uid: Option<&str>) -> Result<Headers> {
    let mut series: Vec<(String, Headers)> = Vec::new();
    for (file, header) in files {
        let Some(uid) = header.data_set.text(tags::SERIES_UID) else {
            return Err(Error::attribute(&file, tags::SERIES_UID, "is missing"));
        };
        match series.iter_mut().find(|(found, _)| *found == uid) {
            Some((_, files)) => files.push((file, header)),
            None => series.push((uid, vec![(file, header)])),
        }
    }
    let count = series.len();
    let list = series.iter().map(|(uid, files)| {
        let text = |tag| files[0].1.data_set.text(tag).unwrap_or_default();
        // From its end, by characters: damaged files have identifiers of any.
        let tail = uid.char_indices().rev().nth(11).map_or(0, |(at, _)| at);
        format!(
            "...{} ({} {:?}, files: {})",
            &uid[tail..],
            text(tags::MODALITY),
            text(tags::SERIES_DESCRIPTION),
            files.len()
        )
    });
    let list = list.collect::<Vec<_>>().join(", ");
    let is_whole = series.iter().any(|(found, _)| uid == Some(found));
    series.retain(|(found, _)| uid.is_none_or(|uid| if is_whole { found == uid } else { found.ends_with(uid) }));
    match (series.len(), series.pop()) {
        (1, Some((_, files))) => Ok(files),
        _ => Err(Error::SeveralSeries { folder: path.to_owned(), count, list }),
    }
}

fn directions(orientation: &[f64; 6]) -> [[f64; 3]; 2] {
    let [a, b, c, d, e, f] = *orientation;
    [[a, b, c], [d, e, f]]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|i| a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3])
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Sorts planes along their normal and returns their distance.
///
/// # Errors
/// [`Error::NotAVolume`] for planes of different orientations or sizes, less than two, several at one place, unequal distances,
/// and stacks that lean (a tilted gantry).
fn sort_planes(path: &Path, images: &[Image], planes: &mut [(usize, usize)]) -> Result<f64> {
    /// Deviation of components of unit vectors, and of lengths relative to them: attributes have few digits.
    const TOLERANCE: f64 = 1e-3;
    /// Deviation of the distance of two planes from the others, relative to it.
    const GAP_TOLERANCE: f64 = 0.1;
    /// Distance of a plane from its place on a grid of equal distances, relative to that distance.
    const MAX_DRIFT: f64 = 0.5;
    let frame = |plane: (usize, usize)| &images[plane.0].frames[plane.1];
    let file = |plane: (usize, usize)| images[plane.0].path.as_path();
    let first = planes[0];
    for &plane in &planes[1..] {
        let (a, b) = (frame(first), frame(plane));
        let differ = |a: &[f64], b: &[f64], scale: f64| a.iter().zip(b).any(|(a, b)| (a - b).abs() > TOLERANCE * scale);
        let (tag, a, b) = if differ(&a.orientation, &b.orientation, 1.0) {
            (tags::ORIENTATION, &a.orientation[..], &b.orientation[..])
        } else if differ(&a.spacing_mm, &b.spacing_mm, a.spacing_mm[0]) {
            (tags::PIXEL_SPACING, &a.spacing_mm[..], &b.spacing_mm[..])
        } else {
            continue;
        };
        let problem =
            format!("is {b:?}, but {a:?} in {}; a volume has one: remove images such as scouts", file(first).display());
        return Err(Error::attribute(file(plane), tag, problem));
    }
    if planes.len() < 2 {
        return Err(Error::not_a_volume(path, "one image; a volume has at least two"));
    }
    let [row, column] = directions(&frame(first).orientation);
    let normal = cross(row, column);
    planes.sort_unstable_by(|&a, &b| dot(frame(a).position, normal).total_cmp(&dot(frame(b).position, normal)));
    let height = |plane| dot(frame(plane).position, normal);
    let mut gaps: Vec<f64> = planes.windows(2).map(|pair| height(pair[1]) - height(pair[0])).collect();
    for (pair, &gap) in planes.windows(2).zip(&gaps) {
        if gap < 0.01 {
            let (a, b) = (file(pair[0]), file(pair[1]));
            let which = if a == b {
                format!("frames {} and {}", pair[0].1 + 1, pair[1].1 + 1)
            } else {
                a.display().to_string()
            };
            let at = height(pair[1]);
            let problem = format!(
                "lies where {which} lies, {at:.2} mm along the normal; keep one volume (time, echo) of several"
            );
            return Err(Error::not_a_volume(b, problem));
        }
    }
    let in_order = gaps.clone();
    gaps.sort_unstable_by(f64::total_cmp);
    let typical = gaps[gaps.len() / 2];
    let uneven = in_order.iter().position(|gap| (gap - typical).abs() > GAP_TOLERANCE * typical);
    if let Some(at) = uneven {
        let (a, b, gap) = (file(planes[at]), file(planes[at + 1]), in_order[at]);
        let problem =
            format!("lies {gap:.2} mm behind {}, but others {typical:.2} mm apart; add what is missing", a.display());
        return Err(Error::not_a_volume(b, problem));
    }
    let bottom = height(planes[0]);
    let spacing = (height(planes[planes.len() - 1]) - bottom) / (planes.len() - 1) as f64;
    for (k, &plane) in planes.iter().enumerate() {
        let away = (height(plane) - bottom - k as f64 * spacing).abs();
        if away > MAX_DRIFT * spacing {
            let problem = format!(
                "lies {away:.2} mm from where planes at equal distances ({spacing:.3} mm) would have it; split the series where the \
                 distance changes"
            );
            return Err(Error::not_a_volume(file(plane), problem));
        }
    }
    let (start, end) = (frame(planes[0]).position, frame(planes[planes.len() - 1]).position);
    for &plane in planes.iter() {
        let from_start = [0, 1, 2].map(|i| frame(plane).position[i] - start[i]);
        let aside = dot(from_start, row).hypot(dot(from_start, column));
        // Rounded directions lead further aside with every plane.
        if aside > 0.1 + TOLERANCE * dot(from_start, normal) {
            let along = [0, 1, 2].map(|i| end[i] - start[i]);
            let degrees = dot(along, row).hypot(dot(along, column)).atan2(dot(along, normal)).to_degrees();
            let problem = format!(
                "lies {aside:.1} mm beside the axis of the stack, which leans by {degrees:.1} degrees (a tilted gantry); resample it upright"
            );
            return Err(Error::not_a_volume(file(plane), problem));
        }
    }
    Ok(spacing)
}

/// Checks what all files of a volume have in common, that each has an identifier of its own, and that all pixels are there.
fn check_same(images: &[Image], sets: &[DataSet]) -> Result<()> {
    let first = &images[0];
    let mut instances = BTreeMap::new();
    for (image, set) in images.iter().zip(sets) {
        let size = |image: &Image| [image.format.rows, image.format.columns];
        if size(image) != size(first) {
            let problem = format!("has {:?} rows and columns, {} {:?}", size(image), first.path.display(), size(first));
            return Err(Error::not_a_volume(&image.path, problem));
        }
        for tag in [tags::SOP_CLASS, tags::STUDY_UID, tags::FRAME_OF_REFERENCE, tags::PATIENT_ID] {
            let (a, b) = (sets[0].text(tag), set.text(tag));
            if a != b {
                let [a, b] = [a, b].map(Option::unwrap_or_default);
                return Err(Error::attribute(&image.path, tag, format!("is {b}, but {a} in {}", first.path.display())));
            }
        }
        // A segmentation refers to its images by this identifier.
        if let Some(other) = instances.insert(&image.sop_instance, &image.path) {
            let problem = format!(
                "is {}, as in {}; every image has one of its own: export the series again from its source",
                image.sop_instance,
                other.display()
            );
            return Err(Error::attribute(&image.path, tags::SOP_INSTANCE, problem));
        }
        Pixels::open(&image.path, image.pixels, image.format, image.frames.len())?;
    }
    let scales = || images.iter().flat_map(|image| image.frames.iter().map(move |frame| (image, frame.scale)));
    match scales().find(|(_, scale)| scale.is_none()) {
        Some((image, _)) if scales().any(|(_, scale)| scale.is_some()) => {
            Err(Error::attribute(&image.path, tags::SLOPE, "is missing, but other images of the series have one"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
