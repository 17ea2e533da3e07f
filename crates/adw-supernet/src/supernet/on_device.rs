//! Every softmax of a pass in one launch, and their backward pass in another.

use super::{Noise, Supernet};
use crate::error::Result;
use crate::network::{Choice, ChoiceGradient};
use crate::parameters::Gradients;
use crate::space::width_options;
use adw_tensor_ops::gumbel_softmax::cuda::Pass;
use adw_tensor_ops::gumbel_softmax::on_device::{self, ByOption, Options, Softmax};
use adw_tensor_ops::philox::Purpose;

/// The choices of one pass.
pub(super) struct Chosen {
    softmaxes: Vec<Softmax>,
    pass: Pass,
}

impl Chosen {
    pub(super) fn new(net: &Supernet, sample: &super::GumbelSample) -> Result<Self> {
        let pass = match sample.noise {
            Noise::Keyed(key) => {
                Pass { seed: key.seed, epoch: key.epoch, iteration: key.counter(), noisy: true, tau: sample.tau }
            }
            _ => Pass { seed: 0, epoch: 0, iteration: 0, noisy: false, tau: sample.tau },
        };
        let max_depth = net.config.max_depth;
        let mut options = Vec::new();
        for (i, parameter, purpose, index) in choices(net) {
            let channels = net.config.block_max_width(i);
            options.push(Options {
                logits: net.network.parameters[parameter].var.as_tensor(),
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

    /// As the network takes them.
    pub(super) fn blocks(&self, net: &Supernet) -> Vec<Choice> {
        let mut blocks: Vec<Choice> = (0..net.config.num_blocks())
            .map(|_| Choice { gates: vec![None; net.config.max_depth], depth: None })
            .collect();
        for ((i, _, _, layer), softmax) in choices(net).into_iter().zip(&self.softmaxes) {
            match layer {
                Some(l) => blocks[i].gates[l].clone_from(&softmax.gate),
                None => blocks[i].depth = Some(softmax.probabilities.clone()),
            }
        }
        blocks
    }

    /// Gradients by alpha and beta from those by the choices.
    pub(super) fn gradients(
        &self,
        net: &Supernet,
        by_choice: &[ChoiceGradient],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let choices = choices(net);
        let by_option = choices
            .iter()
            .map(|&(i, _, _, layer)| match layer {
                Some(l) => {
                    let gate = by_choice[i].gates[l].as_ref();
                    ByOption::Gate(gate.expect("a gate that was there has a gradient"))
                }
                None => ByOption::Options(&by_choice[i].depth),
            })
            .collect::<Vec<_>>();
        let logits = on_device::backward(&self.softmaxes, &by_option, &self.pass)?;
        for ((_, parameter, _, _), gradient) in choices.into_iter().zip(logits) {
            gradients[parameter] = Some(gradient);
        }
        Ok(())
    }
}

/// Block, parameter and purpose of every choice, and the layer of a width choice.
fn choices(net: &Supernet) -> Vec<(usize, usize, Purpose, Option<usize>)> {
    let mut all = Vec::new();
    for (i, (alphas, &depth)) in net.alphas.iter().zip(&net.depths).enumerate() {
        let widths = alphas.iter().enumerate();
        all.extend(widths.filter_map(|(l, &a)| Some((i, a?, Purpose::WidthNoise, Some(l)))));
        all.extend(depth.map(|d| (i, d, Purpose::DepthNoise, None)));
    }
    all
}
