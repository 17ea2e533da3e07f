//! Every softmax of a pass in one launch, and their backward pass in another.

use crate::choices::Choices;
use crate::error::Result;
use crate::network::{BlockRelaxation, RelaxationGradient};
use crate::noise::{GumbelNoise, GumbelSample};
use crate::parameters::{Gradients, Parameter};
use crate::space::width_options;
use adw_tensor_ops::gumbel_softmax::cuda::Pass;
use adw_tensor_ops::gumbel_softmax::on_device::{self, ByOption, Options, Softmax};
use adw_tensor_ops::philox::Purpose;

/// Softmaxes of one pass, on the device.
pub(super) struct Chosen {
    softmaxes: Vec<Softmax>,
    pass: Pass,
}

impl Chosen {
    pub(super) fn new(choices: &Choices, parameters: &[Parameter], sample: &GumbelSample) -> Result<Self> {
        let pass = match sample.noise {
            GumbelNoise::Keyed(key) => {
                Pass { seed: key.seed, epoch: key.epoch, iteration: key.counter(), noisy: true, tau: sample.tau }
            }
            _ => Pass { seed: 0, epoch: 0, iteration: 0, noisy: false, tau: sample.tau },
        };
        let max_depth = choices.config.max_depth;
        let mut options = Vec::new();
        for (i, parameter, purpose, index) in sites(choices) {
            let channels = choices.config.block_max_width(i);
            options.push(Options {
                logits: parameters[parameter].var.as_tensor(),
                purpose,
                index: match index {
                    Some(l) => (i * max_depth + l) as u32,
                    None => i as u32,
                },
                widths: index.map(|_| width_options(channels).to_vec()),
                channels,
            });
        }
        let softmaxes = on_device::forward(options, &pass)?;
        Ok(Self { softmaxes, pass })
    }

    /// Gates and depth weights of every block.
    pub(super) fn blocks(&self, choices: &Choices) -> Vec<BlockRelaxation> {
        let mut blocks: Vec<BlockRelaxation> = (0..choices.config.num_blocks())
            .map(|_| BlockRelaxation { gates: vec![None; choices.config.max_depth], depth_weights: None })
            .collect();
        for ((i, _, _, layer), softmax) in sites(choices).into_iter().zip(&self.softmaxes) {
            match layer {
                Some(l) => blocks[i].gates[l].clone_from(&softmax.gate),
                None => blocks[i].depth_weights = Some(softmax.probabilities.clone()),
            }
        }
        blocks
    }

    /// Gradients by alpha and beta from those of the relaxation.
    pub(super) fn gradients(
        &self,
        choices: &Choices,
        relaxation: &[RelaxationGradient],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let sites = sites(choices);
        let by_option = sites
            .iter()
            .map(|&(i, _, _, layer)| match layer {
                Some(l) => {
                    let gate = relaxation[i].gates[l].as_ref();
                    ByOption::Gate(gate.expect("a gate that was there has a gradient"))
                }
                None => ByOption::Options(&relaxation[i].depth_weights),
            })
            .collect::<Vec<_>>();
        let logits = on_device::backward(&self.softmaxes, &by_option, &self.pass)?;
        for ((_, parameter, _, _), gradient) in sites.into_iter().zip(logits) {
            gradients[parameter] = Some(gradient);
        }
        Ok(())
    }
}

/// Block, parameter and purpose of every choice, and the layer of a width choice.
fn sites(choices: &Choices) -> Vec<(usize, usize, Purpose, Option<usize>)> {
    let mut all = Vec::new();
    for (i, (alphas, &depth)) in choices.alphas.iter().zip(&choices.betas).enumerate() {
        let widths = alphas.iter().enumerate();
        all.extend(widths.filter_map(|(l, &a)| Some((i, a?, Purpose::WidthNoise, Some(l)))));
        all.extend(depth.map(|d| (i, d, Purpose::DepthNoise, None)));
    }
    all
}
