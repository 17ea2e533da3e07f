//! Clipping of the global gradient norm.

use candle_core::{DType, Storage, Tensor};
use rayon::prelude::*;

use super::backend::{self, Clipping, Scale};
use super::in_place::Real;
use crate::Result;

/// L2 norm of all gradients together, summed in f64 over fixed chunks: the same bits for any number of threads.
pub fn global_norm(gradients: &[Option<Tensor>]) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.iter().flatten() {
        sum += squared_norm(&gradient.contiguous()?)?;
    }
    Ok(sum.sqrt())
}

/// Factor that clips gradients of norm `norm`: `min(1, max_norm / (norm + 1e-6))`, as
/// `torch.nn.utils.clip_grad_norm_`; NaN for a norm of NaN.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    let scale = max_norm / (norm + 1e-6);
    // Unlike `min`, this keeps NaN.
    if scale > 1.0 { 1.0 } else { scale }
}

/// Clips gradients and steps: calls `step` with the factor that gives them a norm of at most `max_norm` (see
/// [`clip_scale`]), and returns their norm before.
///
/// On the CPU `step` is not called if the norm is not finite. On a CUDA device it is called before the norm is known, and
/// its kernels change nothing if the norm is not finite.
///
/// # Errors
/// If a gradient cannot be read, or `step` fails.
pub fn clip(gradients: &[Option<Tensor>], max_norm: f64, step: impl FnOnce(&Scale) -> Result<()>) -> Result<f64> {
    let clipping = match gradients.iter().flatten().next() {
        Some(first) => backend::of(first)?.clip(gradients, max_norm)?,
        None => Clipping::Known(0.0),
    };
    match clipping {
        Clipping::Known(norm) => {
            if norm.is_finite() {
                step(&Scale::Known(clip_scale(norm, max_norm)))?;
            }
            Ok(norm)
        }
        Clipping::OnDevice { scale, norm } => {
            step(&Scale::OnDevice(scale))?;
            norm()
        }
    }
}

fn squared_norm(gradient: &Tensor) -> Result<f64> {
    let (storage, layout) = gradient.storage_and_layout();
    let range = layout.contiguous_offsets();
    if let (Storage::Cpu(cpu), Some((start, end))) = (&*storage, range) {
        match gradient.dtype() {
            DType::F32 => return Ok(sum_of_squares(&cpu.as_slice::<f32>()?[start..end])),
            DType::F64 => return Ok(sum_of_squares(&cpu.as_slice::<f64>()?[start..end])),
            _ => {}
        }
    }
    drop(storage);
    let sum = gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?;
    Ok(sum.to_scalar::<f64>()?)
}

fn sum_of_squares<T: Real + Into<f64>>(values: &[T]) -> f64 {
    // Independent sums let the additions overlap; their number is part of the result's definition.
    const LANES: usize = 8;
    let chunk_sum = |chunk: &[T]| {
        let mut lanes = [0.0f64; LANES];
        for group in chunk.chunks(LANES) {
            for (lane, v) in lanes.iter_mut().zip(group) {
                let v: f64 = (*v).into();
                *lane += v * v;
            }
        }
        lanes.iter().sum::<f64>()
    };
    let sums: Vec<f64> = values.par_chunks(1 << 15).map(chunk_sum).collect();
    sums.iter().sum()
}
