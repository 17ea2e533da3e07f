//! Launches of `norm_act.cu`.

use super::{GatePosition, NormAct};
use crate::cuda::{MapShape, variant};
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Module, Params, Result, Runtime, blocks};

#[cfg(test)]
mod tests;

/// The kernels' source.
pub const MODULE: Module = adw_cuda::module!("norm_act");

const THREADS: u32 = 256;
const JOIN_CHANNELS: usize = 32;
const JOIN_THREADS: u32 = 512;

/// Chunks of voxels: about 1024 blocks (eight for each multiprocessor of an H100), none so small that its reduction
/// dominates. A function of the shape alone, and so is the order of sums.
fn chunk(shape: &MapShape) -> usize {
    (shape.batch * shape.voxels).div_ceil(1024).clamp(256, 1 << 20)
}

/// The most channels the kernels take: one piece per thread.
pub fn max_channels(shape: &MapShape) -> usize {
    if in_pieces(shape) { THREADS as usize * shape.element.piece() } else { THREADS as usize }
}

fn in_pieces(shape: &MapShape) -> bool {
    shape.channels.is_multiple_of(shape.element.piece())
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Shape {
    voxels: u32,
    channels: u32,
    chunk: u32,
    batch: u32,
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

fn grid(s: &MapShape) -> [u32; 3] {
    [blocks(s.voxels, chunk(s)), s.batch as u32, 1]
}

/// Shared memory for sums of `num` numbers per channel over the rows of a block, and the sums themselves.
fn row_sums_bytes(s: &MapShape, num: usize) -> u32 {
    let pieces = if in_pieces(s) { s.channels / s.element.piece() } else { s.channels };
    let rows = THREADS as usize / pieces;
    (num * (rows + 1) * s.channels * size_of::<f32>()) as u32
}

/// Bytes of `num` f32 vectors `[B, C]`.
fn vectors(s: &MapShape, num: usize) -> usize {
    num * s.batch * s.channels * 4
}

/// Moments of parts of a map, not yet joined.
pub struct PartialMoments<B> {
    /// `[B, chunks, C, 2]`: mean and sum of squared deviations.
    pub partial: B,
    /// `[B, chunks]`: voxels.
    pub counts: B,
    /// Parts of a sample.
    pub chunks: usize,
}

impl<B> PartialMoments<B> {
    /// Room for them.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn alloc<R: Runtime<Buffer = B>>(rt: &R, batch: usize, chunks: usize, channels: usize) -> Result<Self> {
        Ok(Self {
            partial: rt.alloc(batch * chunks * channels * 2 * 4)?,
            counts: rt.alloc(batch * chunks * 4)?,
            chunks,
        })
    }

    /// Bytes of both.
    pub fn bytes(&self, batch: usize, channels: usize) -> usize {
        batch * self.chunks * (2 * channels + 1) * 4
    }
}

/// Mean, variance, scale and shift of a map, `[B, C]` each, f32.
pub struct Coefficients<B> {
    /// `[B, C]`
    pub mean: B,
    /// `[B, C]`, population variance
    pub variance: B,
    /// `[B, C]`
    pub scale: B,
    /// `[B, C]`
    pub shift: B,
    /// Constants they were made with.
    pub config: NormAct,
}

/// Parameters of a layer's affine, `[C]` each, f32, and its width gate.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// `[C]`
    pub gamma: Address,
    /// `[C]`
    pub beta: Address,
    /// `[C]`, and where it stands.
    pub gate: Option<(Address, GatePosition)>,
}

impl Affine {
    fn gate(&self) -> Address {
        self.gate.map_or(Address::NONE, |g| g.0)
    }

    fn gate_behind(&self) -> u32 {
        u32::from(matches!(self.gate, Some((_, GatePosition::PostNorm))))
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct MomentsParams {
    y: Address,
    partial: Address,
    counts: Address,
    shape: Shape,
}
// SAFETY: plain numbers, laid out as in norm_act.cu.
unsafe impl Params for MomentsParams {}

/// Moments of parts of a map `[B, voxels, C]`.
///
/// # Safety
/// `y` is the address of such a map.
///
/// # Errors
/// If the launch fails or the device has no memory left.
pub unsafe fn moments<R: Runtime>(rt: &R, y: Address, shape: &MapShape) -> Result<PartialMoments<R::Buffer>> {
    let grid = grid(shape);
    let partial = PartialMoments::alloc(rt, shape.batch, grid[0] as usize, shape.channels)?;
    let params =
        MomentsParams { y, partial: partial.partial.address(), counts: partial.counts.address(), shape: shape.into() };
    // SAFETY: the buffers are as large as the kernel's indices go; the caller vouches for `y`.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_moments", shape.element, in_pieces(shape)),
            grid,
            threads: THREADS,
            shared: row_sums_bytes(shape, 2),
            work: Work::new(shape.bytes() + partial.bytes(shape.batch, shape.channels), 4 * shape.len()),
            params,
        })?;
    }
    Ok(partial)
}

