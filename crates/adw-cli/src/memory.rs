//! Whether a training fits in memory, asked before it starts.

use std::fs;

use adw_supernet::{Architecture, SupernetConfig};
use anyhow::Result;
use msd_data::Plan;

use crate::failure::bad_input;

/// What a training needs at its peak, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Feature maps of the forward pass and their gradients.
    pub(crate) activations: u64,
    /// Weights, gradients and the optimisers' state.
    pub(crate) parameters: u64,
    /// Prepared cases and batches on their way.
    pub(crate) data: u64,
}

/// Peak of the maps that live at once, over those of the forward pass alone: gradients and workspaces of the layers
/// around the one that is being differentiated.
const BACKWARD: u64 = 2;

/// Copies of each weight: value, gradient, momentum and a second moment or an average.
const COPIES: u64 = 4;

impl Need {
    /// For training `architecture` (for a search: [`largest`]) on `num_cases` cases of `plan`'s median shape.
    pub(crate) fn of(
        architecture: &Architecture,
        plan: &Plan,
        batch_size: usize,
        num_cases: usize,
    ) -> Self {
        let cost = architecture.cost(plan.patch_size);
        let voxels = plan.median_shape.iter().product::<f64>() as u64;
        // f32 intensities and i16 labels.
        let case = voxels * (4 * plan.modalities.len() as u64 + 2);
        Self {
            activations: cost
                .activation_bytes
                .saturating_mul(BACKWARD * batch_size as u64),
            parameters: cost.parameters.saturating_mul(4 * COPIES),
            data: case * num_cases as u64,
        }
    }

    fn total(self) -> u64 {
        self.activations
            .saturating_add(self.parameters)
            .saturating_add(self.data)
    }
}

/// The largest network of a search space: what the supernet computes in each pass.
///
/// # Errors
/// The configuration makes no network.
pub(crate) fn largest(config: &SupernetConfig) -> Result<Architecture> {
    let blocks = (0..config.num_blocks())
        .map(|block| vec![config.block_max_width(block); config.max_depth])
        .collect();
    let (strides, kernels) = (config.strides.clone(), config.kernels.clone());
    Ok(Architecture::new(
        config.in_channels,
        config.num_classes,
        strides,
        kernels,
        blocks,
    )?)
}

/// Refuses work that does not fit in `limit_gb`, else in what the system has available; an unknown system has enough.
///
/// # Errors
/// Names the need and the patch that causes it.
pub(crate) fn check(
    need: Need,
    patch: [usize; 3],
    batch_size: usize,
    limit_gb: Option<f64>,
) -> Result<()> {
    let Some(available) = limit_gb
        .map(|gb| (gb * 1e9) as u64)
        .or_else(available_bytes)
    else {
        return Ok(());
    };
    if need.total() <= available {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let [d, h, w] = patch;
    bad_input!(
        "patches of {d}x{h}x{w} in batches of {batch_size} need about {:.2} GB ({:.2} GB of feature maps, \
         {:.2} GB of weights, {:.2} GB of data), {:.2} GB are available: lower batch_size (of search or \
         retrain), data.patch_size or network.max_width",
        gb(need.total()),
        gb(need.activations),
        gb(need.parameters),
        gb(need.data),
        gb(available)
    );
}

/// Memory that can be had without swapping: Linux's own estimate, or the control group's limit if that is lower.
fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let available = meminfo.lines().find_map(|line| {
        let kib: u64 = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()?;
        Some(kib * 1024)
    })?;
    let group = |name: &str| {
        fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}"))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let in_group = group("max")
        .zip(group("current"))
        .map(|(max, current)| max.saturating_sub(current));
    Some(in_group.map_or(available, |group| group.min(available)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_passes_and_what_does_not_is_named() {
        let need = Need {
            activations: 3_000_000_000,
            parameters: 500_000_000,
            data: 0,
        };
        check(need, [8, 8, 8], 2, Some(3.6)).unwrap();
        let message = check(need, [64, 96, 80], 2, Some(3.4))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("64x96x80")
                && message.contains("3.50 GB")
                && message.contains("3.40 GB"),
            "{message}"
        );
        assert!(message.contains("data.patch_size"), "{message}");
    }
}
