//! Launches of the forward pass: moments, coefficients, and sums of normalised maps.

use super::super::kernels::NormAct;
use super::operands::{
    AffineAddresses, Coefficients, JOIN_CHANNELS, JOIN_THREADS, MODULE, Normalised, PartialMoments, Shape, THREADS,
    grid, in_pieces, row_sums_bytes, vectors,
};
use crate::cuda::{MapShape, variant};
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Result, Runtime, blocks, params};

params! {
    struct MomentsParams {
        y: Address,
        partial: Address,
        counts: Address,
        shape: Shape,
    }
}

/// Launches the moments of parts of a map `[B, voxels, C]`.
///
/// # Safety
/// `y` is the address of such a map.
///
/// # Errors
/// If the launch fails or the device has no memory left.
pub(crate) unsafe fn moments<R: Runtime>(rt: &R, y: Address, shape: &MapShape) -> Result<PartialMoments<R::Buffer>> {
    let grid = grid(shape);
    let partial = PartialMoments::alloc(rt, shape.batch, grid[0] as usize, shape.channels)?;
    let params =
        MomentsParams { y, partial: partial.partial.address(), counts: partial.counts.address(), shape: shape.into() };
    // SAFETY: the buffers are as large as the kernel's indices go; the caller guarantees `y`.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_moments", shape.precision, in_pieces(shape)),
            grid,
            threads: THREADS,
            shared: row_sums_bytes(shape, 2),
            work: Work::new(shape.bytes() + partial.bytes(shape.batch, shape.channels), 4 * shape.len()),
            params,
        })?;
    }
    Ok(partial)
}

params! {
    struct CoefficientsParams {
        partial: Address,
        counts: Address,
        gamma: Address,
        beta: Address,
        gate: Address,
        mean: Address,
        variance: Address,
        scale: Address,
        shift: Address,
        chunks: u32,
        channels: u32,
        gate_behind: u32,
        eps: f32,
    }
}

/// Launches the join of the moments, and scale and shift from them.
///
/// # Safety
/// The addresses in `affine` are those of `[C]` f32 vectors.
///
/// # Errors
/// If the launch fails or the device has no memory left.
pub(crate) unsafe fn coefficients<R: Runtime, B: Buffer>(
    rt: &R,
    moments: &PartialMoments<B>,
    affine: &AffineAddresses,
    config: NormAct,
    batch: usize,
    channels: usize,
) -> Result<Coefficients<R::Buffer>> {
    let vector = || rt.alloc(batch * channels * 4);
    let out = Coefficients { mean: vector()?, variance: vector()?, scale: vector()?, shift: vector()?, config };
    let params = CoefficientsParams {
        partial: moments.partial.address(),
        counts: moments.counts.address(),
        gamma: affine.gamma,
        beta: affine.beta,
        gate: affine.gate(),
        mean: out.mean.address(),
        variance: out.variance.address(),
        scale: out.scale.address(),
        shift: out.shift.address(),
        chunks: moments.chunks as u32,
        channels: channels as u32,
        gate_behind: affine.gate_behind(),
        eps: config.eps as f32,
    };
    // SAFETY: the buffers are as large as the kernel's indices go; the caller guarantees `affine`.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: "norm_coefficients",
            grid: [blocks(channels, JOIN_CHANNELS), batch as u32, 1],
            threads: JOIN_THREADS,
            shared: 3 * JOIN_THREADS * 8,
            // Gamma, beta and perhaps a gate per channel; mean, variance, scale and shift per sample and channel.
            work: Work::new(
                moments.bytes(batch, channels) + (2 + usize::from(affine.gate.is_some()) + 4 * batch) * channels * 4,
                11 * batch * moments.chunks * channels,
            ),
            params,
        })?;
    }
    Ok(out)
}

params! {
    struct WeightedSumParams {
        maps: [Normalised; 3],
        weights: [Address; 3],
        out: Address,
        shape: Shape,
        num_maps: u32,
        slopes: [f32; 3],
    }
}

/// `out = sum_l weight_l * leaky_l(scale_l y_l + shift_l)`: the depth sink over one to three maps, each with its own slope. A weight is the address
/// of one f32 on the device, or [`Address::NONE`] for 1.
///
/// # Safety
/// Every address is that of a map of this shape (or one f32); `out` may be one of the maps.
///
/// # Errors
/// If the launch fails.
///
/// # Panics
/// If there is no map, or more than three.
pub(crate) unsafe fn weighted_sum<R: Runtime, B: Buffer>(
    rt: &R,
    maps: &[(Address, &Coefficients<B>, Address)],
    shape: &MapShape,
    out: Address,
) -> Result<()> {
    assert!((1..=3).contains(&maps.len()), "{} maps, expected one to three", maps.len());
    let mut params = WeightedSumParams {
        maps: [Normalised::NONE; 3],
        weights: [Address::NONE; 3],
        out,
        shape: shape.into(),
        num_maps: maps.len() as u32,
        slopes: [0.0; 3],
    };
    for (i, &(y, c, weight)) in maps.iter().enumerate() {
        params.maps[i] = Normalised::new(y, c);
        params.weights[i] = weight;
        params.slopes[i] = c.config.slope as f32;
    }
    // SAFETY: the caller guarantees the addresses.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_weighted_sum", shape.precision, in_pieces(shape)),
            grid: grid(shape),
            threads: THREADS,
            shared: 0,
            work: Work::new(
                (maps.len() + 1) * shape.bytes() + maps.len() * vectors(shape, 2),
                5 * maps.len() * shape.len(),
            ),
            params,
        })
    }
}
