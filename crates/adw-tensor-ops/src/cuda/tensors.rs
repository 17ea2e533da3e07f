//! Addresses of tensors on a CUDA device, and tensors of device memory.

use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::storage::Computed;
use adw_cuda::device::{CudaRuntime, DeviceBuffer};
use adw_cuda::{Address, Buffer, Runtime};
use candle_core::{DType, Shape, Storage, Tensor};

/// Precision of a map.
///
/// # Errors
/// If kernels do not support its element type.
pub(crate) fn precision_of(op: &'static str, map: &Tensor) -> Result<Precision> {
    Precision::of_maps(map.dtype()).ok_or_else(|| Error::dtype(op, map.dtype(), "f32 or bf16 on a CUDA device"))
}

/// Address of a tensor's first element.
///
/// # Errors
/// If the tensor is not contiguous on the device of `rt`.
pub(crate) fn address(op: &'static str, rt: &CudaRuntime, t: &Tensor) -> Result<Address> {
    rt.address(t).ok_or_else(|| Error::Argument {
        op,
        what: format!(
            "a tensor of shape {:?} and element type {:?} on {:?}, expected all arguments contiguous on one CUDA device",
            t.shape(),
            t.dtype(),
            t.device().location()
        ),
    })
}

/// Most voxels of a sample: kernels count them with 31 bits, up to the end of a block behind the last.
const MAX_VOXELS: usize = i32::MAX as usize - (1 << 20);

/// Checks that kernels can count the voxels of a sample of this spatial size.
///
/// # Errors
/// [`Error::Argument`] for more than 2,146,435,071.
pub(crate) fn check_voxels(op: &'static str, size: [usize; 3]) -> Result<()> {
    if size.iter().product::<usize>() <= MAX_VOXELS {
        return Ok(());
    }
    let what = format!("{size:?} voxels, expected at most {MAX_VOXELS} in all on a CUDA device: use smaller patches");
    Err(Error::Argument { op, what })
}

/// [`address`] of a map, of which kernels move 16 bytes at a time.
///
/// # Errors
/// As [`address`], or if the map is not aligned to 16 bytes.
pub(crate) fn map_address(op: &'static str, rt: &CudaRuntime, map: &Tensor) -> Result<Address> {
    let address = address(op, rt, map)?;
    if address.0.is_multiple_of(16) {
        return Ok(address);
    }
    let what =
        "a map that begins inside another tensor, expected one aligned to 16 bytes: copy it with `force_contiguous`";
    Err(Error::Argument { op, what: what.into() })
}

/// [`address`] of f32 numbers.
///
/// # Errors
/// As [`address`], or if the element type is another.
pub(crate) fn f32_address(op: &'static str, rt: &CudaRuntime, t: &Tensor) -> Result<Address> {
    match t.dtype() {
        DType::F32 => address(op, rt, t),
        got => Err(Error::dtype(op, got, "f32 on a CUDA device")),
    }
}

/// Result of this shape with unspecified contents, and its address. f32, bf16 and u8 only.
///
/// # Errors
/// If the device has no memory left.
pub(crate) fn empty(rt: &CudaRuntime, dtype: DType, shape: impl Into<Shape>) -> Result<(Computed, Address)> {
    let shape = shape.into();
    let len = shape.elem_count();
    let buffer = rt.alloc(len * dtype.size_in_bytes())?;
    let address = buffer.address();
    let storage = Storage::Cuda(rt.storage(buffer, dtype, len)?);
    Ok((Computed { storage, shape }, address))
}

/// Tensor of f32 numbers that takes over a buffer.
///
/// # Errors
/// Only in builds without CUDA.
pub(crate) fn f32_tensor(rt: &CudaRuntime, buffer: DeviceBuffer, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let storage = Storage::Cuda(rt.storage(buffer, DType::F32, shape.elem_count())?);
    Ok(Computed { storage, shape }.into_tensor())
}