#[derive(Clone, Copy)]
#[repr(C)]
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
// SAFETY: plain numbers, laid out as in norm_act.cu.
unsafe impl Params for CoefficientsParams {}

/// Joins the moments and derives scale and shift.
///
/// # Safety
/// The addresses in `affine` are those of `[C]` f32 vectors.
///
/// # Errors
/// If the launch fails or the device has no memory left.
pub unsafe fn coefficients<R: Runtime, B: Buffer>(
    rt: &R,
    moments: &PartialMoments<B>,
    affine: &Affine,
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
    // SAFETY: the buffers are as large as the kernel's indices go; the caller vouches for `affine`.
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

#[derive(Clone, Copy)]
#[repr(C)]
struct Normalised {
    y: Address,
    mean: Address,
    scale: Address,
    shift: Address,
}

impl Normalised {
    const NONE: Self = Self { y: Address::NONE, mean: Address::NONE, scale: Address::NONE, shift: Address::NONE };

    fn new<B: Buffer>(y: Address, c: &Coefficients<B>) -> Self {
        Self { y, mean: c.mean.address(), scale: c.scale.address(), shift: c.shift.address() }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct WeightedSumParams {
    maps: [Normalised; 3],
    weights: [Address; 3],
    out: Address,
    shape: Shape,
    num_maps: u32,
    slope: f32,
}
// SAFETY: plain numbers, laid out as in norm_act.cu.
unsafe impl Params for WeightedSumParams {}

/// `out = sum_l weight_l * leaky(scale_l y_l + shift_l)`: the depth sink over one to three maps. A weight is the address
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
pub unsafe fn weighted_sum<R: Runtime, B: Buffer>(
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
        slope: maps[0].1.config.slope as f32,
    };
    for (i, &(y, c, weight)) in maps.iter().enumerate() {
        params.maps[i] = Normalised::new(y, c);
        params.weights[i] = weight;
    }
    // SAFETY: as the caller vouches.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_weighted_sum", shape.element, in_pieces(shape)),
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

/// The gradient that reaches a normalised map: `weight * outer + direct`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GradOutput {
    /// The gradient of a weighted sum of maps, and the address of this map's weight in it.
    pub outer: Option<(Address, Address)>,
    /// What else reads the map.
    pub direct: Option<Address>,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct GradOutputParams {
    outer: Address,
    direct: Address,
    weight: Address,
}

impl From<GradOutput> for GradOutputParams {
    fn from(g: GradOutput) -> Self {
        let (outer, weight) = g.outer.unwrap_or_default();
        Self { outer, direct: g.direct.unwrap_or_default(), weight }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct GradSumsParams {
    map: Normalised,
    grad: GradOutputParams,
    partial: Address,
    shape: Shape,
    slope: f32,
    _unused: u32,
}
// SAFETY: plain numbers, laid out as in norm_act.cu.
unsafe impl Params for GradSumsParams {}

#[derive(Clone, Copy)]
#[repr(C)]
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
// SAFETY: plain numbers, laid out as in norm_act.cu.
unsafe impl Params for GradFinishParams {}

#[derive(Clone, Copy)]
#[repr(C)]
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
// SAFETY: plain numbers, laid out as in norm_act.cu.
unsafe impl Params for GradInputParams {}

/// Gradients of a layer's affine, `[C]` each, f32.
pub struct AffineGradients<B> {
    /// `[C]`
    pub gamma: B,
    /// `[C]`
    pub beta: B,
    /// `[C]`, if there is a gate.
    pub gate: Option<B>,
    /// `[C]`: sum of `outer * z` per channel; their sum is the gradient of the map's weight.
    pub outer_dot: B,
}

/// The backward pass of one normalised map: three launches. Writes the gradient of the raw map to `out`, which may be one
/// of the gradients that come in.
///
/// # Safety
/// Every address is that of a map of this shape, of a `[C]` vector (in `affine`) or of one f32 (the weight).
///
/// # Errors
/// If a launch fails or the device has no memory left.
pub unsafe fn backward<R: Runtime, B: Buffer>(
    rt: &R,
    y: Address,
    coefficients: &Coefficients<B>,
    affine: &Affine,
    grad: GradOutput,
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
    // SAFETY: the buffers are as large as the kernels' indices go; the caller vouches for the rest.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("norm_grad_sums", shape.element, in_pieces(shape)),
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
            kernel: variant!("norm_grad_input", shape.element, in_pieces(shape)),
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
