//! Checksums of files, by which a change is noticed without reading all of them, and of images.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crc32fast::Hasher;
use ndarray::Array4;

use crate::dataset::Case;
use crate::error::{Error, Result};

/// Pieces of a file without compression that are read, and their bytes: all of a file of at most 256 KiB.
const PIECES: u64 = 64;
const PIECE_BYTES: u64 = 4096;

/// Checksum of a case's images and label map.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn of_case(case: &Case) -> Result<u32> {
    let mut crc = Hasher::new();
    for path in case.image.iter().chain([&case.label]) {
        add(&mut crc, path).map_err(Error::io(path))?;
    }
    Ok(crc.finalize())
}

/// Checksum of an image's voxels, whatever its file's header and compression.
pub(crate) fn of_voxels(image: &Array4<f32>) -> u32 {
    let mut crc = Hasher::new();
    let mut bytes = Vec::new();
    for row in image.rows() {
        bytes.clear();
        bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
        crc.update(&bytes);
    }
    crc.finalize()
}

/// Adds a file: of gzip the checksum and length of the content, which stand at its end, whatever the level of compression;
/// otherwise the size and evenly spaced pieces.
fn add(crc: &mut Hasher, path: &Path) -> io::Result<()> {
    let mut file = adw_files::open_regular(path)?;
    let size = file.metadata()?.len();
    if path.extension().is_some_and(|extension| extension == "gz") && size >= 8 {
        return add_piece(crc, &mut file, size - 8, 8);
    }
    crc.update(&size.to_le_bytes());
    let last = size.saturating_sub(PIECE_BYTES);
    let step = last.div_ceil(PIECES - 1).max(1);
    for piece in 0..=last.div_ceil(step) {
        add_piece(crc, &mut file, (piece * step).min(last), PIECE_BYTES)?;
    }
    Ok(())
}

fn add_piece(crc: &mut Hasher, file: &mut File, start: u64, num_bytes: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(num_bytes).read_to_end(&mut bytes)?;
    crc.update(&bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_file_counts_as_far_as_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii");
        let checksum = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let mut crc = Hasher::new();
            add(&mut crc, &path).unwrap();
            crc.finalize()
        };
        for size in [0, 1, 4096, 200_000, 5_000_000] {
            let (mut bytes, step) = (vec![7u8; size], (size / 100).max(1));
            let same = checksum(&bytes);
            assert_eq!(same, checksum(&bytes));
            let is_found = |at: usize, bytes: &mut Vec<u8>| {
                bytes[at] += 1;
                let changed = checksum(bytes);
                bytes[at] -= 1;
                changed != same
            };
            let positions: Vec<_> = (0..size).step_by(step).chain(size.checked_sub(1)).collect();
            let found = positions.iter().filter(|&&at| is_found(at, &mut bytes)).count();
            assert!(found == positions.len() || (size > 256 << 10 && found > 3), "{found} of {size}");
            bytes.push(0);
            assert_ne!(checksum(&bytes), same);
        }
    }
}
