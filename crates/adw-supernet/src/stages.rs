//! Stages of a U-Net: one per resolution, 0 the finest.

use serde::{Deserialize, Serialize};

/// Greatest width of a stage: `max_width * 2^min(stage, cap_stage)`.
pub fn stage_max_width(max_width: usize, stage: usize, cap_stage: usize) -> usize {
    max_width.saturating_mul(1 << stage.min(cap_stage).min(32))
}

/// Depth and widths where they are not searched. Default: those of nnU-Net's own network, as in the paper's ablation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FixedSizes {
    /// Layers of every block; 2 in nnU-Net.
    pub depth: usize,
    /// Width of the finest stage; doubles per stage up to `max_features`. 32 in nnU-Net.
    pub width: usize,
    /// Greatest width of any stage; 320 in nnU-Net.
    pub max_features: usize,
}

impl Default for FixedSizes {
    fn default() -> Self {
        Self { depth: 2, width: 32, max_features: 320 }
    }
}

impl FixedSizes {
    /// Sizes of nnU-Net's own network, but with `width` channels at the finest stage.
    pub fn with_width(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    /// Width of a stage: `min(width * 2^stage, max_features)`.
    pub fn stage_width(&self, stage: usize) -> usize {
        stage_max_width(self.width, stage, stage).min(self.max_features)
    }
}

/// Stage of a block; blocks are counted encoder fine to coarse, then decoder coarse to fine.
pub(crate) fn stage_of_block(poolings: usize, block: usize) -> usize {
    if block <= poolings { block } else { 2 * poolings - block }
}

/// Size of the maps of every stage, fine to coarse.
pub(crate) fn stage_sizes(strides: &[[usize; 3]], patch: [usize; 3]) -> Vec<[usize; 3]> {
    let mut sizes = vec![patch];
    for stride in strides {
        let finer = sizes[sizes.len() - 1];
        sizes.push([0, 1, 2].map(|axis| finer[axis].div_ceil(stride[axis].max(1))));
    }
    sizes
}

/// Limit of kernels and products of strides: no patch has so many voxels on an axis, and sizes do not overflow.
const LARGEST: usize = 65_536;

/// Checks the values that a supernet and a discrete network share.
///
/// # Errors
/// A message that names the first wrong value and the right ones.
pub(crate) fn check_plan(
    in_channels: usize,
    num_classes: usize,
    strides: &[[usize; 3]],
    kernels: &[[usize; 3]],
) -> std::result::Result<(), String> {
    if in_channels == 0 {
        return Err("in_channels is 0, expected at least 1".into());
    }
    if !(2..=255).contains(&num_classes) {
        return Err(format!("num_classes is {num_classes}, expected 2 to 255 (background included)"));
    }
    if strides.is_empty() {
        return Err("strides is empty, expected at least one pooling".into());
    }
    if kernels.len() != strides.len() + 1 {
        return Err(format!(
            "{} kernels for {} strides, expected one more kernel than strides",
            kernels.len(),
            strides.len()
        ));
    }
    if let Some(s) = strides.iter().find(|s| s.contains(&0)) {
        return Err(format!("stride {s:?}, expected at least 1 on every axis"));
    }
    for axis in 0..3 {
        let product =
            strides.iter().try_fold(1usize, |product, s| product.checked_mul(s[axis]).filter(|p| *p <= LARGEST));
        if product.is_none() {
            return Err(format!("strides multiply to more than {LARGEST} on axis {axis} (D, H, W)"));
        }
    }
    if let Some(k) = kernels.iter().find(|k| k.iter().any(|k| k % 2 == 0)) {
        return Err(format!("kernel {k:?}, expected odd numbers"));
    }
    if let Some(k) = kernels.iter().find(|k| k.iter().any(|k| *k > LARGEST)) {
        return Err(format!("kernel {k:?}, expected at most {LARGEST} on every axis"));
    }
    Ok(())
}
