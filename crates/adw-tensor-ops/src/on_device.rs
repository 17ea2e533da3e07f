//! What the ops need of tensors on a CUDA device.

use crate::cuda::ElementType;
use crate::error::{Error, Result};
use adw_cuda::Address;
use adw_cuda::device::CudaRuntime;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Tensor};

/// The element type of a map.
pub(crate) fn element_type(op: &'static str, dtype: DType) -> Result<ElementType> {
    match dtype {
        DType::F32 => Ok(ElementType::F32),
        DType::BF16 => Ok(ElementType::Bf16),
        got => Err(Error::DType { op, got }),
    }
}

/// Where a tensor's elements begin; it must lie on the device of `rt`.
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

/// [`address`] of a map, of which kernels move 16 bytes at a time.
pub(crate) fn map_address(op: &'static str, rt: &CudaRuntime, map: &Tensor) -> Result<Address> {
    let address = address(op, rt, map)?;
    if address.0.is_multiple_of(16) {
        return Ok(address);
    }
    let what = "a map that begins inside another tensor, expected one aligned to 16 bytes: copy it";
    Err(Error::Argument { op, what: what.into() })
}

/// [`address`] of a tensor as candle's custom ops get it.
pub(crate) fn storage_address(op: &'static str, storage: &CudaStorage, layout: &Layout) -> Result<Address> {
    adw_cuda::device::storage_address(storage, layout).ok_or_else(|| Error::Argument {
        op,
        what: format!(
            "a tensor of shape {:?} and element type {:?}, expected a contiguous one of f32, bf16 or u8",
            layout.shape(),
            storage.dtype()
        ),
    })
}

/// [`storage_address`] of f32 numbers.
pub(crate) fn f32_storage_address(op: &'static str, storage: &CudaStorage, layout: &Layout) -> Result<Address> {
    match storage.dtype() {
        DType::F32 => storage_address(op, storage, layout),
        got => Err(Error::DType { op, got }),
    }
}

/// [`address`] of f32 numbers.
pub(crate) fn f32_address(op: &'static str, rt: &CudaRuntime, t: &Tensor) -> Result<Address> {
    match t.dtype() {
        DType::F32 => address(op, rt, t),
        got => Err(Error::DType { op, got }),
    }
}
