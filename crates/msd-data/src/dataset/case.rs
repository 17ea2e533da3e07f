//! Cases, labels and the files of a dataset.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, rounded};
use crate::geometry::Geometry;
use crate::nifti::read_geometry;

/// A label and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Value in label maps.
    pub value: u16,
    /// Name in `dataset.json`.
    pub name: String,
}

/// A labelled case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// File name without `.nii.gz` (and, with a file per channel, without `_0000`).
    pub id: String,
    /// Files of the image: one with all channels, or one per channel in the order of the modalities.
    pub image: Vec<PathBuf>,
    /// File of the label map.
    pub label: PathBuf,
}

/// File and size of an image, for errors about memory: `a.nii.gz (64x64x64 voxels of 1x1x1 mm)`.
pub fn described(image: &[PathBuf]) -> String {
    let Ok(file) = first_file(image) else { return "an image without a file".to_owned() };
    read_geometry(file).map_or_else(|_| file.display().to_string(), |(geometry, _)| described_grid(file, &geometry))
}

/// First file of an image.
///
/// # Errors
/// [`Error::Invalid`] if there is none.
pub(crate) fn first_file(image: &[PathBuf]) -> Result<&PathBuf> {
    image.first().ok_or_else(|| Error::Invalid("an image without a file".to_owned()))
}

/// File and size of an image on a grid, as [`described`] writes them.
pub fn described_grid(file: &Path, geometry: &Geometry) -> String {
    let [z, y, x] = geometry.shape;
    let [dz, dy, dx] = rounded(geometry.spacing_mm);
    format!("{} ({z}x{y}x{x} voxels of {dz}x{dy}x{dx} mm)", file.display())
}

/// Bytes of an image of f32 and its 16-bit labels. In floating point, which saturates where an absurd voxel size leads to an
/// absurd number of voxels.
pub(crate) fn volume_bytes(shape: [usize; 3], channels: usize) -> u64 {
    ((4 * channels + 2) as f64 * shape.iter().map(|&n| n as f64).product::<f64>()) as u64
}

/// Bytes while an image and its labels are read. Channels in files of their own are there twice while they are joined.
pub(crate) fn reading_bytes(files: &[PathBuf], num_channels: usize) -> Result<u64> {
    let (geometry, _) = read_geometry(&files[0])?;
    Ok(volume_bytes(geometry.shape, num_channels * files.len().min(2)))
}

/// Origin of the paths of a dataset's cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paths {
    /// `dataset.json` lists them.
    Listed,
    /// They follow from the images in the folders `imagesTr` and `imagesTs`, as in nnU-Net v2's layout.
    Found,
}

/// A case without labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestCase {
    /// Name of the case, formed like [`Case::id`].
    pub id: String,
    /// Files of the image, like [`Case::image`].
    pub image: Vec<PathBuf>,
}

/// Path of a file that `dataset.json` lists, without the `./` that the decathlon puts in front. Where no file is called so,
/// back-slashes separate folders, as on Windows.
pub(super) fn listed(dir: &Path, file: &Path) -> PathBuf {
    let path: PathBuf = dir.join(file).components().collect();
    match file.to_str() {
        Some(text) if text.contains('\\') && !path.exists() => dir.join(text.replace('\\', "/")).components().collect(),
        _ => path,
    }
}

/// Lists the NIfTI files in a folder, `.nii` and `.nii.gz` in any case, in the order of their names; hidden files are left
/// out.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read, [`Error::FileName`] for a name that is not UTF-8.
pub fn nifti_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if is_nifti(&path)? {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Returns true for names that end like NIfTI files and are not hidden.
///
/// # Errors
/// [`Error::FileName`] for such a name that is not UTF-8, since no case can be called so.
fn is_nifti(path: &Path) -> Result<bool> {
    let name = path.file_name().unwrap_or_default();
    let text = name.to_string_lossy();
    if text.starts_with('.') || nifti_stem(&text).is_none() {
        return Ok(false);
    }
    if name.to_str().is_none() {
        let problem = "the name is not UTF-8; rename the file".to_owned();
        return Err(Error::FileName { path: path.to_path_buf(), problem });
    }
    Ok(true)
}

/// The name before `.nii` or `.nii.gz` in any case.
pub(super) fn nifti_stem(name: &str) -> Option<&str> {
    let without = |ending: &str| {
        let (stem, end) = name.split_at_checked(name.len().checked_sub(ending.len())?)?;
        end.eq_ignore_ascii_case(ending).then_some(stem)
    };
    without(".nii.gz").or_else(|| without(".nii"))
}

/// File name without `.nii` or `.nii.gz`; `None` for AppleDouble and hidden files and for names that are not UTF-8.
pub fn case_id(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        return None;
    }
    Some(nifti_stem(name).unwrap_or(name).to_owned())
}
