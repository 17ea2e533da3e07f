//! Launches of the backward pass of a normalised map.

use super::operands::{
    AffineAddresses, Coefficients, JOIN_CHANNELS, JOIN_THREADS, MODULE, Normalised, Shape, THREADS, grid, in_pieces,
    row_sums_bytes, vectors,
};
use crate::cuda::{MapShape, variant};
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Result, Runtime, blocks, params};

/// Addresses of the gradient that reaches a normalised map: `weight * outer + direct`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradAddresses {
    /// Gradient of a weighted sum of maps, and this map's weight in it.
    pub(crate) outer: Option<(Address, Address)>,
    /// Gradient from every other reader of the map.
    pub(crate) direct: Option<Address>,
}

params! {
    struct GradOutputParams {
        outer: Address,
        direct: Address,
        weight: Address,
    }
}

impl From<GradAddresses> for GradOutputParams {
    fn from(g: GradAddresses) -> Self {
        let (outer, weight) = g.outer.unwrap_or_default();
        Self { outer, direct: g.direct.unwrap_or_default(), weight }
    }
}

params! {
    struct GradSumsParams {
        map: Normalised,
        grad: GradOutputParams,
        partial: Address,
        shape: Shape,
        slope: f32,
        _unused: u32,
    }
}

params! {
    struct GradFinishParams {
        partial: Address,
        variance: Address,
        gamma: Address,
        beta: Address,
        gate: Address,
        offset: Address,
        factor: Address,
        grad_gamma: Address,
        grad_beta: Address,
        grad_gate: Address,
        outer_dot: Address,
        batch: u32,
        chunks: u32,
        channels: u32,
        voxels: u32,
        gate_behind: u32,
        eps: f32,
    }
}

params! {
    struct GradInputParams {
        map: Normalised,
        grad: GradOutputParams,
        offset: Address,
        factor: Address,
        out: Address,
        shape: Shape,
        slope: f32,
        _unused: u32,
    }
}

/// Gradients with respect to gamma, beta and the gate, `[C]` f32 each.
pub(crate) struct AffineGradients<B> {
    /// `[C]`
    pub(crate) gamma: B,
    /// `[C]`
    pub(crate) beta: B,
    /// `[C]`, if there is a gate.
    pub(crate) gate: Option<B>,
    /// `[C]`: sum of `outer * z` per channel; their sum is the gradient of the map's weight.
    pub(crate) outer_dot: B,
}

/// Launches the backward pass of one normalised map, three kernels. Writes the gradient of the raw map to `out`, which may be one
/// of the gradients that come in.
///
/// # Safety
/// Every address is that of a map of this shape, of a `[C]` vector (in `affine`) or of one f32 (the weight).
///
/// # Errors
/// If a launch fails or the device has no memory left.
pub(crate) unsafe fn backward<R: Runtime, B: Buffer>(
    rt: &R,
    y: Address,
    coefficients: &Coefficients<B>,
    affine: &AffineAddresses,
    grad: GradAddresses,
    shape: &MapShape,
    out: Address,
) -> Result<AffineGradients<R::Buffer>> {
    let (map, grad, slope) =
        (Normalised::new(y, coefficients), GradOutputParams::from(grad), coefficients.config.slope as f32);
    let (grid, c) = (grid(shape), shape.channels);
    // The map and the gradients that reach it.
    let maps_read = 1 + usize::from(grad.outer != Address::NONE) + usize::from(grad.direct != Address::NONE);
    let partial_bytes = shape.batch * grid[0] as usize * 3 * c * 4;
    let gates = usize::from(affine.gate.is_some());
    let partial = rt.alloc(partial_bytes)?;
    let (offset, factor) = (rt.alloc(shape.batch * c * 4)?, rt.alloc(shape.batch * c * 4)?);
    let vector = || rt.alloc(c * 4);
    let gradients = AffineGradients {
        gamma: vector()?,
        beta: vector()?,
        gate: affine.gate.map(|_| vector()).transpose()?,
        outer_dot: vector()?,
    };
    // SAFETY: the buffers are as large as the kernels' indices go; the caller guarantees the other addresses.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_grad_sums", shape.precision, in_pieces(shape)),
            grid,
            threads: THREADS,
            shared: row_sums_bytes(shape, 3),
            work: Work::new(maps_read * shape.bytes() + vectors(shape, 3) + partial_bytes, 12 * shape.len()),
            params: GradSumsParams { map, grad, partial: partial.address(), shape: shape.into(), slope, _unused: 0 },
        })?;
        rt.launch(&Launch {
            module: MODULE,
            kernel: "norm_grad_finish",
            grid: [blocks(c, JOIN_CHANNELS), 1, 1],
            threads: JOIN_THREADS,
            shared: 3 * JOIN_THREADS * 8,
            // The variance, and what becomes offset and factor; gamma, beta, their gradients and the outer product.
            work: Work::new(partial_bytes + vectors(shape, 3) + (5 + 2 * gates) * c * 4, partial_bytes / 4),
            params: GradFinishParams {
                partial: partial.address(),
                variance: coefficients.variance.address(),
                gamma: affine.gamma,
                beta: affine.beta,
                gate: affine.gate(),
                offset: offset.address(),
                factor: factor.address(),
                grad_gamma: gradients.gamma.address(),
                grad_beta: gradients.beta.address(),
                grad_gate: gradients.gate.as_ref().map_or(Address::NONE, Buffer::address),
                outer_dot: gradients.outer_dot.address(),
                batch: shape.batch as u32,
                chunks: grid[0],
                channels: c as u32,
                voxels: shape.voxels as u32,
                gate_behind: affine.gate_behind(),
                eps: coefficients.config.eps as f32,
            },
        })?;
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_grad_input", shape.precision, in_pieces(shape)),
            grid,
            threads: THREADS,
            shared: 0,
            work: Work::new((maps_read + 1) * shape.bytes() + vectors(shape, 5), 10 * shape.len()),
            params: GradInputParams {
                map,
                grad,
                offset: offset.address(),
                factor: factor.address(),
                out,
                shape: shape.into(),
                slope,
                _unused: 0,
            },
        })?;
    }
    Ok(gradients)
}
