//! The file of a prepared case.
//!
//! ```text
//! "msdcase2" | chunks | foreground voxels, 12 bytes each | header, JSON | its length, u64 | its CRC-32, u32 | "msdcase2"
//! ```
//! Chunks are in C order of their positions in the grid; at each, those of the channels and then that of the labels.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;

use lz4_flex::block::{compress, decompress_into};
use ndarray::{Array3, Array4, AxisDescription, Slice};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::preprocess::{CaseProperties, PreparedCase};

/// Begins and ends a file. The digit is the version of the format.
pub(super) const MAGIC: &[u8; 8] = b"msdcase2";

/// Edge of a chunk in voxels: small against a patch, large enough to compress.
pub(super) const EDGE: usize = 32;

/// Bytes behind the header: its length, its checksum, [`MAGIC`].
const TAIL_BYTES: u64 = 20;

/// Bytes of a foreground voxel: three u32.
const VOXEL_BYTES: u64 = 12;

/// Description of a case and directory of its file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CaseHeader {
    /// Files and settings that the case was prepared from; another key is another case.
    pub(super) key: String,
    pub(super) channels: usize,
    pub(super) shape: [usize; 3],
    pub(super) highest_label: i16,
    pub(super) properties: CaseProperties,
    pub(super) classes: Vec<StoredClass>,
    /// Position of each chunk in the file, and the end of the last.
    offsets: Vec<u64>,
    /// CRC-32 of each chunk as it is stored.
    checksums: Vec<u32>,
}

/// Foreground voxels of a label above 0.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct StoredClass {
    label: u16,
    /// Position of the voxels in the file.
    offset: u64,
    pub(super) num_voxels: u32,
    checksum: u32,
}

impl CaseHeader {
    /// Number of chunks along each axis.
    pub(super) fn grid(&self) -> [usize; 3] {
        self.shape.map(|n| n.div_ceil(EDGE))
    }

    /// Checks lengths and positions against a file of this many bytes.
    fn is_sound(&self, bytes: u64) -> bool {
        let chunks = self.grid().iter().product::<usize>() * (self.channels + 1);
        let fits = |class: &StoredClass| {
            class.num_voxels > 0 && class.offset.saturating_add(VOXEL_BYTES * u64::from(class.num_voxels)) <= bytes
        };
        self.channels > 0
            && self.shape.iter().all(|&n| (1..1 << 20).contains(&n))
            && self.offsets.len() == chunks + 1
            && self.checksums.len() == chunks
            && self.offsets.is_sorted()
            && self.offsets.last().is_some_and(|&end| end <= bytes)
            && self.classes.iter().all(fits)
    }

    /// Reads the header of a file and checks it and the list of foreground voxels; none if the file is damaged or no
    /// prepared case.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let bytes = file.metadata()?.len();
        if bytes < TAIL_BYTES + MAGIC.len() as u64 {
            return Ok(None);
        }
        let mut tail = [0; TAIL_BYTES as usize];
        read_at(file, &mut tail, bytes - TAIL_BYTES)?;
        let length = u64::from_le_bytes(*tail.first_chunk().expect("20 bytes"));
        let checksum = u32::from_le_bytes(*tail[8..].first_chunk().expect("12 bytes"));
        if &tail[12..] != MAGIC || length > bytes - TAIL_BYTES {
            return Ok(None);
        }
        let mut beginning = [0; MAGIC.len()];
        read_at(file, &mut beginning, 0)?;
        if &beginning != MAGIC {
            return Ok(None);
        }
        let mut json = vec![0; length as usize];
        read_at(file, &mut json, bytes - TAIL_BYTES - length)?;
        if crc32fast::hash(&json) != checksum {
            return Ok(None);
        }
        let header: Self = match serde_json::from_slice(&json) {
            Ok(header) => header,
            Err(_) => return Ok(None),
        };
        if !header.is_sound(bytes) {
            return Ok(None);
        }
        for class in &header.classes {
            let mut voxels = vec![0; (VOXEL_BYTES * u64::from(class.num_voxels)) as usize];
            read_at(file, &mut voxels, class.offset)?;
            if crc32fast::hash(&voxels) != class.checksum {
                return Ok(None);
            }
        }
        Ok(Some(header))
    }

    /// Reads foreground voxel `i` of a class: d, h, w.
    pub(super) fn read_voxel(&self, file: &File, class: usize, i: usize) -> io::Result<[u32; 3]> {
        let mut bytes = [0; VOXEL_BYTES as usize];
        read_at(file, &mut bytes, self.classes[class].offset + VOXEL_BYTES * i as u64)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok([0, 1, 2].map(|a| u32::from_le_bytes(numbers[a])))
    }

    /// Reads and unpacks a chunk of `size` bytes into `out`; false if it is damaged. `packed` is memory to work in.
    pub(super) fn read_chunk(
        &self,
        file: &File,
        chunk: usize,
        size: usize,
        packed: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let [start, end] = [chunk, chunk + 1].map(|i| self.offsets[i]);
        packed.resize((end - start) as usize, 0);
        read_at(file, packed, start)?;
        out.resize(size, 0);
        let is_whole = crc32fast::hash(packed) == self.checksums[chunk];
        Ok(is_whole && decompress_into(packed, out).is_ok_and(|n| n == size))
    }
}

