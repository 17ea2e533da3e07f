//! Networks of nnU-Net v2 (`PlainConvUNet`) as networks of this program: the same function, exactly up to rounding.
//!
//! Input is the file that `examples/nnunet_to_safetensors.py` writes: the checkpoint's tensors, and as metadata `plans` and
//! `dataset` (JSON texts), `configuration`, `mirror_axes`, `fold`. The script gives networks of nnU-Net v1 and of AdwU-Net's authors
//! the names and the plan of v2.
//!
//! Biases have no counterpart here. In front of an instance normalisation they are without effect and left out. Those of transposed
//! convolutions and of the logits become weights of an additional channel that is 1 everywhere: the last layer of every block
//! from the bottleneck on gets an output channel of zero weights, gamma 0 and beta 1.

use std::collections::BTreeMap;

use adw_supernet::Architecture;
use candle_core::{Device, Tensor};
use msd_data::Plan;

use crate::error::{Result, wrong};

mod plan;

/// Network of nnU-Net in this program's form.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Depths and widths.
    pub architecture: Architecture,
    /// Parameters by the names of [`adw_supernet::Unet`].
    pub weights: BTreeMap<String, Tensor>,
    /// Preprocessing, labels, patch.
    pub plan: Plan,
    /// Axes D, H, W along which nnU-Net mirrors windows.
    pub mirror_axes: [bool; 3],
    /// Fold of the training, such as `0` or `all`.
    pub fold: String,
}

/// Value of `format` in the metadata.
const FORMAT: &str = "nnunet-v2";

