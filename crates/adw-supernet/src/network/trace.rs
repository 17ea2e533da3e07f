//! Maps that a forward pass keeps for its backward pass.

use crate::error::Result;
use adw_tensor_ops::Precision;
use adw_tensor_ops::conv3d::Input;
use adw_tensor_ops::norm_act::NormCoefficients;
use candle_core::Tensor;

/// Map `[B, D, H, W, C]` that a layer reads; with `norm`, the layer normalises it while reading.
#[derive(Clone)]
pub(super) struct Feature {
    pub(super) map: Tensor,
    pub(super) norm: Option<NormCoefficients>,
}

impl Feature {
    pub(super) fn input(&self) -> Input<'_> {
        Input { map: &self.map, norm: self.norm.as_ref() }
    }
}

/// Inputs of a block, and the raw map and normalisation of every layer.
pub(super) struct BlockTrace {
    pub(super) inputs: Vec<Feature>,
    pub(super) layers: Vec<(Tensor, NormCoefficients)>,
}

/// Maps that a network's forward pass leaves for its backward pass, which frees each as soon as its gradients are
/// known.
pub struct Trace {
    pub(super) blocks: Vec<BlockTrace>,
    /// Output of every block.
    pub(super) outputs: Vec<Feature>,
    pub(super) precision: Precision,
}

/// Features that a layer reads: the map of the layer before it, or the block's inputs.
pub(super) fn layer_inputs<'a>(inputs: &'a [Feature], layers: &'a [(Tensor, NormCoefficients)]) -> Vec<Input<'a>> {
    match layers.last() {
        Some((map, norm)) => vec![Input { map, norm: Some(norm) }],
        None => inputs.iter().map(Feature::input).collect(),
    }
}

/// Batch, spatial size and channels of a map.
pub(super) fn dims(map: &Tensor) -> Result<(usize, [usize; 3], usize)> {
    let (b, d, h, w, c) = map.dims5()?;
    Ok((b, [d, h, w], c))
}
