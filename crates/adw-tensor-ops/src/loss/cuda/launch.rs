//! Launches of `loss.cu`: Dice + cross-entropy of all scales of deep supervision.

use super::super::kernels::DiceCe;
use crate::precision::Precision;
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Module, Result, Runtime, blocks, params};

/// Source of the kernels.
pub(crate) const MODULE: Module = adw_cuda::module!("loss");

const THREADS: u32 = 256;
const CHUNK: usize = 4096;
/// Most scales of one launch.
pub(crate) const MAX_SCALES: usize = 8;

/// Addresses of one scale's logits and of their gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// `[B, size, K]`
    pub(crate) logits: Address,
    /// Gradient, of the logits' shape; written.
    pub(crate) grad: Address,
    /// D, H, W.
    pub(crate) size: [usize; 3],
    /// Weight of this scale in the sum of losses; above 0.
    pub(crate) weight: f64,
}

/// Labels, one byte per voxel of the finest scale, `[B, size]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Address of the labels.
    pub(crate) data: Address,
    /// D, H, W.
    pub(crate) size: [usize; 3],
}

params! {
    #[derive(Default)]
    struct ScaleParams {
        logits: Address,
        grad: Address,
        size: [i32; 3],
        chunks: u32,
        first_block: u32,
        weight: f32,
    }
}

params! {
    struct LossParams {
        scales: [ScaleParams; MAX_SCALES],
        target: Address,
        partial: Address,
        cross_entropy: Address,
        unknown: Address,
        coefficients: Address,
        loss: Address,
        status: Address,
        target_size: [i32; 3],
        num_scales: u32,
        batch: u32,
        classes: u32,
        batch_dice: u32,
        smooth: f32,
    }
}

/// Losses on the device.
pub(crate) struct Losses<B> {
    /// `[scales]` f32, not multiplied by the weights.
    pub(crate) loss: B,
    /// `[scales]` u32: 0, or 1 + the largest label that has no class; the gradients mean nothing then.
    pub(crate) status: B,
}

/// Launches the losses of all scales and the gradients of their weighted sum, three kernels.
///
/// # Safety
/// The addresses are those of logits, gradients and labels of these sizes.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// If there is no scale, or more than [`MAX_SCALES`].
pub(crate) unsafe fn loss_and_gradients<R: Runtime>(
    rt: &R,
    config: DiceCe,
    scales: &[Scale],
    target: Target,
    batch: usize,
    classes: usize,
    precision: Precision,
) -> Result<Losses<R::Buffer>> {
    assert!((1..=MAX_SCALES).contains(&scales.len()), "{} scales, expected 1 to {MAX_SCALES}", scales.len());
    let mut total = 0;
    let mut params = [ScaleParams::default(); MAX_SCALES];
    for (p, s) in params.iter_mut().zip(scales) {
        let chunks = blocks(s.size.iter().product(), CHUNK);
        *p = ScaleParams {
            logits: s.logits,
            grad: s.grad,
            size: s.size.map(|n| n as i32),
            chunks,
            first_block: total,
            weight: s.weight as f32,
        };
        total += chunks * batch as u32;
    }
    let groups = if config.batch_dice { 1 } else { batch };
    let partial = rt.alloc(total as usize * 3 * classes * 4)?;
    let (cross_entropy, unknown) = (rt.alloc(total as usize * 4)?, rt.alloc(total as usize * 4)?);
    let coefficient_bytes = scales.len() * groups * 2 * classes * 4;
    let coefficients = rt.alloc(coefficient_bytes)?;
    let out = Losses { loss: rt.alloc(scales.len() * 4)?, status: rt.alloc(scales.len() * 4)? };
    let params = LossParams {
        scales: params,
        target: target.data,
        partial: partial.address(),
        cross_entropy: cross_entropy.address(),
        unknown: unknown.address(),
        coefficients: coefficients.address(),
        loss: out.loss.address(),
        status: out.status.address(),
        target_size: target.size.map(|n| n as i32),
        num_scales: scales.len() as u32,
        batch: batch as u32,
        classes: classes as u32,
        batch_dice: u32::from(config.batch_dice),
        smooth: config.smooth as f32,
    };
    let group = if classes <= 4 { 4 } else { 16 };
    let launch = |kernel, grid, shared: usize, work| Launch {
        module: MODULE,
        kernel,
        grid,
        threads: THREADS,
        shared: shared as u32,
        work,
        params,
    };
    let (sums, gradient) = match (precision, group) {
        (Precision::Full, 4) => ("loss_sums_f32_k4", "loss_gradient_f32"),
        (Precision::Full, _) => ("loss_sums_f32_k16", "loss_gradient_f32"),
        (Precision::Bf16, 4) => ("loss_sums_bf16_k4", "loss_gradient_bf16"),
        (Precision::Bf16, _) => ("loss_sums_bf16_k16", "loss_gradient_bf16"),
    };
    let voxels: usize = scales.iter().map(|s| s.size.iter().product::<usize>()).sum();
    let logits = batch * voxels * classes;
    let maps = logits * precision.element_bytes();
    // Coarser scales read labels that the finest one has read.
    let labels = batch * voxels.min(target.size.iter().product());
    let partial_bytes = total as usize * (3 * classes + 2) * 4;
    // SAFETY: the buffers have room for what the kernels write; the caller guarantees the other addresses.
    unsafe {
        let warps = THREADS as usize / 32;
        rt.launch(&launch(
            sums,
            [total, blocks(classes, group), 1],
            warps * (3 * group + 2) * 4,
            Work::new(maps + labels + partial_bytes, 10 * logits),
        ))?;
        rt.launch(&launch(
            "loss_finish",
            [scales.len() as u32, 1, 1],
            THREADS as usize * 8,
            Work::new(partial_bytes + coefficient_bytes + scales.len() * 8, total as usize * 3 * classes),
        ))?;
        rt.launch(&launch(gradient, [total, 1, 1], 0, Work::new(2 * maps + labels + coefficient_bytes, 17 * logits)))?;
    }
    Ok(out)
}
