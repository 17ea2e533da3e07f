//! The supernet: every candidate network at once, with a differentiable choice among them.
//!
//! `AwBlock` (adaptive width): a convolution of the greatest width whose output channels are gated by
//! `m = sum_i g_i M_i`, `g = softmax((alpha + noise) / tau)`, `M_i` ones in the leading `width_i` channels.
//! `AdwBlock` (adaptive depth and width): up to `max_depth` of those in a row, and `sum_l h_l out_l` with
//! `h = softmax((beta + noise) / tau)` as output. Only the deepest path is computed.

use crate::architecture::Architecture;
use crate::choices::{BlockSoftmaxes, Choices, SampledChoices};
use crate::error::{Error, Result};
use crate::network::{BackwardRequest, Network, NetworkShape, Relaxation, Trace};
use crate::noise::{BlockNoise, GumbelNoise, GumbelSample, NoiseKey};
use crate::parameters::{Gradients, Parameter, ParameterBuilder, Role};
use crate::space::SupernetConfig;
use adw_tensor_ops::Precision;
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

/// The AdwU-Net supernet. Parameters: those of [`Unet`](crate::Unet), `block.{i}.conv.{l}.alpha` and `block.{i}.depth`.
pub struct Supernet {
    network: Network,
    choices: Choices,
    pub(crate) precision: Precision,
    pub(crate) dtype: DType,
}

/// Maps and choices that [`Supernet::forward_with_trace`] leaves for [`Supernet::backward`].
pub struct SupernetTrace {
    network: Trace,
    relaxation: Relaxation,
    choices: SampledChoices,
}

impl Supernet {
    /// Builds a supernet with He-initialised weights, a function of `seed`, and alpha and beta zero: every choice is
    /// equally likely.
    ///
    /// # Errors
    /// If the configuration is not valid, or tensors cannot be made on the device.
    pub fn new(config: SupernetConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        config.check()?;
        let width = |block: usize| config.block_max_width(block);
        let num_blocks = config.num_blocks();
        let shape = NetworkShape {
            in_channels: config.in_channels,
            num_classes: config.num_classes,
            strides: config.strides.clone(),
            kernels: config.kernels.clone(),
            widths: (0..num_blocks).map(|i| vec![width(i); config.num_layers()]).collect(),
            up_widths: (config.poolings() + 1..num_blocks).map(width).collect(),
            shortcuts: vec![],
        };
        let mut choices = Choices::new(config, dtype);
        let network = Network::build(ParameterBuilder::new(seed, dtype, device), shape, |builder, block, layer| {
            choices.add_parameters(builder, block, layer)
        })?;
        Ok(Self { network, choices, precision: Precision::Full, dtype })
    }

    /// Configuration the supernet was built from.
    pub fn config(&self) -> &SupernetConfig {
        &self.choices.config
    }

