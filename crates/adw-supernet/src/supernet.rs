//! The supernet: every candidate network at once, with a differentiable choice among them.
//!
//! `AwBlock` (adaptive width): a convolution of the greatest width whose output channels are gated by
//! `m = sum_i g_i M_i`, `g = softmax((alpha + noise) / tau)`, `M_i` ones in the leading `width_i` channels.
//! `AdwBlock` (adaptive depth and width): up to `max_depth` of those in a row, and `sum_l h_l out_l` with
//! `h = softmax((beta + noise) / tau)` as output. Only the deepest path is computed.

#[cfg(feature = "cuda")]
mod on_device;

use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::network::{Choice, ChoiceGradient, Choices, Network, Widths, vector_f64};
use crate::parameters::{Builder, Gradients, Parameter, Role};
use crate::space::{NUM_WIDTHS, SupernetConfig, width_options};
use adw_tensor_ops::conv3d::Precision;
use adw_tensor_ops::gumbel_softmax::{self, gumbel_softmax};
use adw_tensor_ops::loss::DiceCe;
use adw_tensor_ops::philox::{Purpose, Stream};
use adw_tensor_ops::width_mask;
use candle_core::{DType, Device, Tensor};

/// Names the Gumbel noise of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    /// Of the run.
    pub seed: u64,
    /// Training epoch.
    pub epoch: u32,
    /// Iteration of the epoch; below 2^29.
    pub iteration: u32,
    /// Pass within the iteration; below 8.
    pub pass: u32,
}

/// Noise of one block: `[5]` per layer, `[max_depth]` for the depth.
#[derive(Clone, Debug)]
pub struct BlockNoise {
    /// Per layer.
    pub width: Vec<Tensor>,
    /// Over the depths.
    pub depth: Tensor,
}

/// Where the noise of a pass comes from.
#[derive(Clone, Debug)]
pub enum Noise {
    /// There is none.
    Zero,
    /// Drawn by counter: a function of the key, the same on every device.
    Keyed(NoiseKey),
    /// Per block.
    Given(Vec<BlockNoise>),
}

/// The noise of every block, and the temperature: what one pass needs besides the batch.
#[derive(Clone, Debug)]
pub struct GumbelSample {
    /// Of all softmaxes.
    pub noise: Noise,
    /// Temperature of all softmaxes.
    pub tau: f64,
}

impl NoiseKey {
    /// [`Stream::iteration`] of a pass.
    fn counter(&self) -> u32 {
        self.iteration * 8 + self.pass
    }

    fn stream(&self, purpose: Purpose, index: usize) -> Stream {
        Stream { seed: self.seed, purpose, epoch: self.epoch, iteration: self.counter(), index: index as u32 }
    }
}

/// What the choices of a pass were computed by.
enum Origin {
    /// On the host, with candle's graph behind them.
    Graph(Vec<Choice>),
    /// By one launch.
    #[cfg(feature = "cuda")]
    Kernel(on_device::Chosen),
}

/// The softmaxes of one block.
pub(crate) struct Probabilities {
    /// `[5]` per layer, unless widths are fixed.
    pub(crate) width: Vec<Option<Tensor>>,
    /// `[L]`, unless the depth is fixed.
    pub(crate) depth: Option<Tensor>,
}

/// The AdwU-Net supernet. Parameters: those of [`Unet`](crate::Unet), `block.{i}.conv.{l}.alpha` and `block.{i}.depth`.
pub struct Supernet {
    network: Network,
    config: SupernetConfig,
    /// Per block: parameter index of alpha per layer, and of the depth's beta.
    alphas: Vec<Vec<Option<usize>>>,
    depths: Vec<Option<usize>>,
    /// Per block: `[5, C]`, on the host.
    masks: Vec<Tensor>,
    dtype: DType,
    pub(crate) device: Device,
}

