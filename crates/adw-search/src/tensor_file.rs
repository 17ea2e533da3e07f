//! safetensors files with a deterministic byte order and a checksum.
//!
//! The `safetensors` crate keeps metadata in a hash map, so that its files differ from run to run; files are written
//! here instead. They are read with that crate, which checks offsets and sizes.
//!
//! The metadata key `checksum` holds the CRC-32 of the whole file in which its own eight digits are zeros. So any reader of
//! safetensors reads the file, and a changed bit anywhere in it is found.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use adw_files::NewFile;
use candle_core::{DType, Device, Tensor, WithDType};
use crc32fast::Hasher;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::{Error, NamedTensors, Result};

/// Strings by key, as a safetensors header holds them.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Kind of file with this content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileKind {
    /// Name in errors.
    pub(crate) name: &'static str,
    /// Name and version of the format, the metadata's entry `format`.
    pub(crate) format: &'static str,
    /// Remedy for a damaged file.
    pub(crate) remedy: &'static str,
}

/// Beginning of the checksum's entry in a header. Within strings the header has `\"` for `"`, so nothing else matches.
const CHECKSUM_ENTRY: &str = "\"checksum\":\"";
const CHECKSUM_DIGITS: usize = 8;

/// Keys of the metadata that are not the caller's.
pub(crate) const RESERVED: [&str; 2] = ["format", "checksum"];

/// Writes a file of `kind` with `tensors` (F32, F64, I64, U32 or U8) and `metadata`, which takes its name `path` when it is
/// committed. Equal input gives equal bytes.
pub(crate) fn create(path: &Path, kind: FileKind, tensors: &NamedTensors, metadata: &Metadata) -> Result<NewFile> {
    let mut metadata = metadata.clone();
    metadata.insert("format".into(), kind.format.into());
    metadata.insert("checksum".into(), "0".repeat(CHECKSUM_DIGITS));
    let mut header = Map::new();
    if tensors.contains_key("__metadata__") {
        return Err(Error::file(path, "not written: no tensor of a safetensors file may be called __metadata__"));
    }
    header.insert("__metadata__".into(), json!(metadata));
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let entry =
            json!({"dtype": dtype_name(path, tensor.dtype())?, "shape": tensor.dims(), "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // The format demands data aligned to 8 bytes, and a header padded with spaces.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let length = (header.len() as u64).to_le_bytes();
    let mut crc = Hasher::new();
    crc.update(&length);
    crc.update(header.as_bytes());
    for tensor in tensors.values() {
        in_chunks(tensor, &mut |bytes| {
            crc.update(bytes);
            Ok(())
        })?;
    }
    let at = checksum_place(header.as_bytes()).expect("the header has that entry");
    header.replace_range(at, &checksum_text(crc));

    let io = |e| Error::io(path, e);
    let mut file = NewFile::create(path).map_err(io)?;
    file.write_all(&length).map_err(io)?;
    file.write_all(header.as_bytes()).map_err(io)?;
    for tensor in tensors.values() {
        in_chunks(tensor, &mut |bytes| file.write_all(bytes).map_err(io))?;
    }
    Ok(file)
}

/// Writes tensors (F32, F64, I64, U32 or U8) and metadata to a safetensors file for other programs, of `format` `pt`. `path` is
/// replaced when the new content is complete; equal input gives equal bytes.
///
/// # Errors
/// If the file cannot be written, or a tensor has another type.
pub fn save_tensors(path: &Path, tensors: &NamedTensors, metadata: &BTreeMap<String, String>) -> Result<()> {
    let kind = FileKind { name: "a file for PyTorch", format: "pt", remedy: "write it again" };
    create(path, kind, tensors, metadata)?.commit().map_err(|e| Error::io(path, e))
}

/// Calls `take` with the bytes of a tensor, piece by piece.
fn in_chunks(tensor: &Tensor, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    match tensor.dtype() {
        DType::F32 => chunks_of::<f32, 4>(tensor, f32::to_le_bytes, take),
        DType::F64 => chunks_of::<f64, 8>(tensor, f64::to_le_bytes, take),
        DType::I64 => chunks_of::<i64, 8>(tensor, i64::to_le_bytes, take),
        DType::U32 => chunks_of::<u32, 4>(tensor, u32::to_le_bytes, take),
        _ => chunks_of::<u8, 1>(tensor, u8::to_le_bytes, take),
    }
}

fn chunks_of<T: WithDType, const N: usize>(
    tensor: &Tensor,
    bytes: impl Fn(T) -> [u8; N],
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let values = tensor.flatten_all()?.to_vec1::<T>()?;
    let mut buffer = Vec::with_capacity(N << 14);
    for chunk in values.chunks(1 << 14) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|v| bytes(*v)));
        take(&buffer)?;
    }
    Ok(())
}

