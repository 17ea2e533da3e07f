//! CUDA kernels as values: a kernel, its blocks and its arguments; and the runtimes that launch them.
#![doc = include_str!("../README.md")]

pub mod device;
pub mod emulated;
mod launch;
pub mod recording;
pub mod work;

pub use launch::{Address, Buffer, Error, Launch, Module, Params, Result, Runtime, blocks};

/// The [`Module`] of a file `NAME.cu` beside the calling one. The calling package has a feature `cuda` and, for it, a
/// build script that calls `adw_cuda_build::kernels`.
#[macro_export]
macro_rules! module {
    ($name:literal) => {
        $crate::Module {
            name: $name,
            source: include_str!(concat!($name, ".cu")),
            #[cfg(feature = "cuda")]
            binary: Some(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))),
            #[cfg(not(feature = "cuda"))]
            binary: None,
        }
    };
}