    /// Weights and architecture parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.network.parameters
    }

    /// Sets the precision of the convolutions' factors; [`Precision::Full`] at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Fresh noise, a function of `key`: the same on every device.
    ///
    /// # Errors
    /// If the noise of the pass or iteration would be that of another key.
    pub fn sample(&self, key: NoiseKey, tau: f64) -> Result<GumbelSample> {
        key.check()?;
        Ok(GumbelSample { noise: GumbelNoise::Keyed(key), tau })
    }

    /// Zero noise, for evaluation. (Deviation: the published code draws noise in evaluation too.)
    pub fn no_noise(&self, tau: f64) -> GumbelSample {
        GumbelSample { noise: GumbelNoise::Zero, tau }
    }

    /// Numbers of a sample's noise, per block, on the host.
    ///
    /// # Errors
    /// If given noise does not fit the supernet.
    pub fn noise(&self, sample: &GumbelSample) -> Result<Vec<BlockNoise>> {
        sample.noise.blocks(self.config(), self.dtype)
    }

    /// Softmaxes of a pass, on the host, recorded in candle's graph.
    pub(crate) fn softmaxes(&self, sample: &GumbelSample) -> Result<Vec<BlockSoftmaxes>> {
        self.choices.softmaxes(self.parameters(), sample)
    }

    /// Choices of a pass, and the relaxation that they make of the network.
    fn relaxation(&self, sample: &GumbelSample) -> Result<(Relaxation, SampledChoices)> {
        let sampled = self.choices.sampled(self.parameters(), sample)?;
        let (blocks, config) = (self.choices.relaxation(&sampled), self.config());
        Ok((Relaxation::new(config.mask, blocks, config.poolings(), config.gate_up)?, sampled))
    }

    /// Logits of every decoder step, fine to coarse, each `[B, K, D, H, W]`, for `x [B, C, D, H, W]`, and the trace for
    /// [`Self::backward`]. candle's graph records nothing.
    ///
    /// # Errors
    /// If `x` does not have the right channels, or its size is not a multiple of the product of the strides.
    pub fn forward_with_trace(&self, x: &Tensor, sample: &GumbelSample) -> Result<(Vec<Tensor>, SupernetTrace)> {
        let (relaxation, choices) = self.relaxation(sample)?;
        let (logits, network) = self.network.forward(x, Some(&relaxation), self.precision)?;
        Ok((logits, SupernetTrace { network, relaxation, choices }))
    }

    /// Gradients of a scalar with respect to the parameters of `role`, from its gradients with respect to the logits of
    /// [`Self::forward_with_trace`]: one per scale, fine to coarse, none for scales that do not enter the scalar; the finest is
    /// required. With [`Role::Architecture`] no weight gradient is computed. Maps are freed on the way.
    ///
    /// # Errors
    /// If `trace` or `grad_logits` do not fit the supernet.
    pub fn backward(&self, trace: SupernetTrace, grad_logits: Vec<Option<Tensor>>, role: Role) -> Result<Gradients> {
        let SupernetTrace { network, relaxation, choices } = trace;
        let request = BackwardRequest { relaxation: Some(&relaxation), role, image: false };
        let found = self.network.backward(network, grad_logits, request)?;
        let mut gradients = found.parameters;
        if role == Role::Architecture {
            self.choices.backward(self.parameters(), &choices, &found.relaxation, &mut gradients)?;
        }
        Ok(gradients)
    }

    /// Finest logits, `[B, K, D, H, W]`, without a trace.
    ///
    /// # Errors
    /// As [`Self::forward_with_trace`].
    pub fn predict(&self, x: &Tensor, sample: &GumbelSample) -> Result<Tensor> {
        let (relaxation, _) = self.relaxation(sample)?;
        self.network.predict(x, Some(&relaxation), self.precision)
    }

    /// Fills in the gradients of a scalar that candle's graph connects to the architecture parameters.
    pub(crate) fn differentiate(&self, scalar: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let store = scalar.backward()?;
        for (parameter, gradient) in self.parameters().iter().zip(gradients) {
            if parameter.role == Role::Architecture {
                *gradient = store.get(&parameter.var).cloned();
            }
        }
        Ok(())
    }

    /// Probability of every width (per layer) and depth of every block, without noise at temperature 1: the state of
    /// the search.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn probabilities(&self) -> Result<Vec<BlockProbabilities>> {
        let numbers = |p: &Option<Tensor>| p.as_ref().map(vector_f64).transpose();
        self.softmaxes(&self.no_noise(1.0))?
            .iter()
            .map(|p| {
                let width = p.width.iter().map(numbers).collect::<Result<_>>()?;
                Ok(BlockProbabilities { width, depth: numbers(&p.depth)? })
            })
            .collect()
    }

    /// Most probable architecture: argmax of beta per block, argmax of alpha per layer (the first on ties).
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn architecture(&self) -> Result<Architecture> {
        self.drawn_architecture(&self.no_noise(1.0))
    }

    /// Architecture that the noise of `sample` draws: argmax of `beta + noise` per block, of `alpha + noise` per layer (the
    /// first on ties). With Gumbel noise, a draw from the probabilities `softmax(alpha)`, `softmax(beta)` (Gumbel-max).
    ///
    /// # Errors
    /// If given noise does not fit the supernet, or a tensor cannot be read from its device.
    pub(crate) fn drawn_architecture(&self, sample: &GumbelSample) -> Result<Architecture> {
        let largest = |p: &Option<Tensor>| p.as_ref().map(|p| Ok::<_, Error>(argmax(&vector_f64(p)?))).transpose();
        let blocks = self.softmaxes(sample)?;
        let depths = blocks.iter().map(|p| largest(&p.depth)).collect::<Result<Vec<_>>>()?;
        let widths = |p: &BlockSoftmaxes| p.width.iter().map(largest).collect::<Result<Vec<_>>>();
        let widths = blocks.iter().map(widths).collect::<Result<Vec<_>>>()?;
        self.config().chosen(|block, layer| layer.map_or(depths[block], |layer| widths[block][layer]))
    }
}

/// Probabilities of one block's choices; none where the search space fixes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockProbabilities {
    /// Per layer, over the five widths.
    pub width: Vec<Option<Vec<f64>>>,
    /// Over the depths.
    pub depth: Option<Vec<f64>>,
}

fn vector_f64(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.to_vec1()?)
}

fn argmax(x: &[f64]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}
