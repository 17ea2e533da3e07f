//! Kernels of many softmaxes at once, and their arguments.

use crate::error::{Error, Result};
use crate::philox::{Purpose, Stream};
use candle_core::Tensor;

/// Name of the op in errors.
pub(super) const OP: &str = "gumbel_softmax";

/// One softmax over the options of a choice: the width of a convolution, or the depth of a block.
#[derive(Clone, Debug)]
pub struct SoftmaxSpec<'a> {
    /// Logits, `[n]`; on a CUDA device f32, n at most 8.
    pub logits: &'a Tensor,
    /// Purpose of its noise.
    pub purpose: Purpose,
    /// [`Stream::index`] of its noise.
    pub index: u32,
    /// Channels of every option of a width, which has a gate; `None` for a depth.
    pub widths: Option<Vec<usize>>,
    /// Channels of the gate, or elements of the vectors whose sums are a depth's gradients on a CUDA device.
    pub channels: usize,
}

/// Gumbel noise of a pass.
#[derive(Clone, Debug)]
pub enum SoftmaxNoise {
    /// No noise.
    Zero,
    /// Numbers of [`Stream`]s, the same on every device. Purpose and index are those of each softmax.
    Streams {
        /// [`Stream::seed`].
        seed: u64,
        /// [`Stream::epoch`].
        epoch: u32,
        /// [`Stream::iteration`].
        iteration: u32,
    },
    /// One vector `[n]` per softmax, in the host's memory.
    Given(Vec<Tensor>),
}

impl SoftmaxNoise {
    /// Stream of a softmax, if the noise is drawn from streams.
    pub(super) fn stream(&self, softmax: &SoftmaxSpec) -> Option<Stream> {
        match *self {
            Self::Streams { seed, epoch, iteration } => {
                Some(Stream { seed, purpose: softmax.purpose, epoch, iteration, index: softmax.index })
            }
            _ => None,
        }
    }
}

/// Noise and temperature of all softmaxes of a pass.
#[derive(Clone, Debug)]
pub struct GumbelDraw {
    /// Noise added to the logits.
    pub noise: SoftmaxNoise,
    /// Temperature.
    pub tau: f64,
}

/// Value of one softmax, on the device of its logits.
#[derive(Clone, Debug)]
pub struct SoftmaxOutput {
    /// Probabilities of the options, `[n]`.
    pub probabilities: Tensor,
    /// Width gate `sum_i probabilities_i M_i`, `[channels]`, where `M_i` is 1 in the leading `widths[i]` channels; `None`
    /// for a depth.
    pub gate: Option<Tensor>,
}

/// Gradient with respect to the value of a softmax.
#[derive(Clone, Copy, Debug)]
pub enum SoftmaxGradient<'a> {
    /// Gradient with respect to the gate of a width, `[channels]`.
    Gate(&'a Tensor),
    /// Per option of a depth: partial sums of the gradient with respect to the option's probability.
    Options(&'a [Tensor]),
}

/// Checks a temperature.
pub(super) fn check_tau(tau: f64) -> Result<()> {
    if tau.is_finite() && tau > 0.0 {
        return Ok(());
    }
    Err(Error::Argument { op: OP, what: format!("tau is {tau}, expected a positive number") })
}

/// Checks the index of a stream.
pub(super) fn check_index(index: u32) -> Result<()> {
    if index < Stream::INDICES {
        return Ok(());
    }
    Err(Error::Argument { op: OP, what: format!("index {index}, expected less than {}", Stream::INDICES) })
}

/// Error of a gradient that does not belong to its softmax.
pub(super) fn wrong_gradient() -> Error {
    let what = "a gradient by the gate of a depth, or by other options than there are";
    Error::Argument { op: OP, what: what.into() }
}

/// Kernels on one kind of device.
pub(crate) trait GumbelSoftmaxKernels {
    /// Value of every softmax.
    fn gumbel_softmaxes(&self, softmaxes: &[SoftmaxSpec], draw: &GumbelDraw) -> Result<Vec<SoftmaxOutput>>;

    /// Gradient with respect to the logits of every softmax, `[n]` each. `outputs` are the values for the same draw,
    /// `gradients` those by each.
    fn gumbel_softmaxes_backward(
        &self,
        softmaxes: &[SoftmaxSpec],
        draw: &GumbelDraw,
        outputs: &[SoftmaxOutput],
        gradients: &[SoftmaxGradient],
    ) -> Result<Vec<Tensor>>;
}
