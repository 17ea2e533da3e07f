//! Pixels of a frame as numbers.

use std::path::Path;

use crate::error::{Error, Result};
use crate::jpeg;
use crate::reader::{Encoding, Fragment, PixelData, Reader};

/// Most bytes that one encoded byte can stand for: two make a run of 128.
const MAX_RATIO: u64 = 64;

/// Number and bits of a frame's pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PixelFormat {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// 8, 16 or 32.
    pub(crate) bits_allocated: u32,
    pub(crate) bits_stored: u32,
    pub(crate) high_bit: u32,
    pub(crate) signed: bool,
}

impl PixelFormat {
    /// Bytes of a frame that is not encoded.
    pub(crate) fn frame_bytes(self) -> u64 {
        self.rows as u64 * self.columns as u64 * u64::from(self.bits_allocated / 8)
    }

    /// Converts the bytes of a frame. Bits that hold no part of a pixel, such as those of overlays, are left out.
    fn numbers(self, bytes: &[u8], mut each: impl FnMut(i64)) {
        let unused_below = self.high_bit + 1 - self.bits_stored;
        let left = 64 - self.bits_stored;
        for word in bytes.chunks_exact(self.bits_allocated as usize / 8) {
            let word = word.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            let word = word >> unused_below << left;
            each(if self.signed { word as i64 >> left } else { (word >> left) as i64 });
        }
    }
}

/// Pixels of a file, opened.
pub(crate) struct Pixels {
    reader: Reader,
    data: PixelData,
    format: PixelFormat,
    /// Fragments of each frame; empty without an encoding.
    frames: Vec<Vec<Fragment>>,
}

impl Pixels {
    /// Finds the frames of a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] if the file has too few bytes or fragments for its frames.
    pub(crate) fn open(path: &Path, data: PixelData, format: PixelFormat, num_frames: usize) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        reader.seek(data.offset)?;
        let mut frames = Vec::new();
        if data.encoding == Encoding::Native {
            let (found, expected) = (data.length.unwrap_or(0), format.frame_bytes().saturating_mul(num_frames as u64));
            if found < expected {
                let problem = format!("{found} bytes of pixels, where {num_frames} frames take {expected}");
                return Err(Error::damaged(path, problem));
            }
            reader.check(expected)?;
        } else {
            let (fragments, offsets) = reader.fragments()?;
            frames = by_frame(&fragments, &offsets, num_frames).ok_or_else(|| {
                let problem =
                    format!("{} fragments of pixels cannot be assigned to {num_frames} frames", fragments.len());
                Error::damaged(path, problem)
            })?;
            for frame in &frames {
                let encoded: u64 = frame.iter().map(|&(_, length)| length).sum();
                if encoded.saturating_mul(MAX_RATIO) < format.frame_bytes() {
                    let problem = format!("{encoded} bytes of pixels cannot hold a frame of {}", format.frame_bytes());
                    return Err(Error::damaged(path, problem));
                }
            }
        }
        Ok(Self { reader, data, format, frames })
    }

    /// Reads a frame and calls `each` with every pixel, rows from the top, columns from the left.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] for pixels that cannot be decoded or are fewer than a frame's.
    pub(crate) fn read(&mut self, path: &Path, frame: usize, each: impl FnMut(i64)) -> Result<()> {
        let size = self.format.frame_bytes();
        if self.data.encoding == Encoding::Native {
            self.reader.seek(self.data.offset + frame as u64 * size)?;
            self.format.numbers(&self.reader.bytes(size)?, each);
            return Ok(());
        }
        let mut encoded = Vec::new();
        for &(offset, length) in &self.frames[frame] {
            self.reader.seek(offset)?;
            encoded.extend(self.reader.bytes(length)?);
        }
        let decoded = match self.data.encoding {
            Encoding::Jpeg => lossless(&encoded, self.format),
            _ => run_lengths(&encoded, self.format),
        };
        let decoded = decoded.map_err(|problem| Error::damaged(path, format!("frame {}: {problem}", frame + 1)))?;
        self.format.numbers(&decoded, each);
        Ok(())
    }
}

/// Assigns fragments to frames: all to a single one, one to each, or by the table of offsets.
fn by_frame(fragments: &[Fragment], offsets: &[u64], num_frames: usize) -> Option<Vec<Vec<Fragment>>> {
    let first = fragments.first()?.0;
    if num_frames == 1 {
        return Some(vec![fragments.to_vec()]);
    }
    if fragments.len() == num_frames {
        return Some(fragments.iter().map(|&fragment| vec![fragment]).collect());
    }
    if offsets.len() != num_frames {
        return None;
    }
    let mut frames = vec![Vec::new(); num_frames];
    for &fragment in fragments {
        // Offsets count from the first fragment's header, as do those of the others.
        let frame = offsets.partition_point(|&offset| offset <= fragment.0 - first).checked_sub(1)?;
        frames[frame].push(fragment);
    }
    frames.iter().all(|frame| !frame.is_empty()).then_some(frames)
}

