//! Files of DICOM: attributes before the pixels, and the place of the pixels.
//!
//! Nothing is reserved for what a file claims to hold: every length is compared with the bytes that are left in the file, values
//! that are not used are passed over, and nesting and the memory of all values together are bounded.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::data_set::{DataSet, ITEM, ITEM_END, LONG, SEQUENCE_END, Value};
use crate::error::{Error, Result};
use crate::tags::{self, PIXEL_DATA, TRANSFER_SYNTAX, Vr, number};

/// Bytes of values and items that are kept of one file. A frame of a multi-frame image takes about 1 kB.
const MAX_KEPT_BYTES: u64 = 1 << 28;

/// Items within items. Functional groups have four.
const MAX_DEPTH: usize = 16;

/// Encoding of the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Native,
    RunLengths,
    Jpeg,
}

/// Pixels of a file, not read yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PixelData {
    pub(crate) encoding: Encoding,
    pub(crate) offset: u64,
    /// Bytes of native pixels; encoded ones end with a delimiter.
    pub(crate) length: Option<u64>,
}

/// Attributes of a file, those of the file itself included.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) data_set: DataSet,
    /// Pixels; none for files without, or in a transfer syntax that is not decoded: the error then.
    pub(crate) pixels: Result<Option<PixelData>>,
}

/// Offset and length of a part of encoded pixels.
pub(crate) type Fragment = (u64, u64);

/// A file that is read from the beginning to the end.
pub(crate) struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    position: u64,
    length: u64,
    kept: u64,
}

/// An element before its value.
struct ElementHeader {
    id: u32,
    vr: Vr,
    /// Bytes of the value; none if it ends with a delimiter.
    length: Option<u64>,
}

/// Class of the directory of a medium (`DICOMDIR`), which holds no image.
const DIRECTORY: &str = "1.2.840.10008.1.3.10";

/// Reads the attributes of a file; none of a file that is not one of DICOM, and of directories of media.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`]; [`Error::TransferSyntax`] if the attributes themselves cannot be read.
pub(crate) fn read_header(path: &Path) -> Result<Option<Header>> {
    let mut reader = Reader::open(path)?;
    let mut preamble = [0; 132];
    if reader.length < 132 || reader.file.read_exact(&mut preamble).is_err() || &preamble[128..] != b"DICM" {
        return Ok(None);
    }
    reader.position = 132;
    let mut data_set = DataSet::default();
    reader.file_attributes(&mut data_set)?;
    if data_set.text(tags::META_SOP_CLASS).as_deref() == Some(DIRECTORY) {
        return Ok(None);
    }
    let Some(uid) = data_set.text(TRANSFER_SYNTAX) else {
        return Err(Error::attribute(path, TRANSFER_SYNTAX, "is missing"));
    };
    let unsupported = |name| Error::TransferSyntax { path: path.to_owned(), uid: uid.clone(), name };
    let (explicit, encoding) = match uid.as_str() {
        "1.2.840.10008.1.2" => (false, Ok(Encoding::Native)),
        "1.2.840.10008.1.2.1" => (true, Ok(Encoding::Native)),
        "1.2.840.10008.1.2.5" => (true, Ok(Encoding::RunLengths)),
        "1.2.840.10008.1.2.4.57" | "1.2.840.10008.1.2.4.70" => (true, Ok(Encoding::Jpeg)),
        other => (true, Err(unsupported(syntax_name(other)))),
    };
    // The attributes are encoded in another way, too.
    if matches!(uid.as_str(), "1.2.840.10008.1.2.2" | "1.2.840.10008.1.2.1.99") {
        return Err(unsupported(syntax_name(&uid)));
    }
    let pixels = reader.attributes(&mut data_set, explicit)?;
    let pixels = match (pixels, encoding) {
        (None, _) => Ok(None),
        (Some(_), Err(error)) => Err(error),
        (Some(element), Ok(encoding)) => {
            Ok(Some(PixelData { encoding, offset: reader.position, length: element.length }))
        }
    };
    Ok(Some(Header { data_set, pixels }))
}