/// Place of the checksum's digits in `bytes`.
fn checksum_place(bytes: &[u8]) -> Option<Range<usize>> {
    let entry = CHECKSUM_ENTRY.as_bytes();
    let start = bytes.windows(entry.len()).position(|window| window == entry)? + entry.len();
    (start + CHECKSUM_DIGITS <= bytes.len()).then_some(start..start + CHECKSUM_DIGITS)
}

fn checksum_text(crc: Hasher) -> String {
    format!("{:08x}", crc.finalize())
}

/// Compares the checksum in a file with its content. None for a file that holds none.
fn check(bytes: &[u8]) -> Option<Result<(), String>> {
    let header_len = u64::from_le_bytes(*bytes.first_chunk()?);
    let header = bytes.get(8..usize::try_from(header_len).ok()?.checked_add(8)?)?;
    let Range { start, end } = checksum_place(header)?;
    let (start, end) = (start + 8, end + 8);
    let mut crc = Hasher::new();
    for part in [&bytes[..start], &[b'0'; CHECKSUM_DIGITS], &bytes[end..]] {
        crc.update(part);
    }
    let (found, stated) = (checksum_text(crc), &bytes[start..end]);
    if found.as_bytes() == stated {
        return Some(Ok(()));
    }
    let stated = stated.escape_ascii();
    Some(Err(format!("its content has the checksum {found}, its header names {stated}")))
}

fn dtype_name(path: &Path, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("F32"),
        DType::F64 => Ok("F64"),
        DType::I64 => Ok("I64"),
        DType::U32 => Ok("U32"),
        DType::U8 => Ok("U8"),
        other => Err(Error::file(path, format!("tensors of {other:?} are not stored; use F32, F64, I64, U32 or U8"))),
    }
}

/// Reads all tensors of a file of `kind` onto `device`, and the caller's entries of its metadata.
///
/// # Errors
/// If the file cannot be read, is of another kind, or is damaged in any bit.
pub(crate) fn read(path: &Path, kind: FileKind, device: &Device) -> Result<(NamedTensors, Metadata)> {
    let FileKind { name, format, remedy } = kind;
    let bytes = read_bytes(path)?;
    let bad = |reason: &dyn std::fmt::Display| Error::file(path, format!("not {name} ({reason})"));
    let damaged = |reason: &str| bad(&format_args!("damaged: {reason}; {remedy}"));
    let checked = check(&bytes);
    if let Some(Err(reason)) = &checked {
        return Err(damaged(reason));
    }
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(&format_args!("{e}; {remedy}")))?;
    let mut metadata: Metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let [found, _] = RESERVED.map(|key| metadata.remove(key));
    let found = found.unwrap_or_else(|| "absent".into());
    if found != format {
        return Err(bad(&format_args!("format {found}, expected {format}")));
    }
    if checked.is_none() {
        return Err(damaged("it has no checksum"));
    }
    let tensors = tensors(&bytes, device, |problem| bad(&problem))?;
    Ok((tensors, metadata))
}