/// Writes the file of a case.
pub(super) fn write(out: &mut impl Write, case: &PreparedCase, labels: &Array3<i16>, key: &str) -> io::Result<()> {
    let (channels, d, h, w) = case.image.dim();
    let mut header = CaseHeader {
        key: key.to_owned(),
        channels,
        shape: [d, h, w],
        highest_label: labels.iter().copied().max().unwrap_or(0),
        properties: case.properties.clone(),
        classes: Vec::new(),
        offsets: vec![MAGIC.len() as u64],
        checksums: Vec::new(),
    };
    out.write_all(MAGIC)?;
    let mut offset = MAGIC.len() as u64;
    let grid = header.grid();
    for z in 0..grid[0] {
        // A layer at a time: compressed on all threads, written in order.
        let positions = (0..grid[1] * grid[2]).into_par_iter();
        let layer: Vec<Vec<Vec<u8>>> =
            positions.map(|i| pack(&case.image, labels, [z, i / grid[2], i % grid[2]])).collect();
        for chunk in layer.into_iter().flatten() {
            out.write_all(&chunk)?;
            offset += chunk.len() as u64;
            header.offsets.push(offset);
            header.checksums.push(crc32fast::hash(&chunk));
        }
    }
    for class in &case.locations {
        let bytes: Vec<u8> = class.voxels.as_flattened().iter().flat_map(|index| index.to_le_bytes()).collect();
        out.write_all(&bytes)?;
        let num_voxels = class.voxels.len() as u32;
        let checksum = crc32fast::hash(&bytes);
        header.classes.push(StoredClass { label: class.label, offset, num_voxels, checksum });
        offset += bytes.len() as u64;
    }
    let json = serde_json::to_vec(&header)?;
    out.write_all(&json)?;
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&crc32fast::hash(&json).to_le_bytes())?;
    out.write_all(MAGIC)
}

/// Compresses the chunks at a position of the grid: one per channel, then the labels'.
fn pack(image: &Array4<f32>, labels: &Array3<i16>, position: [usize; 3]) -> Vec<Vec<u8>> {
    let range = |ax: AxisDescription| {
        let start = position[ax.axis.0] * EDGE;
        Slice::from(start..(start + EDGE).min(ax.len))
    };
    let mut chunks: Vec<_> = image
        .outer_iter()
        .map(|channel| {
            let part = channel.slice_each_axis(range);
            compress(&by_significance(part.iter().map(|v| v.to_le_bytes())))
        })
        .collect();
    let part = labels.slice_each_axis(range);
    chunks.push(compress(&by_significance(part.iter().map(|v| v.to_le_bytes()))));
    chunks
}

/// Reorders the bytes of numbers: all first bytes, then all second bytes, and so on. Only the upper bytes of
/// neighbouring voxels repeat, so they compress best side by side.
fn by_significance<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    let values: Vec<_> = values.collect();
    let byte = |k: usize| values.iter().map(move |bytes| bytes[k]);
    (0..N).flat_map(byte).collect()
}

/// A chunk and the rows of it that a box of the case contains.
pub(super) struct ChunkPart {
    /// Index of the chunk of the first channel.
    pub(super) first_chunk: usize,
    /// Voxels of the chunk.
    pub(super) voxels: usize,
    /// For each row of the intersection, its first voxel in the chunk and in the box.
    pub(super) rows: Vec<[usize; 2]>,
    /// Voxels per row.
    pub(super) width: usize,
}

impl CaseHeader {
    /// The chunks that a box of voxels touches, in C order.
    pub(super) fn chunks_of<'a>(&'a self, part: &'a [Range<usize>; 3]) -> impl Iterator<Item = ChunkPart> + 'a {
        let grid = self.grid();
        let along = |a: usize| part[a].start / EDGE..part[a].end.div_ceil(EDGE);
        product([along(0), along(1), along(2)]).map(move |position| {
            let first = position.map(|i| i * EDGE);
            let size = [0, 1, 2].map(|a| EDGE.min(self.shape[a] - first[a]));
            let shared = [0, 1, 2].map(|a| part[a].start.max(first[a])..part[a].end.min(first[a] + size[a]));
            let within = |[z, y]: [usize; 2], origin: [usize; 3], [h, w]: [usize; 2]| {
                ((z - origin[0]) * h + y - origin[1]) * w + shared[2].start - origin[2]
            };
            let origin = part.each_ref().map(|range| range.start);
            let rows = product([shared[0].clone(), shared[1].clone(), 0..1]).map(|[z, y, _]| {
                [within([z, y], first, [size[1], size[2]]), within([z, y], origin, [part[1].len(), part[2].len()])]
            });
            let index = (position[0] * grid[1] + position[1]) * grid[2] + position[2];
            ChunkPart {
                first_chunk: index * (self.channels + 1),
                voxels: size.iter().product(),
                rows: rows.collect(),
                width: shared[2].len(),
            }
        })
    }
}

/// All triples of three ranges, in C order.
fn product([z, y, x]: [Range<usize>; 3]) -> impl Iterator<Item = [usize; 3]> {
    z.flat_map(move |z| {
        let x = x.clone();
        y.clone().flat_map(move |y| x.clone().map(move |x| [z, y, x]))
    })
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (buffer, offset) = (&mut buffer[n..], offset + n as u64),
        }
    }
    Ok(())
}
