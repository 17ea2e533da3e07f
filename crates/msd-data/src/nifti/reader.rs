//! Header checks and voxels of one file.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use nifti::{Endianness, NiftiHeader};

use super::gzip::GzipReader;
use super::voxel_type::VoxelType;
use crate::error::{Error, NiftiProblem, Result};
use crate::geometry::{Geometry, HEADER_BYTES};

/// A file opened and positioned at its first voxel.
pub(super) struct NiftiFile<'a> {
    reader: Box<dyn Read + 'a>,
    is_compressed: bool,
    pub(super) geometry: Geometry,
    pub(super) channels: usize,
    pub(super) dim: Vec<u16>,
    voxel_type: VoxelType,
    pub(super) scaling: (f64, f64),
    /// Bytes before the first voxel.
    offset: u64,
}

impl NiftiFile<'static> {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = adw_files::open_regular(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        Self::of(BufReader::with_capacity(1 << 16, file), file_bytes, path)
    }
}

impl<'a> NiftiFile<'a> {
    /// The file whose `file_bytes` bytes `reader` gives; errors call it `path`.
    pub(super) fn of(mut reader: impl BufRead + 'a, file_bytes: u64, path: &Path) -> Result<Self> {
        // By content, not by name: files are renamed more often than recompressed.
        let gzip = reader.fill_buf().map_err(Error::io(path))?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read + 'a> = if gzip { Box::new(GzipReader::new(reader)) } else { Box::new(reader) };
        Self::parse(reader, file_bytes, gzip).map_err(|problem| Error::nifti(path, problem))
    }

