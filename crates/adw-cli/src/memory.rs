//! Memory that a training or a segmentation needs, checked against the limit before it starts.

use std::path::Path;

use adw_supernet::{Architecture, Encoder, Precision};
use anyhow::Result;
use candle_core::Device;
use msd_data::{CaseBytes, Geometry, Memory, Plan, dataset::described_grid};

use crate::{
    args::MemoryArgs,
    device,
    failure::bad_input,
    host_memory,
    source::{QUEUE, num_loader_threads},
};

/// Peak memory of a training, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Feature maps of the forward pass and their gradients.
    pub(crate) activations: u64,
    /// Weights, gradients and the optimisers' state.
    pub(crate) parameters: u64,
    /// Queued batches, and the parts of cases that are read for them.
    pub(crate) data: u64,
}

/// Peak of the maps that live at once, over those of the forward pass alone: gradients and workspaces of the layers
/// around the one that is being differentiated.
const BACKWARD: u64 = 2;

/// Copies of each weight at most: value, gradient, momentum, average, and two directions of Muon's step or Adam's second moment.
const COPIES: u64 = 6;

impl Need {
    /// Estimates the need of training `architecture` (for a search, the largest of its space) on batches of `plan`'s patches.
    pub(crate) fn new(
        architecture: &Architecture,
        plan: &Plan,
        batch_size: usize,
        precision: Precision,
        device: &Device,
    ) -> Self {
        let cost = architecture.cost(plan.patch_size);
        let voxels = plan.patch_size.iter().product::<usize>() as u64;
        // f32 intensities and u8 labels of the batches; a rotated patch is cut from a box of some four times its voxels.
        let channels = plan.modalities.len() as u64;
        let batch = (voxels * (4 * channels + 1)).saturating_mul(batch_size as u64);
        let source = 4 * voxels * (4 * channels + 2);
        Self {
            activations: cost
                .activation_bytes
                .saturating_mul(BACKWARD.saturating_mul(batch_size as u64))
                // On a CUDA device half precision is that of the maps.
                / if device.is_cuda() && precision == Precision::Bf16 { 2 } else { 1 },
            parameters: cost.parameters.saturating_mul(4 * COPIES),
            data: batch.saturating_mul(QUEUE as u64 + 2).saturating_add(num_loader_threads(device) as u64 * source),
        }
    }

    /// Sum of all.
    pub(crate) fn total(self) -> u64 {
        self.activations.saturating_add(self.parameters).saturating_add(self.data)
    }
}

/// Limit of `--memory` as far as the limits of this process leave it, else the memory that the system has available; no limit
/// on an unknown system.
pub(crate) fn limit(args: MemoryArgs) -> Memory {
    let bytes = match args.memory.map(|gb| (gb * 1e9) as u64) {
        Some(bytes) => Some(host_memory::left_of_limits().map_or(bytes, |left| left.min(bytes))),
        None => host_memory::available_bytes(),
    };
    bytes.map_or(Memory::unlimited(), Memory::bytes)
}

/// Refuses work that exceeds the limit, and returns the rest, which is for prepared cases. On a CUDA device, maps and
/// weights are in the device's own memory.
///
/// # Errors
/// Names the need and the patch that causes it.
pub(crate) fn check(
    mut need: Need,
    patch: [usize; 3],
    batch_size: usize,
    args: MemoryArgs,
    device: &Device,
) -> Result<Memory> {
    const ADVICE: &str = "lower batch_size (of search or retrain), data.patch_size or network.max_width with --set";
    let limit = limit(args);
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let [d, h, w] = patch;
    if let Some(free) = device::free_bytes(device) {
        let on_device = need.activations.saturating_add(need.parameters);
        if on_device > free {
            bad_input!(
                "patches of {d}x{h}x{w} in batches of {batch_size} need about {:.2} GB of the CUDA device, {:.2} GB are \
                 free: {ADVICE}",
                gb(on_device),
                gb(free)
            );
        }
        (need.activations, need.parameters) = (0, 0);
    }
    if limit.holds(need.total()) {
        return Ok(limit.less(need.total()));
    }
    bad_input!(
        "patches of {d}x{h}x{w} in batches of {batch_size} need about {:.2} GB ({:.2} GB of feature maps, \
         {:.2} GB of weights, {:.2} GB of batches), {:.2} GB are available: {ADVICE}",
        gb(need.total()),
        gb(need.activations),
        gb(need.parameters),
        gb(need.data),
        gb(limit.limit())
    );
}

