//! Launches of `gumbel_softmax.cu`: every softmax of a net at once.

use adw_cuda::work::Work;
use adw_cuda::{Address, Launch, Module, Params, Result, Runtime};

#[cfg(test)]
mod tests;

/// The kernels' source.
pub const MODULE: Module = adw_cuda::module!("gumbel_softmax");

/// The most options of one choice.
pub const MAX_OPTIONS: usize = 8;

/// One softmax. A list of these lies in the device's memory; it is the same in every iteration. All vectors are f32.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Softmax {
    /// `[n]`
    pub logits: Address,
    /// `[n]`, written.
    pub probabilities: Address,
    /// `[channels]`, written: the width gate; absent for a depth choice.
    pub gates: Address,
    /// `[channels]`: the gradient of the gate.
    pub grad_gates: Address,
    /// Depth choice: `[channels]` per option, whose sum is the gradient by its probability.
    pub grad_options: [Address; MAX_OPTIONS],
    /// `[n]`, written by the backward pass.
    pub grad_logits: Address,
    /// Width choice: channels of every option.
    pub widths: [u32; MAX_OPTIONS],
    /// Options, at most [`MAX_OPTIONS`].
    pub n: u32,
    /// Channels of the gate, or of the sums in `grad_options`.
    pub channels: u32,
    /// [`Purpose`](crate::philox::Purpose) of its noise.
    pub purpose: u32,
    /// [`Stream::index`](crate::philox::Stream::index) of its noise.
    pub index: u32,
}

// SAFETY: addresses and 32-bit numbers without padding, laid out as in gumbel_softmax.cu.
unsafe impl Params for Softmax {}

/// What changes from pass to pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Of the run.
    pub seed: u64,
    /// [`Stream::epoch`](crate::philox::Stream::epoch)
    pub epoch: u32,
    /// [`Stream::iteration`](crate::philox::Stream::iteration)
    pub iteration: u32,
    /// Zero noise if not.
    pub noisy: bool,
    /// Temperature.
    pub tau: f64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct PassParams {
    softmaxes: Address,
    key: [u32; 2],
    epoch: u32,
    iteration: u32,
    noisy: u32,
    tau: f32,
}
// SAFETY: plain numbers, laid out as in gumbel_softmax.cu.
unsafe impl Params for PassParams {}

fn launch(kernel: &'static str, softmaxes: Address, num: usize, pass: &Pass) -> Launch<PassParams> {
    Launch {
        module: MODULE,
        kernel,
        grid: [num as u32, 1, 1],
        threads: 32,
        shared: (MAX_OPTIONS * 4) as u32,
        // The list; the short vectors it points to are known on the device only.
        work: Work::new(num * size_of::<Softmax>(), 0),
        params: PassParams {
            softmaxes,
            key: [pass.seed as u32, (pass.seed >> 32) as u32],
            epoch: pass.epoch,
            iteration: pass.iteration,
            noisy: u32::from(pass.noisy),
            tau: pass.tau as f32,
        },
    }
}

/// `softmax((logits + noise) / tau)` of every choice, and the gates of the width choices.
///
/// # Safety
/// `softmaxes` is the address of `num` [`Softmax`], whose addresses are valid.
///
/// # Errors
/// If the launch fails.
pub unsafe fn forward<R: Runtime>(rt: &R, softmaxes: Address, num: usize, pass: &Pass) -> Result<()> {
    // SAFETY: as the caller vouches.
    unsafe { rt.launch(&launch("gumbel_softmax", softmaxes, num, pass)) }
}

/// Gradients by the logits of every choice, from those of gates and depth weights.
///
/// # Safety
/// As [`forward`], which has run.
///
/// # Errors
/// If the launch fails.
pub unsafe fn backward<R: Runtime>(rt: &R, softmaxes: Address, num: usize, pass: &Pass) -> Result<()> {
    // SAFETY: as the caller vouches.
    unsafe { rt.launch(&launch("gumbel_softmax_backward", softmaxes, num, pass)) }
}
