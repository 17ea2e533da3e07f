//! Networks as ONNX files: opset 18, IR version 8, f32, any batch and any size that is a multiple of the strides' product.
//!
//! A file has one input `image`, `[batch, C, depth, height, width]`, and one output `logits`, `[batch, K, depth, height, width]`:
//! the finest logits of a [`Unet`], or the mean of several. Operators: `Conv`, `ConvTranspose`, `InstanceNormalization`,
//! `LeakyRelu`, `Concat`, with a residual encoder `Add` and `AveragePool`, and `Mean` for several networks. Constants have the names of the network's parameters, behind `N.` for
//! network N of several.

mod graph;
mod proto;

use std::collections::BTreeMap;

use adw_supernet::Unet;
use prost::Message;

use crate::error::{Error, Result};
use graph::{Graph, used_parameters};
pub use graph::{INPUT, OUTPUT};
use proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto};

/// Version of the operators.
pub const OPSET: i64 = 18;
/// Version of the file format.
pub const IR_VERSION: i64 = 8;

/// Bytes beside the weights that a file may have; far more than nodes, names and metadata take.
const OVERHEAD_BYTES: usize = 16 << 20;
/// Greatest size of a protobuf message.
const MAX_BYTES: usize = i32::MAX as usize;

/// Encodes the mean of the networks' finest logits as the bytes of an ONNX file, with `metadata` in its `metadata_props`.
/// Equal arguments give equal bytes.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use adw_supernet::{Architecture, FixedSizes, Unet};
/// use candle_core::{DType, Device};
///
/// let a = Architecture::uniform(1, 3, vec![[2; 3]; 2], vec![[3; 3]; 3], FixedSizes::with_width(4))?;
/// let net = Unet::new(&a, 1, DType::F32, &Device::Cpu)?;
/// let bytes = adw_export::onnx::encode(&[net], &BTreeMap::new())?;
/// assert!(bytes.len() > 4 * a.cost([8; 3]).parameters as usize);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::NoNetwork`]; [`Error::Networks`] if they differ in channels or classes; [`Error::TooLarge`] for 2 GiB of weights and
/// more, which a file of ONNX cannot hold; [`Error::Tensor`].
pub fn encode(networks: &[Unet], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let first = networks.first().ok_or(Error::NoNetwork)?.architecture();
    for architecture in networks.iter().map(Unet::architecture) {
        let (found, expected) = [architecture, first].map(|a| [a.in_channels, a.num_classes]).into();
        if found != expected {
            return Err(Error::Networks { found, expected });
        }
    }
    let parameters = networks.iter().flat_map(used_parameters);
    let bytes = 4 * parameters.map(|parameter| parameter.var.elem_count()).sum::<usize>();
    if bytes + OVERHEAD_BYTES > MAX_BYTES {
        return Err(Error::TooLarge { bytes });
    }

    let mut graph = Graph::default();
    let outputs = networks.iter().enumerate().map(|(i, network)| {
        let prefix = if networks.len() > 1 { format!("{i}.") } else { String::new() };
        graph.network(network, &prefix)
    });
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    let entries = metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "adw".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        graph: Some(graph.finish(&outputs, first.in_channels, first.num_classes)),
        metadata_props: entries.map(|(key, value)| StringStringEntryProto { key, value }).collect(),
    };
    Ok(model.encode_to_vec())
}

#[cfg(test)]
mod tests;
