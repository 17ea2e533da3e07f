//! The U-Net that supernet and discrete network share: forward pass and, written out, backward pass.
//!
//! The backward pass is explicit rather than candle's: candle's graph keeps every intermediate map until the end, adds
//! each gradient to a map of zeros, and cannot leave out the weight gradients that an architecture step has no use for.
//! Here one raw map per layer is kept, maps are normalised while the next convolution reads them, and each is freed as
//! soon as its gradients are known.
//!
//! Maps are `[B, D, H, W, C]`.

mod backward;
mod forward;
mod layers;
mod relaxation;
mod residual;
mod trace;

pub(crate) use backward::BackwardRequest;
pub(crate) use layers::{Network, NetworkShape};
pub(crate) use relaxation::{BlockRelaxation, Relaxation, RelaxationGradient};
pub use trace::Trace;

/// Runs a pass inside rayon's pool if it computes on the host. Its ops have hundreds of parallel parts; begun by a thread outside
/// the pool, each of them would wake a thread of the pool and wait for it.
fn in_pool<R: Send>(device: &candle_core::Device, pass: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { rayon::scope(|_| pass()) } else { pass() }
}
