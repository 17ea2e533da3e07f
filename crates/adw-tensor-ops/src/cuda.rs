//! What the launchers of all ops share. They are written for any [`Runtime`](adw_cuda::Runtime): a device, or the
//! emulator of the tests; nothing here needs CUDA to build.

use adw_cuda::Module;

/// Every kernel source of this crate.
pub const MODULES: [Module; 4] = [
    crate::conv3d::cuda::MODULE,
    crate::norm_act::cuda::MODULE,
    crate::gumbel_softmax::cuda::MODULE,
    crate::loss::cuda::MODULE,
];

/// Element type of maps and packed weights on a device. Sums, statistics and parameters are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// Single precision.
    F32,
    /// Eight significant bits; products on tensor cores.
    Bf16,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Elements of 16 bytes: what a thread moves at a time.
    pub fn piece(self) -> usize {
        16 / self.size()
    }
}

/// A channels-last map `[B, voxels, C]`, contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Samples.
    pub batch: usize,
    /// Voxels of a sample.
    pub voxels: usize,
    /// Channels of a voxel.
    pub channels: usize,
    /// Of the elements.
    pub element: ElementType,
}

impl MapShape {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.batch * self.voxels * self.channels
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the map.
    pub fn bytes(&self) -> usize {
        self.len() * self.element.size()
    }
}

/// Picks one of a kernel's four variants: by element type, and in 16-byte pieces or element by element.
macro_rules! variant {
    ($name:literal, $element:expr, $pieces:expr) => {
        match ($element, $pieces) {
            (crate::cuda::ElementType::F32, true) => concat!($name, "_f32"),
            (crate::cuda::ElementType::F32, false) => concat!($name, "_f32_any"),
            (crate::cuda::ElementType::Bf16, true) => concat!($name, "_bf16"),
            (crate::cuda::ElementType::Bf16, false) => concat!($name, "_bf16_any"),
        }
    };
}
pub(crate) use variant;

#[cfg(test)]
pub(crate) mod testing {
    //! Maps of both element types for the tests of the kernels.

    use super::ElementType;
    use crate::testing::{assert_close, numbers};
    use adw_cuda::emulated::{EmulatedBuffer, Emulator};
    use candle_core::{Device, Tensor};
    use half::bf16;

    /// Relative L2 error that a kernel may have beside the op in f32.
    pub(crate) fn tolerance(element: ElementType) -> f64 {
        match element {
            ElementType::F32 => 1e-5,
            // Eight significant bits: 0.4 % per rounding of an input or result.
            ElementType::Bf16 => 2e-2,
        }
    }

    /// Reproducible numbers that both element types hold exactly enough: bf16 gets them rounded, and so does the op.
    pub(crate) fn values(seed: u32, n: usize, element: ElementType) -> Vec<f32> {
        let round = |x: f64| match element {
            ElementType::F32 => x as f32,
            ElementType::Bf16 => bf16::from_f64(x).to_f32(),
        };
        numbers(seed, n).into_iter().map(round).collect()
    }

    pub(crate) fn upload(rt: &Emulator, element: ElementType, values: &[f32]) -> EmulatedBuffer {
        match element {
            ElementType::F32 => rt.upload(values),
            ElementType::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                rt.upload(&rounded)
            }
        }
    }

    pub(crate) fn download(buffer: &EmulatedBuffer, element: ElementType) -> Vec<f32> {
        match element {
            ElementType::F32 => buffer.read(),
            ElementType::Bf16 => buffer.read::<bf16>().iter().map(|x| x.to_f32()).collect(),
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
        element: ElementType,
        expected: &Tensor,
        tolerance: f64,
    ) {
        assert_close(what, &download(buffer, element), &f64s(expected), tolerance);
    }
}
