//! Continuous relaxation of the architecture, as one pass of a supernet applies it.

use adw_tensor_ops::norm_act::{Gate, GatePosition};
use candle_core::Tensor;

/// Width gates and depth weights of one block.
pub(crate) struct BlockRelaxation {
    /// Per layer: a factor per channel, `[C]`; none where the width is fixed.
    pub(crate) gates: Vec<Option<Tensor>>,
    /// Weight of every depth, `[L]`; without it the block returns its last layer.
    pub(crate) depth_weights: Option<Tensor>,
}

/// Width gates and depth weights of all blocks.
pub(crate) struct Relaxation {
    pub(crate) position: GatePosition,
    pub(crate) blocks: Vec<BlockRelaxation>,
}

impl Relaxation {
    pub(super) fn gate(&self, block: usize, layer: usize) -> Option<Gate<'_>> {
        self.blocks[block].gates[layer].as_ref().map(|factor| Gate { factor, position: self.position })
    }
}

/// Gradients of one block's relaxation.
pub(crate) struct RelaxationGradient {
    /// Per layer: `[C]` if the layer has a gate.
    pub(crate) gates: Vec<Option<Tensor>>,
    /// Per depth: numbers whose sum is the gradient.
    pub(crate) depth_weights: Vec<Tensor>,
}

/// Depth weights of a block, if the pass has any.
pub(super) fn depth_weights(relaxation: Option<&Relaxation>, block: usize) -> Option<&Tensor> {
    relaxation.and_then(|r| r.blocks[block].depth_weights.as_ref())
}
