//! NumPy archives with one array of half-precision numbers, as `numpy.load` reads them.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::Path,
};

use crc32fast::Hasher;
use flate2::{Compression, bufread::DeflateDecoder, write::DeflateEncoder};
use half::f16;

/// Version of the ZIP format with 64-bit sizes.
const ZIP64: u16 = 45;
const DEFLATED: u16 = 8;

/// Writer of an archive with the array `NAME.npy` of four axes, compressed while it is written: memory does not grow with the
/// array.
pub(crate) struct NpzWriter<W: Write> {
    encoder: DeflateEncoder<W>,
    checksum: Hasher,
    member: String,
}

impl<W: Write> NpzWriter<W> {
    /// Begins the array `name` of `shape`, in C order.
    ///
    /// # Errors
    /// Those of the writer.
    pub(crate) fn new(mut out: W, name: &str, shape: [usize; 4]) -> io::Result<Self> {
        let member = format!("{name}.npy");
        out.write_all(&head(&member))?;
        let encoder = DeflateEncoder::new(out, Compression::fast());
        let mut writer = Self { encoder, checksum: Hasher::new(), member };
        let [a, b, c, d] = shape;
        let mut description =
            format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({a}, {b}, {c}, {d}), }}").into_bytes();
        // The data begin at a multiple of 64 bytes; a line break stands before them.
        description.resize((10 + description.len() + 1).next_multiple_of(64) - 11, b' ');
        description.push(b'\n');
        writer.write_bytes(b"\x93NUMPY\x01\x00")?;
        writer.write_bytes(&(description.len() as u16).to_le_bytes())?;
        writer.write_bytes(&description)?;
        Ok(writer)
    }

    /// Appends values, rounded to half precision.
    ///
    /// # Errors
    /// Those of the writer.
    pub(crate) fn write(&mut self, values: &[f32]) -> io::Result<()> {
        for values in values.chunks(1 << 16) {
            let bytes: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
            self.write_bytes(&bytes)?;
        }
        Ok(())
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.encoder.write_all(bytes)
    }

    /// Ends the archive, with a comment of less than 64 KiB.
    ///
    /// # Errors
    /// Those of the writer.
    pub(crate) fn finish(mut self, comment: &str) -> io::Result<()> {
        self.encoder.try_finish()?;
        let sizes = [self.encoder.total_out(), self.encoder.total_in()];
        let tail = tail(&self.member, sizes, self.checksum.finalize(), comment);
        self.encoder.get_mut().write_all(&tail)
    }
}

/// Bytes in front of the compressed ones. Sizes and checksum follow behind the data.
fn head(member: &str) -> Vec<u8> {
    let mut head = b"PK\x03\x04".to_vec();
    head.extend(common_fields());
    head.extend([0; 4]);
    head.extend([0xff; 8]);
    head.extend(le(&[member.len() as u16, 20]));
    head.extend(member.as_bytes());
    head.extend(le(&[1, 16]));
    head.extend([0; 16]);
    head
}

/// Bytes behind the compressed ones, of which there are `packed`, made of `whole`.
fn tail(member: &str, [packed, whole]: [u64; 2], checksum: u32, comment: &str) -> Vec<u8> {
    let checksum = checksum.to_le_bytes();
    let descriptor = [b"PK\x07\x08".as_slice(), &checksum, &le64(&[packed, whole])].concat();
    let directory_at = head(member).len() as u64 + packed + descriptor.len() as u64;
    let mut entry = b"PK\x01\x02".to_vec();
    entry.extend(ZIP64.to_le_bytes());
    entry.extend(common_fields());
    entry.extend(checksum);
    entry.extend([0xff; 8]);
    entry.extend(le(&[member.len() as u16, 20, 0, 0, 0]));
    entry.extend([0; 8]); // Attributes; the offset of the member is 0.
    entry.extend(member.as_bytes());
    entry.extend(le(&[1, 16]));
    entry.extend(le64(&[whole, packed]));
    let length = entry.len() as u64;
    let mut end = b"PK\x06\x06".to_vec();
    end.extend(le64(&[44]));
    end.extend(le(&[ZIP64, ZIP64, 0, 0, 0, 0]));
    end.extend(le64(&[1, 1, length, directory_at]));
    end.extend(b"PK\x06\x07\0\0\0\0");
    end.extend(le64(&[directory_at + length]));
    end.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
    end.extend([0xff; 12]);
    end.extend((comment.len() as u16).to_le_bytes());
    [descriptor, entry, end, comment.as_bytes().to_vec()].concat()
}

