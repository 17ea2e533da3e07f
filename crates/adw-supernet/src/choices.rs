//! Choices of a supernet: a softmax over the candidate widths of every layer and over the depths of every block.

use crate::error::{Error, Result};
use crate::network::{BlockRelaxation, RelaxationGradient};
use crate::noise::{GumbelNoise, GumbelSample};
use crate::parameters::{Gradients, Parameter, ParameterBuilder, Role};
use crate::space::{NUM_WIDTHS, SupernetConfig, width_options};
use adw_tensor_ops::gumbel_softmax::{
    self, GumbelDraw, SoftmaxGradient, SoftmaxNoise, SoftmaxOutput, SoftmaxSpec, gumbel_softmax,
};
use adw_tensor_ops::philox::Purpose;
use candle_core::{DType, Device, Tensor};

/// Parameters of all choices.
pub(crate) struct Choices {
    pub(crate) config: SupernetConfig,
    /// Per block and layer: parameter index of alpha, unless widths are fixed.
    pub(crate) alphas: Vec<Vec<Option<usize>>>,
    /// Per block: parameter index of beta, unless depths are fixed.
    pub(crate) betas: Vec<Option<usize>>,
    dtype: DType,
}

/// Results of one block's softmaxes; none where the search space fixes the choice.
pub(crate) struct BlockSoftmaxes {
    /// `[5]` per layer.
    pub(crate) width: Vec<Option<Tensor>>,
    /// `[num_layers]`
    pub(crate) depth: Option<Tensor>,
}

impl Choices {
    /// Choices without parameters yet, see [`Self::add_parameters`].
    pub(crate) fn new(config: SupernetConfig, dtype: DType) -> Self {
        let num_blocks = config.num_blocks();
        let alphas = vec![vec![None; config.num_layers()]; num_blocks];
        Self { config, alphas, betas: vec![None; num_blocks], dtype }
    }

