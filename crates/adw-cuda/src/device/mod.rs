//! CUDA devices: opening one, its memory, and the [`Runtime`](crate::Runtime) that launches kernels on it.
//!
//! A build without the feature `cuda` has the same items, so that code above needs no conditional compilation: devices
//! cannot be opened there, and so no [`CudaRuntime`] exists.

mod convolution;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "without_cuda.rs"]
mod cuda;
mod info;

pub use convolution::{ConvPass, Convolution, ConvolutionBackend};
pub use cuda::{CudaRuntime, CudnnPass, DeviceBuffer, info, is_out_of_memory, open, peak_bytes, reset_peak_memory};
pub use info::DeviceInfo;

/// Returns true in builds with the feature `cuda`.
pub const fn has_cuda() -> bool {
    cfg!(feature = "cuda")
}

/// Returns true in builds with the feature `cudnn`.
pub const fn has_cudnn() -> bool {
    cfg!(feature = "cudnn")
}
