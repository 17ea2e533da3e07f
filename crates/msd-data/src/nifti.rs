//! NIfTI-1 files: images, label maps, `.nii` and `.nii.gz`.
//!
//! Arrays are in C order with axes `[C, z, y, x]` (images) or `[z, y, x]` (label maps), which is the order of the
//! voxels in the file; reading and writing neither transpose nor reorient.
//!
//! The `nifti` crate parses the header fields. Voxels are read and files are written here, because that crate
//! allocates what a header claims before it sees the data, keeps no place for a damaged file's numbers in its
//! errors, writes over the final file in place, and drops write errors of uncompressed files in an unchecked flush.

use std::io::{BufReader, Read, Write};
use std::path::Path;

use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use ndarray::{Array3, Array4, ArrayView3, ArrayView4};
use nifti::Endianness;

use crate::error::{Error, NiftiProblem, Result};
use crate::geometry::{Geometry, HEADER_BYTES};

mod gzip;
mod reader;
mod voxel_type;

use reader::NiftiFile;

/// An image: channels on a grid, `data[c, z, y, x]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T> {
    /// Voxels, `[C, z, y, x]`.
    pub data: Array4<T>,
    /// The grid.
    pub geometry: Geometry,
}

/// A segmentation, `data[z, y, x]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelMap {
    /// Label values, `[z, y, x]`.
    pub data: Array3<u16>,
    /// The grid.
    pub geometry: Geometry,
}

/// Reads an image as f32 (slope and intercept applied). A 3D file has one channel, a 4D file one per 4th index.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened, [`Error::Nifti`] if it is damaged or of an unusable kind,
/// [`Error::NotFinite`] with the number of voxels that are NaN, infinite or beyond f32.
pub fn read_image(path: impl AsRef<Path>) -> Result<Volume<f32>> {
    let path = path.as_ref();
    image(NiftiFile::open(path)?, path)
}

/// Reads an image like [`read_image`], from the bytes of a file, compressed or not. Errors call it `path`.
///
/// # Errors
/// Those of [`read_image`].
pub fn image_from_bytes(bytes: &[u8], path: impl AsRef<Path>) -> Result<Volume<f32>> {
    let path = path.as_ref();
    image(NiftiFile::of(bytes, bytes.len() as u64, path)?, path)
}

fn image(mut file: NiftiFile<'_>, path: &Path) -> Result<Volume<f32>> {
    let mut voxels = Vec::new();
    let mut not_finite = 0;
    let (slope, intercept) = file.scaling;
    file.read_voxels(path, &mut voxels, |v| {
        let v = (v * slope + intercept) as f32;
        not_finite += usize::from(!v.is_finite());
        v
    })?;
    if not_finite > 0 {
        return Err(Error::NotFinite { path: path.to_path_buf(), count: not_finite, total: voxels.len() });
    }
    let [z, y, x] = file.geometry.shape;
    let data = Array4::from_shape_vec((file.channels, z, y, x), voxels).expect("as many voxels were read");
    Ok(Volume { data, geometry: file.geometry })
}

/// Reads a label map of any integer or float type. Values within 1e-4 of a whole number count as that number.
///
/// # Errors
/// Those of [`read_image`]; [`NiftiProblem::NotALabel`] if a value is negative, fractional or above 65535.
pub fn read_labels(path: impl AsRef<Path>) -> Result<LabelMap> {
    let path = path.as_ref();
    labels(NiftiFile::open(path)?, path)
}

/// Reads a label map like [`read_labels`], from the bytes of a file, compressed or not. Errors call it `path`.
///
/// # Errors
/// Those of [`read_labels`].
pub fn labels_from_bytes(bytes: &[u8], path: impl AsRef<Path>) -> Result<LabelMap> {
    let path = path.as_ref();
    labels(NiftiFile::of(bytes, bytes.len() as u64, path)?, path)
}

