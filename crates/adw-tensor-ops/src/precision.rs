use crate::conv3d::amx::Amx;
use candle_core::{DType, Device};
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
    /// On the CPU: for f32 maps on processors with a matrix unit (Intel AMX), see [`Precision::is_available`]; without the
    /// unit passes fail. Layers with few channels, which do not suit the unit, are computed in full. A result is off by
    /// about 0.3 % (relative L2 error). On CUDA devices: products on tensor cores.
    Bf16,
}

impl Precision {
    /// Returns true if passes on this device can run in the precision. All CUDA devices that can be opened can.
    pub fn is_available_on(self, device: &Device) -> bool {
        device.is_cuda() || self.is_available()
    }

    /// Returns true if this processor, and the system it runs under, can compute in the precision.
    pub fn is_available(self) -> bool {
        self == Self::Full || Amx::detect().is_some()
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
