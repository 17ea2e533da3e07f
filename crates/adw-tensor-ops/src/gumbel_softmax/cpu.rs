//! Softmaxes on the processor: candle's arithmetic, and its graph for their gradients.

use super::kernels::{
    GumbelDraw, GumbelSoftmaxKernels, OP, SoftmaxGradient, SoftmaxNoise, SoftmaxOutput, SoftmaxSpec, wrong_gradient,
};
use super::one::{gumbel_softmax, noise};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::width_mask;
use candle_core::{Device, Tensor, Var};

/// Noise of softmax `i`, in the host's memory.
fn noise_of(softmax: &SoftmaxSpec, i: usize, draw: &GumbelDraw) -> Result<Tensor> {
    let logits = softmax.logits;
    if let Some(stream) = draw.noise.stream(softmax) {
        return noise(stream, logits.elem_count(), logits.dtype(), &Device::Cpu);
    }
    match &draw.noise {
        SoftmaxNoise::Given(all) => all.get(i).cloned().ok_or_else(|| Error::Argument {
            op: OP,
            what: format!("noise for {} softmaxes, expected one vector per softmax", all.len()),
        }),
        _ => Ok(Tensor::zeros(logits.shape(), logits.dtype(), &Device::Cpu)?),
    }
}

fn output(softmax: &SoftmaxSpec, logits: &Tensor, i: usize, draw: &GumbelDraw) -> Result<SoftmaxOutput> {
    let probabilities = gumbel_softmax(logits, &noise_of(softmax, i, draw)?, draw.tau)?;
    let gate = match &softmax.widths {
        None => None,
        Some(widths) => {
            let masks = width_mask::masks(widths, softmax.channels, logits.dtype(), &Device::Cpu)?;
            Some(width_mask::gate(&probabilities, &masks)?)
        }
    };
    Ok(SoftmaxOutput { probabilities, gate })
}

impl GumbelSoftmaxKernels for Cpu {
    fn gumbel_softmaxes(&self, softmaxes: &[SoftmaxSpec], draw: &GumbelDraw) -> Result<Vec<SoftmaxOutput>> {
        softmaxes.iter().enumerate().map(|(i, s)| output(s, &s.logits.detach(), i, draw)).collect()
    }

    fn gumbel_softmaxes_backward(
        &self,
        softmaxes: &[SoftmaxSpec],
        draw: &GumbelDraw,
        _: &[SoftmaxOutput],
        gradients: &[SoftmaxGradient],
    ) -> Result<Vec<Tensor>> {
        let (mut logits, mut terms) = (Vec::new(), Vec::new());
        for (i, (softmax, gradient)) in softmaxes.iter().zip(gradients).enumerate() {
            let var = Var::from_tensor(softmax.logits)?;
            let value = output(softmax, &var, i, draw)?;
            terms.push(match (gradient, value.gate) {
                (SoftmaxGradient::Gate(g), Some(gate)) => (gate * *g)?.sum_all()?,
                (SoftmaxGradient::Options(options), None) => {
                    let sums = options.iter().map(Tensor::sum_all).collect::<candle_core::Result<Vec<_>>>()?;
                    (value.probabilities * Tensor::stack(&sums, 0)?)?.sum_all()?
                }
                _ => return Err(wrong_gradient()),
            });
            logits.push(var);
        }
        if terms.is_empty() {
            return Ok(Vec::new());
        }
        let store = Tensor::stack(&terms, 0)?.sum_all()?.backward()?;
        let gradient = |var: &Var| store.get(var).cloned().ok_or_else(wrong_gradient);
        logits.iter().map(gradient).collect()
    }
}
