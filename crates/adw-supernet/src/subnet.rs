//! Networks cut out of a supernet.

use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::parameters::{Gradients, ParameterBuilder};
use crate::supernet::Supernet;
use crate::unet::Unet;
use candle_core::{Shape, Tensor};
use std::collections::HashMap;

/// A discrete network with a copy of the part of a supernet's weights that its architecture selects: of every layer the
/// leading channels, as the width gates do.
///
/// It computes what the supernet computes when its choices are one-hot, if the supernet's gates stand behind the
/// normalisation and [`gate_up`](crate::SupernetConfig::gate_up) is set, at the cost of the small network.
pub struct Subnet {
    net: Unet,
    /// Part of the supernet's parameter that each parameter of `net` is a copy of.
    cuts: Vec<Cut>,
    /// Shapes of the supernet's parameters.
    shapes: Vec<Shape>,
}

/// Part of a parameter: leading entries along the first axis, ranges along the second.
struct Cut {
    parameter: usize,
    /// Ranges (start, length) along the second axis; empty for vectors.
    inputs: Vec<(usize, usize)>,
}

impl Supernet {
    /// Cuts out the network of `architecture`.
    ///
    /// # Errors
    /// If the architecture is not one of the search space's stages, or has more layers or channels than the supernet.
    pub fn subnet(&self, architecture: &Architecture) -> Result<Subnet> {
        self.check_contains(architecture)?;
        let index: HashMap<&str, usize> =
            self.parameters().iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
        let cut = |name: &str, shape: &Shape| {
            let parameter = *index.get(name).ok_or_else(|| Error::Architecture(format!("no weight {name}")))?;
            Ok::<_, Error>(Cut { parameter, inputs: self.inputs_of(name, shape, architecture) })
        };
        let value =
            |name: &str, shape: &Shape| cut(name, shape)?.of(self.parameters()[index[name]].var.as_tensor(), shape);
        let device = self.parameters()[0].var.device();
        let mut net = Unet::build(architecture, ParameterBuilder::of(&value, self.dtype, device))?;
        net.set_precision(self.precision);
        let cuts = net.parameters().iter().map(|p| cut(&p.name, p.var.shape())).collect::<Result<_>>()?;
        Ok(Subnet { net, cuts, shapes: self.parameters().iter().map(|p| p.var.shape().clone()).collect() })
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
        if stages(architecture) == stages(&largest) && fits {
            return Ok(());
        }
        Err(Error::Architecture(format!("{architecture} is no part of the supernet's largest network, {largest}")))
    }
}

/// Block whose first layer's weight has this name.
fn decoder_block_of_first_layer(name: &str) -> Option<usize> {
    name.strip_prefix("block.")?.strip_suffix(".conv.0.weight")?.parse().ok()
}

impl Cut {
    /// The part of `whole`, shaped `shape`.
    fn of(&self, whole: &Tensor, shape: &Shape) -> Result<Tensor> {
        let rows = whole.narrow(0, 0, shape.dims()[0])?;
        let parts: Vec<_> =
            self.inputs.iter().map(|&(start, n)| rows.narrow(1, start, n)).collect::<std::result::Result<_, _>>()?;
        Ok(if parts.is_empty() { rows.copy()? } else { Tensor::cat(&parts, 1)? })
    }

    /// A tensor of `shape` that holds `part` at its place and zeros elsewhere.
    fn spread(&self, part: &Tensor, shape: &Shape) -> Result<Tensor> {
        let mut part = part.clone();
        if !self.inputs.is_empty() {
            let total = shape.dims()[1];
            let (mut pieces, mut taken, mut at) = (Vec::new(), 0, 0);
            for &(start, n) in &self.inputs {
                pieces.push(zeros(&part, 1, start - at)?);
                pieces.push(Some(part.narrow(1, taken, n)?));
                (taken, at) = (taken + n, start + n);
            }
            pieces.push(zeros(&part, 1, total - at)?);
            part = Tensor::cat(&pieces.into_iter().flatten().collect::<Vec<_>>(), 1)?;
        }
        Ok(match zeros(&part, 0, shape.dims()[0] - part.dim(0)?)? {
            None => part,
            Some(rest) => Tensor::cat(&[part, rest], 0)?,
        })
    }
}

/// Zeros shaped like `like`, but `n` along `axis`; none if that is 0.
fn zeros(like: &Tensor, axis: usize, n: usize) -> Result<Option<Tensor>> {
    let mut dims = like.dims().to_vec();
    dims[axis] = n;
    Ok(if n == 0 { None } else { Some(Tensor::zeros(dims, like.dtype(), like.device())?) })
}

impl Subnet {
    /// The network. Its weights are copies: changes do not reach the supernet.
    pub fn unet(&self) -> &Unet {
        &self.net
    }

    /// The network, without its relation to the supernet.
    pub fn into_unet(self) -> Unet {
        self.net
    }

    /// Gradients by the supernet's parameters from those by the network's, [`Unet::backward`]: zero where the network has no
    /// part, none for architecture parameters and weights of absent layers.
    ///
    /// # Errors
    /// If the gradients are not those of the network.
    pub fn spread(&self, gradients: &Gradients) -> Result<Gradients> {
        let mut spread = vec![None; self.shapes.len()];
        for (gradient, cut) in gradients.iter().zip(&self.cuts) {
            if let Some(gradient) = gradient {
                spread[cut.parameter] = Some(cut.spread(gradient, &self.shapes[cut.parameter])?);
            }
        }
        Ok(spread)
    }
}
