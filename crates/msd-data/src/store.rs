//! Prepared cases on disk, for datasets that do not fit into memory.
//!
//! A case is one file of compressed chunks (LZ4; the bytes of f32 voxels sorted by significance first, since only the
//! upper ones repeat), so that a patch reads and unpacks what it needs. Reads name their position in the file: many
//! threads share one open file, the system's cache keeps what is read often, and a damaged or vanished disk is an
//! error. A mapping of the file would be the same memory, but turns such an error into the death of the process.
//!
//! ```text
//! "msdcase1" | chunks | foreground voxels, 12 bytes each | header, JSON | its length, u64 | "msdcase1"
//! ```
//! Chunks are in C order of their places; at each, the channels' voxels and then the labels.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use lz4_flex::block::{compress, decompress_into};
use ndarray::{Array3, Array4, AxisDescription, Slice};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::atomic_file::write_atomically;
use crate::dataset::{Case, Dataset};
use crate::error::{Error, Result};
use crate::memory::{CaseBytes, Memory};
use crate::plan::Plan;
use crate::preprocess::{CaseProperties, PreparedCase, preprocess};

const MAGIC: &[u8; 8] = b"msdcase1";

/// Edge of a chunk: small against a patch, large enough to compress.
const EDGE: usize = 32;

/// A prepared, labelled case in a file.
#[derive(Debug)]
pub struct StoredCase {
    path: PathBuf,
    file: File,
    header: Header,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Header {
    /// What the case was prepared from and how; another key is another case.
    key: String,
    channels: usize,
    shape: [usize; 3],
    highest_label: i16,
    properties: CaseProperties,
    /// Of each label above 0 that occurs: label, position of its voxels in the file, their number.
    locations: Vec<(u16, u64, u32)>,
    /// Where each chunk begins, and where the last ends.
    offsets: Vec<u64>,
}

impl Header {
    /// Chunks along each axis.
    fn grid(&self) -> [usize; 3] {
        self.shape.map(|n| n.div_ceil(EDGE))
    }

    /// Whether lengths and positions make sense for a file of this many bytes.
    fn is_sound(&self, bytes: u64) -> bool {
        let chunks = self.grid().iter().product::<usize>() * (self.channels + 1);
        let room = |(_, at, n): &(u16, u64, u32)| at.saturating_add(12 * u64::from(*n)) <= bytes;
        self.channels > 0
            && self.shape.iter().all(|&n| (1..1 << 20).contains(&n))
            && self.offsets.len() == chunks + 1
            && self.offsets.is_sorted()
            && self.offsets.last().is_some_and(|&end| end <= bytes)
            && self.locations.iter().all(|l| l.2 > 0 && room(l))
    }
}

impl StoredCase {
    /// Writes a case and opens it. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a case without labels, [`Error::Io`].
    pub fn write(path: &Path, case: &PreparedCase, key: &str) -> Result<Self> {
        let Some(labels) = &case.labels else {
            return Err(Error::Invalid("a case to be stored has no labels".to_owned()));
        };
        let (channels, d, h, w) = case.image.dim();
        let mut header = Header {
            key: key.to_owned(),
            channels,
            shape: [d, h, w],
            highest_label: labels.iter().copied().max().unwrap_or(0),
            properties: case.properties.clone(),
            locations: Vec::new(),
            offsets: vec![MAGIC.len() as u64],
        };
        write_atomically(path, |out| {
            out.write_all(MAGIC)?;
            let mut at = MAGIC.len() as u64;
            let grid = header.grid();
            for z in 0..grid[0] {
                // A layer at a time: compressed on all threads, written in order.
                let places = (0..grid[1] * grid[2]).into_par_iter();
                let layer: Vec<Vec<Vec<u8>>> =
                    places.map(|i| packed(&case.image, labels, [z, i / grid[2], i % grid[2]])).collect();
                for chunk in layer.into_iter().flatten() {
                    out.write_all(&chunk)?;
                    at += chunk.len() as u64;
                    header.offsets.push(at);
                }
            }
            for class in &case.locations {
                header.locations.push((class.label, at, class.voxels.len() as u32));
                for voxel in class.voxels.as_flattened() {
                    out.write_all(&voxel.to_le_bytes())?;
                }
                at += 12 * class.voxels.len() as u64;
            }
            let header = serde_json::to_vec(&header)?;
            out.write_all(&header)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(MAGIC)
        })?;
        Self::open(path, key)
    }

    /// Opens a case that [`Self::write`] wrote under the same key.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if the file is damaged or has another key.
    pub fn open(path: &Path, key: &str) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        let damaged = || {
            Error::Invalid(format!(
                "{}: not a whole prepared case; remove the file, it will be made again",
                path.display()
            ))
        };
        let tail = 16u64;
        if bytes < tail + MAGIC.len() as u64 {
            return Err(damaged());
        }
        let mut end = [0; 16];
        read_at(&file, &mut end, bytes - tail).map_err(Error::io(path))?;
        let length = u64::from_le_bytes(*end.first_chunk().expect("16 bytes"));
        if &end[8..] != MAGIC || length > bytes - tail {
            return Err(damaged());
        }
        let mut json = vec![0; length as usize];
        read_at(&file, &mut json, bytes - tail - length).map_err(Error::io(path))?;
        let header: Header = serde_json::from_slice(&json).map_err(|_| damaged())?;
        if !header.is_sound(bytes) {
            return Err(damaged());
        }
        if header.key != key {
            return Err(Error::Invalid(format!(
                "{}: prepared from other files or for another plan; remove the file, it will be made again",
                path.display()
            )));
        }
        Ok(Self { path: path.to_path_buf(), file, header })
    }

