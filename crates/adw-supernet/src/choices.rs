//! Choices of a supernet: a softmax over the candidate widths of every layer and over the depths of every block.

use crate::error::{Error, Result};
use crate::network::{BlockRelaxation, RelaxationGradient};
use crate::noise::GumbelSample;
use crate::parameters::{Parameter, ParameterBuilder, Role};
use crate::space::{NUM_WIDTHS, SupernetConfig, width_options};
use adw_tensor_ops::gumbel_softmax::gumbel_softmax;
use adw_tensor_ops::width_mask;
use candle_core::{DType, Device, Tensor};

/// Parameters of all choices, and the masks of the candidate widths.
pub(crate) struct Choices {
    pub(crate) config: SupernetConfig,
    /// Per block and layer: parameter index of alpha, unless widths are fixed.
    pub(crate) alphas: Vec<Vec<Option<usize>>>,
    /// Per block: parameter index of beta, unless depths are fixed.
    pub(crate) betas: Vec<Option<usize>>,
    /// Per block: `[5, C]`, on the host.
    masks: Vec<Tensor>,
    dtype: DType,
}

/// Results of one block's softmaxes; none where the search space fixes the choice.
pub(crate) struct BlockSoftmaxes {
    /// `[5]` per layer.
    pub(crate) width: Vec<Option<Tensor>>,
    /// `[max_depth]`
    pub(crate) depth: Option<Tensor>,
}

impl Choices {
    /// Choices without parameters yet, see [`Self::add_parameters`].
    pub(crate) fn new(config: SupernetConfig, dtype: DType) -> Result<Self> {
        let num_blocks = config.num_blocks();
        let masks = (0..num_blocks)
            .map(|i| {
                let max = config.block_max_width(i);
                Ok(width_mask::masks(&width_options(max), max, dtype, &Device::Cpu)?)
            })
            .collect::<Result<_>>()?;
        let alphas = vec![vec![None; config.max_depth]; num_blocks];
        Ok(Self { config, alphas, betas: vec![None; num_blocks], masks, dtype })
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
                self.betas[block] = Some(builder.constant(name, Role::Architecture, self.config.max_depth, 0.0)?);
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

    /// Gates and depth weights of every block, on the host, recorded in candle's graph.
    pub(crate) fn relaxation(&self, parameters: &[Parameter], sample: &GumbelSample) -> Result<Vec<BlockRelaxation>> {
        (self.softmaxes(parameters, sample)?.into_iter().zip(&self.masks))
            .map(|(softmaxes, masks)| {
                let gate = |g: &Option<Tensor>| g.as_ref().map(|g| Ok(width_mask::gate(g, masks)?)).transpose();
                let gates = softmaxes.width.iter().map(gate).collect::<Result<_>>()?;
                Ok(BlockRelaxation { gates, depth_weights: softmaxes.depth })
            })
            .collect()
    }
}

/// Scalar whose gradient by alpha and beta, through candle's graph of `blocks`, is that of the loss.
pub(crate) fn surrogate(blocks: &[BlockRelaxation], gradients: &[RelaxationGradient]) -> Result<Tensor> {
    let host = |t: &Tensor| t.to_device(&Device::Cpu);
    let mut terms = Vec::new();
    for (block, gradient) in blocks.iter().zip(gradients) {
        for (gate, g) in block.gates.iter().zip(&gradient.gates) {
            if let (Some(gate), Some(g)) = (gate, g) {
                terms.push((gate * host(g)?)?.sum_all()?);
            }
        }
        if let Some(h) = &block.depth_weights {
            let sums: Vec<Tensor> =
                gradient.depth_weights.iter().map(|g| host(g)?.sum_all()).collect::<candle_core::Result<_>>()?;
            terms.push((h * Tensor::stack(&sums, 0)?)?.sum_all()?);
        }
    }
    Ok(Tensor::stack(&terms, 0)?.sum_all()?)
}