fn labels(mut file: NiftiFile<'_>, path: &Path) -> Result<LabelMap> {
    if file.channels != 1 {
        let dim = file.dim.iter().map(|&n| n as i16).collect();
        let expected = "one volume of three dimensions for a label map";
        return Err(Error::nifti(path, NiftiProblem::Dimensions { dim, expected }));
    }
    let mut voxels = Vec::new();
    let (mut not_finite, mut odd, mut example) = (0, 0, 0.0);
    let (slope, intercept) = file.scaling;
    file.read_voxels(path, &mut voxels, |v| {
        let v = v * slope + intercept;
        let label = v.round();
        if !v.is_finite() {
            not_finite += 1;
        } else if (v - label).abs() > 1e-4 || !(0.0..=65535.0).contains(&label) {
            odd += 1;
            example = v;
        }
        label as u16
    })?;
    if not_finite > 0 {
        return Err(Error::NotFinite { path: path.to_path_buf(), count: not_finite, total: voxels.len() });
    }
    if odd > 0 {
        return Err(Error::nifti(path, NiftiProblem::NotALabel { count: odd, example }));
    }
    let data = Array3::from_shape_vec(file.geometry.shape, voxels).expect("as many voxels were read");
    Ok(LabelMap { data, geometry: file.geometry })
}

/// Reads only the header: the grid and the number of channels.
///
/// # Errors
/// Those of [`read_image`] that concern the header.
pub fn read_geometry(path: impl AsRef<Path>) -> Result<(Geometry, usize)> {
    let file = NiftiFile::open(path.as_ref())?;
    Ok((file.geometry, file.channels))
}

/// Reads the comment in the header of a gzip file; none for other files and for files without one. Readers of NIfTI pass over
/// it.
///
/// # Errors
/// [`Error::Io`].
pub fn read_comment(path: impl AsRef<Path>) -> Result<Option<String>> {
    let path = path.as_ref();
    let file = adw_files::open_regular(path).map_err(Error::io(path))?;
    // A header is read as the decoder is made, comments of any length included.
    let decoder = GzDecoder::new(BufReader::new(file.take(1 << 17)));
    let comment = decoder.header().and_then(|header| header.comment());
    Ok(comment.map(|comment| String::from_utf8_lossy(comment).into_owned()))
}

/// Writes a label map with the header of `geometry`, as u8, or u16 if a value exceeds 255. The file appears whole
/// or not at all.
///
/// # Errors
/// [`Error::Shape`] if the labels do not fit the geometry, [`NiftiProblem::Extension`], [`Error::Io`].
pub fn write_labels(path: impl AsRef<Path>, labels: &ArrayView3<u16>, geometry: &Geometry) -> Result<()> {
    write_commented_labels(path, labels, geometry, None)
}

/// Writes a label map as [`write_labels`] does; in a `.nii.gz` with a comment, which [`read_comment`] returns.
///
/// # Errors
/// Those of [`write_labels`].
pub fn write_commented_labels(
    path: impl AsRef<Path>,
    labels: &ArrayView3<u16>,
    geometry: &Geometry,
    comment: Option<&str>,
) -> Result<()> {
    check(path.as_ref(), "label map", (labels.shape(), 1), geometry)?;
    if comment.is_some_and(|comment| comment.contains('\0')) {
        return Err(Error::Invalid("a comment with a NUL, which gzip cannot hold".to_owned()));
    }
    // More cannot be read: flate2 refuses the file.
    if let Some(bytes) = comment.map(str::len).filter(|&bytes| bytes > 65_535) {
        return Err(Error::Invalid(format!("a comment of {bytes} bytes; shorten it to 65535")));
    }
    let wide = labels.iter().any(|&v| v > 255);
    let (code, bits) = if wide { (512, 16) } else { (2, 8) };
    let big = geometry.endianness == Endianness::Big;
    let header = geometry.header_bytes(1, code, bits);
    let gzip = GzipOptions { level: Compression::default(), comment };
    write_file(path.as_ref(), &header, gzip, (labels.iter().copied(), bits), |v, out| match (wide, big) {
        (false, _) => out.push(v as u8),
        (true, false) => out.extend(v.to_le_bytes()),
        (true, true) => out.extend(v.to_be_bytes()),
    })
}