    /// Voxels along D, H, W.
    pub fn shape(&self) -> [usize; 3] {
        self.header.shape
    }

    /// Image channels.
    pub fn channels(&self) -> usize {
        self.header.channels
    }

    /// How the case was cropped and resampled.
    pub fn properties(&self) -> &CaseProperties {
        &self.header.properties
    }

    /// The largest label.
    pub(crate) fn highest_label(&self) -> i16 {
        self.header.highest_label
    }

    /// Number of labels above 0 that occur.
    pub(crate) fn num_classes(&self) -> usize {
        self.header.locations.len()
    }

    /// Voxels remembered of a class.
    pub(crate) fn num_voxels(&self, class: usize) -> usize {
        self.header.locations[class].2 as usize
    }

    /// One of them.
    pub(crate) fn voxel(&self, class: usize, i: usize) -> Result<[u32; 3]> {
        let mut bytes = [0; 12];
        let at = self.header.locations[class].1 + 12 * i as u64;
        read_at(&self.file, &mut bytes, at).map_err(Error::io(&self.path))?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok([0, 1, 2].map(|a| u32::from_le_bytes(numbers[a])))
    }

    /// The box of the given indices, which must lie in the case: image `[C, d, h, w]` and labels `[d, h, w]`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if a chunk is damaged.
    ///
    /// # Panics
    /// If the box reaches beyond [`Self::shape`].
    pub fn read(&self, part: &[Range<usize>; 3]) -> Result<(Array4<f32>, Array3<i16>)> {
        let Header { shape, channels, .. } = self.header;
        assert!((0..3).all(|a| part[a].end <= shape[a]), "{part:?} of {shape:?}");
        let [d, h, w] = part.clone().map(|range| range.len());
        let mut image = vec![0.0; channels * d * h * w];
        let mut labels = vec![0; d * h * w];
        let grid = self.header.grid();
        let chunks = |a: usize| part[a].start / EDGE..part[a].end.div_ceil(EDGE);
        let (mut packed, mut bytes) = (Vec::new(), Vec::new());
        if labels.is_empty() {
            return Ok(shaped(image, labels, channels, [d, h, w]));
        }
        for (z, y, x) in product([chunks(0), chunks(1), chunks(2)]) {
            let place = [z, y, x];
            let first = place.map(|i| i * EDGE);
            let size = [0, 1, 2].map(|a| EDGE.min(shape[a] - first[a]));
            let voxels = size.iter().product::<usize>();
            // What chunk and part share, in voxels of the case.
            let shared = [0, 1, 2].map(|a| part[a].start.max(first[a])..part[a].end.min(first[a] + size[a]));
            let width = shared[2].len();
            // Of each row: its place in the chunk and in the part.
            let rows: Vec<[usize; 2]> = product([shared[0].clone(), shared[1].clone(), 0..1])
                .map(|(z, y, _)| {
                    let within = |first: [usize; 3], [_, h, w]: [usize; 3]| {
                        ((z - first[0]) * h + y - first[1]) * w + shared[2].start - first[2]
                    };
                    [within(first, size), within(part.clone().map(|r| r.start), [d, h, w])]
                })
                .collect();
            let chunk = ((z * grid[1] + y) * grid[2] + x) * (channels + 1);
            for c in 0..channels {
                self.unpack(chunk + c, 4 * voxels, &mut packed, &mut bytes)?;
                let byte = |k: usize| &bytes[k * voxels..(k + 1) * voxels];
                let [b0, b1, b2, b3] = [byte(0), byte(1), byte(2), byte(3)];
                for &[from, to] in &rows {
                    let out = &mut image[c * d * h * w + to..][..width];
                    for (i, v) in out.iter_mut().enumerate() {
                        let i = from + i;
                        *v = f32::from_le_bytes([b0[i], b1[i], b2[i], b3[i]]);
                    }
                }
            }
            self.unpack(chunk + channels, 2 * voxels, &mut packed, &mut bytes)?;
            let (low, high) = bytes.split_at(voxels);
            for &[from, to] in &rows {
                for (i, v) in labels[to..][..width].iter_mut().enumerate() {
                    *v = i16::from_le_bytes([low[from + i], high[from + i]]);
                }
            }
        }
        Ok(shaped(image, labels, channels, [d, h, w]))
    }

