//! Voxels as bytes.

use crate::error::NiftiProblem;

/// The NIfTI-1 voxel types that hold one real number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VoxelType {
    U8,
    I16,
    I32,
    F32,
    F64,
    I8,
    U16,
    U32,
    I64,
    U64,
}

impl VoxelType {
    /// The type of a datatype code.
    pub(super) fn of(code: i16) -> Result<Self, NiftiProblem> {
        Ok(match code {
            2 => Self::U8,
            4 => Self::I16,
            8 => Self::I32,
            16 => Self::F32,
            64 => Self::F64,
            256 => Self::I8,
            512 => Self::U16,
            768 => Self::U32,
            1024 => Self::I64,
            1280 => Self::U64,
            _ => return Err(NiftiProblem::VoxelType { code }),
        })
    }

    /// Bytes per voxel.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Appends the values of whole voxels.
    pub(super) fn decode(self, bytes: &[u8], big: bool, out: &mut Vec<f64>) {
        macro_rules! decode {
            ($t:ty) => {
                out.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|&b| (if big { <$t>::from_be_bytes(b) } else { <$t>::from_le_bytes(b) }) as f64),
                )
            };
        }
        match self {
            Self::U8 => decode!(u8),
            Self::I8 => decode!(i8),
            Self::I16 => decode!(i16),
            Self::U16 => decode!(u16),
            Self::I32 => decode!(i32),
            Self::U32 => decode!(u32),
            Self::I64 => decode!(i64),
            Self::U64 => decode!(u64),
            Self::F32 => decode!(f32),
            Self::F64 => decode!(f64),
        }
    }
}
