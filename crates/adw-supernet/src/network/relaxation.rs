//! Continuous relaxation of the architecture, as one pass of a supernet applies it.

use crate::error::Result;
use adw_tensor_ops::norm_act::{Gate, GatePosition};
use candle_core::Tensor;

/// Width gates and depth weights of one block.
pub(crate) struct BlockRelaxation {
    /// Per layer: a factor per channel, `[C]`; none where the width is fixed.
    pub(crate) gates: Vec<Option<Tensor>>,
    /// Weight of every depth, `[L]`; without it the block returns its last layer.
    pub(crate) depth_weights: Option<Tensor>,
}

impl BlockRelaxation {
    /// Expected mask of the block's output, `sum_l h_l m_l` over its layers, `[C]`; none where widths are fixed.
    fn expected_mask(&self) -> Result<Option<Tensor>> {
        let Some(h) = &self.depth_weights else {
            return Ok(self.gates.last().cloned().flatten());
        };
        let mut sum: Option<Tensor> = None;
        for (l, gate) in self.gates.iter().enumerate() {
            let Some(gate) = gate else { return Ok(None) };
            let term = gate.broadcast_mul(&h.narrow(0, l, 1)?)?;
            sum = Some(match sum {
                None => term,
                Some(sum) => (sum + term)?,
            });
        }
        Ok(sum)
    }

    /// Adds to the gradients of gates and depth weights what reaches them from the gradient `grad_mask [C]` of the
    /// expected mask.
    pub(super) fn add_mask_gradient(&self, grad_mask: &Tensor, to: &mut RelaxationGradient) -> Result<()> {
        let last = self.gates.len() - 1;
        for (l, (gate, grad_gate)) in self.gates.iter().zip(&mut to.gates).enumerate() {
            let (Some(gate), Some(grad_gate)) = (gate, grad_gate) else { continue };
            match &self.depth_weights {
                None if l == last => *grad_gate = (&*grad_gate + grad_mask)?,
                None => {}
                Some(h) => {
                    *grad_gate = (&*grad_gate + grad_mask.broadcast_mul(&h.narrow(0, l, 1)?)?)?;
                    let terms = (grad_mask * gate)?;
                    let grad_weight = &mut to.depth_weights[l];
                    let terms = if grad_weight.elem_count() == 1 { terms.sum_keepdim(0)? } else { terms };
                    *grad_weight = (&*grad_weight + terms)?;
                }
            }
        }
        Ok(())
    }
}

/// Width gates and depth weights of all blocks.
pub(crate) struct Relaxation {
    pub(crate) position: GatePosition,
    pub(crate) blocks: Vec<BlockRelaxation>,
    /// Per encoder block with a skip, fine to coarse: factor per channel of the upsampled map beside the skip, if there is
    /// one.
    up_gates: Vec<Option<Tensor>>,
}

impl Relaxation {
    /// Relaxation of a network with `poolings` skips, whose upsampled maps are gated by the masks of the skips if
    /// `gate_up`.
    pub(crate) fn new(
        position: GatePosition,
        blocks: Vec<BlockRelaxation>,
        poolings: usize,
        gate_up: bool,
    ) -> Result<Self> {
        let gate = |block: &BlockRelaxation| if gate_up { block.expected_mask() } else { Ok(None) };
        let up_gates = blocks[..poolings].iter().map(gate).collect::<Result<_>>()?;
        Ok(Self { position, blocks, up_gates })
    }

    /// Factor per channel of the upsampled map that is concatenated with the output of encoder block `skip`, shaped like
    /// the output channels of its transposed convolution's weight, `[C, 1, 1, 1]`.
    pub(super) fn up_gate(&self, skip: usize) -> Result<Option<Tensor>> {
        Ok(self.up_gates[skip].as_ref().map(|gate| gate.reshape(((), 1, 1, 1))).transpose()?)
    }

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
