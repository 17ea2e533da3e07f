//! Prepared cases on disk, for datasets that do not fit into memory.
//!
//! A case is one file of compressed chunks, each with a checksum, so that a patch reads and unpacks what it needs and damage
//! is an error. Reads name their position in the file: many threads share one open file, and the system's cache keeps what
//! is read often. A mapping of the file would use the same memory, but would turn a disk's error into a signal that ends
//! the process.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4};

use crate::error::{Error, Result};
use crate::preprocess::{CaseProperties, PreparedCase, check_prepared};

mod format;
mod prepare;

use format::CaseHeader;
pub use prepare::{TrainingCasesBytes, store_training_cases, training_cases_bytes};

/// A prepared, labelled case in a file.
#[derive(Debug)]
pub struct StoredCase {
    path: PathBuf,
    file: File,
    header: CaseHeader,
}

impl StoredCase {
    /// Writes a case and opens it. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Shape`] for a case that patches cannot be drawn from, [`Error::Io`].
    pub fn write(path: &Path, case: &PreparedCase, key: &str) -> Result<Self> {
        let labels = check_prepared(case)?;
        adw_files::write_atomic(path, |out| format::write(out, case, labels, key)).map_err(Error::io(path))?;
        Self::open(path, key)
    }

    /// Opens a case that [`Self::write`] wrote under the same key.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if the file is damaged, of another version or has another key.
    pub fn open(path: &Path, key: &str) -> Result<Self> {
        let refused = |reason: &str| {
            Err(Error::Invalid(format!("{}: {reason}; remove the file, it will be made again", path.display())))
        };
        let file = adw_files::open_regular(path).map_err(Error::io(path))?;
        let Some(header) = CaseHeader::read(&file).map_err(Error::io(path))? else {
            return refused("not a whole prepared case");
        };
        if header.key != key {
            return refused("prepared from other files or for another plan");
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

    /// Cropping and resampling of the case.
    pub fn properties(&self) -> &CaseProperties {
        &self.header.properties
    }

    /// The largest label.
    pub(crate) fn highest_label(&self) -> i16 {
        self.header.highest_label
    }

    /// Number of labels above 0 that occur.
    pub(crate) fn num_classes(&self) -> usize {
        self.header.classes.len()
    }

    /// Number of stored foreground voxels of a class.
    pub(crate) fn num_voxels(&self, class: usize) -> usize {
        self.header.classes[class].num_voxels as usize
    }

    /// Foreground voxel `i` of a class: d, h, w.
    pub(crate) fn voxel(&self, class: usize, i: usize) -> Result<[u32; 3]> {
        self.header.read_voxel(&self.file, class, i).map_err(Error::io(&self.path))
    }

    /// Reads the box of the given indices, which must lie in the case: image `[C, d, h, w]` and labels `[d, h, w]`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if a chunk is damaged.
    ///
    /// # Panics
    /// If the box reaches beyond [`Self::shape`].
    pub fn read(&self, part: &[Range<usize>; 3]) -> Result<(Array4<f32>, Array3<i16>)> {
        let CaseHeader { shape, channels, .. } = self.header;
        assert!((0..3).all(|a| part[a].end <= shape[a]), "{part:?} of {shape:?}");
        let [d, h, w] = part.each_ref().map(ExactSizeIterator::len);
        let mut image = vec![0.0; channels * d * h * w];
        let mut labels = vec![0; d * h * w];
        let (mut packed, mut bytes) = (Vec::new(), Vec::new());
        let chunks = self.header.chunks_of(part).filter(|_| d * h * w > 0);
        for chunk in chunks {
            let voxels = chunk.voxels;
            for c in 0..channels {
                self.read_chunk(chunk.first_chunk + c, 4 * voxels, &mut packed, &mut bytes)?;
                let byte = |k: usize| &bytes[k * voxels..(k + 1) * voxels];
                let [b0, b1, b2, b3] = [byte(0), byte(1), byte(2), byte(3)];
                for &[from, to] in &chunk.rows {
                    let out = &mut image[c * d * h * w + to..][..chunk.width];
                    for (i, v) in out.iter_mut().enumerate() {
                        let i = from + i;
                        *v = f32::from_le_bytes([b0[i], b1[i], b2[i], b3[i]]);
                    }
                }
            }
            self.read_chunk(chunk.first_chunk + channels, 2 * voxels, &mut packed, &mut bytes)?;
            let (low, high) = bytes.split_at(voxels);
            for &[from, to] in &chunk.rows {
                for (i, v) in labels[to..][..chunk.width].iter_mut().enumerate() {
                    *v = i16::from_le_bytes([low[from + i], high[from + i]]);
                }
            }
        }
        let image = Array4::from_shape_vec((channels, d, h, w), image).expect("made for this shape");
        let labels = Array3::from_shape_vec([d, h, w], labels).expect("made for this shape");
        Ok((image, labels))
    }

    /// Reads and unpacks a chunk of `size` bytes into `bytes`.
    fn read_chunk(&self, chunk: usize, size: usize, packed: &mut Vec<u8>, bytes: &mut Vec<u8>) -> Result<()> {
        if self.header.read_chunk(&self.file, chunk, size, packed, bytes).map_err(Error::io(&self.path))? {
            return Ok(());
        }
        let path = self.path.display();
        Err(Error::Invalid(format!("{path}: chunk {chunk} is damaged; remove the file, it will be made again")))
    }
}

#[cfg(test)]
mod tests;
