//! Every softmax of a net at once, on a CUDA device: tensors in, one launch out.

use super::cuda::{self, MAX_OPTIONS, Pass};
use crate::error::{Error, Result};
use crate::on_device::f32_address;
use crate::philox::Purpose;
use adw_cuda::device::CudaRuntime;
use adw_cuda::{Address, Buffer};
use candle_core::{DType, Tensor};

const OP: &str = "gumbel_softmax";

/// One choice before it is made.
pub struct Options<'a> {
    /// `[n]`, f32; n at most [`MAX_OPTIONS`].
    pub logits: &'a Tensor,
    /// Of its noise.
    pub purpose: Purpose,
    /// [`Stream::index`](crate::philox::Stream::index) of its noise.
    pub index: u32,
    /// A width choice has a gate: channels of every option.
    pub widths: Option<Vec<usize>>,
    /// Channels of the gate, or of the sums that a gradient by an option comes in.
    pub channels: usize,
}

/// One choice that was made.
pub struct Softmax {
    /// `[n]`
    pub probabilities: Tensor,
    /// `[channels]`, of a width choice.
    pub gate: Option<Tensor>,
    entry: cuda::Softmax,
    n: usize,
}

/// The gradient by what a choice gave.
pub enum ByOption<'a> {
    /// By the gate, `[channels]`.
    Gate(&'a Tensor),
    /// By every probability: `[channels]` numbers whose sum it is.
    Options(&'a [Tensor]),
}

fn runtime(t: Option<&Tensor>) -> Result<std::sync::Arc<CudaRuntime>> {
    t.and_then(CudaRuntime::of_tensor).ok_or(Error::Device { op: OP })
}

/// `softmax((logits + noise) / tau)` of every choice, and the gates of width choices.
///
/// # Errors
/// If the logits are not f32 vectors on one CUDA device, or the launch fails.
pub fn forward(options: Vec<Options>, pass: &Pass) -> Result<Vec<Softmax>> {
    if options.is_empty() {
        return Ok(Vec::new());
    }
    let rt = runtime(options.first().map(|o| o.logits))?;
    let size = |o: &Options| o.logits.elem_count() + o.widths.as_ref().map_or(0, |_| o.channels);
    let total = options.iter().map(size).sum::<usize>();
    let (all, mut at) = rt.empty(DType::F32, total)?;
    let (mut softmaxes, mut first) = (Vec::with_capacity(options.len()), 0);
    for o in options {
        let n = o.logits.elem_count();
        if n > MAX_OPTIONS {
            let what = format!("{n} options, expected at most {MAX_OPTIONS} on a CUDA device");
            return Err(Error::Argument { op: OP, what });
        }
        let mut take = |len: usize| -> Result<(Tensor, Address)> {
            let taken = (all.narrow(0, first, len)?, at);
            first += len;
            at = at.offset(4 * len);
            Ok(taken)
        };
        let (probabilities, p) = take(n)?;
        let mut entry = cuda::Softmax {
            logits: f32_address(OP, &rt, o.logits)?,
            probabilities: p,
            n: n as u32,
            channels: o.channels as u32,
            purpose: o.purpose as u32,
            index: o.index,
            ..cuda::Softmax::default()
        };
        let mut gate = None;
        if let Some(widths) = o.widths {
            let (tensor, address) = take(o.channels)?;
            entry.gates = address;
            for (to, from) in entry.widths.iter_mut().zip(widths) {
                *to = from as u32;
            }
            gate = Some(tensor);
        }
        softmaxes.push(Softmax { probabilities, gate, entry, n });
    }
    let entries: Vec<_> = softmaxes.iter().map(|s| s.entry).collect();
    let list = rt.upload(&entries)?;
    // SAFETY: the list's addresses are those of tensors of these sizes.
    unsafe { cuda::forward(&*rt, list.address(), entries.len(), pass)? };
    Ok(softmaxes)
}

/// The gradient by every choice's logits, `[n]`.
///
/// # Errors
/// If a gradient does not lie on the device, or the launch fails.
///
/// # Panics
/// If there is not one gradient per choice.
pub fn backward(softmaxes: &[Softmax], by_option: &[ByOption], pass: &Pass) -> Result<Vec<Tensor>> {
    assert_eq!(softmaxes.len(), by_option.len(), "one gradient per choice");
    if softmaxes.is_empty() {
        return Ok(Vec::new());
    }
    let rt = runtime(softmaxes.first().map(|s| &s.probabilities))?;
    let total = softmaxes.iter().map(|s| s.n).sum::<usize>();
    let (all, at) = rt.empty(DType::F32, total)?;
    let (mut entries, mut gradients, mut first) = (Vec::new(), Vec::new(), 0);
    for (softmax, by) in softmaxes.iter().zip(by_option) {
        let mut entry = softmax.entry;
        let fits = match by {
            ByOption::Gate(_) => softmax.gate.is_some(),
            ByOption::Options(options) => softmax.gate.is_none() && options.len() == softmax.n,
        };
        if !fits {
            let what = "a gradient by the gate of a depth, or by other options than there are";
            return Err(Error::Argument { op: OP, what: what.into() });
        }
        let channels = entry.channels as usize;
        let sums = |g: &Tensor| {
            if g.elem_count() == channels {
                return f32_address(OP, &rt, g);
            }
            Err(Error::Shape { op: OP, what: "gradient", got: g.shape().clone(), expected: format!("[{channels}]") })
        };
        match by {
            ByOption::Gate(g) => entry.grad_gates = sums(g)?,
            ByOption::Options(options) => {
                for (to, from) in entry.grad_options.iter_mut().zip(options.iter()) {
                    *to = sums(from)?;
                }
            }
        }
        entry.grad_logits = at.offset(4 * first);
        gradients.push(all.narrow(0, first, softmax.n)?);
        first += softmax.n;
        entries.push(entry);
    }
    let list = rt.upload(&entries)?;
    // SAFETY: the list's addresses are those of tensors of these sizes.
    unsafe { cuda::backward(&*rt, list.address(), entries.len(), pass)? };
    Ok(gradients)
}
