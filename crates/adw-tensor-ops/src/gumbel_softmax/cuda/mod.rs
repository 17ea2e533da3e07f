//! All softmaxes of a pass in one launch of `gumbel_softmax.cu`.

mod launch;

#[cfg(test)]
mod tests;

use super::kernels::{
    GumbelDraw, GumbelSoftmaxKernels, OP, SoftmaxGradient, SoftmaxNoise, SoftmaxOutput, SoftmaxSpec, wrong_gradient,
};
use crate::backend::Cpu;
use crate::cuda::tensors::{empty, f32_address};
use crate::error::{Error, Result};
use adw_cuda::device::CudaRuntime;
use adw_cuda::{Address, Buffer};
use candle_core::{DType, Device, Tensor};
use launch::{Draw, MAX_OPTIONS, SoftmaxEntry, backward, forward};

/// Arguments of the kernels; `None` for given noise, since kernels draw their own.
fn kernel_draw(draw: &GumbelDraw) -> Option<Draw> {
    let tau = draw.tau;
    match draw.noise {
        SoftmaxNoise::Zero => Some(Draw { seed: 0, epoch: 0, iteration: 0, noisy: false, tau }),
        SoftmaxNoise::Streams { seed, epoch, iteration } => Some(Draw { seed, epoch, iteration, noisy: true, tau }),
        SoftmaxNoise::Given(_) => None,
    }
}

/// Copies of tensors in the host's memory.
fn to_host<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Vec<Tensor>> {
    Ok(tensors.into_iter().map(|t| t.to_device(&Device::Cpu)).collect::<candle_core::Result<_>>()?)
}

/// Value of softmaxes with given noise, computed on the host.
fn forward_on_host(softmaxes: &[SoftmaxSpec], draw: &GumbelDraw, device: &Device) -> Result<Vec<SoftmaxOutput>> {
    let logits = to_host(softmaxes.iter().map(|s| s.logits))?;
    let on_host: Vec<_> =
        softmaxes.iter().zip(&logits).map(|(s, logits)| SoftmaxSpec { logits, ..s.clone() }).collect();
    let outputs = Cpu.gumbel_softmaxes(&on_host, draw)?.into_iter().map(|output| {
        let gate = output.gate.map(|gate| gate.to_device(device)).transpose()?;
        Ok(SoftmaxOutput { probabilities: output.probabilities.to_device(device)?, gate })
    });
    outputs.collect()
}

/// Gradients of [`forward_on_host`].
fn backward_on_host(
    softmaxes: &[SoftmaxSpec],
    draw: &GumbelDraw,
    gradients: &[SoftmaxGradient],
    device: &Device,
) -> Result<Vec<Tensor>> {
    let logits = to_host(softmaxes.iter().map(|s| s.logits))?;
    let on_host: Vec<_> =
        softmaxes.iter().zip(&logits).map(|(s, logits)| SoftmaxSpec { logits, ..s.clone() }).collect();
    let copies = gradients.iter().map(|gradient| match *gradient {
        SoftmaxGradient::Gate(gate) => to_host([gate]),
        SoftmaxGradient::Options(options) => to_host(options),
    });
    let copies = copies.collect::<Result<Vec<_>>>()?;
    let gradients = gradients.iter().zip(&copies).map(|(gradient, copies)| match gradient {
        SoftmaxGradient::Gate(_) => SoftmaxGradient::Gate(&copies[0]),
        SoftmaxGradient::Options(_) => SoftmaxGradient::Options(copies),
    });
    let by_logits = Cpu.gumbel_softmaxes_backward(&on_host, draw, &[], &gradients.collect::<Vec<_>>())?;
    Ok(by_logits.iter().map(|g| g.to_device(device)).collect::<candle_core::Result<_>>()?)
}

/// Entry of a softmax whose logits are there; addresses of values and gradients are absent.
fn entry(rt: &CudaRuntime, softmax: &SoftmaxSpec) -> Result<SoftmaxEntry> {
    let n = softmax.logits.elem_count();
    if n > MAX_OPTIONS {
        let what = format!("{n} options, expected at most {MAX_OPTIONS} on a CUDA device");
        return Err(Error::Argument { op: OP, what });
    }
    let mut entry = SoftmaxEntry {
        logits: f32_address(OP, rt, softmax.logits)?,
        n: n as u32,
        channels: softmax.channels as u32,
        purpose: softmax.purpose as u32,
        index: softmax.index,
        ..SoftmaxEntry::default()
    };
    for (to, from) in entry.widths.iter_mut().zip(softmax.widths.iter().flatten()) {
        *to = *from as u32;
    }
    Ok(entry)
}

