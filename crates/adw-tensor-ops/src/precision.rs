use crate::conv3d::bf16::Bf16;
use candle_core::DType;
use serde::{Deserialize, Serialize};

/// Number format of the factors of a convolution's products. Sums are taken in full precision.
///
/// On the CPU maps and weights keep their type, and factors are rounded. On a CUDA device maps are stored in this format,
/// so a map's element type gives its precision and the argument of an op changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 (on the CPU also f64), without rounding.
    #[default]
    Full,
    /// bf16, eight significant bits.
    ///
    /// On the CPU for f32 maps: products on the matrix unit of processors that have one (Intel AMX, under Linux), twice as
    /// fast as f32; on others the kernels of full precision round what they read, at the cost of f32 or, for weight gradients, up to
    /// 1.4 times that, with the same result to the accuracy of f32. Jobs with fewer than 16 channels on either side and weight gradients of a stride
    /// are computed in full. A result is off by about 0.3 % (relative L2 error). On CUDA devices: products on tensor cores.
    Bf16,
}

impl Precision {
    /// Returns true if this processor has a matrix unit that this process may use, so that [`Precision::Bf16`] is faster than
    /// [`Precision::Full`].
    pub fn has_matrix_unit() -> bool {
        matches!(Bf16::detect(), Bf16::MatrixUnit(_))
    }

    /// Precision of maps with this element type on a CUDA device; `None` for types that kernels do not have.
    pub(crate) fn of_maps(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::Full),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Number of elements in 16 bytes, which a thread on a CUDA device moves at a time.
    pub(crate) fn piece_len(self) -> usize {
        16 / self.element_bytes()
    }

    /// Bytes of an element of a map on a CUDA device.
    pub(crate) fn element_bytes(self) -> usize {
        match self {
            Self::Full => 4,
            Self::Bf16 => 2,
        }
    }
}