/// Version, flags (sizes behind the data, names in UTF-8), method, time and date of a member: 1 January 1980.
fn common_fields() -> Vec<u8> {
    le(&[ZIP64, 0x0808, DEFLATED, 0, 0x21])
}

fn le(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn le64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Returns true if the file `path` begins as an archive of the array `name` that this program has written.
pub(crate) fn is_own(path: &Path, name: &str) -> bool {
    let expected = head(&format!("{name}.npy"));
    let mut begin = expected.clone();
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == expected
}

/// Returns true if the file `path` is whole and an archive of the array `name` that was finished with `comment`.
pub(crate) fn is_whole(path: &Path, name: &str, comment: &str) -> bool {
    let member = format!("{name}.npy");
    let read = || -> io::Result<bool> {
        let mut file = BufReader::new(File::open(path)?);
        let mut begin = head(&member);
        file.read_exact(&mut begin)?;
        let mut decoder = DeflateDecoder::new(file);
        let (mut checksum, mut buffer) = (Hasher::new(), vec![0; 1 << 16]);
        loop {
            match decoder.read(&mut buffer)? {
                0 => break,
                read => checksum.update(&buffer[..read]),
            }
        }
        let expected = tail(&member, [decoder.total_in(), decoder.total_out()], checksum.finalize(), comment);
        let mut end = Vec::new();
        decoder.into_inner().take(expected.len() as u64 + 1).read_to_end(&mut end)?;
        Ok(begin == head(&member) && end == expected)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use flate2::read::DeflateDecoder;

    use super::*;

    fn archive(values: &[f32], shape: [usize; 4]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = NpzWriter::new(&mut bytes, "probabilities", shape).unwrap();
        writer.write(values).unwrap();
        writer.finish("a comment").unwrap();
        bytes
    }

    #[test]
    fn the_array_is_that_of_numpy_format() {
        let bytes = archive(&[0.0, 0.25, 1.0, -2.0], [2, 1, 1, 2]);
        let member = 30 + "probabilities.npy".len() + 20;
        let mut array = Vec::new();
        DeflateDecoder::new(&bytes[member..]).read_to_end(&mut array).unwrap();
        assert!(
            array
                .starts_with(b"\x93NUMPY\x01\0\x76\0{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1, 1, 2), }")
        );
        assert_eq!(array[127], b'\n');
        assert_eq!(array[128..], [0, 0, 0, 0x34, 0, 0x3c, 0, 0xc0]);
    }

    #[test]
    fn comments_are_found_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        fs::write(&path, archive(&[0.5], [1; 4])).unwrap();
        let whole = |comment: &str| is_whole(&path, "probabilities", comment);
        assert!(whole("a comment") && !whole("no comment") && !whole("comment"));
        assert!(!is_whole(&dir.path().join("absent"), "probabilities", "a comment"));
        let bytes = fs::read(&path).unwrap();
        // The last bits of the compressed bytes mean nothing.
        let padded = bytes.len() - tail("probabilities.npy", [0; 2], 0, "a comment").len() - 1;
        for at in (0..bytes.len()).filter(|at| *at != padded) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, damaged).unwrap();
            assert!(!whole("a comment"), "byte {at}");
        }
    }

    #[test]
    fn python_reads_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        fs::write(&path, archive(&[0.5; 24], [2, 3, 2, 2])).unwrap();
        let script = "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1]) as z:\n\
            \x20 assert z.testzip() is None and z.namelist() == ['probabilities.npy']\n\
            \x20 assert z.comment == b'a comment'\n  assert len(z.read('probabilities.npy')) == 128 + 48";
        match Command::new("python3").args(["-c", script]).arg(&path).output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("skipped: python3 does not start ({error})"),
        }
    }
}
