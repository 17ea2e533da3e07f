//! Launches of `gumbel_softmax.cu`: every softmax of a net at once.

use adw_cuda::work::Work;
use adw_cuda::{Address, Launch, Module, Result, Runtime, params};

/// Source of the kernels.
pub(super) const MODULE: Module = adw_cuda::module!("gumbel_softmax");

/// Most options of one softmax.
pub(super) const MAX_OPTIONS: usize = 8;

params! {
    /// Entry of one softmax. A list of these lies in the device's memory; it is the same in every iteration. All vectors are f32.
    #[derive(Default)]
    pub(super) struct SoftmaxEntry {
        /// `[n]`
        pub(super) logits: Address,
        /// `[n]`, written.
        pub(super) probabilities: Address,
        /// `[channels]`, written: the width gate; absent for a depth choice.
        pub(super) gates: Address,
        /// `[channels]`: the gradient of the gate.
        pub(super) grad_gates: Address,
        /// Depth choice: `[channels]` per option, whose sum is the gradient by its probability.
        pub(super) grad_options: [Address; MAX_OPTIONS],
        /// `[n]`, written by the backward pass.
        pub(super) grad_logits: Address,
        /// Width choice: channels of every option.
        pub(super) widths: [u32; MAX_OPTIONS],
        /// Options, at most [`MAX_OPTIONS`].
        pub(super) n: u32,
        /// Channels of the gate, or of the sums in `grad_options`.
        pub(super) channels: u32,
        /// [`Purpose`](crate::philox::Purpose) of its noise.
        pub(super) purpose: u32,
        /// [`Stream::index`](crate::philox::Stream::index) of its noise.
        pub(super) index: u32,
    }
}

/// Noise and temperature of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    /// [`Stream::seed`](crate::philox::Stream::seed)
    pub(super) seed: u64,
    /// [`Stream::epoch`](crate::philox::Stream::epoch)
    pub(super) epoch: u32,
    /// [`Stream::iteration`](crate::philox::Stream::iteration)
    pub(super) iteration: u32,
    /// False for zero noise.
    pub(super) noisy: bool,
    /// Temperature.
    pub(super) tau: f64,
}

params! {
    struct DrawParams {
        softmaxes: Address,
        key: [u32; 2],
        epoch: u32,
        iteration: u32,
        noisy: u32,
        tau: f32,
    }
}

fn launch(kernel: &'static str, softmaxes: Address, num: usize, draw: &Draw) -> Launch<DrawParams> {
    Launch {
        module: MODULE,
        kernel,
        grid: [num as u32, 1, 1],
        threads: 32,
        shared: (MAX_OPTIONS * 4) as u32,
        // The list; the short vectors it points to are known on the device only.
        work: Work::new(num * size_of::<SoftmaxEntry>(), 0),
        params: DrawParams {
            softmaxes,
            key: [draw.seed as u32, (draw.seed >> 32) as u32],
            epoch: draw.epoch,
            iteration: draw.iteration,
            noisy: u32::from(draw.noisy),
            tau: draw.tau as f32,
        },
    }
}

/// `softmax((logits + noise) / tau)` of every choice, and the gates of the width choices.
///
/// # Safety
/// `softmaxes` is the address of `num` [`SoftmaxEntry`], whose addresses are valid.
///
/// # Errors
/// If the launch fails.
pub(super) unsafe fn forward<R: Runtime>(rt: &R, softmaxes: Address, num: usize, draw: &Draw) -> Result<()> {
    // SAFETY: the caller guarantees the addresses.
    unsafe { rt.launch(&launch("gumbel_softmax", softmaxes, num, draw)) }
}

/// Gradients with respect to the logits of every choice, from those of gates and depth weights.
///
/// # Safety
/// As [`forward`], which has run.
///
/// # Errors
/// If the launch fails.
pub(super) unsafe fn backward<R: Runtime>(rt: &R, softmaxes: Address, num: usize, draw: &Draw) -> Result<()> {
    // SAFETY: the caller guarantees the addresses.
    unsafe { rt.launch(&launch("gumbel_softmax_backward", softmaxes, num, draw)) }
}
