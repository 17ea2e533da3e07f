//! NIfTI-1 files: images, label maps, `.nii` and `.nii.gz`.
//!
//! Arrays are in C order with axes `[C, z, y, x]` (images) or `[z, y, x]` (label maps), which is the order of the
//! voxels in the file; nothing is transposed or reoriented.
//!
//! The `nifti` crate parses the header fields. Voxels are read and files are written here, because that crate
//! allocates what a header claims before it sees the data, keeps no place for a damaged file's numbers in its
//! errors, writes over the final file in place, and drops write errors of uncompressed files in an unchecked flush.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ndarray::{Array3, Array4, ArrayView3, ArrayView4};
use nifti::{Endianness, NiftiHeader};

use crate::atomic_file::write_atomically;
use crate::error::{Error, NiftiProblem, Result};
use crate::geometry::{Geometry, HEADER_BYTES};

mod voxel_type;

use voxel_type::VoxelType;

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
/// [`Error::NotFinite`] with the number of NaN or infinite voxels.
pub fn read_image(path: impl AsRef<Path>) -> Result<Volume<f32>> {
    let path = path.as_ref();
    let mut file = NiftiFile::open(path)?;
    let mut voxels = Vec::new();
    let mut not_finite = 0;
    let (slope, intercept) = file.scaling;
    file.read_voxels(path, &mut voxels, |v| {
        let v = (v * slope + intercept) as f32;
        not_finite += usize::from(!v.is_finite());
        v
    })?;
    if not_finite > 0 {
        return Err(Error::NotFinite {
            path: path.to_path_buf(),
            count: not_finite,
            total: voxels.len(),
        });
    }
    let [z, y, x] = file.geometry.shape;
    let data =
        Array4::from_shape_vec((file.channels, z, y, x), voxels).expect("as many voxels were read");
    Ok(Volume {
        data,
        geometry: file.geometry,
    })
}

/// Reads a label map of any integer or float type. Values within 1e-4 of a whole number count as that number.
///
/// # Errors
/// As [`read_image`]; [`NiftiProblem::NotALabel`] if a value is negative, fractional or above 65535.
pub fn read_labels(path: impl AsRef<Path>) -> Result<LabelMap> {
    let path = path.as_ref();
    let mut file = NiftiFile::open(path)?;
    if file.channels != 1 {
        let dim = file.dim;
        let expected = "one volume of three dimensions for a label map";
        return Err(Error::nifti(
            path,
            NiftiProblem::Dimensions { dim, expected },
        ));
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
        return Err(Error::NotFinite {
            path: path.to_path_buf(),
            count: not_finite,
            total: voxels.len(),
        });
    }
    if odd > 0 {
        return Err(Error::nifti(
            path,
            NiftiProblem::NotALabel {
                count: odd,
                example,
            },
        ));
    }
    let data =
        Array3::from_shape_vec(file.geometry.shape, voxels).expect("as many voxels were read");
    Ok(LabelMap {
        data,
        geometry: file.geometry,
    })
}

/// Reads only the header: the grid and the number of channels.
///
/// # Errors
/// As [`read_image`], except that the voxels are not looked at.
pub fn read_geometry(path: impl AsRef<Path>) -> Result<(Geometry, usize)> {
    let file = NiftiFile::open(path.as_ref())?;
    Ok((file.geometry, file.channels))
}

/// Writes a label map with the header of `geometry`, as u8, or u16 if a value exceeds 255. The file appears whole
/// or not at all.
///
/// # Errors
/// [`Error::Shape`] if the labels do not fit the geometry, [`NiftiProblem::Extension`], [`Error::Io`].
pub fn write_labels(
    path: impl AsRef<Path>,
    labels: &ArrayView3<u16>,
    geometry: &Geometry,
) -> Result<()> {
    check_shape("label map", labels.shape(), geometry)?;
    let wide = labels.iter().any(|&v| v > 255);
    let (code, bits) = if wide { (512, 16) } else { (2, 8) };
    let big = geometry.endianness == Endianness::Big;
    let header = geometry.header_bytes(1, code, bits);
    write_file(
        path.as_ref(),
        &header,
        Compression::default(),
        labels.iter().copied(),
        |v, out| match (wide, big) {
            (false, _) => out.push(v as u8),
            (true, false) => out.extend(v.to_le_bytes()),
            (true, true) => out.extend(v.to_be_bytes()),
        },
    )
}

