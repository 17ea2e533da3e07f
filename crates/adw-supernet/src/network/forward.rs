//! Forward passes.

use super::in_pool;
use super::layers::{Network, head_geometry};
use super::relaxation::{Relaxation, depth_weights};
use super::trace::{BlockTrace, Feature, Trace, layer_inputs};
use crate::error::Result;
use adw_tensor_ops::norm_act::{self, NormCoefficients};
use adw_tensor_ops::{Precision, conv_transpose3d, conv3d};
use candle_core::Tensor;

impl Network {
    /// Logits of every decoder step, fine to coarse, each `[B, K, D, H, W]`, and the trace for the backward pass.
    ///
    /// # Errors
    /// If the image does not fit the network.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        relaxation: Option<&Relaxation>,
        precision: Precision,
    ) -> Result<(Vec<Tensor>, Trace)> {
        in_pool(x.device(), || self.forward_pass(x, relaxation, precision))
    }

    fn forward_pass(
        &self,
        x: &Tensor,
        relaxation: Option<&Relaxation>,
        precision: Precision,
    ) -> Result<(Vec<Tensor>, Trace)> {
        let poolings = self.strides.len();
        let num_blocks = self.blocks.len();
        let mut trace =
            Trace { blocks: Vec::with_capacity(num_blocks), outputs: Vec::with_capacity(num_blocks), precision };
        let mut logits = Vec::with_capacity(poolings);
        for i in 0..num_blocks {
            let inputs = match i {
                0 => vec![Feature { map: self.read_image(x, precision)?, norm: None }],
                _ if i <= poolings => vec![trace.outputs[i - 1].clone()],
                _ => self.upsample(i, &trace.outputs[i - 1], trace.outputs[2 * poolings - i].clone(), relaxation)?,
            };
            let out = self.forward_block(i, inputs, relaxation, precision, Some(&mut trace.blocks))?;
            if let Some(u) = self.decoder_step(i) {
                logits.push(self.logits(u, &out)?);
            }
            trace.outputs.push(out);
        }
        logits.reverse();
        Ok((logits, trace))
    }

    /// Finest logits `[B, K, D, H, W]`. No map is kept longer than the forward pass reads it.
    ///
    /// # Errors
    /// If the image does not fit the network.
    pub(crate) fn predict(&self, x: &Tensor, relaxation: Option<&Relaxation>, precision: Precision) -> Result<Tensor> {
        in_pool(x.device(), || self.predict_pass(x, relaxation, precision))
    }

    fn predict_pass(&self, x: &Tensor, relaxation: Option<&Relaxation>, precision: Precision) -> Result<Tensor> {
        let poolings = self.strides.len();
        let mut current = Feature { map: self.read_image(x, precision)?, norm: None };
        let mut skips = Vec::with_capacity(poolings);
        for i in 0..self.blocks.len() {
            current = if self.residuals[i].is_empty() {
                let inputs = match i {
                    _ if i <= poolings => vec![current],
                    _ => self.upsample(i, &current, skips.pop().expect("one skip per decoder block"), relaxation)?,
                };
                self.forward_block(i, inputs, relaxation, precision, None)?
            } else {
                self.residual_block(i, current, precision)?
            };
            if i < poolings {
                skips.push(current.clone());
            }
        }
        self.logits(poolings - 1, &current)
    }

    /// Runs one block. With `traces` its inputs and layers are appended there, else they are freed on the way.
    fn forward_block(
        &self,
        index: usize,
        mut inputs: Vec<Feature>,
        relaxation: Option<&Relaxation>,
        precision: Precision,
        traces: Option<&mut Vec<BlockTrace>>,
    ) -> Result<Feature> {
        let block = &self.blocks[index];
        let depth = depth_weights(relaxation, index);
        let mut layers: Vec<(Tensor, NormCoefficients)> = Vec::with_capacity(block.len());
        for (l, layer) in block.iter().enumerate() {
            let sources = layer_inputs(&inputs, &layers);
            let (y, moments) = conv3d::forward(&sources, self.value(layer.weight), layer.geometry, precision)?;
            let gate = relaxation.and_then(|r| r.gate(index, l));
            let norm = self.norm.coefficients(&moments, self.value(layer.gamma), self.value(layer.beta), gate)?;
            if traces.is_none() {
                inputs.clear(); // Only the first layer reads them.
                if depth.is_none() {
                    layers.clear(); // Inference of a discrete net holds one map at a time.
                }
            }
            layers.push((y, norm));
        }
        let out = match depth {
            None => {
                let (map, norm) = layers.last().expect("blocks have layers");
                Feature { map: map.clone(), norm: Some(norm.clone()) }
            }
            Some(h) => {
                let maps: Vec<_> = layers.iter().map(|(map, norm)| (map, norm)).collect();
                Feature { map: norm_act::weighted_sum(&maps, Some(h))?, norm: None }
            }
        };
        if let Some(traces) = traces {
            traces.push(BlockTrace { inputs, layers });
        }
        Ok(out)
    }

    /// Inputs of decoder block `i`: `[upsampled, skip]`.
    fn upsample(
        &self,
        i: usize,
        coarse: &Feature,
        skip: Feature,
        relaxation: Option<&Relaxation>,
    ) -> Result<Vec<Feature>> {
        let u = self.decoder_step(i).expect("only decoder blocks read upsampled maps");
        let map = conv_transpose3d::forward(coarse.input(), &self.up_weight(u, relaxation)?)?;
        let map = self.with_bias(map, self.biases.get(u).map(|biases| biases[0]))?;
        Ok(vec![Feature { map, norm: None }, skip])
    }

    /// Logits of decoder step `u`, `[B, K, D, H, W]`: a view of channels-last memory.
    fn logits(&self, u: usize, feature: &Feature) -> Result<Tensor> {
        let logits =
            conv3d::forward_plain(&[feature.input()], self.value(self.heads[u]), head_geometry(), Precision::Full)?;
        let logits = self.with_bias(logits, self.biases.get(u).map(|biases| biases[1]))?;
        Ok(logits.permute((0, 4, 1, 2, 3))?)
    }

    /// Adds a bias per channel, if there is one, to a map `[B, D, H, W, C]`.
    fn with_bias(&self, map: Tensor, bias: Option<usize>) -> Result<Tensor> {
        Ok(match bias {
            Some(bias) => map.broadcast_add(&self.value(bias).to_dtype(map.dtype())?)?,
            None => map,
        })
    }
}
