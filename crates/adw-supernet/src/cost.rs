//! Cost of a network: exact for a discrete network, expected and differentiable for a supernet.
//!
//! For one sample of a given patch, counted over convolutions, transposed convolutions and heads:
//! multiply-accumulates, parameters (gamma and beta included), and bytes of f32 outputs (one raw map per layer, as the
//! training keeps them). In the supernet, with `E[w_l]` the expected width of layer l of a block and `h` its depth
//! probabilities, layer l exists with probability `sum_(j >= l) h_j`, and the block is expected to be
//! `sum_l h_l E[w_l]` wide; choices are independent, so expectations of products of neighbouring widths are products of
//! expectations.

use crate::architecture::{Architecture, Encoder, Shortcut};
use crate::error::{Error, Result};
use crate::noise::GumbelSample;
use crate::parameters::Gradients;
use crate::space::width_options;
use crate::stages::{stage_of_block, stage_sizes};
use crate::supernet::Supernet;
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

/// Unit of a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostUnit {
    /// Multiply-accumulates of one forward pass of one patch.
    Macs,
    /// Weights, gamma and beta.
    Parameters,
    /// Bytes of the maps that a training pass of one patch keeps, f32.
    ActivationBytes,
}

/// Cost of a discrete network for one patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Multiply-accumulates of one forward pass.
    pub macs: u64,
    /// Weights, gamma and beta.
    pub parameters: u64,
    /// Bytes of the maps that a training pass keeps, f32.
    pub activation_bytes: u64,
}

impl Cost {
    /// Cost in the given unit.
    pub fn get(&self, unit: CostUnit) -> u64 {
        match unit {
            CostUnit::Macs => self.macs,
            CostUnit::Parameters => self.parameters,
            CostUnit::ActivationBytes => self.activation_bytes,
        }
    }
}

// Costs are scalars in f64 on the host, recorded in candle's graph where widths are: exact up to 2^53.

fn scalar(x: f64) -> Result<Tensor> {
    Ok(Tensor::new(x, &Device::Cpu)?)
}

/// Width of a layer, and the probability that the layer exists (none: certain).
struct LayerWidth {
    width: Tensor,
    exists: Option<Tensor>,
}

/// Widths of a block's layers, and width of its output.
struct BlockWidths {
    layers: Vec<LayerWidth>,
    out: Tensor,
}

/// Values that all costs depend on beside the widths.
struct NetworkGeometry<'a> {
    patch: [usize; 3],
    strides: &'a [[usize; 3]],
    kernels: &'a [[usize; 3]],
    in_channels: usize,
    num_classes: usize,
}

impl NetworkGeometry<'_> {
    /// Voxels of a map of this stage.
    fn voxels(&self, stage: usize) -> f64 {
        stage_sizes(self.strides, self.patch)[stage].iter().map(|&n| n as f64).product()
    }

    /// Sums `unit` over the network. `up_width(u)`: channels of the transposed convolution of decoder step u.
    fn total(
        &self,
        unit: CostUnit,
        blocks: &[BlockWidths],
        up_width: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let poolings = self.strides.len();
        let mut total = scalar(0.0)?;
        // Cost of one convolution with `taps` products per pair of channels and output voxel.
        let conv = |c_in: &Tensor, c_out: &Tensor, taps: f64, voxels: f64, affine: bool| -> Result<Tensor> {
            Ok(match unit {
                CostUnit::Macs => ((c_in * c_out)? * (taps * voxels))?,
                CostUnit::Parameters if affine => (((c_in * c_out)? * taps)? + (c_out * 2.0)?)?,
                CostUnit::Parameters => ((c_in * c_out)? * taps)?,
                CostUnit::ActivationBytes => (c_out * (4.0 * voxels))?,
            })
        };
        for (i, block) in blocks.iter().enumerate() {
            let stage = stage_of_block(poolings, i);
            let voxels = self.voxels(stage);
            let mut c_in = match i {
                0 => scalar(self.in_channels as f64)?,
                _ if i <= poolings => blocks[i - 1].out.clone(),
                _ => {
                    let up = up_width(i - poolings - 1)?;
                    let stride = self.strides[stage].iter().product::<usize>() as f64;
                    // Every output voxel of a transposed convolution with kernel = stride has one tap.
                    let (macs_taps, taps) = (1.0, stride);
                    let taps = if unit == CostUnit::Macs { macs_taps } else { taps };
                    total = (total + conv(&blocks[i - 1].out, &up, taps, voxels, false)?)?;
                    (up + &blocks[stage].out)?
                }
            };
            let taps = self.kernels[stage].iter().product::<usize>() as f64;
            for layer in &block.layers {
                let cost = conv(&c_in, &layer.width, taps, voxels, true)?;
                total = (total
                    + match &layer.exists {
                        None => cost,
                        Some(p) => (cost * p)?,
                    })?;
                c_in = layer.width.clone();
            }
            if i > poolings {
                let classes = scalar(self.num_classes as f64)?;
                total = (total + conv(&block.out, &classes, 1.0, voxels, false)?)?;
            }
        }
        Ok(total)
    }
}