/// Refuses an image whose preparation or segmentation, from and to its own grid, exceeds the limit.
///
/// # Errors
/// File and sizes of the image.
pub(crate) fn check_segmentation(
    limit: Memory,
    (file, geometry): (&Path, &Geometry),
    plan: &Plan,
    architectures: &[&Architecture],
    device: &Device,
    probabilities: bool,
) -> Result<()> {
    let case = CaseBytes::on(geometry, plan);
    let segmenting = segmentation_bytes(architectures, &case, plan.patch_size, device, probabilities);
    limit.check(case.preparing.max(segmenting), || described_grid(file, geometry))?;
    Ok(())
}

/// Bytes of segmenting a prepared case, its image included: a forward pass beside the sums of weighted logits in a slab of windows
/// and the labels so far, or the label map's way to the image's own grid. With probabilities, logits of the whole image.
fn segmentation_bytes(
    architectures: &[&Architecture],
    case: &CaseBytes,
    patch: [usize; 3],
    device: &Device,
    probabilities: bool,
) -> u64 {
    let voxels = |shape: [usize; 3]| shape.iter().map(|&n| n as f64).product::<f64>();
    let prepared = voxels(case.prepared_shape);
    // Images are padded to at least a patch.
    let padded_shape = [0, 1, 2].map(|a| case.prepared_shape[a].max(patch[a]));
    let padded = voxels(padded_shape);
    let slab = padded / padded_shape[0] as f64 * patch[0] as f64;
    let architecture = architectures[0];
    let (channels, classes) = (architecture.in_channels as f64, architecture.num_classes as f64);
    let image = 4.0 * channels * (prepared + if padded > prepared { padded } else { 0.0 });
    let own = voxels(case.shape);
    // The planes that are final are copied twice, and one class of them is brought to the image's own grid.
    let sums = 4.0 * (3.0 * classes + 1.0) * slab + 8.0 * own * slab / padded;
    let forward = architectures.iter().map(|architecture| forward_bytes(architecture, patch)).max().unwrap_or(0) as f64;
    let window = 8.0 * classes * voxels(patch) + if device.is_cuda() { 0.0 } else { forward };
    if probabilities {
        // All logits, twice at the end; then largest logit, sum and label of each voxel, and a class with its two copies.
        let logits = 4.0 * classes * prepared;
        return (image + (sums + window + logits).max(2.0 * logits).max(logits + 22.0 * own)) as u64;
    }
    // The label map, and two copies of it at the end.
    (image + sums + window + 2.0 * own).max(6.0 * own) as u64
}

/// Bytes of the maps of one forward pass of a patch: those that wait for the decoder, and around the layer with the largest
/// map its inputs, its output and a workspace; in a residual encoder the map of the shortcut besides, and the upsampled map with its bias.
fn forward_bytes(architecture: &Architecture, patch: [usize; 3]) -> u64 {
    let voxels: Vec<u64> =
        architecture.stage_sizes(patch).iter().map(|size| size.iter().map(|&n| n as u64).product()).collect();
    let of_block = |block: usize, width: usize| 4 * width as u64 * voxels[architecture.stage_of_block(block)];
    let skips: u64 = (0..architecture.poolings()).map(|block| of_block(block, architecture.out_width(block))).sum();
    let widest = |block: usize| architecture.blocks[block].iter().copied().max().unwrap_or(0);
    let largest = (0..architecture.blocks.len()).map(|block| of_block(block, widest(block))).max().unwrap_or(0);
    let maps = if architecture.encoder == Encoder::Residual { 4 } else { 3 };
    skips + maps * largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_passes_and_what_does_not_is_named() {
        let need = Need { activations: 3_000_000_000, parameters: 500_000_000, data: 0 };
        let args = |gb| MemoryArgs { memory: Some(gb) };
        let left = check(need, [8, 8, 8], 2, args(3.6), &Device::Cpu).unwrap();
        assert_eq!(left, Memory::bytes(100_000_000));
        let message = check(need, [64, 96, 80], 2, args(3.4), &Device::Cpu).unwrap_err().to_string();
        assert!(
            message.contains("64x96x80") && message.contains("3.50 GB") && message.contains("3.40 GB"),
            "{message}"
        );
        assert!(message.contains("data.patch_size"), "{message}");
    }
}
