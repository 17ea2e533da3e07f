//! What the ops need of tensors on a CUDA device.

use crate::cuda::ElementType;
use crate::error::{Error, Result};
use adw_cuda::Address;
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

/// Where a tensor's elements begin.
pub(crate) fn address(op: &'static str, t: &Tensor) -> Result<Address> {
    adw_cuda::device::address(t).ok_or_else(|| Error::Argument {
        op,
        what: format!(
            "a tensor of shape {:?} and element type {:?} on {:?}, expected all arguments contiguous on one CUDA device",
            t.shape(),
            t.dtype(),
            t.device().location()
        ),
    })
}

/// [`address`] of a tensor as candle's custom ops get it.
pub(crate) fn storage_address(
    op: &'static str,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<Address> {
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
pub(crate) fn f32_storage_address(
    op: &'static str,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<Address> {
    match storage.dtype() {
        DType::F32 => storage_address(op, storage, layout),
        got => Err(Error::DType { op, got }),
    }
}

/// [`address`] of f32 numbers.
pub(crate) fn f32_address(op: &'static str, t: &Tensor) -> Result<Address> {
    match t.dtype() {
        DType::F32 => address(op, t),
        got => Err(Error::DType { op, got }),
    }
}
