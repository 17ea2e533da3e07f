//! Stand-ins for builds without CUDA: no device can be opened, so no value of the types below exists.

use std::sync::Arc;

use candle_core::{CudaDevice, CudaStorage, DType, Device, Tensor};

use super::convolution::{ConvPass, Convolution, ConvolutionBackend};
use super::info::DeviceInfo;
use crate::launch::{Address, Buffer, Error, Launch, Params, Result, Runtime};
use crate::work::Recorder;

#[derive(Debug)]
enum Never {}

/// CUDA device with the kernels that were loaded on it.
#[derive(Debug)]
pub struct CudaRuntime(Never);

/// Memory on a device.
#[derive(Debug)]
pub struct DeviceBuffer(Never);

/// Pass of a convolution with the algorithm of cuDNN that computes it.
#[derive(Debug)]
pub struct CudnnPass(Never);

fn unavailable<T>() -> Result<T> {
    Err(Error::Unavailable("this program was built without CUDA".into()))
}

/// Opens device `ordinal`.
///
/// # Errors
/// [`Error::Unavailable`].
pub fn open(_: usize) -> Result<Device> {
    unavailable()
}

/// Name and memory of a device.
///
/// # Errors
/// [`Error::Unavailable`].
pub fn info(_: &CudaDevice) -> Result<DeviceInfo> {
    unavailable()
}

/// Returns `None`: there is no device.
pub fn peak_bytes(_: &CudaDevice) -> Option<u64> {
    None
}

/// Returns false: there is no device.
pub fn is_out_of_memory(_: &candle_core::Error) -> bool {
    false
}

/// Does nothing: there is no device.
pub fn reset_peak_memory(_: &CudaDevice) {}

#[expect(missing_docs, reason = "stand-ins for the items of the same names in builds with CUDA")]
impl CudaRuntime {
    pub fn of(_: &CudaDevice) -> Result<Arc<Self>> {
        unavailable()
    }

    pub fn set_convolutions(&self, _: ConvolutionBackend) -> Result<()> {
        match self.0 {}
    }

    pub fn cudnn_pass(&self, _: ConvPass, _: &Convolution) -> Result<Option<CudnnPass>> {
        match self.0 {}
    }

    #[expect(clippy::missing_safety_doc, reason = "cannot be called")]
    pub unsafe fn run_cudnn(&self, _: &CudnnPass, _: [Address; 3]) -> Result<()> {
        match self.0 {}
    }

    pub fn record(&self, _: Option<Recorder>) -> Option<Recorder> {
        match self.0 {}
    }

    pub fn address(&self, _: &Tensor) -> Option<Address> {
        match self.0 {}
    }

    pub fn device(&self) -> &CudaDevice {
        match self.0 {}
    }

    pub fn upload<T: Params>(&self, _: &[T]) -> Result<DeviceBuffer> {
        match self.0 {}
    }

    pub fn download<T: Params + Default>(&self, _: &DeviceBuffer) -> Result<Vec<T>> {
        match self.0 {}
    }

    pub fn storage(&self, _: DeviceBuffer, _: DType, _: usize) -> Result<CudaStorage> {
        match self.0 {}
    }
}

impl Runtime for CudaRuntime {
    type Buffer = DeviceBuffer;

    fn alloc(&self, _: usize) -> Result<DeviceBuffer> {
        match self.0 {}
    }

    unsafe fn launch<P: Params>(&self, _: &Launch<P>) -> Result<()> {
        match self.0 {}
    }
}

impl Buffer for DeviceBuffer {
    fn address(&self) -> Address {
        match self.0 {}
    }
}