/// Reads all tensors (F32, F64, I64, U32 or U8) and the metadata of a safetensors file of another program.
///
/// # Errors
/// If the file cannot be read, is no safetensors file, or has tensors of other types.
pub fn load_tensors(path: &Path) -> Result<(NamedTensors, BTreeMap<String, String>)> {
    let bytes = read_bytes(path)?;
    let bad = |problem: String| Error::file(path, format!("not a safetensors file that can be read ({problem})"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((tensors(&bytes, &Device::Cpu, bad)?, metadata))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = adw_files::open_regular(path);
    file.and_then(|mut file| file.read_to_end(&mut bytes)).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// Tensors of a file's bytes; `bad` makes an error from a problem.
fn tensors(bytes: &[u8], device: &Device, bad: impl Fn(String) -> Error) -> Result<NamedTensors> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
    let mut tensors = NamedTensors::new();
    for (name, view) in file.iter() {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::I64 => DType::I64,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            other => return Err(bad(format!("tensor {name} is {other:?}; convert it to F32"))),
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: FileKind = FileKind { name: "a model file", format: "test/1", remedy: "copy it anew" };

    fn write(path: &Path, tensors: &NamedTensors, metadata: &Metadata) {
        create(path, KIND, tensors, metadata).unwrap().commit().unwrap();
    }

    fn example() -> (NamedTensors, Metadata) {
        let device = &Device::Cpu;
        let tensors = NamedTensors::from([
            ("b".into(), Tensor::arange(0f32, 6., device).unwrap().reshape((2, 3)).unwrap().t().unwrap()),
            ("a".into(), Tensor::new(&[1.5f64, f64::MIN_POSITIVE, -0.0], device).unwrap()),
            ("step".into(), Tensor::new(7i64, device).unwrap()),
            ("labels".into(), Tensor::new(&[1u8, 2, 3], device).unwrap()),
        ]);
        let metadata = (0..20).map(|i| (format!("key{i}"), format!("\"{i}\" ü"))).collect();
        (tensors, metadata)
    }

    #[test]
    fn writes_the_same_bytes_and_reads_the_same_values() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let (tensors, metadata) = example();
        write(&one, &tensors, &metadata);
        write(&two, &example().0, &metadata);
        let reserved = NamedTensors::from([("__metadata__".into(), tensors["a"].clone())]);
        assert!(save_tensors(&dir.path().join("three"), &reserved, &metadata).is_err());
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        let (read_tensors, read_metadata) = read(&one, KIND, &Device::Cpu).unwrap();
        assert_eq!(read_metadata, metadata);
        assert_eq!(read_tensors.keys().collect::<Vec<_>>(), ["a", "b", "labels", "step"]);
        assert_eq!(read_tensors["b"].to_vec2::<f32>().unwrap(), [[0., 3.], [1., 4.], [2., 5.]]);
        let a = read_tensors["a"].to_vec1::<f64>().unwrap();
        assert_eq!(a.map_bits(), [1.5f64.to_bits(), f64::MIN_POSITIVE.to_bits(), (-0.0f64).to_bits()]);
        assert_eq!(read_tensors["step"].to_scalar::<i64>().unwrap(), 7);
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u64>;
    }
    impl Bits for Vec<f64> {
        fn map_bits(&self) -> Vec<u64> {
            self.iter().map(|v| v.to_bits()).collect()
        }
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let (tensors, metadata) = example();
        write(&path, &tensors, &metadata);
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let message = read(&path, KIND, &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains("model.safetensors: not a model file ("), "{len}: {message}");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let (tensors, metadata) = example();
        write(&path, &tensors, &metadata);
        let mut bytes = std::fs::read(&path).unwrap();
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            let message = read(&path, KIND, &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains("model.safetensors: not a model file ("), "bit {bit}: {message}");
            assert!(message.contains("copy it anew") || message.contains("format"), "bit {bit}: {message}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        // Any reader of safetensors reads the file as it is.
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().names().len(), tensors.len());
    }
}
