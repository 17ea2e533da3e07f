//! A search on data whose labels need capacity at a known stage spends its operations there (docs/study.md).
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path};

use adw_supernet::Architecture;
use cli_support::Adw;

const PATCH: [usize; 3] = [24, 32, 24];

/// Share of an architecture's multiply-adds in the convolutions at full resolution.
fn share_at_full_resolution(architecture: &Architecture) -> f64 {
    let (encoder, decoder) = (&architecture.blocks[0], architecture.blocks.last().unwrap());
    let layers = |inputs: usize, widths: &[usize]| -> usize {
        let inputs = std::iter::once(&inputs).chain(widths);
        inputs.zip(widths).map(|(inputs, outputs)| inputs * outputs).sum()
    };
    let products = layers(1, encoder) + layers(2 * architecture.out_width(0), decoder);
    (27 * products * PATCH.iter().product::<usize>()) as f64 / architecture.cost(PATCH).macs as f64
}

fn search(dir: &Path) -> f64 {
    let (data, run) = (dir.join("data"), dir.join("run"));
    Adw::new(["phantom", "--family", "texture", "--cases", "60", "--test", "0"]).path("--output", &data).succeed();
    Adw::new([
        "search",
        "--set=network.max_width=6",
        "--set=search.iterations_per_epoch=12",
        "--set=search.warmup_epochs=12",
        "--set=data.augmentation.rotation=0",
        "--set=data.augmentation.scaling=0",
    ])
    .args(["--set=search.cost={unit=\"macs\", weight=1.0, budget={absolute=5.0e7}, at_least=0.97}"])
    .path("--data", &data)
    .path("--run", &run)
    .succeed();
    let file = run.join("search/fold_0/architecture.json");
    let architecture = Architecture::load(&file).unwrap();
    assert!(architecture.cost(PATCH).macs <= 50_000_000, "{}", fs::read_to_string(file).unwrap());
    share_at_full_resolution(&architecture)
}

/// Balls that differ voxel by voxel need capacity at full resolution. Half of the architectures within the budget spend less
/// than 0.59 of it there.
#[test]
fn capacity_goes_where_the_labels_need_it() {
    let dir = tempfile::tempdir().unwrap();
    let share = search(dir.path());
    assert!(share > 0.59, "share at full resolution: {share}");
}
