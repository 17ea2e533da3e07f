//! Times batches: `cargo run --release -p msd-data --example batch_time -- DATASET`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use msd_data::{
    Augmentation, BatchKey, Dataset, PatchSampler, PlanOptions, Purpose, fingerprint, plan,
    prepare_training_cases,
};

fn main() -> msd_data::Result<()> {
    let folder = std::env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from("data/Task04_Hippocampus"), PathBuf::from);
    let start = Instant::now();
    let dataset = Dataset::open(&folder)?;
    let plan = plan(&fingerprint(&dataset)?, &dataset, &PlanOptions::default())?;
    println!(
        "planned in {:.2} s: patch {:?}, strides {:?}",
        start.elapsed().as_secs_f64(),
        plan.patch_size,
        plan.strides
    );
    let start = Instant::now();
    let cases = prepare_training_cases(&dataset, &dataset.training_ids(), &plan)?;
    println!(
        "prepared {} cases in {:.2} s",
        cases.len(),
        start.elapsed().as_secs_f64()
    );
    let cases: Vec<_> = cases.into_iter().map(Arc::new).collect();
    for name in ["none", "light", "full"] {
        let augmentation = Augmentation::preset(name)?;
        let sampler = PatchSampler::new(
            cases.clone(),
            plan.patch_size,
            2,
            augmentation,
            &plan.use_mask_for_norm,
        )?;
        let start = Instant::now();
        for iteration in 0..200 {
            sampler.batch(BatchKey {
                seed: 1,
                purpose: Purpose::Weights,
                epoch: 0,
                iteration,
            });
        }
        println!(
            "{name}: {:.2} ms per batch of two",
            start.elapsed().as_secs_f64() * 1e3 / 200.0
        );
    }
    Ok(())
}
