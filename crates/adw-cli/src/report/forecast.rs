//! Forecast of a search or training, for `--dry-run`: plan, cost, memory, time and disk, with nothing written.

use std::time::Instant;

use adw_supernet::Architecture;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use msd_data::{Memory, TrainingCasesBytes};
use serde_json::json;

use super::{
    number::number,
    progress::{emit, say},
    table::Table,
    training::Workload,
};
use crate::{memory::Need, run::Run};

/// Work that is about to start.
pub(crate) struct Forecast<'a> {
    pub(crate) run: &'a Run,
    pub(crate) workload: Workload,
    pub(crate) batch_size: usize,
    /// Network that is trained; of a search, the largest of its space.
    pub(crate) architecture: &'a Architecture,
    pub(crate) need: Need,
    /// Memory that is left for prepared cases.
    pub(crate) left: Memory,
    pub(crate) cases: TrainingCasesBytes,
}

impl Forecast<'_> {
    /// Prints the forecast. The time is that of one forward pass, which `predict` computes here, for every pass of the
    /// schedule; scoring is left out.
    ///
    /// # Errors
    /// The network fails.
    pub(crate) fn print(
        &self,
        device: &Device,
        json: bool,
        predict: impl Fn(&Tensor) -> adw_supernet::Result<Tensor>,
    ) -> Result<()> {
        let (plan, workload) = (&self.run.plan, self.workload);
        let [d, h, w] = plan.patch_size;
        let x = Tensor::zeros((self.batch_size, plan.modalities.len(), d, h, w), DType::F32, device)?;
        predict(&x)?; // The first pass allocates.
        let started = Instant::now();
        predict(&x)?;
        device.synchronize()?;
        let seconds = started.elapsed().as_secs_f64() * workload.done(workload.epochs, 0) as f64;
        let cost = self.architecture.cost(plan.patch_size);
        // Weights and the optimiser's two moments, in the latest checkpoint, the one before and one that is being written.
        let TrainingCasesBytes { prepared, preparing_largest, .. } = self.cases;
        let in_files = if self.left.holds(prepared.saturating_add(preparing_largest)) { 0 } else { prepared };
        let disk = cost.parameters * 4 * 3 * 3 + in_files;
        if json {
            let fields = json!({
                "run": self.run.root, "patch_size": plan.patch_size, "batch_size": self.batch_size,
                "epochs": workload.epochs, "iterations_per_epoch": workload.iterations_per_epoch,
                "macs_per_patch": cost.macs, "parameters": cost.parameters,
                "memory_bytes": self.need.total(), "cases_bytes": prepared,
                "disk_bytes": disk, "seconds": seconds,
            });
            emit("forecast", &fields);
            return Ok(());
        }
        let size = |bytes: u64| format!("{}B", number(bytes as f64));
        let place = if in_files == 0 { "in memory" } else { "in files, for they do not fit into memory" };
        let mut table = Table::of_text(["forecast", "nothing is written"]);
        table.row(["run", &self.run.root.display().to_string()]);
        table.row(["patch, batch", &format!("{d}x{h}x{w} voxels, {} patches", self.batch_size)]);
        table.row(["schedule", &format!("{} epochs of {} iterations", workload.epochs, workload.iterations_per_epoch)]);
        table.row([
            "network",
            &format!(
                "{} multiply-adds per patch, {} parameters",
                number(cost.macs as f64),
                number(cost.parameters as f64)
            ),
        ]);
        table.row(["memory", &format!("{} for the network and its batches", size(self.need.total()))]);
        table.row(["cases", &format!("{} {place}", size(prepared))]);
        table.row(["disk", &size(disk)]);
        table.row(["time", &format!("about {}, by two forward passes timed just now", duration(seconds))]);
        say(&table.render());
        Ok(())
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 5400.0 { format!("{:.0} min", (seconds / 60.0).ceil()) } else { format!("{:.1} h", seconds / 3600.0) }
}
