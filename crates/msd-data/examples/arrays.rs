//! A prepared case and a batch as raw arrays, for comparison with what another language gets:
//! `cargo run --release -p msd-data --example arrays -- DATASET CASE FOLDER` writes `image.f32`, `labels.i16`, and `x.f32`, `y.u8`
//! of iteration 7 in epoch 3 of seed 5, little endian.

use std::fs;
use std::path::PathBuf;

use msd_data::{
    Augmentation, BatchKey, Dataset, Memory, PatchSampler, PlanOptions, Purpose, fingerprint, plan,
    prepare_training_cases, preprocess,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [dataset, case, folder] = args.as_slice() else {
        return Err("expected DATASET CASE FOLDER".into());
    };
    let dataset = Dataset::open(dataset)?;
    let plan = plan(&fingerprint(&dataset, Memory::unlimited())?, &dataset, &PlanOptions::default())?;
    let case = dataset.training_case(&case.to_string_lossy())?;
    let (image, labels) = dataset.load_case(case)?;
    let prepared = preprocess(image, Some(labels), &plan)?;
    let cases = prepare_training_cases(&dataset, &dataset.training_ids(), &plan, Memory::unlimited())?;
    let sampler =
        PatchSampler::new(cases, plan.patch_size, plan.batch_size, Augmentation::full(), &plan.use_mask_for_norm)?;
    let batch = sampler.batch(BatchKey { seed: 5, purpose: Purpose::Weights, epoch: 3, iteration: 7 })?;
    fs::create_dir_all(folder)?;
    let floats = |values: &mut dyn Iterator<Item = &f32>| values.flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    fs::write(folder.join("image.f32"), floats(&mut prepared.image.iter()))?;
    let labels: Vec<u8> = prepared.labels.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(folder.join("labels.i16"), labels)?;
    fs::write(folder.join("x.f32"), floats(&mut batch.x.iter()))?;
    fs::write(folder.join("y.u8"), &batch.target)?;
    Ok(())
}