/// Writes an image as f32, 3D for one channel, else 4D. The file appears whole or not at all.
///
/// # Errors
/// Those of [`write_labels`]; [`Error::NotFinite`] for voxels that [`read_image`] refuses.
pub fn write_image(path: impl AsRef<Path>, image: &ArrayView4<f32>, geometry: &Geometry) -> Result<()> {
    let (channels, shape) = (image.shape()[0], &image.shape()[1..]);
    check(path.as_ref(), "image", (shape, channels), geometry)?;
    let count = image.iter().filter(|v| !v.is_finite()).count();
    if count > 0 {
        return Err(Error::NotFinite { path: path.as_ref().to_path_buf(), count, total: image.len() });
    }
    let big = geometry.endianness == Endianness::Big;
    let header = geometry.header_bytes(channels, 16, 32);
    // Noise does not compress: more effort costs seconds per volume and saves a few percent.
    let gzip = GzipOptions { level: Compression::fast(), comment: None };
    write_file(path.as_ref(), &header, gzip, (image.iter().copied(), 32), |v, out| {
        out.extend(if big { v.to_be_bytes() } else { v.to_le_bytes() });
    })
}

/// Checks the name of a file, and that an array of a shape and channels can be written on a grid.
fn check(path: &Path, what: &'static str, (found, channels): (&[usize], usize), geometry: &Geometry) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.ends_with(".nii.gz") && !name.ends_with(".nii") {
        return Err(Error::nifti(path, NiftiProblem::Extension));
    }
    if found != geometry.shape {
        return Err(Error::Shape { what, found: found.to_vec(), expected: geometry.shape.to_vec() });
    }
    let problem = |text| Err(Error::nifti(path, NiftiProblem::Header(text)));
    if found.iter().chain([&channels]).any(|n| !(1..=i16::MAX as usize).contains(n)) {
        return problem(format!("{channels} channels of {found:?} voxels; NIfTI-1 holds 1 to 32767 of each"));
    }
    let mm = geometry.spacing_mm;
    if mm.iter().any(|mm| !mm.is_finite() || *mm <= 0.0) {
        return Err(Error::nifti(path, NiftiProblem::Spacing { mm }));
    }
    if !geometry.has_spacing_of_header() {
        return problem(format!("voxel size {mm:?} mm differs from the header's"));
    }
    Ok(())
}

/// Compression of a file, and the comment in its gzip header.
#[derive(Clone, Copy)]
struct GzipOptions<'a> {
    level: Compression,
    comment: Option<&'a str>,
}

/// Writes voxels, of so many bits each, behind a header, to a file whose name was [checked](check).
fn write_file<T>(
    path: &Path,
    header: &[u8; HEADER_BYTES],
    gzip: GzipOptions<'_>,
    (voxels, bits): (impl ExactSizeIterator<Item = T>, i16),
    encode: impl Fn(T, &mut Vec<u8>),
) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 4 + voxels.len() * bits as usize / 8);
    bytes.extend(header);
    bytes.extend([0; 4]); // no header extensions
    for voxel in voxels {
        encode(voxel, &mut bytes);
    }
    let written = if path.extension().is_some_and(|ending| ending == "gz") {
        adw_files::write_atomic(path, |file| {
            let builder = gzip.comment.map_or_else(GzBuilder::new, |comment| GzBuilder::new().comment(comment));
            let mut encoder = builder.write(file, gzip.level);
            encoder.write_all(&bytes)?;
            encoder.finish().map(|_| ())
        })
    } else {
        adw_files::write_bytes(path, &bytes)
    };
    written.map_err(Error::io(path))
}

#[cfg(test)]
mod tests;