/// Device vector that is handed out in parts.
struct Parts {
    all: Tensor,
    address: Address,
    first: usize,
}

impl Parts {
    fn new(rt: &CudaRuntime, len: usize) -> Result<Self> {
        let (all, address) = empty(rt, DType::F32, len)?;
        Ok(Self { all: all.into_tensor(), address, first: 0 })
    }

    fn take(&mut self, len: usize) -> Result<(Tensor, Address)> {
        let part = (self.all.narrow(0, self.first, len)?, self.address.offset(4 * self.first));
        self.first += len;
        Ok(part)
    }
}

impl GumbelSoftmaxKernels for CudaRuntime {
    fn gumbel_softmaxes(&self, softmaxes: &[SoftmaxSpec], draw: &GumbelDraw) -> Result<Vec<SoftmaxOutput>> {
        let Some(draw) = kernel_draw(draw) else {
            return forward_on_host(softmaxes, draw, &Device::Cuda(self.device().clone()));
        };
        let len = |s: &SoftmaxSpec| s.logits.elem_count() + s.widths.as_ref().map_or(0, |_| s.channels);
        let mut parts = Parts::new(self, softmaxes.iter().map(len).sum())?;
        let (mut entries, mut outputs) = (Vec::new(), Vec::new());
        for softmax in softmaxes {
            let mut entry = entry(self, softmax)?;
            let (probabilities, address) = parts.take(softmax.logits.elem_count())?;
            entry.probabilities = address;
            let mut gate = None;
            if softmax.widths.is_some() {
                let (tensor, address) = parts.take(softmax.channels)?;
                (gate, entry.gates) = (Some(tensor), address);
            }
            entries.push(entry);
            outputs.push(SoftmaxOutput { probabilities, gate });
        }
        let list = self.upload(&entries)?;
        // SAFETY: the list's addresses are those of tensors of these sizes.
        unsafe { forward(self, list.address(), entries.len(), &draw)? };
        Ok(outputs)
    }

    fn gumbel_softmaxes_backward(
        &self,
        softmaxes: &[SoftmaxSpec],
        draw: &GumbelDraw,
        outputs: &[SoftmaxOutput],
        gradients: &[SoftmaxGradient],
    ) -> Result<Vec<Tensor>> {
        let Some(draw) = kernel_draw(draw) else {
            return backward_on_host(softmaxes, draw, gradients, &Device::Cuda(self.device().clone()));
        };
        let mut parts = Parts::new(self, softmaxes.iter().map(|s| s.logits.elem_count()).sum())?;
        let (mut entries, mut by_logits) = (Vec::new(), Vec::new());
        for ((softmax, output), gradient) in softmaxes.iter().zip(outputs).zip(gradients) {
            let n = softmax.logits.elem_count();
            let mut entry = entry(self, softmax)?;
            entry.probabilities = f32_address(OP, self, &output.probabilities)?;
            let vector = |g: &Tensor| {
                if g.elem_count() == softmax.channels {
                    return f32_address(OP, self, g);
                }
                let expected = format!("[{}]", softmax.channels);
                Err(Error::Shape { op: OP, what: "gradient", got: g.shape().clone(), expected })
            };
            match (gradient, &output.gate) {
                (SoftmaxGradient::Gate(g), Some(gate)) => {
                    entry.gates = f32_address(OP, self, gate)?;
                    entry.grad_gates = vector(g)?;
                }
                (SoftmaxGradient::Options(options), None) if options.len() == n => {
                    for (to, from) in entry.grad_options.iter_mut().zip(options.iter()) {
                        *to = vector(from)?;
                    }
                }
                _ => return Err(wrong_gradient()),
            }
            let (by, address) = parts.take(n)?;
            entry.grad_logits = address;
            entries.push(entry);
            by_logits.push(by);
        }
        let list = self.upload(&entries)?;
        // SAFETY: the list's addresses are those of tensors of these sizes.
        unsafe { backward(self, list.address(), entries.len(), &draw)? };
        Ok(by_logits)
    }
}
