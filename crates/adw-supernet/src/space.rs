//! Search space: the networks that a supernet chooses from.

use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::stages::{FixedSizes, check_plan, stage_max_width, stage_of_block};
use adw_tensor_ops::norm_act::GatePosition;
use serde::{Deserialize, Serialize};

/// Number of candidate widths per layer.
pub const NUM_WIDTHS: usize = 5;

/// Choices that the search makes; the paper's ablation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchSpace {
    /// Depth of every block and width of every layer.
    Joint,
    /// Width only; every block has [`FixedSizes::depth`] layers.
    WidthOnly,
    /// Depth only; widths are those of [`FixedSizes`].
    DepthOnly,
}

impl SearchSpace {
    /// Returns true if widths are searched.
    pub fn searches_width(self) -> bool {
        self != Self::DepthOnly
    }

    /// Returns true if depths are searched.
    pub fn searches_depth(self) -> bool {
        self != Self::WidthOnly
    }
}

/// Values that determine a supernet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupernetConfig {
    /// Image channels (modalities).
    pub in_channels: usize,
    /// Classes, background included.
    pub num_classes: usize,
    /// Stride of every pooling, fine to coarse; D, H, W.
    pub strides: Vec<[usize; 3]>,
    /// Kernel of every stage, fine to coarse: one more than strides.
    pub kernels: Vec<[usize; 3]>,
    /// Greatest width of the finest stage; doubles per stage up to `cap_stage`. Paper: 48. A multiple of 6.
    pub max_width: usize,
    /// Number of layers of the deepest block. Paper: 3.
    pub max_depth: usize,
    /// Last stage at which widths double. Paper: 3.
    pub cap_stage: usize,
    /// Position of the width gate. Paper: `pre_norm`.
    pub mask: GatePosition,
    /// Multiplies every upsampled map by the expected mask of the block that its skip comes from, `sum_l h_l m_l` with
    /// depth weights h and width gates m: in the discrete network a transposed convolution is as wide as the skip. Paper:
    /// false, upsampled maps are as wide as the space allows.
    #[serde(default)]
    pub gate_up: bool,
    /// Choices that the search makes. Paper: depths and widths.
    pub space: SearchSpace,
    /// Depth in a [`SearchSpace::WidthOnly`], widths in a [`SearchSpace::DepthOnly`].
    #[serde(default)]
    pub fixed: FixedSizes,
}

/// Candidate widths of a layer: a third to all of `max_width` in steps of a sixth.
///
/// ```
/// assert_eq!(adw_supernet::width_options(48), [16, 24, 32, 40, 48]);
/// ```
pub fn width_options(max_width: usize) -> [usize; NUM_WIDTHS] {
    [2, 3, 4, 5, 6].map(|k| max_width * k / 6)
}

impl SupernetConfig {
    /// Number of poolings, P.
    pub fn poolings(&self) -> usize {
        self.strides.len()
    }

    /// Number of blocks: P + 1 in the encoder, P in the decoder.
    pub fn num_blocks(&self) -> usize {
        2 * self.strides.len() + 1
    }

    /// Stage of a block, 0 the finest; blocks are counted encoder fine to coarse, then decoder coarse to fine.
    pub fn stage_of_block(&self, block: usize) -> usize {
        stage_of_block(self.strides.len(), block)
    }

    /// Greatest width of a block's layers.
    pub fn block_max_width(&self, block: usize) -> usize {
        let stage = self.stage_of_block(block);
        if self.space.searches_width() {
            stage_max_width(self.max_width, stage, self.cap_stage)
        } else {
            self.fixed.stage_width(stage)
        }
    }

    /// Layers of the deepest block.
    pub fn num_layers(&self) -> usize {
        if self.space.searches_depth() { self.max_depth } else { self.fixed.depth }
    }

    /// Largest network of the space: every block of the greatest depth, every layer of its stage's greatest width. A pass of the supernet computes as much as a pass of this network.
    ///
    /// # Errors
    /// If these values make no network.
    pub fn largest(&self) -> Result<Architecture> {
        self.network((0..self.num_blocks()).map(|i| vec![self.block_max_width(i); self.num_layers()]).collect())
    }

    /// Smallest network of the space: the least depths and the narrowest widths.
    ///
    /// # Errors
    /// If these values make no network.
    pub fn smallest(&self) -> Result<Architecture> {
        let (depth, width) = (self.space.searches_depth(), self.space.searches_width());
        self.chosen(|_, layer| if layer.is_some() { width } else { depth }.then_some(0))
    }

    /// Architecture of choices. `choose(block, None)` returns the index of a block's depth, `choose(block, Some(layer))` that of
    /// the width of a layer that the block has; none stands for the greatest.
    ///
    /// # Errors
    /// If these values make no network.
    pub(crate) fn chosen(&self, mut choose: impl FnMut(usize, Option<usize>) -> Option<usize>) -> Result<Architecture> {
        let mut blocks = Vec::with_capacity(self.num_blocks());
        for block in 0..self.num_blocks() {
            let max_width = self.block_max_width(block);
            let depth = choose(block, None).map_or(self.num_layers(), |index| index + 1);
            let width = |index: Option<usize>| index.map_or(max_width, |index| width_options(max_width)[index]);
            blocks.push((0..depth).map(|layer| width(choose(block, Some(layer)))).collect());
        }
        self.network(blocks)
    }

    /// Architecture of these blocks on the configuration's stages.
    ///
    /// # Errors
    /// If these values make no network.
    pub(crate) fn network(&self, blocks: Vec<Vec<usize>>) -> Result<Architecture> {
        let (strides, kernels) = (self.strides.clone(), self.kernels.clone());
        Architecture::new(self.in_channels, self.num_classes, strides, kernels, blocks)
    }

    /// Refuses values that make no supernet.
    ///
    /// # Errors
    /// A message that names the first wrong value and the right ones.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        check_plan(self.in_channels, self.num_classes, &self.strides, &self.kernels).map_err(Error::Config)?;
        if self.max_width == 0 || !self.max_width.is_multiple_of(6) {
            return fail(format!(
                "max_width is {}, expected a multiple of 6 (candidate widths are sixths of it)",
                self.max_width
            ));
        }
        let widest = self.max_width as f64 * 2f64.powi(self.cap_stage.min(self.poolings()).min(64) as i32);
        if widest > 65_536.0 {
            return fail(format!(
                "max_width {} makes the coarsest stage {widest} channels wide, expected at most 65536",
                self.max_width
            ));
        }
        if self.cap_stage > 16 {
            return fail(format!("cap_stage is {}, expected at most 16", self.cap_stage));
        }
        for (key, depth) in [("max_depth", self.max_depth), ("fixed.depth", self.fixed.depth)] {
            if !(1..=16).contains(&depth) {
                return fail(format!("{key} is {depth}, expected 1 to 16"));
            }
        }
        for (key, width) in [("fixed.width", self.fixed.width), ("fixed.max_features", self.fixed.max_features)] {
            if !(1..=65_536).contains(&width) {
                return fail(format!("{key} is {width}, expected 1 to 65536"));
            }
        }
        Ok(())
    }
}
