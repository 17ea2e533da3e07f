//! safetensors files with a deterministic byte order.
//!
//! The `safetensors` crate keeps metadata in a hash map, so that its files differ from run to run; files are written
//! here instead. They are read with that crate, which checks offsets and sizes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use adw_files::NewFile;
use candle_core::{DType, Device, Tensor, WithDType};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::{Error, NamedTensors, Result};

/// Strings by key, as a safetensors header holds them.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Writes `tensors` (F32, F64, I64, U32 or U8) and `metadata`, replacing `path` atomically. Equal input gives equal
/// bytes.
pub(crate) fn write(path: &Path, tensors: &NamedTensors, metadata: &Metadata) -> Result<()> {
    let mut header = Map::new();
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
    let io = |e| Error::io(path, e);
    let mut file = NewFile::create(path).map_err(io)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(header.as_bytes()).map_err(io)?;
    for tensor in tensors.values() {
        match tensor.dtype() {
            DType::F32 => put::<f32, 4>(path, &mut file, tensor, f32::to_le_bytes)?,
            DType::F64 => put::<f64, 8>(path, &mut file, tensor, f64::to_le_bytes)?,
            DType::I64 => put::<i64, 8>(path, &mut file, tensor, i64::to_le_bytes)?,
            DType::U32 => put::<u32, 4>(path, &mut file, tensor, u32::to_le_bytes)?,
            _ => put::<u8, 1>(path, &mut file, tensor, u8::to_le_bytes)?,
        }
    }
    file.commit().map_err(io)
}

fn put<T: WithDType, const N: usize>(
    path: &Path,
    out: &mut NewFile,
    tensor: &Tensor,
    bytes: impl Fn(T) -> [u8; N],
) -> Result<()> {
    let values = tensor.flatten_all()?.to_vec1::<T>()?;
    let mut buffer = Vec::with_capacity(N << 14);
    for chunk in values.chunks(1 << 14) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|v| bytes(*v)));
        out.write_all(&buffer).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
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

/// Reads all tensors of a file onto `device`, and its metadata. `what` names the expected kind of file in errors.
pub(crate) fn read(path: &Path, what: &str, device: &Device) -> Result<(NamedTensors, Metadata)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let bad = |reason: &dyn std::fmt::Display| Error::file(path, format!("not {what} ({reason})"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(&e))?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(&e))?;
    let mut tensors = NamedTensors::new();
    for (name, view) in file.iter() {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::I64 => DType::I64,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            other => return Err(bad(&format!("tensor {name} is {other:?}"))),
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok((tensors, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        write(&one, &tensors, &metadata).unwrap();
        write(&two, &example().0, &metadata).unwrap();
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        let (read_tensors, read_metadata) = read(&one, "a test", &Device::Cpu).unwrap();
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
        write(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let message = read(&path, "a model file", &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains("model.safetensors: not a model file ("), "{len}: {message}");
        }
    }
}