/// Converts tensors and metadata of a file.
///
/// # Errors
/// [`crate::Error::Nnunet`] for another network than a 3D `PlainConvUNet` with instance normalisation, for preprocessing that differs from
/// nnU-Net's default, and for labels that are regions.
pub fn import(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Imported> {
    let entry = |key: &str| metadata.get(key).ok_or_else(|| wrong(format!("no {key} in its metadata")));
    if entry("format")? != FORMAT {
        return Err(wrong(format!("format {}, expected {FORMAT}", entry("format")?)));
    }
    let mut network = Network { tensors: tensors.clone() };
    let (mut encoder, mut decoder, mut ups, mut heads) = (vec![], vec![], vec![], vec![]);
    while let Some(layers) = network.block(&format!("encoder.stages.{}.0", encoder.len()))? {
        encoder.push(layers);
    }
    while let Some(layers) = network.block(&format!("decoder.stages.{}", decoder.len()))? {
        ups.push(network.convolution(&format!("decoder.transpconvs.{}", decoder.len()))?);
        heads.push(network.convolution(&format!("decoder.seg_layers.{}", decoder.len()))?);
        decoder.push(layers);
    }
    if let Some(name) = network.tensors.keys().next() {
        return Err(wrong(format!("tensor {name} is of no 3D PlainConvUNet with instance normalisation")));
    }
    if decoder.is_empty() || encoder.len() != decoder.len() + 1 {
        let (e, d) = (encoder.len(), decoder.len());
        return Err(wrong(format!(
            "{e} stages of the encoder and {d} of the decoder, expected one more than at least one"
        )));
    }

    let poolings = decoder.len();
    let strides = ups.iter().rev().map(Convolution::kernel).collect::<Result<Vec<_>>>()?;
    let kernels = encoder.iter().map(|layers| layers[0].convolution.kernel()).collect::<Result<Vec<_>>>()?;
    let in_channels = encoder[0][0].convolution.weight.dim(1)?;
    let num_classes = heads[poolings - 1].weight.dim(0)?;
    let plan = plan::convert(entry("plans")?, entry("dataset")?, entry("configuration")?, &strides, &kernels)?;
    let (channels, labels) = (plan.modalities.len(), plan.labels.len());
    if (in_channels, num_classes) != (channels, labels) {
        return Err(wrong(format!(
            "a network of {in_channels} channels and {num_classes} classes for {channels} channels and {labels} labels"
        )));
    }

    let mut weights = BTreeMap::new();
    let mut blocks = Vec::new();
    for (i, mut layers) in encoder.into_iter().chain(decoder).enumerate() {
        if i >= poolings {
            let last = layers.last_mut().expect("blocks have layers");
            last.append_ones()?;
        }
        blocks.push(layers.iter().map(|layer| layer.gamma.elem_count()).collect());
        for (l, layer) in layers.into_iter().enumerate() {
            for (name, tensor) in [("weight", layer.convolution.weight), ("gamma", layer.gamma), ("beta", layer.beta)] {
                weights.insert(format!("block.{i}.conv.{l}.{name}"), tensor);
            }
        }
    }
    for (u, (up, head)) in ups.into_iter().zip(heads).enumerate() {
        let taps = up.weight.narrow(0, 0, 1)?.zeros_like()?;
        let bias = up.bias_or_zeros(up.weight.dim(1)?)?.reshape((1, (), 1, 1, 1))?.broadcast_add(&taps)?;
        weights.insert(format!("up.{u}.weight"), Tensor::cat(&[&up.weight, &bias], 0)?);
        let bias = head.bias_or_zeros(num_classes)?.reshape(((), 1, 1, 1, 1))?;
        weights.insert(format!("head.{u}.weight"), Tensor::cat(&[&head.weight, &bias], 1)?);
    }
    let architecture = Architecture::new(in_channels, num_classes, strides, kernels, blocks)
        .map_err(|error| wrong(error.to_string()))?;
    let axes: Vec<usize> =
        serde_json::from_str(entry("mirror_axes")?).map_err(|e| wrong(format!("mirror_axes: {e}")))?;
    let mirror_axes = [0, 1, 2].map(|axis| axes.contains(&axis));
    Ok(Imported { architecture, weights, plan, mirror_axes, fold: entry("fold")?.clone() })
}

/// Tensors of a network that have not been taken yet.
struct Network {
    tensors: BTreeMap<String, Tensor>,
}

/// Convolution or transposed convolution.
struct Convolution {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Convolution and instance normalisation.
struct Layer {
    convolution: Convolution,
    gamma: Tensor,
    beta: Tensor,
}

impl Network {
    fn take(&mut self, name: &str) -> Result<Tensor> {
        self.tensors.remove(name).ok_or_else(|| wrong(format!("no tensor {name}, expected those of a PlainConvUNet")))
    }

    /// Layers of a block; none if there is no such block.
    fn block(&mut self, name: &str) -> Result<Option<Vec<Layer>>> {
        let mut layers = vec![];
        loop {
            let layer = format!("{name}.convs.{}", layers.len());
            if !self.tensors.contains_key(&format!("{layer}.conv.weight")) {
                return Ok(Some(layers).filter(|layers| !layers.is_empty()));
            }
            layers.push(Layer {
                convolution: self.convolution(&format!("{layer}.conv"))?,
                gamma: self.take(&format!("{layer}.norm.weight"))?,
                beta: self.take(&format!("{layer}.norm.bias"))?,
            });
        }
    }

    fn convolution(&mut self, name: &str) -> Result<Convolution> {
        let weight = self.take(&format!("{name}.weight"))?;
        if weight.rank() != 5 {
            let shape = weight.dims();
            return Err(wrong(format!(
                "{name}.weight has the shape {shape:?}, expected five axes of a 3D convolution"
            )));
        }
        Ok(Convolution { weight, bias: self.tensors.remove(&format!("{name}.bias")) })
    }
}

impl Convolution {
    fn kernel(&self) -> Result<[usize; 3]> {
        let (_, _, d, h, w) = self.weight.dims5()?;
        Ok([d, h, w])
    }

    fn bias_or_zeros(&self, num_outputs: usize) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(bias) => bias.clone(),
            None => Tensor::zeros(num_outputs, self.weight.dtype(), &Device::Cpu)?,
        })
    }
}

impl Layer {
    /// Appends an output channel that is 1 everywhere.
    fn append_ones(&mut self) -> Result<()> {
        let append = |tensor: &Tensor, value: f64| {
            let channel = tensor.narrow(0, 0, 1)?.affine(0.0, value)?;
            Tensor::cat(&[tensor, &channel], 0)
        };
        self.convolution.weight = append(&self.convolution.weight, 0.0)?;
        self.gamma = append(&self.gamma, 0.0)?;
        self.beta = append(&self.beta, 1.0)?;
        Ok(())
    }
}