    fn parse(mut reader: Box<dyn Read + 'a>, file_bytes: u64, gzip: bool) -> std::result::Result<Self, NiftiProblem> {
        let mut bytes = [0; HEADER_BYTES];
        read_fully(&mut reader, &mut bytes, 0, HEADER_BYTES as u64)?;
        let size = [i32::from_le_bytes, i32::from_be_bytes].map(|f| f([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if !size.contains(&348) || &bytes[344..348] != b"n+1\0" {
            return Err(NiftiProblem::Magic { found: recognised(&bytes, size) });
        }
        let num_dims = [i16::from_le_bytes, i16::from_be_bytes].map(|f| f([bytes[40], bytes[41]]));
        if !num_dims.iter().any(|n| (1..=7).contains(n)) {
            let found = num_dims[usize::from(size[1] == 348)];
            return Err(NiftiProblem::Header(format!("{found} dimensions; expected three or four")));
        }
        let header = NiftiHeader::from_reader(&bytes[..]).map_err(|e| NiftiProblem::Header(e.to_string()))?;
        // The crate goes by the dimensions. A file that a tool swapped half is no file to guess about.
        let big = header.endianness == Endianness::Big;
        if size[usize::from(big)] != 348 {
            let said = "its size and its dimensions are in different byte orders";
            return Err(NiftiProblem::Header(said.to_owned()));
        }
        let dim = header.dim[1..=usize::from(header.dim[0]).min(7)].to_vec();
        let signed = || dim.iter().map(|&n| n as i16).collect();
        let bad_dims = |expected| NiftiProblem::Dimensions { dim: signed(), expected };
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
        let offset = header.vox_offset;
        if !(352.0..1e7).contains(&offset) || offset.fract() != 0.0 {
            return Err(NiftiProblem::Header(format!(
                "voxel offset {}; expected a whole number of bytes from 352 on",
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
                NiftiProblem::TooLarge { claimed, file_bytes }
            } else {
                NiftiProblem::Truncated { expected: needed as u64, found: file_bytes, cause: None }
            });
        }
        let skip = offset - HEADER_BYTES as u64;
        let skipped = io::copy(&mut reader.by_ref().take(skip), &mut io::sink());
        if skipped.as_ref().map_or(true, |&n| n < skip) {
            let found = HEADER_BYTES as u64 + skipped.as_ref().copied().unwrap_or(0);
            let cause = skipped.err().map(|e| e.to_string());
            return Err(NiftiProblem::Truncated { expected: needed as u64, found, cause });
        }
        let shape = [2, 1, 0].map(|i| usize::from(dim[i]));
        let geometry = Geometry::from_header(&header, &bytes, shape)?;
        let scaling = scaling(&header)?;
        Ok(Self { reader, is_compressed: gzip, geometry, channels, dim, voxel_type, scaling, offset })
    }

    /// Appends all voxels, mapped. Memory grows with the voxels that are really there, and a compressed file is read to its
    /// checksum.
    pub(super) fn read_voxels<T>(
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
        let (mut bytes, mut values) = (vec![0; CHUNK_VOXELS * size], Vec::with_capacity(CHUNK_VOXELS));
        while out.len() < total {
            if out.len() == out.capacity() {
                // In steps: the header's claim is believed as far as voxels follow.
                let more = out.len().max(1 << 24).min(total - out.len());
                let bytes = |voxels: usize| (voxels * size_of::<T>()) as u64;
                let (needed, limit) = (bytes(total), bytes(out.len()));
                let refused = |_| Error::Memory { what: path.display().to_string(), needed, limit };
                out.try_reserve_exact(more).map_err(refused)?;
            }
            let chunk = &mut bytes[..CHUNK_VOXELS.min(total - out.len()) * size];
            let done = self.offset + (out.len() * size) as u64;
            read_fully(&mut self.reader, chunk, done, expected).map_err(|p| Error::nifti(path, p))?;
            values.clear();
            self.voxel_type.decode(chunk, big, &mut values);
            out.extend(values.iter().map(|&v| map(v)));
        }
        self.finish().map_err(|p| Error::nifti(path, p))
    }

    /// Reads what follows the voxels of a compressed file, and thereby its checksum.
    fn finish(&mut self) -> std::result::Result<(), NiftiProblem> {
        /// Bytes that may follow the voxels: some tools append extensions of their own. A bomb is far larger.
        const MAX_TRAILING_BYTES: u64 = 1 << 26;
        if !self.is_compressed {
            return Ok(());
        }
        match io::copy(&mut self.reader.by_ref().take(MAX_TRAILING_BYTES), &mut io::sink()) {
            Ok(MAX_TRAILING_BYTES) => {
                Err(NiftiProblem::Header("more than 64 MB follow the voxels that it describes".to_owned()))
            }
            Ok(_) => Ok(()),
            Err(e) => Err(NiftiProblem::Damaged { cause: e.to_string() }),
        }
    }
}

/// Describes a file that is not NIfTI-1 by its beginning; `size` is the first number in either byte order.
fn recognised(bytes: &[u8; HEADER_BYTES], size: [i32; 2]) -> &'static str {
    match bytes {
        _ if size.contains(&540) => "it is NIfTI-2; save it as NIfTI-1",
        _ if size.contains(&348) && &bytes[344..348] == b"ni1\0" => {
            "it is the header of a pair of files (.hdr, .img); save both as one .nii file"
        }
        _ if size.contains(&348) => "its header does not end with \"n+1\", as in Analyze 7.5; save it as NIfTI-1",
        [0x1f, 0x8b, ..] => "it is compressed twice; decompress it once",
        [b'B', b'Z', b'h', ..]
        | [0xfd, b'7', b'z', b'X', b'Z', ..]
        | [b'P', b'K', 3, 4, ..]
        | [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed, but not by gzip; decompress it",
        _ => "its header does not begin with the size 348 or does not end with \"n+1\"",
    }
}

/// Factor and offset of voxel values. A slope of zero means "not scaled" by the standard; one that is no number is treated
/// alike, as nibabel does.
fn scaling(header: &NiftiHeader) -> std::result::Result<(f64, f64), NiftiProblem> {
    let (slope, intercept) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
    if slope == 0.0 || !slope.is_finite() {
        return Ok((1.0, 0.0));
    }
    if !intercept.is_finite() {
        return Err(NiftiProblem::Header(format!(
            "slope {slope} with the intercept {intercept}; expected a finite number, as values are voxels times slope plus intercept"
        )));
    }
    Ok((slope, intercept))
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
        return Err(NiftiProblem::Truncated { expected, found: done + filled as u64, cause });
    }
    Ok(())
}
