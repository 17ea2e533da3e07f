//! Backward pass, written out.

use super::in_pool;
use super::layers::{Network, head_geometry};
use super::relaxation::{Relaxation, RelaxationGradient, depth_weights};
use super::trace::{BlockTrace, Feature, Trace, dims, layer_inputs};
use crate::error::{Error, Result};
use crate::parameters::{Gradients, Role};
use adw_tensor_ops::{Precision, conv_transpose3d, conv3d, elementwise, norm_act};
use candle_core::Tensor;

/// Gradients that a backward pass computes.
#[derive(Clone, Copy)]
pub(crate) struct BackwardRequest<'a> {
    /// Relaxation that the forward pass applied.
    pub(crate) relaxation: Option<&'a Relaxation>,
    /// Role of the parameters; with [`Role::Architecture`] no weight gradient is computed.
    pub(crate) role: Role,
    /// Compute the gradient of the image too.
    pub(crate) image: bool,
}

/// Gradients of a scalar that depends on the logits.
pub(crate) struct NetworkGradients {
    /// Per parameter; those of alpha and beta are none, as `relaxation` stands for them.
    pub(crate) parameters: Gradients,
    /// Per block.
    pub(crate) relaxation: Vec<RelaxationGradient>,
    /// `[B, C, D, H, W]`, if requested.
    pub(crate) image: Option<Tensor>,
}

impl Network {
    /// Gradients from those of the logits: one entry per decoder step, fine to coarse, each `[B, K, D, H, W]`, or none
    /// for logits without a loss. The finest is required.
    ///
    /// # Errors
    /// If `trace` or `grad_logits` do not fit the network.
    pub(crate) fn backward(
        &self,
        trace: Trace,
        grad_logits: Vec<Option<Tensor>>,
        request: BackwardRequest,
    ) -> Result<NetworkGradients> {
        self.check_grad_logits(&trace, &grad_logits)?;
        let num_blocks = self.blocks.len();
        let no_gradient = || RelaxationGradient { gates: Vec::new(), depth_weights: Vec::new() };
        let mut pass = BackwardPass {
            net: self,
            request,
            precision: trace.precision,
            grad_masks: vec![None; self.strides.len()],
            gradients: NetworkGradients {
                parameters: vec![None; self.parameters.len()],
                relaxation: (0..num_blocks).map(|_| no_gradient()).collect(),
                image: None,
            },
        };
        in_pool(&trace.outputs[0].map.device().clone(), || pass.run(trace, grad_logits))?;
        Ok(pass.gradients)
    }