/// Writes an image as f32, 3D for one channel, else 4D. The file appears whole or not at all.
///
/// # Errors
/// As [`write_labels`].
pub fn write_image(
    path: impl AsRef<Path>,
    image: &ArrayView4<f32>,
    geometry: &Geometry,
) -> Result<()> {
    check_shape("image", &image.shape()[1..], geometry)?;
    let big = geometry.endianness == Endianness::Big;
    let header = geometry.header_bytes(image.shape()[0], 16, 32);
    // Noise does not compress: more effort costs seconds per volume and saves a few percent.
    let level = Compression::fast();
    write_file(
        path.as_ref(),
        &header,
        level,
        image.iter().copied(),
        |v, out| {
            out.extend(if big {
                v.to_be_bytes()
            } else {
                v.to_le_bytes()
            });
        },
    )
}

fn check_shape(what: &'static str, found: &[usize], geometry: &Geometry) -> Result<()> {
    if found == geometry.shape {
        return Ok(());
    }
    Err(Error::Shape {
        what,
        found: found.to_vec(),
        expected: geometry.shape.to_vec(),
    })
}

fn write_file<T>(
    path: &Path,
    header: &[u8; HEADER_BYTES],
    level: Compression,
    voxels: impl Iterator<Item = T>,
    encode: impl Fn(T, &mut Vec<u8>),
) -> Result<()> {
    let mut bytes = header.to_vec();
    bytes.extend([0; 4]); // no header extensions
    for voxel in voxels {
        encode(voxel, &mut bytes);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".nii.gz") {
        write_atomically(path, |file| {
            let mut encoder = GzEncoder::new(file, level);
            encoder.write_all(&bytes)?;
            encoder.finish().map(|_| ())
        })
    } else if name.ends_with(".nii") {
        write_atomically(path, |file| file.write_all(&bytes))
    } else {
        Err(Error::nifti(path, NiftiProblem::Extension))
    }
}

/// A file opened and positioned at its first voxel.
struct NiftiFile {
    reader: Box<dyn Read>,
    geometry: Geometry,
    channels: usize,
    dim: Vec<u16>,
    voxel_type: VoxelType,
    scaling: (f64, f64),
    /// Bytes before the first voxel.
    offset: u64,
}

