//! Memory and time that a batch system is asked for, estimated from the networks.

use adw_supernet::{Architecture, FixedSizes};
use anyhow::Result;
use candle_core::Device;
use msd_data::{Dataset, Fingerprint, Plan, training_cases_bytes};

use super::plan::{Cell, Sweep};
use crate::{
    architecture_choice::{plain, search_space},
    args::{ConfigArgs, Stage},
    memory::Need,
    report::training::Workload,
    run,
    run_config::{RunConfig, Settings},
};

/// Resources of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Resources {
    pub(crate) memory_bytes: u64,
    pub(crate) seconds: f64,
}

impl Resources {
    /// The larger of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { memory_bytes: self.memory_bytes.max(other.memory_bytes), seconds: self.seconds.max(other.seconds) }
    }
}

/// Multiply-adds per second and core that slow processors reach in a training, about a fifth of one with AVX-512.
const RATE: f64 = 1e10;

/// Memory of the program and its libraries.
const PROGRAM_BYTES: u64 = 500_000_000;

/// Seconds for starting, preparing and scoring.
const OVERHEAD_S: f64 = 600.0;

/// Resources of preparing a dataset, from the sizes of its images: each core reads one.
///
/// # Errors
/// An image whose header cannot be read.
pub(crate) fn preparing(dataset: &Dataset, plan: &Plan, cores: u16) -> Result<Resources> {
    let bytes = training_cases_bytes(dataset, &dataset.training_ids(), plan)?;
    let memory_bytes = PROGRAM_BYTES + bytes.preparing_largest * u64::from(cores);
    // Reading and decompressing 20 MB per second.
    Ok(Resources { memory_bytes, seconds: OVERHEAD_S + bytes.prepared as f64 / 2e7 })
}

/// Resources of a search or training on the CPU, of a dataset with this fingerprint.
///
/// # Errors
/// Settings that do not fit the dataset.
pub(crate) fn network(
    sweep: &Sweep,
    (dataset, fingerprint): (&Dataset, &Fingerprint),
    (stage, cell): (Stage, Cell),
    cores: u16,
) -> Result<Resources> {
    let arm = sweep.arm(cell);
    let config = RunConfig::from_args(&sweep.config.settings(arm, cell.seed))?;
    let config = config.changed_by(&ConfigArgs { preset: None, seed: None, set: arm.retrain_set.clone() })?;
    let plan = run::plan(fingerprint, dataset, &config)?;
    let settings = &config.settings;
    let (architecture, batch, workload) = if stage == Stage::Search {
        let largest = search_space(&plan, &settings.network).largest()?;
        (largest, settings.search.batch_size, Workload::of_search(&settings.search))
    } else {
        (trained(arm, &plan, settings)?, settings.retrain.batch_size, Workload::of_training(&settings.retrain))
    };
    let batch = batch.unwrap_or(plan.batch_size);
    let need = Need::new(&architecture, &plan, batch, settings.search.precision, &Device::Cpu);
    let cases = training_cases_bytes(dataset, &dataset.training_ids(), &plan)?;
    // Cases beyond a fifth of the rest are kept in files.
    let own = need.total();
    let cases = cases.preparing_largest + cases.prepared.min(own / 5 + 2_000_000_000);
    let passes = batch as f64 * workload.done(workload.epochs, 0) as f64;
    let macs = architecture.cost(plan.patch_size).macs as f64 * passes;
    Ok(Resources { memory_bytes: PROGRAM_BYTES + own + cases, seconds: OVERHEAD_S + macs / (RATE * f64::from(cores)) })
}

/// Architecture as large as the one that an arm trains may be.
fn trained(arm: &super::config::Arm, plan: &Plan, settings: &Settings) -> Result<Architecture> {
    if let Some(file) = &arm.architecture {
        return Ok(Architecture::load(file.as_ref())?);
    }
    let defaults = FixedSizes::default();
    let sizes = match (arm.uniform_width, &arm.plain) {
        (Some(width), _) => FixedSizes {
            width,
            depth: arm.uniform_depth.unwrap_or(defaults.depth),
            max_features: arm.uniform_max_features.unwrap_or(defaults.max_features),
        },
        (None, Some(_)) => defaults,
        (None, None) => return Ok(search_space(plan, &settings.network).largest()?),
    };
    plain(plan, sizes)
}