impl Supernet {
    /// He-initialised weights, a function of `seed`; alpha and beta zero: every choice equally likely.
    ///
    /// # Errors
    /// If the configuration is not valid, or tensors cannot be made on the device.
    pub fn new(config: SupernetConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        config.check()?;
        let width = |block: usize| config.block_max_width(block);
        let num_blocks = config.num_blocks();
        let widths = Widths {
            blocks: (0..num_blocks).map(|i| vec![width(i); config.max_depth]).collect(),
            ups: (config.poolings() + 1..num_blocks).map(width).collect(),
        };
        let mut alphas = vec![vec![None; config.max_depth]; num_blocks];
        let mut depths = vec![None; num_blocks];
        let space = config.space;
        let network = Network::build(
            Builder::new(seed, dtype, device),
            config.in_channels,
            config.num_classes,
            &config.strides,
            &config.kernels,
            &widths,
            |builder, i, layer| {
                match layer {
                    Some(l) if space.searches_width() => {
                        let name = format!("block.{i}.conv.{l}.alpha");
                        alphas[i][l] = Some(builder.constant(name, Role::Architecture, NUM_WIDTHS, 0.0)?);
                    }
                    None if space.searches_depth() => {
                        let name = format!("block.{i}.depth");
                        depths[i] = Some(builder.constant(name, Role::Architecture, config.max_depth, 0.0)?);
                    }
                    _ => {}
                }
                Ok(())
            },
        )?;
        let masks = (0..num_blocks)
            .map(|i| Ok(width_mask::masks(&width_options(width(i)), width(i), dtype, &Device::Cpu)?))
            .collect::<Result<_>>()?;
        Ok(Self { network, config, alphas, depths, masks, dtype, device: device.clone() })
    }

    /// What it was built from.
    pub fn config(&self) -> &SupernetConfig {
        &self.config
    }

