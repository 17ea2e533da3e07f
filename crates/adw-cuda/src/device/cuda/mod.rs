//! CUDA devices of candle, in builds with the feature `cuda`.

#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(not(feature = "cudnn"))]
#[path = "without_cudnn.rs"]
mod cudnn;
mod runtime;

pub use cudnn::CudnnPass;
pub use runtime::{CudaRuntime, DeviceBuffer};

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::CudaError;
use candle_core::{CudaDevice, Device};
use cudarc::driver::{CudaContext, DriverError, sys};

use self::runtime::driver_message;
use super::info::DeviceInfo;
use crate::launch::{Error, Result};

/// Opens device `ordinal` with a stream of its own; the next call gives the same device.
///
/// candle's own constructor takes the stream of the calling thread, which would be another one in every thread; and it
/// records two events per tensor for the sake of programs with several streams. Here is one stream, so that memory can
/// be given back and reused in the order of the calls, without events. The pool keeps what tensors free.
///
/// # Errors
/// [`Error::Unavailable`] if there is no such device, or one older than compute capability 8.0. (Without a driver a
/// program with CUDA does not even start.)
pub fn open(ordinal: usize) -> Result<Device> {
    static OPEN: LazyLock<Mutex<HashMap<usize, CudaDevice>>> = LazyLock::new(Mutex::default);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(Device::Cuda(device.clone()));
    }
    let unavailable = |cause: String| Error::Unavailable(format!("CUDA device {ordinal}: {cause}"));
    // candle's error would carry its backtrace. The context is held until candle has it too: dropping it would destroy it.
    let _context = CudaContext::new(ordinal).map_err(|e| unavailable(driver_message(e)))?;
    let device = CudaDevice::new_with_stream(ordinal).map_err(|e| unavailable(e.to_string()))?;
    // SAFETY: all work on the device is queued on its one stream, since every device is opened here.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    let context = stream.context();
    let (major, minor) = context.compute_capability().map_err(|e| unavailable(driver_message(e)))?;
    if major < 8 {
        let name = context.name().unwrap_or_default();
        return Err(unavailable(format!(
            "{name} has compute capability {major}.{minor}, but 8.0 (Ampere) or later is needed"
        )));
    }
    if context.has_async_alloc() {
        // A training step allocates what the last one freed: nothing goes back to the driver between steps.
        let mut keep = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        if let Some(pool) = pool(&device) {
            // SAFETY: the attribute's value is a u64. If it cannot be set, the pool is slower, not wrong.
            let _ = unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()) };
        }
    }
    open.insert(ordinal, device.clone());
    Ok(Device::Cuda(device))
}

/// Name and memory of a device.
///
/// # Errors
/// [`Error::Unavailable`] if the driver fails.
pub fn info(device: &CudaDevice) -> Result<DeviceInfo> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let unavailable = |e: DriverError| Error::Unavailable(driver_message(e));
    let (free_bytes, total_bytes) = context.mem_get_info().map_err(unavailable)?;
    Ok(DeviceInfo { name: context.name().map_err(unavailable)?, free_bytes, total_bytes })
}

/// Most memory that tensors have held at once since the last [`reset_peak_memory`]; `None` if the driver does not count.
pub fn peak_bytes(device: &CudaDevice) -> Option<u64> {
    let mut bytes = 0u64;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the attribute's value is a u64.
    let got = unsafe { sys::cuMemPoolGetAttribute(pool(device)?, high, (&raw mut bytes).cast()) };
    got.result().ok()?;
    Some(bytes)
}

/// Returns true if a CUDA device had too little memory for an operation of candle, or for one of ours in its graph.
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    use candle_core::Error as E;
    match error {
        E::Cuda(cause) => {
            let full = DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            matches!(cause.downcast_ref(), Some(CudaError::Cuda(cause)) if *cause == full)
                || matches!(cause.downcast_ref(), Some(Error::OutOfMemory { .. }))
        }
        E::Context { inner, .. } | E::WithPath { inner, .. } | E::WithBacktrace { inner, .. } => {
            is_out_of_memory(inner)
        }
        _ => false,
    }
}

/// Starts a new count of [`peak_bytes`].
pub fn reset_peak_memory(device: &CudaDevice) {
    let mut zero = 0u64;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    if let Some(pool) = pool(device) {
        // SAFETY: the attribute's value is a u64. If it cannot be set, the count goes on.
        let _ = unsafe { sys::cuMemPoolSetAttribute(pool, high, (&raw mut zero).cast()) };
    }
}

/// Memory pool that a device's tensors are allocated from.
fn pool(device: &CudaDevice) -> Option<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    // SAFETY: the driver writes one pointer to a variable of this type.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) }.result().ok()?;
    Some(pool)
}