impl Architecture {
    /// Cost of this network for one patch `[D, H, W]`.
    pub fn cost(&self, patch: [usize; 3]) -> Cost {
        Cost {
            macs: self.cost_in(patch, CostUnit::Macs),
            parameters: self.cost_in(patch, CostUnit::Parameters),
            activation_bytes: self.cost_in(patch, CostUnit::ActivationBytes),
        }
    }

    /// Cost of this network for one patch in one unit.
    pub(crate) fn cost_in(&self, patch: [usize; 3], unit: CostUnit) -> u64 {
        let geometry = NetworkGeometry {
            patch,
            strides: &self.strides,
            kernels: &self.kernels,
            in_channels: self.in_channels,
            num_classes: self.num_classes,
        };
        let layer = |&w: &usize| Ok(LayerWidth { width: scalar(w as f64)?, exists: None });
        let block = |widths: &Vec<usize>| {
            let out = scalar(widths.last().map_or(0.0, |&w| w as f64))?;
            Ok(BlockWidths { layers: widths.iter().map(layer).collect::<Result<_>>()?, out })
        };
        let total = || -> Result<f64> {
            let blocks = self.blocks.iter().map(block).collect::<Result<Vec<_>>>()?;
            let total = geometry.total(unit, &blocks, |u| scalar(self.up_width(u) as f64))?;
            Ok(total.to_scalar::<f64>()?)
        };
        let total = total().expect("arithmetic of scalars on the host does not fail") as u64;
        total + if self.encoder == Encoder::Residual { self.residual_cost(&geometry, unit) } else { 0 }
    }

    /// Cost that a residual encoder adds: its shortcuts, and the biases of transposed convolutions and heads.
    fn residual_cost(&self, geometry: &NetworkGeometry, unit: CostUnit) -> u64 {
        let biases: u64 = (0..self.poolings()).map(|u| (self.up_width(u) + self.num_classes) as u64).sum();
        let shortcuts = self.shortcuts().into_iter().filter(Shortcut::has_projection).map(|shortcut| {
            let (c_in, c_out) = (shortcut.in_channels as u64, shortcut.out_channels as u64);
            let voxels = geometry.voxels(shortcut.block) as u64;
            match unit {
                CostUnit::Macs => c_in * c_out * voxels,
                CostUnit::Parameters => (c_in + 2) * c_out,
                CostUnit::ActivationBytes => 4 * c_out * voxels,
            }
        });
        shortcuts.sum::<u64>() + if unit == CostUnit::Parameters { biases } else { 0 }
    }
}

impl Supernet {
    /// Expected cost of the architecture under this pass's probabilities, for one patch `[D, H, W]`, and its gradient
    /// by alpha and beta. Transposed convolutions are counted as wide as the skip beside them is expected to be, as in
    /// the discrete network.
    ///
    /// # Errors
    /// If a tensor cannot be made on the device.
    pub fn expected_cost(&self, patch: [usize; 3], unit: CostUnit, sample: &GumbelSample) -> Result<(f64, Gradients)> {
        let config = self.config();
        let max = config.num_layers();
        let mut blocks = Vec::new();
        for (i, p) in self.softmaxes(sample)?.iter().enumerate() {
            let options = width_options(config.block_max_width(i)).map(|w| w as f64);
            let widths = (p.width.iter())
                .map(|g| match g {
                    None => scalar(config.block_max_width(i) as f64),
                    Some(g) => {
                        let g = g.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
                        Ok((g * Tensor::new(&options, &Device::Cpu)?)?.sum_all()?)
                    }
                })
                .collect::<Result<Vec<_>>>()?;
            let depth = match &p.depth {
                None => None,
                Some(h) => Some(h.to_device(&Device::Cpu)?.to_dtype(DType::F64)?),
            };
            let out = match &depth {
                None => widths[max - 1].clone(),
                Some(h) => (Tensor::stack(&widths, 0)? * h)?.sum_all()?,
            };
            let layers = (widths.into_iter().enumerate())
                .map(|(l, width)| {
                    let exists =
                        depth.as_ref().map(|h| Ok::<_, Error>(h.narrow(0, l, max - l)?.sum_all()?)).transpose()?;
                    Ok(LayerWidth { width, exists })
                })
                .collect::<Result<_>>()?;
            blocks.push(BlockWidths { layers, out });
        }
        let geometry = NetworkGeometry {
            patch,
            strides: &config.strides,
            kernels: &config.kernels,
            in_channels: config.in_channels,
            num_classes: config.num_classes,
        };
        let poolings = config.poolings();
        let total = geometry.total(unit, &blocks, |u| Ok(blocks[poolings - 1 - u].out.clone()))?;
        let mut gradients = vec![None; self.parameters().len()];
        self.differentiate(&total, &mut gradients)?;
        Ok((total.to_scalar()?, gradients))
    }
}
