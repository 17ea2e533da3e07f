//! Whether a training fits in memory, asked before it starts.

use std::{fs, path::Path};

use adw_supernet::{Architecture, Precision};
use anyhow::Result;
use candle_core::Device;
use msd_data::{Memory, Plan};

use crate::{
    args::Process,
    device,
    failure::bad_input,
    source::{QUEUE, num_loader_threads},
};

/// What a training needs at its peak, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Feature maps of the forward pass and their gradients.
    pub(crate) activations: u64,
    /// Weights, gradients and the optimisers' state.
    pub(crate) parameters: u64,
    /// Batches on their way, and what is read of cases for them.
    pub(crate) data: u64,
}

/// Peak of the maps that live at once, over those of the forward pass alone: gradients and workspaces of the layers
/// around the one that is being differentiated.
const BACKWARD: u64 = 2;

/// Copies of each weight: value, gradient, momentum and a second moment or an average.
const COPIES: u64 = 4;

impl Need {
    /// For training `architecture` (for a search: the [largest](adw_supernet::SupernetConfig::largest) of its space) on batches of `plan`'s patches.
    pub(crate) fn of(
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
        let batch = voxels * (4 * channels + 1) * batch_size as u64;
        let source = 4 * voxels * (4 * channels + 2);
        Self {
            activations: cost
                .activation_bytes
                .saturating_mul(BACKWARD * batch_size as u64)
                // On a CUDA device half precision is that of the maps.
                / if device.is_cuda() && precision == Precision::Bf16 { 2 } else { 1 },
            parameters: cost.parameters.saturating_mul(4 * COPIES),
            data: (QUEUE as u64 + 2) * batch + num_loader_threads(device) as u64 * source,
        }
    }

    fn total(self) -> u64 {
        self.activations.saturating_add(self.parameters).saturating_add(self.data)
    }
}

/// What `--memory` allows, else what the system has available; an unknown system has enough.
pub(crate) fn limit(process: &Process) -> Memory {
    let asked = process.memory.map(|gb| (gb * 1e9) as u64);
    asked.or_else(available_bytes).map_or(Memory::unlimited(), Memory::bytes)
}

/// Refuses work that does not fit in the limit; what is left is for prepared cases. On a CUDA device, maps and weights
/// are in its own memory.
///
/// # Errors
/// Names the need and the patch that causes it.
pub(crate) fn check(
    mut need: Need,
    patch: [usize; 3],
    batch_size: usize,
    process: &Process,
    device: &Device,
) -> Result<Memory> {
    let limit = limit(process);
    if let Some(free) = device::free_bytes(device) {
        let on_device = need.activations.saturating_add(need.parameters);
        if on_device > free {
            let gb = |bytes: u64| bytes as f64 / 1e9;
            let [d, h, w] = patch;
            bad_input!(
                "patches of {d}x{h}x{w} in batches of {batch_size} need about {:.2} GB of the CUDA device, {:.2} GB are \
                 free: lower batch_size (of search or retrain), data.patch_size or network.max_width",
                gb(on_device),
                gb(free)
            );
        }
        (need.activations, need.parameters) = (0, 0);
    }
    if limit.holds(need.total()) {
        return Ok(limit.less(need.total()));
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let [d, h, w] = patch;
    bad_input!(
        "patches of {d}x{h}x{w} in batches of {batch_size} need about {:.2} GB ({:.2} GB of feature maps, \
         {:.2} GB of weights, {:.2} GB of batches), {:.2} GB are available: lower batch_size (of search or \
         retrain), data.patch_size or network.max_width",
        gb(need.total()),
        gb(need.activations),
        gb(need.parameters),
        gb(need.data),
        gb(limit.limit())
    );
}

/// Memory that can be had without swapping: Linux's own estimate, or what the control group leaves if that is less.
fn available_bytes() -> Option<u64> {
    let available = bytes_in(Path::new("/proc/meminfo"), "MemAvailable:")?;
    let in_group = in_control_group(Path::new("/sys/fs/cgroup"));
    Some(in_group.map_or(available, |group| group.min(available)))
}

/// The most memory this process has held so far; none where the system does not say.
pub(crate) fn peak_bytes() -> Option<u64> {
    bytes_in(Path::new("/proc/self/status"), "VmHWM:")
}

/// The amount that one of Linux's tables names by `key`.
fn bytes_in(table: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(table).ok()?;
    let amount = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = amount.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// What the limit of the control group leaves, of either version; none without a limit. The cache of files counts as
/// used there, but gives way to whoever needs memory.
fn in_control_group(root: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (max, used, stat, prefix) = match number("memory.max") {
        Some(max) => (max, number("memory.current")?, read("memory.stat"), ""),
        None => (
            number("memory/memory.limit_in_bytes")?,
            number("memory/memory.usage_in_bytes")?,
            read("memory/memory.stat"),
            // That of the groups below is not counted in the keys without it.
            "total_",
        ),
    };
    let stat = stat.unwrap_or_default();
    let cache: u64 = stat
        .lines()
        .filter_map(|line| {
            let (key, bytes) = line.strip_prefix(prefix)?.split_once(' ')?;
            matches!(key, "inactive_file" | "active_file").then(|| bytes.parse::<u64>().ok())?
        })
        .sum();
    Some(max.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Convolutions;

    #[test]
    fn a_control_group_of_either_version_leaves_its_limit_less_what_is_no_cache() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(in_control_group(dir.path()), None);
        fs::create_dir(dir.path().join("memory")).unwrap();
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "700\n");
        let stat = "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50\n";
        write("memory/memory.stat", stat);
        assert_eq!(in_control_group(dir.path()), Some(550));
        write("memory.max", "2000\n");
        write("memory.current", "1900\n");
        assert_eq!(in_control_group(dir.path()), Some(100));
        write("memory.stat", "anon 7\ninactive_file 1000\nactive_file 500\n");
        assert_eq!(in_control_group(dir.path()), Some(1600));
        write("memory.max", "max\n");
        assert_eq!(in_control_group(dir.path()), Some(550), "version 1 is asked");
    }

    #[test]
    fn what_fits_passes_and_what_does_not_is_named() {
        let need = Need { activations: 3_000_000_000, parameters: 500_000_000, data: 0 };
        let process = |gb| Process {
            threads: None,
            device: "cpu".to_owned(),
            convolutions: Convolutions::default(),
            json: false,
            memory: Some(gb),
        };
        let left = check(need, [8, 8, 8], 2, &process(3.6), &Device::Cpu).unwrap();
        assert_eq!(left, Memory::bytes(100_000_000));
        let message = check(need, [64, 96, 80], 2, &process(3.4), &Device::Cpu).unwrap_err().to_string();
        assert!(
            message.contains("64x96x80") && message.contains("3.50 GB") && message.contains("3.40 GB"),
            "{message}"
        );
        assert!(message.contains("data.patch_size"), "{message}");
    }
}
