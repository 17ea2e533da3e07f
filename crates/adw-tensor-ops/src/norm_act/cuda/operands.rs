//! Shapes of the launches of `norm_act.cu`, and their operands.

use super::super::kernels::{GatePosition, NormAct};
use crate::cuda::MapShape;
use adw_cuda::{Address, Buffer, Module, Result, Runtime, blocks, params};

/// Source of the kernels.
pub(crate) const MODULE: Module = adw_cuda::module!("norm_act");

pub(super) const THREADS: u32 = 256;
/// Channels of a block that joins partial results.
pub(super) const JOIN_CHANNELS: usize = 32;
/// Threads of a block that joins partial results.
pub(super) const JOIN_THREADS: u32 = 512;

/// Voxels of a chunk: about 1024 blocks (eight for each multiprocessor of an H100), none so small that its reduction
/// dominates. A function of the shape alone, and so is the order of sums.
fn chunk(shape: &MapShape) -> usize {
    (shape.batch * shape.voxels).div_ceil(1024).clamp(256, 1 << 20)
}

/// Most channels that the kernels support: one piece per thread.
pub(crate) fn max_channels(shape: &MapShape) -> usize {
    if in_pieces(shape) { THREADS as usize * shape.precision.piece_len() } else { THREADS as usize }
}

/// Returns true if threads move 16 bytes at a time instead of one element.
pub(super) fn in_pieces(shape: &MapShape) -> bool {
    shape.channels.is_multiple_of(shape.precision.piece_len())
}

params! {
    pub(super) struct Shape {
        voxels: u32,
        channels: u32,
        chunk: u32,
        batch: u32,
    }
}

impl From<&MapShape> for Shape {
    fn from(s: &MapShape) -> Self {
        assert!(
            s.channels <= max_channels(s),
            "{} channels, but a block of threads covers {}",
            s.channels,
            max_channels(s)
        );
        Self { voxels: s.voxels as u32, channels: s.channels as u32, chunk: chunk(s) as u32, batch: s.batch as u32 }
    }
}

/// Blocks of a pass over a map, along x, y and z.
pub(super) fn grid(s: &MapShape) -> [u32; 3] {
    [blocks(s.voxels, chunk(s)), s.batch as u32, 1]
}

/// Shared memory for sums of `num` numbers per channel over the rows of a block, and the sums themselves.
pub(super) fn row_sums_bytes(s: &MapShape, num: usize) -> u32 {
    let pieces = if in_pieces(s) { s.channels / s.precision.piece_len() } else { s.channels };
    let rows = THREADS as usize / pieces;
    (num * (rows + 1) * s.channels * size_of::<f32>()) as u32
}

/// Bytes of `num` f32 vectors `[B, C]`.
pub(super) fn vectors(s: &MapShape, num: usize) -> usize {
    num * s.batch * s.channels * 4
}

/// Moments of parts of a map, not yet joined.
pub(crate) struct PartialMoments<B> {
    /// `[B, chunks, C, 2]`: mean and sum of squared deviations.
    pub(crate) partial: B,
    /// `[B, chunks]`: voxels.
    pub(crate) counts: B,
    /// Number of parts of a sample.
    pub(crate) chunks: usize,
}

impl<B> PartialMoments<B> {
    /// Allocates the moments of `chunks` parts per sample.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub(crate) fn alloc<R: Runtime<Buffer = B>>(rt: &R, batch: usize, chunks: usize, channels: usize) -> Result<Self> {
        Ok(Self {
            partial: rt.alloc(batch * chunks * channels * 2 * 4)?,
            counts: rt.alloc(batch * chunks * 4)?,
            chunks,
        })
    }

    /// Bytes of both.
    pub(crate) fn bytes(&self, batch: usize, channels: usize) -> usize {
        batch * self.chunks * (2 * channels + 1) * 4
    }
}

/// Mean, variance, scale and shift of a map, `[B, C]` each, f32.
pub(crate) struct Coefficients<B> {
    /// `[B, C]`
    pub(crate) mean: B,
    /// `[B, C]`, population variance
    pub(crate) variance: B,
    /// `[B, C]`
    pub(crate) scale: B,
    /// `[B, C]`
    pub(crate) shift: B,
    /// Constants of the op.
    pub(crate) config: NormAct,
}

/// Addresses of gamma and beta, `[C]` f32 each, and of the width gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AffineAddresses {
    /// `[C]`
    pub(crate) gamma: Address,
    /// `[C]`
    pub(crate) beta: Address,
    /// Address of `[C]` f32 factors, and their position.
    pub(crate) gate: Option<(Address, GatePosition)>,
}

impl AffineAddresses {
    pub(super) fn gate(&self) -> Address {
        self.gate.map_or(Address::NONE, |g| g.0)
    }

    pub(super) fn gate_behind(&self) -> u32 {
        u32::from(matches!(self.gate, Some((_, GatePosition::PostNorm))))
    }
}

params! {
    pub(super) struct Normalised {
        y: Address,
        mean: Address,
        scale: Address,
        shift: Address,
    }
}

impl Normalised {
    pub(super) const NONE: Self =
        Self { y: Address::NONE, mean: Address::NONE, scale: Address::NONE, shift: Address::NONE };

    pub(super) fn new<B: Buffer>(y: Address, c: &Coefficients<B>) -> Self {
        Self { y, mean: c.mean.address(), scale: c.scale.address(), shift: c.shift.address() }
    }
}
