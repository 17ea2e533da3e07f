//! Networks cut out of a supernet.

use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::parameters::ParameterBuilder;
use crate::supernet::Supernet;
use crate::unet::Unet;
use candle_core::{Shape, Tensor};
use std::collections::HashMap;

impl Supernet {
    /// Cuts out the network of `architecture`: a discrete network with a copy of the part of the supernet's weights that its
    /// architecture selects, of every layer the leading channels, as the width gates do.
    ///
    /// It computes what the supernet computes when its choices are one-hot, if the supernet's gates stand behind the
    /// normalisation and [`gate_up`](crate::SupernetConfig::gate_up) is set, at the cost of the small network.
    ///
    /// # Errors
    /// If the architecture is not one of the search space's stages, or has more layers or channels than the supernet.
    pub fn subnet(&self, architecture: &Architecture) -> Result<Unet> {
        self.check_contains(architecture)?;
        let weights: HashMap<&str, &Tensor> =
            self.parameters().iter().map(|p| (p.name.as_str(), p.var.as_tensor())).collect();
        let value = |name: &str, shape: &Shape| {
            let whole = weights.get(name).ok_or_else(|| Error::Architecture(format!("no weight {name}")))?;
            cut(whole, shape, &self.inputs_of(name, shape, architecture))
        };
        let device = self.parameters()[0].var.device();
        let mut net = Unet::build(architecture, ParameterBuilder::of(&value, self.dtype, device))?;
        net.set_precision(self.precision);
        Ok(net)
    }

    /// Ranges of a weight's second axis. Behind a concatenation the skip's channels follow the widest upsampled map.
    fn inputs_of(&self, name: &str, shape: &Shape, architecture: &Architecture) -> Vec<(usize, usize)> {
        let Some(&inputs) = shape.dims().get(1) else { return vec![] };
        let poolings = architecture.poolings();
        match decoder_block_of_first_layer(name).filter(|&block| block > poolings) {
            None => vec![(0, inputs)],
            Some(block) => {
                let up = architecture.up_width(block - poolings - 1);
                vec![(0, up), (self.config().block_max_width(block), inputs - up)]
            }
        }
    }

    fn check_contains(&self, architecture: &Architecture) -> Result<()> {
        let largest = self.config().largest()?;
        let stages = |a: &Architecture| (a.in_channels, a.num_classes, a.strides.clone(), a.kernels.clone());
        let fits = architecture.blocks.iter().zip(&largest.blocks).all(|(block, largest)| {
            block.len() <= largest.len() && block.iter().zip(largest).all(|(width, largest)| width <= largest)
        });
        if stages(architecture) != stages(&largest) {
            let message = format!("{architecture} has other channels, classes, strides or kernels than the supernet");
            return Err(Error::Architecture(message));
        }
        if fits {
            return Ok(());
        }
        Err(Error::Architecture(format!("{architecture} is no part of the supernet's largest network, {largest}")))
    }
}

/// Block whose first layer's weight has this name.
fn decoder_block_of_first_layer(name: &str) -> Option<usize> {
    name.strip_prefix("block.")?.strip_suffix(".conv.0.weight")?.parse().ok()
}

/// Leading entries of `whole` along the first axis, ranges (start, length) along the second, together shaped `shape`; no ranges
/// for vectors.
fn cut(whole: &Tensor, shape: &Shape, inputs: &[(usize, usize)]) -> Result<Tensor> {
    let rows = whole.narrow(0, 0, shape.dims()[0])?;
    let parts: Vec<_> =
        inputs.iter().map(|&(start, n)| rows.narrow(1, start, n)).collect::<std::result::Result<_, _>>()?;
    Ok(if parts.is_empty() { rows.copy()? } else { Tensor::cat(&parts, 1)? })
}
