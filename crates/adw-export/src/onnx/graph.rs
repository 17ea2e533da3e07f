//! Graph of a network: one node per operation, one constant per parameter.

use std::mem;

use adw_supernet::{Architecture, Encoder, Parameter, Shortcut, Unet};
use adw_tensor_ops::norm_act::NormAct;
use candle_core::{DType, Device, Tensor};

use super::proto::{
    AttributeProto, AttributeType, DataType, Dimension, GraphProto, NodeProto, Size, TensorProto, TensorShapeProto,
    TensorType, TypeProto, ValueInfoProto,
};
use crate::error::Result;

/// Name of the input.
pub const INPUT: &str = "image";
/// Name of the output.
pub const OUTPUT: &str = "logits";

/// Graph under construction. Values are known by their names.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Graph {
    /// Adds a network, whose constants and values get names that begin with `prefix`, and returns the name of its finest logits.
    pub(super) fn network(&mut self, network: &Unet, prefix: &str) -> Result<String> {
        for parameter in used_parameters(network) {
            self.constants.push(constant(format!("{prefix}{}", parameter.name), parameter.var.as_tensor())?);
        }
        let architecture = network.architecture();
        let poolings = architecture.poolings();
        let shortcuts = architecture.shortcuts();
        let mut value = INPUT.to_owned();
        let mut skips = Vec::with_capacity(poolings);
        for (i, layers) in architecture.blocks.iter().enumerate() {
            if let Some(u) = i.checked_sub(poolings + 1) {
                let up = format!("{prefix}up.{u}");
                let stride = architecture.strides[poolings - 1 - u];
                let attributes = vec![ints("kernel_shape", stride), ints("strides", stride)];
                let upsampled =
                    self.node("ConvTranspose", up.clone(), &operands(&value, &up, architecture), attributes);
                let skip: String = skips.pop().expect("one skip per decoder block");
                value = self.node("Concat", format!("{up}.concat"), &[&upsampled, &skip], vec![int("axis", 1)]);
            }
            let kernel = architecture.kernels[architecture.stage_of_block(i)];
            // Output of the shortcut that the layer adds.
            let mut shortcut: Option<String> = None;
            for l in 0..layers.len() {
                let is_strided = l == 0 && (1..=poolings).contains(&i);
                let stride = if is_strided { architecture.strides[i - 1] } else { [1; 3] };
                let of_next = shortcuts
                    .iter()
                    .find(|shortcut| (shortcut.block, shortcut.layer) == (i, l))
                    .map(|found| self.shortcut(&format!("{prefix}block.{i}.shortcut.{l}"), &value, found));
                let name = format!("{prefix}block.{i}.conv.{l}");
                value = self.convolution(&name, &value, kernel, stride);
                if let Some(other) = mem::replace(&mut shortcut, of_next) {
                    value = self.node("Add", format!("{name}.sum"), &[&value, &other], vec![]);
                }
                let slope = NormAct::default().slope;
                value = self.node("LeakyRelu", format!("{name}.act"), &[&value], vec![float("alpha", slope)]);
            }
            if i < poolings {
                skips.push(value.clone());
            }
        }
        let head = format!("{prefix}head.{}", poolings - 1);
        let operands = operands(&value, &head, architecture);
        Ok(self.node("Conv", head, &operands, vec![ints("kernel_shape", [1; 3])]))
    }

    /// Adds average pooling, convolution and instance normalisation, each where the shortcut has it.
    fn shortcut(&mut self, name: &str, input: &str, shortcut: &Shortcut) -> String {
        let mut value = input.to_owned();
        if shortcut.pooling != [1; 3] {
            let attributes = vec![ints("kernel_shape", shortcut.pooling), ints("strides", shortcut.pooling)];
            value = self.node("AveragePool", format!("{name}.pool"), &[&value], attributes);
        }
        if shortcut.has_projection() { self.convolution(name, &value, [1; 3], [1; 3]) } else { value }
    }

    /// Adds convolution and instance normalisation.
    fn convolution(&mut self, name: &str, input: &str, kernel: [usize; 3], stride: [usize; 3]) -> String {
        let eps = NormAct::default().eps;
        let padding = kernel.map(|n| n / 2);
        let attributes =
            vec![ints("kernel_shape", kernel), ints("strides", stride), ints("pads", [padding, padding].concat())];
        let map = self.node("Conv", name.to_owned(), &[input, &format!("{name}.weight")], attributes);
        let operands = [&map, &format!("{name}.gamma"), &format!("{name}.beta")];
        self.node("InstanceNormalization", format!("{name}.norm"), &operands, vec![float("epsilon", eps)])
    }

    /// Adds a node whose output has the node's name.
    fn node(&mut self, op: &str, name: String, inputs: &[impl AsRef<str>], attribute: Vec<AttributeProto>) -> String {
        let input = inputs.iter().map(|name| name.as_ref().to_owned()).collect();
        self.nodes.push(NodeProto {
            input,
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.to_owned(),
            attribute,
        });
        name
    }

    /// Ends the graph: its output is the mean of the values `logits`.
    pub(super) fn finish(mut self, logits: &[String], channels: usize, classes: usize) -> GraphProto {
        match logits {
            // The last node is that of the only logits.
            [_] => self.nodes.last_mut().expect("a network has nodes").output = vec![OUTPUT.to_owned()],
            several => {
                self.node("Mean", OUTPUT.to_owned(), several, vec![]);
            }
        }
        GraphProto {
            node: self.nodes,
            name: "unet".into(),
            initializer: self.constants,
            input: vec![map_value(INPUT, channels)],
            output: vec![map_value(OUTPUT, classes)],
        }
    }
}

/// Inputs of a transposed convolution or head: a value, its weight, and its bias beside a residual encoder.
fn operands(value: &str, layer: &str, architecture: &Architecture) -> Vec<String> {
    let bias = (architecture.encoder == Encoder::Residual).then(|| format!("{layer}.bias"));
    [value.to_owned(), format!("{layer}.weight")].into_iter().chain(bias).collect()
}

/// Parameters that the finest logits depend on: all but the heads of deep supervision.
pub(super) fn used_parameters(network: &Unet) -> impl Iterator<Item = &Parameter> {
    let finest = format!("head.{}.", network.architecture().poolings() - 1);
    network.parameters().iter().filter(move |p| !p.name.starts_with("head.") || p.name.starts_with(&finest))
}

/// Type of a map `[batch, channels, depth, height, width]`.
fn map_value(name: &str, channels: usize) -> ValueInfoProto {
    let free = |name: &str| Size::Param(name.to_owned());
    let sizes = [free("batch"), Size::Value(channels as i64), free("depth"), free("height"), free("width")];
    let shape = TensorShapeProto { dim: sizes.map(|size| Dimension { value: Some(size) }).into() };
    let tensor_type = TensorType { elem_type: DataType::Float.into(), shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn constant(name: String, tensor: &Tensor) -> Result<TensorProto> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(TensorProto {
        dims: tensor.dims().iter().map(|&n| n as i64).collect(),
        data_type: DataType::Float.into(),
        name,
        raw_data: values.into_iter().flat_map(f32::to_le_bytes).collect(),
    })
}

fn attribute(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), f: None, i: None, ints: vec![], r#type: r#type.into() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

fn float(name: &str, value: f64) -> AttributeProto {
    AttributeProto { f: Some(value as f32), ..attribute(name, AttributeType::Float) }
}

fn ints(name: &str, values: impl IntoIterator<Item = usize>) -> AttributeProto {
    let ints = values.into_iter().map(|n| n as i64).collect();
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}