fn syntax_name(uid: &str) -> &'static str {
    match uid.strip_prefix("1.2.840.10008.1.2") {
        Some(".2") => "Explicit VR Big Endian",
        Some(".1.99") => "Deflated Explicit VR Little Endian",
        Some(".4.50") => "JPEG Baseline",
        Some(".4.51") => "JPEG Extended",
        Some(".4.80") => "JPEG-LS Lossless",
        Some(".4.81") => "JPEG-LS Near-lossless",
        Some(".4.90") => "JPEG 2000 Lossless",
        Some(".4.91") => "JPEG 2000",
        Some(".4.201" | ".4.202") => "High-Throughput JPEG 2000 Lossless",
        Some(".4.203") => "High-Throughput JPEG 2000",
        _ => "none of those that are known",
    }
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = adw_files::open_regular(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        Ok(Self { file: BufReader::new(file), path: path.to_owned(), position: 0, length, kept: 0 })
    }

    pub(crate) fn seek(&mut self, position: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(position)).map_err(Error::io(&self.path))?;
        self.position = position;
        Ok(())
    }

    fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::damaged(&self.path, problem)
    }

    /// Compares a number of bytes with those that are left.
    pub(crate) fn check(&self, count: u64) -> Result<()> {
        if self.position.saturating_add(count) <= self.length {
            return Ok(());
        }
        Err(self.damaged(format!("{count} bytes are expected at byte {} of {}", self.position, self.length)))
    }

    pub(crate) fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        self.check(count)?;
        let mut bytes = vec![0; count as usize];
        self.file.read_exact(&mut bytes).map_err(Error::io(&self.path))?;
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.check(N as u64)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(Error::io(&self.path))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.check(count)?;
        self.file.seek_relative(count as i64).map_err(Error::io(&self.path))?;
        self.position += count;
        Ok(())
    }

    /// Counts memory that a value or an item takes.
    fn keep(&mut self, bytes: u64) -> Result<()> {
        self.kept += bytes + 64;
        if self.kept > MAX_KEPT_BYTES {
            return Err(self.damaged(format!("its attributes take more than {MAX_KEPT_BYTES} bytes")));
        }
        Ok(())
    }

    fn element(&mut self, explicit: bool) -> Result<ElementHeader> {
        let [g0, g1, e0, e1] = self.array()?;
        let id = u32::from(u16::from_le_bytes([g0, g1])) << 16 | u32::from(u16::from_le_bytes([e0, e1]));
        let (vr, length) = if id >> 16 == 0xfffe || !explicit {
            let vr = tags::find(id).map_or(*b"UN", |tag| tag.vr);
            (vr, u32::from_le_bytes(self.array()?))
        } else {
            let vr: Vr = self.array()?;
            if LONG.contains(&vr) {
                self.skip(2)?;
                (vr, u32::from_le_bytes(self.array()?))
            } else if vr.iter().all(u8::is_ascii_uppercase) {
                (vr, u32::from(u16::from_le_bytes(self.array()?)))
            } else {
                return Err(self.damaged(format!("element {} has no value representation", number(id))));
            }
        };
        Ok(ElementHeader { id, vr, length: (length != u32::MAX).then_some(u64::from(length)) })
    }

    /// Reads the attributes of the file itself: they end where another group begins, which may be encoded in another way.
    fn file_attributes(&mut self, data_set: &mut DataSet) -> Result<()> {
        while self.position < self.length {
            let group = u16::from_le_bytes(self.array()?);
            self.file.seek_relative(-2).map_err(Error::io(&self.path))?;
            self.position -= 2;
            if group != 2 {
                return Ok(());
            }
            let element = self.element(true)?;
            self.value(data_set, &element, true, 0)?;
        }
        Ok(())
    }

    /// Reads attributes up to the pixels, and returns the element of those.
    fn attributes(&mut self, data_set: &mut DataSet, explicit: bool) -> Result<Option<ElementHeader>> {
        while self.position < self.length {
            let element = self.element(explicit)?;
            if element.id == PIXEL_DATA.id {
                return Ok(Some(element));
            }
            self.value(data_set, &element, explicit, 0)?;
        }
        Ok(None)
    }

    /// Reads the value of an element, if it is used, else passes over it.
    fn value(&mut self, data_set: &mut DataSet, element: &ElementHeader, explicit: bool, depth: usize) -> Result<()> {
        let tag = tags::find(element.id);
        let is_sequence = element.vr == *b"SQ" || tag.is_some_and(|tag| tag.vr == *b"SQ");
        match (tag, element.length) {
            // Pixels within items are those of an icon.
            (None | Some(PIXEL_DATA), Some(length)) => self.skip(length),
            (Some(PIXEL_DATA), None) => self.fragments().map(drop),
            (Some(tag), Some(length)) if !is_sequence => {
                self.check(length)?;
                self.keep(length)?;
                let bytes = self.bytes(length)?;
                data_set.insert(tag, Value::Bytes(bytes));
                Ok(())
            }
            (tag, length) => {
                // Sequences of unknown representation hold implicit ones.
                let items = self.items(length, explicit && element.vr != *b"UN", depth + 1)?;
                if let Some(tag) = tag {
                    data_set.insert(tag, Value::Items(items));
                }
                Ok(())
            }
        }
    }

    fn items(&mut self, length: Option<u64>, explicit: bool, depth: usize) -> Result<Vec<DataSet>> {
        if depth > MAX_DEPTH {
            return Err(self.damaged(format!("items are nested more than {MAX_DEPTH} deep")));
        }
        length.map_or(Ok(()), |length| self.check(length))?;
        let end = length.map(|length| self.position + length);
        let mut items = Vec::new();
        while !self.is_at(end)? {
            let header = self.element(explicit)?;
            match (header.id, header.length) {
                (SEQUENCE_END, _) if end.is_none() => break,
                (ITEM, length) => {
                    self.keep(0)?;
                    items.push(self.item(length, explicit, depth)?);
                }
                (id, _) => return Err(self.damaged(format!("{} stands where an item is expected", number(id)))),
            }
        }
        Ok(items)
    }

    fn item(&mut self, length: Option<u64>, explicit: bool, depth: usize) -> Result<DataSet> {
        length.map_or(Ok(()), |length| self.check(length))?;
        let end = length.map(|length| self.position + length);
        let mut item = DataSet::default();
        while !self.is_at(end)? {
            let element = self.element(explicit)?;
            match element.id {
                ITEM_END if end.is_none() => break,
                ITEM | ITEM_END | SEQUENCE_END => {
                    return Err(self.damaged(format!("{} stands where an attribute is expected", number(element.id))));
                }
                _ => self.value(&mut item, &element, explicit, depth)?,
            }
        }
        Ok(item)
    }

    /// Returns true at the end of an item or sequence of known length.
    fn is_at(&self, end: Option<u64>) -> Result<bool> {
        match end {
            Some(end) if self.position > end => {
                Err(self.damaged(format!("a value crosses byte {end}, where its item ends")))
            }
            end => Ok(end == Some(self.position)),
        }
    }

    /// Offsets and lengths of the fragments of encoded pixels, which begin at the reader's position, and the offset of each frame
    /// relative to the first fragment where the file has a table of them.
    pub(crate) fn fragments(&mut self) -> Result<(Vec<Fragment>, Vec<u64>)> {
        let (mut fragments, mut offsets) = (Vec::new(), None);
        loop {
            let header = self.element(true)?;
            match (header.id, header.length) {
                (ITEM, Some(length)) if offsets.is_none() => {
                    self.check(length)?;
                    self.keep(8 * length)?;
                    let table = self.bytes(length)?;
                    let table = table.as_chunks().0.iter().map(|offset| u64::from(u32::from_le_bytes(*offset)));
                    offsets = Some(table.collect());
                }
                (ITEM, Some(length)) => {
                    self.keep(0)?;
                    fragments.push((self.position, length));
                    self.skip(length)?;
                }
                (SEQUENCE_END, _) => return Ok((fragments, offsets.unwrap_or_default())),
                (id, _) => return Err(self.damaged(format!("{} stands where a fragment is expected", number(id)))),
            }
        }
    }
}
