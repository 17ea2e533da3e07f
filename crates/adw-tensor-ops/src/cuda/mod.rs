//! Items that the CUDA implementations of all ops share.
//!
//! Launches are written for any [`Runtime`](adw_cuda::Runtime), so that tests run them on an emulator; only the functions that
//! take tensors are for [`CudaRuntime`](adw_cuda::device::CudaRuntime).

pub(crate) mod tensors;

use crate::precision::Precision;

/// Shape of a contiguous channels-last map `[B, voxels, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapShape {
    /// Number of samples.
    pub(crate) batch: usize,
    /// Voxels of a sample.
    pub(crate) voxels: usize,
    /// Channels of a voxel.
    pub(crate) channels: usize,
    /// Precision of the elements.
    pub(crate) precision: Precision,
}

impl MapShape {
    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.batch * self.voxels * self.channels
    }

    /// Bytes of the map.
    pub(crate) fn bytes(&self) -> usize {
        self.len() * self.precision.element_bytes()
    }
}

/// Picks one of a kernel's variants: by element type, and perhaps in 16-byte pieces or element by element.
macro_rules! variant {
    ($name:literal, $precision:expr) => {
        match $precision {
            crate::precision::Precision::Full => concat!($name, "_f32"),
            crate::precision::Precision::Bf16 => concat!($name, "_bf16"),
        }
    };
    ($name:literal, $precision:expr, $pieces:expr) => {
        match ($precision, $pieces) {
            (crate::precision::Precision::Full, true) => concat!($name, "_f32"),
            (crate::precision::Precision::Full, false) => concat!($name, "_f32_any"),
            (crate::precision::Precision::Bf16, true) => concat!($name, "_bf16"),
            (crate::precision::Precision::Bf16, false) => concat!($name, "_bf16_any"),
        }
    };
}
pub(crate) use variant;

#[cfg(test)]
pub(crate) mod testing {
    //! Maps of both precision types for the tests of the kernels.

    use crate::precision::Precision;
    use crate::testing::numbers;
    use adw_cuda::emulated::{EmulatedBuffer, Emulator};
    use adw_testing::{Tolerance, assert_close, tolerance};
    use candle_core::{Device, Tensor};
    use half::bf16;

    /// Tolerance of a kernel beside the op in f32.
    pub(crate) fn tolerance(precision: Precision) -> Tolerance {
        match precision {
            Precision::Full => tolerance::F32_KERNEL,
            Precision::Bf16 => tolerance::BF16_KERNEL,
        }
    }

    /// Reproducible numbers that both precision types hold exactly enough: bf16 gets them rounded, and so does the op.
    pub(crate) fn values(seed: u32, n: usize, precision: Precision) -> Vec<f32> {
        let round = |x: f64| match precision {
            Precision::Full => x as f32,
            Precision::Bf16 => bf16::from_f64(x).to_f32(),
        };
        numbers(seed, n).into_iter().map(round).collect()
    }

    pub(crate) fn upload(rt: &Emulator, precision: Precision, values: &[f32]) -> EmulatedBuffer {
        match precision {
            Precision::Full => rt.upload(values),
            Precision::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                rt.upload(&rounded)
            }
        }
    }

    pub(crate) fn download(buffer: &EmulatedBuffer, precision: Precision) -> Vec<f32> {
        match precision {
            Precision::Full => buffer.read(),
            Precision::Bf16 => buffer.read::<bf16>().iter().map(|x| x.to_f32()).collect(),
        }
    }

    pub(crate) fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    pub(crate) fn f64s(t: &Tensor) -> Vec<f64> {
        t.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Compares a buffer with the op's tensor.
    pub(crate) fn compare(
        what: &str,
        buffer: &EmulatedBuffer,
        precision: Precision,
        expected: &Tensor,
        tolerance: Tolerance,
    ) {
        assert_close(what, &download(buffer, precision), &f64s(expected), tolerance);
    }
}