    /// Weights and architecture parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.network.parameters
    }

    /// The constants of the loss; the paper's by default.
    pub fn set_loss(&mut self, loss: DiceCe) {
        self.network.loss = loss;
    }

    /// What the layers' factors are rounded to; [`Precision::Full`] at first. Where it is not
    /// [available](Precision::is_available), passes fail.
    pub fn set_precision(&mut self, precision: Precision) {
        self.network.precision = precision;
    }

    /// Fresh noise, a function of `key`: the same on every device.
    ///
    /// # Errors
    /// If the key names a pass or iteration that cannot be told from others.
    pub fn sample(&self, key: NoiseKey, tau: f64) -> Result<GumbelSample> {
        if key.pass >= 8 || key.iteration >= 1 << 29 {
            return Err(Error::Input(format!("noise of {key:?}, expected a pass below 8 and an iteration below 2^29")));
        }
        let noise = Noise::Keyed(key);
        Ok(GumbelSample { noise, tau })
    }

    /// Zero noise: what evaluation uses. (Deviation: the published code draws noise in evaluation too.)
    pub fn no_noise(&self, tau: f64) -> GumbelSample {
        let noise = Noise::Zero;
        GumbelSample { noise, tau }
    }

    /// The numbers of a sample, per block, on the host.
    ///
    /// # Errors
    /// If given noise does not fit the supernet.
    pub fn noise(&self, sample: &GumbelSample) -> Result<Vec<BlockNoise>> {
        let (num_blocks, depth) = (self.config.num_blocks(), self.config.max_depth);
        if let Noise::Given(blocks) = &sample.noise {
            if blocks.len() != num_blocks {
                return Err(Error::Input(format!(
                    "noise for {} blocks, but the supernet has {num_blocks}",
                    blocks.len()
                )));
            }
            if let Some(block) = blocks.iter().find(|b| b.width.len() != depth) {
                let got = block.width.len();
                return Err(Error::Input(format!("noise for {got} layers of a block, but the supernet has {depth}")));
            }
            return Ok(blocks.clone());
        }
        let noise = |purpose, index, n| -> Result<Tensor> {
            Ok(match sample.noise {
                Noise::Keyed(key) => {
                    let stream = key.stream(purpose, index);
                    gumbel_softmax::noise(stream, n, self.dtype, &Device::Cpu)?
                }
                _ => Tensor::zeros(n, self.dtype, &Device::Cpu)?,
            })
        };
        (0..num_blocks)
            .map(|i| {
                let width =
                    (0..depth).map(|l| noise(Purpose::WidthNoise, i * depth + l, NUM_WIDTHS)).collect::<Result<_>>()?;
                let depth = noise(Purpose::DepthNoise, i, depth)?;
                Ok(BlockNoise { width, depth })
            })
            .collect()
    }

    /// Every softmax of a pass, on the host, with candle's graph behind it.
    pub(crate) fn probabilities(&self, sample: &GumbelSample) -> Result<Vec<Probabilities>> {
        let softmax = |parameter: Option<usize>, noise: &Tensor| {
            let var = parameter.map(|p| self.network.parameters[p].var.as_tensor());
            var.map(|logits| {
                let logits = logits.to_device(&Device::Cpu)?;
                Ok::<_, Error>(gumbel_softmax(&logits, noise, sample.tau)?)
            })
            .transpose()
        };
        (self.noise(sample)?.iter().zip(&self.alphas).zip(&self.depths))
            .map(|((noise, alphas), &depth)| {
                let width = alphas.iter().zip(&noise.width).map(|(&a, n)| softmax(a, n)).collect::<Result<_>>()?;
                Ok(Probabilities { width, depth: softmax(depth, &noise.depth)? })
            })
            .collect()
    }

    /// The choices of a pass, and what the gradients by alpha and beta come from.
    fn choices(&self, sample: &GumbelSample) -> Result<(Choices, Origin)> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(_), Noise::Zero | Noise::Keyed(_)) = (&self.device, &sample.noise) {
            let chosen = on_device::Chosen::new(self, sample)?;
            let blocks = chosen.blocks(self);
            let position = self.config.mask;
            return Ok((Choices { position, blocks }, Origin::Kernel(chosen)));
        }
        let blocks: Vec<Choice> = (self.probabilities(sample)?.iter().zip(&self.masks))
            .map(|(p, masks)| {
                let gate = |g: &Option<Tensor>| g.as_ref().map(|g| Ok(width_mask::gate(g, masks)?)).transpose();
                Ok(Choice { gates: p.width.iter().map(gate).collect::<Result<_>>()?, depth: p.depth.clone() })
            })
            .collect::<Result<_>>()?;
        let to_device = |t: &Option<Tensor>| t.as_ref().map(|t| t.to_device(&self.device)).transpose();
        let there = blocks
            .iter()
            .map(|choice| {
                Ok(Choice {
                    gates: (choice.gates.iter().map(to_device)).collect::<candle_core::Result<_>>()?,
                    depth: to_device(&choice.depth)?,
                })
            })
            .collect::<Result<_>>()?;
        let choices = Choices { position: self.config.mask, blocks: there };
        Ok((choices, Origin::Graph(blocks)))
    }

    /// Logits of every decoder stage, fine to coarse, each `[B, K, D, H, W]`, for `x [B, C, D, H, W]`.
    ///
    /// # Errors
    /// If `x` does not have the right channels, or its size is not a multiple of the product of the strides.
    pub fn forward(&self, x: &Tensor, sample: &GumbelSample) -> Result<Vec<Tensor>> {
        let (choices, _) = self.choices(sample)?;
        self.network.forward(x, Some(&choices), true)
    }

    /// The finest logits alone, `[B, K, D, H, W]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn predict(&self, x: &Tensor, sample: &GumbelSample) -> Result<Tensor> {
        let (choices, _) = self.choices(sample)?;
        Ok(self.network.forward(x, Some(&choices), false)?.swap_remove(0))
    }

    /// The deep-supervision loss and its gradients by the parameters of role `wanted`. `target`: `[B, D, H, W]`,
    /// integers. With `Role::Architecture` no weight gradient is computed.
    ///
    /// # Errors
    /// As [`Self::forward`], or if the target does not fit.
    pub fn loss_and_gradients(
        &self,
        x: &Tensor,
        target: &Tensor,
        sample: &GumbelSample,
        wanted: Role,
    ) -> Result<(f64, Gradients)> {
        let (choices, origin) = self.choices(sample)?;
        let (loss, mut gradients, by_choice) = self.network.loss_and_gradients(x, target, Some(&choices), wanted)?;
        if wanted == Role::Architecture {
            match &origin {
                Origin::Graph(choices) => {
                    self.architecture_gradients(choices, &by_choice, &mut gradients)?;
                }
                #[cfg(feature = "cuda")]
                Origin::Kernel(chosen) => chosen.gradients(self, &by_choice, &mut gradients)?,
            }
        }
        Ok((loss.value()?, gradients))
    }

    /// From gradients by gates and depth weights to those by alpha and beta, through candle's graph of the softmaxes.
    fn architecture_gradients(
        &self,
        choices: &[Choice],
        by_choice: &[ChoiceGradient],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let host = |t: &Tensor| t.to_device(&Device::Cpu);
        let mut terms = Vec::new();
        for (choice, gradient) in choices.iter().zip(by_choice) {
            for (gate, g) in choice.gates.iter().zip(&gradient.gates) {
                if let (Some(gate), Some(g)) = (gate, g) {
                    terms.push((gate * host(g)?)?.sum_all()?);
                }
            }
            if let Some(h) = &choice.depth {
                let sums: Vec<Tensor> =
                    gradient.depth.iter().map(|g| host(g)?.sum_all()).collect::<candle_core::Result<_>>()?;
                terms.push((h * Tensor::stack(&sums, 0)?)?.sum_all()?);
            }
        }
        self.differentiate(&Tensor::stack(&terms, 0)?.sum_all()?, gradients)
    }

    /// Fills in the gradients of a scalar that candle's graph connects to the architecture parameters.
    pub(crate) fn differentiate(&self, scalar: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let store = scalar.backward()?;
        for (parameter, gradient) in self.network.parameters.iter().zip(gradients) {
            if parameter.role == Role::Architecture {
                *gradient = store.get(&parameter.var).cloned();
            }
        }
        Ok(())
    }

    /// Probability of every width (per layer) and depth of every block, without noise at temperature 1: the state of the
    /// search.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn preferences(&self) -> Result<Vec<BlockPreference>> {
        let softmax = |p: &Option<Tensor>| p.as_ref().map(vector_f64).transpose();
        self.probabilities(&self.no_noise(1.0))?
            .iter()
            .map(|p| {
                let width = p.width.iter().map(softmax).collect::<Result<_>>()?;
                Ok(BlockPreference { width, depth: softmax(&p.depth)? })
            })
            .collect()
    }

    /// The most probable architecture: argmax of beta per block, argmax of alpha per layer (the first on ties).
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn architecture(&self) -> Result<Architecture> {
        let blocks = self
            .preferences()?
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let options = width_options(self.config.block_max_width(i));
                let depth = p.depth.as_ref().map_or(self.config.max_depth, |h| argmax(h) + 1);
                p.width[..depth]
                    .iter()
                    .map(|g| g.as_ref().map_or(self.config.block_max_width(i), |g| options[argmax(g)]))
                    .collect()
            })
            .collect();
        let c = &self.config;
        Architecture::new(c.in_channels, c.num_classes, c.strides.clone(), c.kernels.clone(), blocks)
    }
}

/// Probabilities of one block's choices; `None` where the search space fixes them.
#[derive(Clone, Debug)]
pub struct BlockPreference {
    /// Per layer, over the five widths.
    pub width: Vec<Option<Vec<f64>>>,
    /// Over the depths.
    pub depth: Option<Vec<f64>>,
}

fn argmax(x: &[f64]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}