    fn check_grad_logits(&self, trace: &Trace, grad_logits: &[Option<Tensor>]) -> Result<()> {
        let fail = |message: String| Err(Error::Input(message));
        if trace.blocks.len() != self.blocks.len() {
            return fail(format!(
                "a trace of {} blocks, but the network has {}",
                trace.blocks.len(),
                self.blocks.len()
            ));
        }
        for (i, (trace, block)) in trace.blocks.iter().zip(&self.blocks).enumerate() {
            let widths = trace.layers.iter().map(|(map, _)| map.dims()[4]);
            let expected = block.iter().map(|layer| self.value(layer.gamma).elem_count());
            if !widths.clone().eq(expected.clone()) {
                let (got, expected) = (widths.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
                return fail(format!(
                    "a trace with layers of {got:?} channels in block {i}, but the network has {expected:?}"
                ));
            }
        }
        let num_scales = self.num_scales();
        if grad_logits.len() != num_scales {
            return fail(format!("{} logit gradients, expected one per scale: {num_scales}", grad_logits.len()));
        }
        if grad_logits[0].is_none() {
            return fail("no gradient of the finest logits".into());
        }
        for (scale, (gradient, output)) in grad_logits.iter().zip(trace.outputs.iter().rev()).enumerate() {
            let (b, [d, h, w], _) = dims(&output.map)?;
            let expected = [b, self.num_classes, d, h, w];
            if let Some(gradient) = gradient.as_ref().filter(|g| g.dims() != expected) {
                let got = gradient.shape();
                return fail(format!("gradient of logits {scale} has shape {got:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }
}

/// Adds a gradient to `sum`, if there is one, or starts it.
fn accumulate(sum: &mut Option<Tensor>, g: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        None => g,
        Some(s) => elementwise::add(&s, &g)?,
    });
    Ok(())
}

struct BackwardPass<'a> {
    net: &'a Network,
    request: BackwardRequest<'a>,
    precision: Precision,
    /// Gradient of every skip's expected mask, where it gates an upsampled map; per encoder block, `[C]`.
    grad_masks: Vec<Option<Tensor>>,
    gradients: NetworkGradients,
}

impl BackwardPass<'_> {
    fn wants_weights(&self) -> bool {
        self.request.role == Role::Weight
    }

    /// Walks the blocks from the last to the first. `grad_logits`: fine to coarse.
    fn run(&mut self, trace: Trace, grad_logits: Vec<Option<Tensor>>) -> Result<()> {
        let Trace { mut blocks, mut outputs, .. } = trace;
        let mut grad_logits = grad_logits.into_iter();
        let poolings = self.net.strides.len();
        // Gradient of each encoder block's output along the skip, and of the current block's output from the next
        // block.
        let mut grad_skips: Vec<Option<Tensor>> = vec![None; poolings];
        let mut grad_next: Option<Tensor> = None;
        for i in (0..self.net.blocks.len()).rev() {
            let trace = blocks.pop().expect("one trace per block");
            let out = outputs.pop().expect("one output per block");
            let mut grad_out = grad_next.take();
            match self.net.decoder_step(i) {
                Some(u) => {
                    if let Some(g) = grad_logits.next().flatten() {
                        accumulate(&mut grad_out, self.head(u, &out, &g)?)?;
                    }
                }
                None => {
                    if let Some(g) = grad_skips.get_mut(i).and_then(Option::take) {
                        accumulate(&mut grad_out, g)?;
                    }
                }
            }
            drop(out);
            let grad_out = grad_out.expect("every block's output reaches the finest logits");
            let mut grads = self.block(i, trace, grad_out)?.into_iter();
            grad_next = match self.net.decoder_step(i) {
                Some(u) => {
                    let grad_up = grads.next().expect("a decoder block reads the upsampled map");
                    grad_skips[2 * poolings - i] = grads.next();
                    Some(self.up(u, outputs.last().expect("the block before"), &grad_up)?)
                }
                None => grads.next(),
            };
        }
        if let Some(image) = grad_next {
            self.gradients.image = Some(image.permute((0, 4, 1, 2, 3))?);
        }
        Ok(())
    }

    /// Gradient of decoder step `u`'s output by way of its logits, whose gradient is `g [B, K, D, H, W]`.
    fn head(&mut self, u: usize, out: &Feature, g: &Tensor) -> Result<Tensor> {
        let g = self.net.channels_last(g, self.precision)?;
        let (_, size, c) = dims(&out.map)?;
        let head = self.net.heads[u];
        if self.wants_weights() {
            let gradient = conv3d::grad_weight(&[out.input()], (&g).into(), head_geometry(), Precision::Full)?;
            self.gradients.parameters[head] = Some(gradient);
        }
        Ok(conv3d::grad_input((&g).into(), self.net.value(head), head_geometry(), size, 0..c, Precision::Full)?)
    }

    /// Gradient of the map that decoder step `u` upsamples.
    fn up(&mut self, u: usize, coarse: &Feature, grad_up: &Tensor) -> Result<Tensor> {
        let (up, skip, relaxation) = (self.net.ups[u], self.net.skip_of(u), self.request.relaxation);
        let gate = relaxation.map(|r| r.up_gate(skip)).transpose()?.flatten();
        if self.wants_weights() || gate.is_some() {
            // Gradient of the gated weight, from which those of weight and gate follow.
            let gradient = conv_transpose3d::grad_weight(coarse.input(), grad_up, self.net.strides[skip])?;
            if !self.wants_weights() {
                self.grad_masks[skip] = Some((gradient * self.net.value(up))?.sum((0, 2, 3, 4))?);
            } else if let Some(gate) = &gate {
                self.gradients.parameters[up] = Some(gradient.broadcast_mul(gate)?);
            } else {
                self.gradients.parameters[up] = Some(gradient);
            }
        }
        Ok(conv_transpose3d::grad_input(grad_up, &self.net.up_weight(u, relaxation)?)?)
    }

    /// Gradients of a block's inputs; of the image only if requested.
    fn block(&mut self, index: usize, trace: BlockTrace, grad_out: Tensor) -> Result<Vec<Tensor>> {
        let net = self.net;
        let block = &net.blocks[index];
        let BlockTrace { inputs, mut layers } = trace;
        let relaxation = self.request.relaxation;
        let depth = depth_weights(relaxation, index);
        let mut gate_gradients = vec![None; layers.len()];
        let mut depth_gradients = Vec::with_capacity(layers.len());
        // A layer's output reaches the loss through the weighted sum over depths (`outer`), through the next layer, or,
        // without depth weights, as the block's output (both `direct`).
        let mut direct = if depth.is_none() { Some(grad_out.clone()) } else { None };
        let outer = depth.is_some().then_some(grad_out);
        let mut grad_inputs = Vec::new();
        for (l, layer) in block.iter().enumerate().rev() {
            let (y, norm) = layers.pop().expect("one trace per layer");
            let weight = depth.map(|h| h.narrow(0, l, 1)).transpose()?;
            let g = norm_act::backward(
                &y,
                &norm,
                net.value(layer.gamma),
                net.value(layer.beta),
                relaxation.and_then(|r| r.gate(index, l)),
                outer.as_ref().zip(weight.as_ref()),
                direct.take().as_ref(),
            )?;
            drop(y);
            gate_gradients[l] = g.gate;
            depth_gradients.push(g.weight);
            let sources = layer_inputs(&inputs, &layers);
            if self.wants_weights() {
                let gradient = conv3d::grad_weight(&sources, (&g.y).into(), layer.geometry, self.precision)?;
                self.gradients.parameters[layer.weight] = Some(gradient);
                self.gradients.parameters[layer.gamma] = Some(g.gamma);
                self.gradients.parameters[layer.beta] = Some(g.beta);
            }
            if l == 0 && index == 0 && !self.request.image {
                break;
            }
            let mut first = 0;
            for source in sources {
                let (_, size, c) = dims(source.map)?;
                let weight = net.value(layer.weight);
                let channels = first..first + c;
                let grad = conv3d::grad_input((&g.y).into(), weight, layer.geometry, size, channels, self.precision)?;
                first += c;
                if l > 0 {
                    direct = Some(grad);
                } else {
                    grad_inputs.push(grad);
                }
            }
        }
        depth_gradients.reverse();
        let mut gradient = RelaxationGradient { gates: gate_gradients, depth_weights: depth_gradients };
        let grad_mask = self.grad_masks.get_mut(index).and_then(Option::take);
        if let (Some(relaxation), Some(grad_mask)) = (relaxation, grad_mask) {
            relaxation.blocks[index].add_mask_gradient(&grad_mask, &mut gradient)?;
        }
        self.gradients.relaxation[index] = gradient;
        Ok(grad_inputs)
    }
}
