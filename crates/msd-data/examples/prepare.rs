//! Plans a dataset and prepares its training cases:
//! `cargo run --release -p msd-data --example prepare -- DATASET [FOLDER]`, in memory or into files in FOLDER.

use std::path::{Path, PathBuf};
use std::time::Instant;

use msd_data::{
    Dataset, Memory, PlanOptions, fingerprint, plan, prepare_training_cases, store_training_cases, training_cases_bytes,
};

fn main() -> msd_data::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = args.next().unwrap_or_else(|| "data/Task04_Hippocampus".into());
    let store = args.next();
    let start = Instant::now();
    let dataset = Dataset::open(&folder)?;
    let plan = plan(&fingerprint(&dataset, Memory::unlimited())?, &dataset, &PlanOptions::default())?;
    let planned = start.elapsed().as_secs_f64();
    println!(
        "planned in {planned:.2} s: patch {:?}, batch {}, strides {:?}",
        plan.patch_size, plan.batch_size, plan.strides
    );
    let start = Instant::now();
    let ids = dataset.training_ids();
    let bytes = match &store {
        None => {
            let cases = prepare_training_cases(&dataset, &ids, &plan, Memory::unlimited())?;
            cases
                .iter()
                .map(|case| 4 * case.image.len() as u64 + 2 * (case.image.len() / plan.modalities.len()) as u64)
                .sum()
        }
        Some(folder) => {
            store_training_cases(&dataset, &ids, &plan, folder, Memory::unlimited())?;
            size_of_files(folder)
        }
    };
    println!(
        "prepared {} cases in {:.2} s: {:.1} MB of at most {:.1} MB",
        ids.len(),
        start.elapsed().as_secs_f64(),
        bytes as f64 / 1e6,
        training_cases_bytes(&dataset, &ids, &plan)?.prepared as f64 / 1e6
    );
    Ok(())
}

fn size_of_files(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}