/// Decodes lossless JPEG.
fn lossless(encoded: &[u8], format: PixelFormat) -> std::result::Result<Vec<u8>, String> {
    let width = format.bits_allocated as usize / 8;
    let numbers = jpeg::decode(encoded, format.rows, format.columns)?;
    Ok(numbers.into_iter().flat_map(|number| u32::from(number).to_le_bytes().into_iter().take(width)).collect())
}

/// Decodes run lengths (part 5, annex G): a segment for each byte of the pixels' words, the highest first.
fn run_lengths(encoded: &[u8], format: PixelFormat) -> std::result::Result<Vec<u8>, String> {
    let words: Vec<usize> =
        encoded.as_chunks().0.iter().take(16).map(|word| u32::from_le_bytes(*word) as usize).collect();
    let width = format.bits_allocated as usize / 8;
    if words.len() < 16 || words[0] != width {
        return Err(format!("expected {width} segments of run lengths"));
    }
    let num_pixels = format.rows * format.columns;
    let mut decoded = vec![0; num_pixels * width];
    for segment in 0..width {
        let end = if segment + 1 < width { words[segment + 2] } else { encoded.len() };
        let mut rest = encoded.get(words[segment + 1]..end).ok_or("a segment lies outside of its frame")?;
        let mut out = decoded[width - 1 - segment..].iter_mut().step_by(width);
        let mut missing = num_pixels;
        while missing > 0 {
            let (&control, after) = rest.split_first().ok_or("a segment ends early")?;
            rest = after;
            let (count, run) = match control as i8 {
                -128 => continue,
                literal @ 0.. => (literal as usize + 1, false),
                run => ((1 - isize::from(run)) as usize, true),
            };
            let used = if run { 1 } else { count };
            let (bytes, after) = rest.split_at_checked(used).ok_or("a segment ends early")?;
            rest = after;
            let count = count.min(missing);
            for (i, slot) in out.by_ref().take(count).enumerate() {
                *slot = bytes[if run { 0 } else { i }];
            }
            missing -= count;
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: [u32; 3], signed: bool) -> PixelFormat {
        let [bits_allocated, bits_stored, high_bit] = bits;
        PixelFormat { rows: 1, columns: 3, bits_allocated, bits_stored, high_bit, signed }
    }

    fn numbers(format: PixelFormat, bytes: &[u8]) -> Vec<i64> {
        let mut found = Vec::new();
        format.numbers(bytes, |number| found.push(number));
        found
    }

    #[test]
    fn bits_outside_of_the_stored_ones_are_left_out() {
        let words = [0x0fff_u16, 0xf7ff, 0x8800].map(u16::to_le_bytes).concat();
        assert_eq!(numbers(format([16, 12, 11], false), &words), [4095, 2047, 2048]);
        assert_eq!(numbers(format([16, 12, 11], true), &words), [-1, 2047, -2048]);
        assert_eq!(numbers(format([16, 16, 15], true), &words), [4095, -2049, -30720]);
        assert_eq!(numbers(format([16, 12, 15], false), &words), [0x0ff, 0xf7f, 0x880]);
        assert_eq!(numbers(format([8, 8, 7], true), &[255, 127, 128]), [-1, 127, -128]);
        assert_eq!(numbers(format([32, 32, 31], false), &[255; 12]), [0xffff_ffff; 3]);
    }

    #[test]
    fn run_lengths_repeat_and_copy_and_are_bounded() {
        let mut encoded = vec![0; 64];
        encoded[0] = 2;
        encoded[4] = 64;
        // The high bytes, three times 1; the low ones 2, 3, 4.
        encoded.extend([(-2i8) as u8, 1]);
        encoded[8] = encoded.len() as u8;
        encoded.extend([0x80, 2, 2, 3, 4]);
        let format = format([16, 16, 15], false);
        let decoded = run_lengths(&encoded, format).unwrap();
        assert_eq!(numbers(format, &decoded), [0x102, 0x103, 0x104]);
        for length in 0..encoded.len() {
            run_lengths(&encoded[..length], format).unwrap_err();
        }
        encoded[8] = 255;
        assert!(run_lengths(&encoded, format).unwrap_err().contains("outside"));
    }

    #[test]
    fn fragments_belong_to_frames() {
        let fragments = [(100, 10), (118, 10), (136, 4)];
        assert_eq!(by_frame(&fragments, &[], 1).unwrap(), [fragments.to_vec()]);
        assert_eq!(by_frame(&fragments, &[], 3).unwrap().len(), 3);
        assert_eq!(by_frame(&fragments, &[0, 36], 2).unwrap(), [fragments[..2].to_vec(), fragments[2..].to_vec()]);
        assert_eq!(by_frame(&fragments, &[], 2), None);
        assert_eq!(by_frame(&fragments, &[0, 99], 2), None, "a frame without a fragment");
    }
}