    /// The bytes of one chunk.
    fn unpack(&self, chunk: usize, size: usize, packed: &mut Vec<u8>, bytes: &mut Vec<u8>) -> Result<()> {
        let [start, end] = [chunk, chunk + 1].map(|i| self.header.offsets[i]);
        packed.resize((end - start) as usize, 0);
        read_at(&self.file, packed, start).map_err(Error::io(&self.path))?;
        bytes.resize(size, 0);
        match decompress_into(packed, bytes) {
            Ok(n) if n == size => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{}: chunk {chunk} is damaged; remove the file, it will be made again",
                self.path.display()
            ))),
        }
    }
}

fn shaped(image: Vec<f32>, labels: Vec<i16>, channels: usize, [d, h, w]: [usize; 3]) -> (Array4<f32>, Array3<i16>) {
    let image = Array4::from_shape_vec((channels, d, h, w), image);
    let labels = Array3::from_shape_vec((d, h, w), labels);
    (image.expect("made for it"), labels.expect("made for it"))
}

/// All triples of three ranges, in C order.
fn product([z, y, x]: [Range<usize>; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    z.flat_map(move |z| {
        let x = x.clone();
        y.clone().flat_map(move |y| x.clone().map(move |x| (z, y, x)))
    })
}

/// The compressed chunk at a place of the grid: channels, then labels.
fn packed(image: &Array4<f32>, labels: &Array3<i16>, place: [usize; 3]) -> Vec<Vec<u8>> {
    let range = |ax: AxisDescription| {
        let start = place[ax.axis.0] * EDGE;
        Slice::from(start..(start + EDGE).min(ax.len))
    };
    let mut out: Vec<_> = image
        .outer_iter()
        .map(|channel| {
            let part = channel.slice_each_axis(range);
            compress(&by_significance(part.iter().map(|v| v.to_le_bytes())))
        })
        .collect();
    let part = labels.slice_each_axis(range);
    out.push(compress(&by_significance(part.iter().map(|v| v.to_le_bytes()))));
    out
}

/// All first bytes, then all second bytes, and so on.
fn by_significance<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    let values: Vec<_> = values.collect();
    let byte = |k: usize| values.iter().map(move |bytes| bytes[k]);
    (0..N).flat_map(byte).collect()
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (buffer, at) = (&mut buffer[n..], at + n as u64),
        }
    }
    Ok(())
}

/// Prepares training cases into files in `folder`, several at a time as far as `memory` allows, and opens them in the
/// order of `ids`. Cases that lie there already, prepared from the same files for the same plan, are not prepared again:
/// an interrupted preparation goes on.
///
/// # Errors
/// The first in the order of `ids`, of [`Dataset::load_case`], [`preprocess`] or the disk; [`Error::Invalid`] for a case
/// that cannot be prepared within `memory`.
pub fn store_training_cases(
    dataset: &Dataset,
    ids: &[String],
    plan: &Plan,
    folder: &Path,
    memory: Memory,
) -> Result<Vec<StoredCase>> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let cases = dataset.training_cases(ids)?;
    memory.each(
        &cases,
        |case| Ok(CaseBytes::of(case, plan)?.preparing),
        |case| {
            let key = key(case, plan)?;
            let path = folder.join(format!("{}.case", case.id));
            if path.is_file() {
                // One of another key, or a damaged one, is made anew.
                if let Ok(stored) = StoredCase::open(&path, &key) {
                    return Ok(stored);
                }
            }
            let (image, labels) = dataset.load_case(case)?;
            StoredCase::write(&path, &preprocess(image, Some(labels), plan)?, &key)
        },
    )
}

/// Bytes that training cases take in memory, by their headers; upper bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingCasesBytes {
    /// All of them, prepared.
    pub prepared: u64,
    /// Reading and preparing the largest.
    pub preparing_largest: u64,
}

/// See [`TrainingCasesBytes`].
///
/// # Errors
/// A file that cannot be read.
pub fn training_cases_bytes(dataset: &Dataset, ids: &[String], plan: &Plan) -> Result<TrainingCasesBytes> {
    let none = TrainingCasesBytes { prepared: 0, preparing_largest: 0 };
    dataset.training_cases(ids)?.iter().try_fold(none, |sum, case| {
        let bytes = CaseBytes::of(case, plan)?;
        Ok(TrainingCasesBytes {
            prepared: sum.prepared + bytes.prepared,
            preparing_largest: sum.preparing_largest.max(bytes.preparing),
        })
    })
}

/// What decides how a prepared case looks: its files, by size and time, and the part of the plan that is about voxels.
fn key(case: &Case, plan: &Plan) -> Result<String> {
    let files = case.image.iter().chain([&case.label]).map(|path| {
        let data = fs::metadata(path).map_err(Error::io(path))?;
        let modified = data.modified().ok();
        let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok((data.len(), since.map(|since| since.as_nanos().to_string())))
    });
    let how = (plan.spacing_mm, &plan.normalization, &plan.use_mask_for_norm, &plan.intensity, plan.transpose_forward);
    let key = (files.collect::<Result<Vec<_>>>()?, how);
    Ok(serde_json::to_string(&key).expect("numbers and names"))
}

#[cfg(test)]
mod tests;