impl NiftiFile {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        // By content, not by name: files are renamed more often than recompressed.
        let gzip = reader
            .fill_buf()
            .map_err(Error::io(path))?
            .starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read> = if gzip {
            Box::new(MultiGzDecoder::new(reader))
        } else {
            Box::new(reader)
        };
        Self::parse(reader, file_bytes, gzip).map_err(|problem| Error::nifti(path, problem))
    }

    fn parse(
        mut reader: Box<dyn Read>,
        file_bytes: u64,
        gzip: bool,
    ) -> std::result::Result<Self, NiftiProblem> {
        let mut bytes = [0; HEADER_BYTES];
        read_fully(&mut reader, &mut bytes, 0, HEADER_BYTES as u64)?;
        let size = [i32::from_le_bytes, i32::from_be_bytes]
            .map(|f| f([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if !size.contains(&348) || &bytes[344..348] != b"n+1\0" {
            let magic = String::from_utf8_lossy(&bytes[344..348])
                .trim_end_matches('\0')
                .to_owned();
            return Err(NiftiProblem::Magic {
                size: size[0],
                magic,
            });
        }
        let header = NiftiHeader::from_reader(&bytes[..])
            .map_err(|e| NiftiProblem::Header(e.to_string()))?;
        let dim = header
            .dim()
            .map_err(|e| NiftiProblem::Header(e.to_string()))?
            .to_vec();
        let bad_dims = |expected| NiftiProblem::Dimensions {
            dim: dim.clone(),
            expected,
        };
        if dim.len() < 3 {
            return Err(bad_dims("three or four dimensions"));
        }
        if dim.iter().any(|&n| n == 0 || n > i16::MAX as u16) {
            return Err(bad_dims("every dimension between 1 and 32767"));
        }
        if dim[4.min(dim.len())..].iter().any(|&n| n != 1) {
            return Err(bad_dims("no more than four dimensions"));
        }
        let voxel_type = VoxelType::of(header.datatype)?;
        if !(348.0..1e9).contains(&header.vox_offset) {
            return Err(NiftiProblem::Header(format!(
                "voxel offset {}; expected at least 352",
                header.vox_offset
            )));
        }
        let offset = header.vox_offset as u64;
        let channels = dim.get(3).map_or(1, |&c| usize::from(c));
        // At most 2^60 voxels of 8 bytes: four dimensions below 2^15 each.
        let voxels = dim.iter().map(|&n| u128::from(n)).product::<u128>();
        let needed = u128::from(offset) + voxels * voxel_type.bytes() as u128;
        // Deflate packs at most 1032 bytes into one, so nothing larger can follow, whatever the header says.
        let holds = u128::from(file_bytes) * if gzip { 1032 } else { 1 };
        if needed > holds {
            let claimed = format!("{needed} bytes ({dim:?} voxels)");
            return Err(if gzip || needed > 100 * holds {
                NiftiProblem::TooLarge {
                    claimed,
                    file_bytes,
                }
            } else {
                NiftiProblem::Truncated {
                    expected: needed as u64,
                    found: file_bytes,
                    cause: None,
                }
            });
        }
        let skip = offset - HEADER_BYTES as u64;
        let skipped = io::copy(&mut reader.by_ref().take(skip), &mut io::sink());
        if skipped.as_ref().map_or(true, |&n| n < skip) {
            let found = HEADER_BYTES as u64 + skipped.as_ref().copied().unwrap_or(0);
            let cause = skipped.err().map(|e| e.to_string());
            return Err(NiftiProblem::Truncated {
                expected: needed as u64,
                found,
                cause,
            });
        }
        let shape = [2, 1, 0].map(|i| usize::from(dim[i]));
        let geometry = Geometry::from_header(&header, &bytes, shape)?;
        // A slope of zero means "not scaled" by the standard; NaN is treated alike, as nibabel does.
        let (slope, intercept) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
        let scaled = slope != 0.0 && slope.is_finite() && intercept.is_finite();
        let scaling = if scaled {
            (slope, intercept)
        } else {
            (1.0, 0.0)
        };
        Ok(Self {
            reader,
            geometry,
            channels,
            dim,
            voxel_type,
            scaling,
            offset,
        })
    }

    /// Appends all voxels, mapped; memory grows with what is really read.
    fn read_voxels<T>(
        &mut self,
        path: &Path,
        out: &mut Vec<T>,
        mut map: impl FnMut(f64) -> T,
    ) -> Result<()> {
        const CHUNK_VOXELS: usize = 1 << 14;
        let size = self.voxel_type.bytes();
        let total = self.channels * self.geometry.shape.iter().product::<usize>();
        let expected = self.offset + (total * size) as u64;
        let big = self.geometry.endianness == Endianness::Big;
        let (mut bytes, mut values) = (
            vec![0; CHUNK_VOXELS * size],
            Vec::with_capacity(CHUNK_VOXELS),
        );
        out.reserve(total.min(1 << 24));
        while out.len() < total {
            let chunk = &mut bytes[..CHUNK_VOXELS.min(total - out.len()) * size];
            let done = self.offset + (out.len() * size) as u64;
            read_fully(&mut self.reader, chunk, done, expected)
                .map_err(|p| Error::nifti(path, p))?;
            values.clear();
            self.voxel_type.decode(chunk, big, &mut values);
            out.extend(values.iter().map(|&v| map(v)));
        }
        Ok(())
    }
}

/// Fills `buffer`; `done` and `expected` count bytes of the whole uncompressed file, for the message.
fn read_fully(
    reader: &mut dyn Read,
    buffer: &mut [u8],
    done: u64,
    expected: u64,
) -> std::result::Result<(), NiftiProblem> {
    let mut filled = 0;
    while filled < buffer.len() {
        let cause = match reader.read(&mut buffer[filled..]) {
            Ok(0) => None,
            Ok(n) => {
                filled += n;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Some(e.to_string()),
        };
        return Err(NiftiProblem::Truncated {
            expected,
            found: done + filled as u64,
            cause,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