    /// Adds alpha of a layer or, with no layer, beta of a block, all zero: every candidate equally likely.
    pub(crate) fn add_parameters(
        &mut self,
        builder: &mut ParameterBuilder,
        block: usize,
        layer: Option<usize>,
    ) -> Result<()> {
        let space = self.config.space;
        match layer {
            Some(l) if space.searches_width() => {
                let name = format!("block.{block}.conv.{l}.alpha");
                self.alphas[block][l] = Some(builder.constant(name, Role::Architecture, NUM_WIDTHS, 0.0)?);
            }
            None if space.searches_depth() => {
                let name = format!("block.{block}.depth");
                self.betas[block] = Some(builder.constant(name, Role::Architecture, self.config.num_layers(), 0.0)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Every softmax of a pass, on the host, recorded in candle's graph.
    pub(crate) fn softmaxes(&self, parameters: &[Parameter], sample: &GumbelSample) -> Result<Vec<BlockSoftmaxes>> {
        let softmax = |parameter: Option<usize>, noise: &Tensor| {
            parameter
                .map(|p| {
                    let logits = parameters[p].var.to_device(&Device::Cpu)?;
                    Ok::<_, Error>(gumbel_softmax(&logits, noise, sample.tau)?)
                })
                .transpose()
        };
        (sample.noise.blocks(&self.config, self.dtype)?.iter().zip(&self.alphas).zip(&self.betas))
            .map(|((noise, alphas), &beta)| {
                let width = alphas.iter().zip(&noise.width).map(|(&a, n)| softmax(a, n)).collect::<Result<_>>()?;
                Ok(BlockSoftmaxes { width, depth: softmax(beta, &noise.depth)? })
            })
            .collect()
    }

    /// Softmaxes of all choices: widths of a block's layers, then its depth, block after block.
    fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        for (block, (alphas, &beta)) in self.alphas.iter().zip(&self.betas).enumerate() {
            let widths = alphas.iter().enumerate();
            sites.extend(widths.filter_map(|(l, &alpha)| Some(Site { block, layer: Some(l), parameter: alpha? })));
            sites.extend(beta.map(|parameter| Site { block, layer: None, parameter }));
        }
        sites
    }

    fn specs<'a>(&self, sites: &[Site], parameters: &'a [Parameter]) -> Vec<SoftmaxSpec<'a>> {
        let spec = |site: &Site| {
            let channels = self.config.block_max_width(site.block);
            let index = site.layer.map_or(site.block, |l| site.block * self.config.num_layers() + l);
            SoftmaxSpec {
                logits: parameters[site.parameter].var.as_tensor(),
                purpose: if site.layer.is_some() { Purpose::WidthNoise } else { Purpose::DepthNoise },
                index: index as u32,
                widths: site.layer.map(|_| width_options(channels).to_vec()),
                channels,
            }
        };
        sites.iter().map(spec).collect()
    }

    /// Noise of every softmax, and the temperature.
    fn draw(&self, sites: &[Site], sample: &GumbelSample) -> Result<GumbelDraw> {
        let noise = match &sample.noise {
            GumbelNoise::Zero => SoftmaxNoise::Zero,
            GumbelNoise::Keyed(key) => {
                SoftmaxNoise::Streams { seed: key.seed, epoch: key.epoch, iteration: key.counter()? }
            }
            GumbelNoise::Given(_) => {
                let blocks = sample.noise.blocks(&self.config, self.dtype)?;
                let of_site = |site: &Site| match site.layer {
                    Some(l) => blocks[site.block].width[l].clone(),
                    None => blocks[site.block].depth.clone(),
                };
                SoftmaxNoise::Given(sites.iter().map(of_site).collect())
            }
        };
        Ok(GumbelDraw { noise, tau: sample.tau })
    }

    /// Values of all softmaxes of a pass, on the parameters' device.
    pub(crate) fn sampled(&self, parameters: &[Parameter], sample: &GumbelSample) -> Result<SampledChoices> {
        let sites = self.sites();
        let draw = self.draw(&sites, sample)?;
        let outputs = gumbel_softmax::forward(&self.specs(&sites, parameters), &draw)?;
        Ok(SampledChoices { draw, outputs })
    }

    /// Gates and depth weights of every block.
    pub(crate) fn relaxation(&self, sampled: &SampledChoices) -> Vec<BlockRelaxation> {
        let mut blocks: Vec<BlockRelaxation> = (0..self.config.num_blocks())
            .map(|_| BlockRelaxation { gates: vec![None; self.config.num_layers()], depth_weights: None })
            .collect();
        for (site, output) in self.sites().into_iter().zip(&sampled.outputs) {
            match site.layer {
                Some(l) => blocks[site.block].gates[l].clone_from(&output.gate),
                None => blocks[site.block].depth_weights = Some(output.probabilities.clone()),
            }
        }
        blocks
    }

    /// Fills in the gradients with respect to alpha and beta from those by gates and depth weights.
    ///
    /// # Errors
    /// If a gradient does not fit its softmax.
    pub(crate) fn backward(
        &self,
        parameters: &[Parameter],
        sampled: &SampledChoices,
        relaxation: &[RelaxationGradient],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let sites = self.sites();
        let by_output: Vec<_> = (sites.iter())
            .map(|site| match site.layer {
                Some(l) => {
                    let gate = relaxation[site.block].gates[l].as_ref();
                    SoftmaxGradient::Gate(gate.expect("the backward pass gives every gate a gradient"))
                }
                None => SoftmaxGradient::Options(&relaxation[site.block].depth_weights),
            })
            .collect();
        let specs = self.specs(&sites, parameters);
        let by_logits = gumbel_softmax::backward(&specs, &sampled.draw, &sampled.outputs, &by_output)?;
        for (site, gradient) in sites.iter().zip(by_logits) {
            gradients[site.parameter] = Some(gradient);
        }
        Ok(())
    }
}

/// Place of a choice in the supernet: a block's depth, or the width of one of its layers.
struct Site {
    block: usize,
    layer: Option<usize>,
    /// Index of alpha or beta among the parameters.
    parameter: usize,
}

/// Values of all softmaxes of a pass, and the noise they were computed with.
pub(crate) struct SampledChoices {
    draw: GumbelDraw,
    outputs: Vec<SoftmaxOutput>,
}
