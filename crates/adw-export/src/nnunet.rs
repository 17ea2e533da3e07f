//! Networks of nnU-Net v2 (`PlainConvUNet`, `ResidualEncoderUNet`) as networks of this program: the same function, exactly up to
//! rounding.
//!
//! Input is the file that `examples/nnunet_to_safetensors.py` writes: the checkpoint's tensors, and as metadata `plans` and
//! `dataset` (JSON texts), `configuration`, `mirror_axes`, `fold`. The script gives networks of nnU-Net v1 and of AdwU-Net's authors
//! the names and the plan of v2.
//!
//! Biases before an instance normalisation are without effect and left out. Those of transposed convolutions and of the
//! logits stay with a residual encoder; a plain network has none here, so they become weights of an additional channel
//! that is 1 everywhere: the last layer of every block from the bottleneck on gets an output channel of zero weights,
//! gamma 0 and beta 1.

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
/// [`crate::Error::Nnunet`] for another network than these with instance normalisation in 3D, for preprocessing that differs from
/// nnU-Net's default, and for labels that are regions.
pub fn import(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Imported> {
    let entry = |key: &str| metadata.get(key).ok_or_else(|| wrong(format!("no {key} in its metadata")));
    if entry("format")? != FORMAT {
        return Err(wrong(format!("format {}, expected {FORMAT}", entry("format")?)));
    }
    let mut network = Network { tensors: tensors.clone(), shortcuts: BTreeMap::new() };
    let (mut encoder, mut decoder, mut ups, mut heads) = (vec![], vec![], vec![], vec![]);
    let stem = network.block("encoder.stem")?;
    let is_residual = stem.is_some();
    let mut before = stem.unwrap_or_default();
    while let Some(block) = network.encoder_block(encoder.len(), std::mem::take(&mut before))? {
        encoder.push(block);
    }
    while let Some(layers) = network.block(&format!("decoder.stages.{}", decoder.len()))? {
        ups.push(network.convolution(&format!("decoder.transpconvs.{}", decoder.len()))?);
        heads.push(network.convolution(&format!("decoder.seg_layers.{}", decoder.len()))?);
        decoder.push(layers);
    }
    if let Some(name) = network.tensors.keys().next() {
        return Err(wrong(format!(
            "tensor {name} is of no 3D PlainConvUNet or ResidualEncoderUNet with instance normalisation"
        )));
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
    let mut insert = |name: String, layer: Layer| {
        for (key, tensor) in [("weight", layer.convolution.weight), ("gamma", layer.gamma), ("beta", layer.beta)] {
            weights.insert(format!("{name}.{key}"), tensor);
        }
    };
    let mut blocks = Vec::new();
    for (i, mut layers) in encoder.into_iter().chain(decoder).enumerate() {
        if i >= poolings && !is_residual {
            let last = layers.last_mut().expect("blocks have layers");
            last.append_ones()?;
        }
        blocks.push(layers.iter().map(|layer| layer.gamma.elem_count()).collect());
        for (l, layer) in layers.into_iter().enumerate() {
            insert(format!("block.{i}.conv.{l}"), layer);
        }
    }
    network.shortcuts.into_iter().for_each(|(name, layer)| insert(name, layer));
    for (u, (up, head)) in ups.into_iter().zip(heads).enumerate() {
        let (up_bias, head_bias) = (up.bias_or_zeros(up.weight.dim(1)?)?, head.bias_or_zeros(num_classes)?);
        let [up, head] = if is_residual {
            weights.extend([(format!("up.{u}.bias"), up_bias), (format!("head.{u}.bias"), head_bias)]);
            [up.weight, head.weight]
        } else {
            let taps = up.weight.narrow(0, 0, 1)?.zeros_like()?;
            let up_bias = up_bias.reshape((1, (), 1, 1, 1))?.broadcast_add(&taps)?;
            let head_bias = head_bias.reshape(((), 1, 1, 1, 1))?;
            [Tensor::cat(&[&up.weight, &up_bias], 0)?, Tensor::cat(&[&head.weight, &head_bias], 1)?]
        };
        weights.extend([(format!("up.{u}.weight"), up), (format!("head.{u}.weight"), head)]);
    }
    let architecture = Architecture::new(in_channels, num_classes, strides, kernels, blocks);
    let architecture = architecture.and_then(|a| if is_residual { a.with_residual_encoder() } else { Ok(a) });
    let architecture = architecture.map_err(|error| wrong(error.to_string()))?;
    let axes: Vec<usize> =
        serde_json::from_str(entry("mirror_axes")?).map_err(|e| wrong(format!("mirror_axes: {e}")))?;
    let mirror_axes = [0, 1, 2].map(|axis| axes.contains(&axis));
    Ok(Imported { architecture, weights, plan, mirror_axes, fold: entry("fold")?.clone() })
}

/// Tensors of a network that have not been taken yet, and shortcuts by their names in this program.
struct Network {
    tensors: BTreeMap<String, Tensor>,
    shortcuts: BTreeMap<String, Layer>,
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
        self.tensors
            .remove(name)
            .ok_or_else(|| wrong(format!("no tensor {name}, expected those of nnU-Net's networks")))
    }

    /// Layers of a stage of the encoder, behind those of the stem; none if there is no such stage. Shortcuts are set aside.
    fn encoder_block(&mut self, stage: usize, stem: Vec<Layer>) -> Result<Option<Vec<Layer>>> {
        let mut layers = stem;
        layers.extend(self.block(&format!("encoder.stages.{stage}.0"))?.into_iter().flatten());
        for pair in 0.. {
            let name = format!("encoder.stages.{stage}.blocks.{pair}");
            let Some(first) = self.layer(&format!("{name}.conv1"))? else { break };
            // Behind the average pooling, if there is one.
            for place in 0..2 {
                if let Some(shortcut) = self.layer(&format!("{name}.skip.{place}"))? {
                    self.shortcuts.insert(format!("block.{stage}.shortcut.{}", layers.len()), shortcut);
                }
            }
            layers.push(first);
            layers.extend(self.layer(&format!("{name}.conv2"))?);
        }
        Ok(Some(layers).filter(|layers| !layers.is_empty()))
    }

    /// Layers of a block; none if there is no such block.
    fn block(&mut self, name: &str) -> Result<Option<Vec<Layer>>> {
        let mut layers = vec![];
        while let Some(layer) = self.layer(&format!("{name}.convs.{}", layers.len()))? {
            layers.push(layer);
        }
        Ok(Some(layers).filter(|layers| !layers.is_empty()))
    }

    /// A layer; none if there is no such one.
    fn layer(&mut self, name: &str) -> Result<Option<Layer>> {
        if !self.tensors.contains_key(&format!("{name}.conv.weight")) {
            return Ok(None);
        }
        Ok(Some(Layer {
            convolution: self.convolution(&format!("{name}.conv"))?,
            gamma: self.take(&format!("{name}.norm.weight"))?,
            beta: self.take(&format!("{name}.norm.bias"))?,
        }))
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
