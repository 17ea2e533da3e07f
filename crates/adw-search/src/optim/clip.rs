//! Clipping of the global gradient norm.

use candle_core::{DType, Storage, Tensor};
use rayon::prelude::*;

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

/// What gradients of norm `norm` are multiplied by: `min(1, max_norm / (norm + 1e-6))`, as
/// `torch.nn.utils.clip_grad_norm_`.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// The factor that clips gradients.
#[derive(Debug)]
pub enum Scale {
    /// This.
    Known(f64),
    /// On the gradients' device, where the next step finds it.
    #[cfg(feature = "cuda")]
    OnDevice(super::on_device::Clipping),
}

/// What gradients are multiplied by to have a norm of at most `max_norm` (see [`clip_scale`]), and their norm before. On
/// a CUDA device `step` is called before anybody waits for the norm; its kernels leave everything as it is when the norm
/// is not finite, as on the CPU, where `step` is not called.
///
/// # Errors
/// If a gradient cannot be read, or `step` fails.
pub fn clip(gradients: &[Option<Tensor>], max_norm: f64, step: impl FnOnce(&Scale) -> Result<()>) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if let Some(rt) = gradients.iter().flatten().next().and_then(adw_cuda::device::CudaRuntime::of_tensor) {
        let gradients = gradients.iter().flatten().collect::<Vec<_>>();
        let clipping = super::on_device::clip(rt, &gradients, max_norm)?;
        let scale = Scale::OnDevice(clipping);
        step(&scale)?;
        let Scale::OnDevice(clipping) = scale else { unreachable!("made above") };
        return clipping.norm();
    }
    let norm = global_norm(gradients)?;
    if norm.is_finite() {
        step(&Scale::Known(clip_scale(norm, max_norm)))?;
    }
    Ok(norm)
}

impl Scale {
    /// The number, for parameters on the host.
    ///
    /// # Panics
    /// If it is on a device: then the parameters are, too.
    pub(super) fn known(&self) -> f64 {
        match self {
            Self::Known(scale) => *scale,
            #[cfg(feature = "cuda")]
            Self::OnDevice(_) => panic!("gradients on a CUDA device, parameters on the host"),
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
