//! Times one large case: `cargo run --release -p msd-data --example large_case [-- D H W]`.
//!
//! A CT of 300 x 512 x 512 voxels of 2.5 x 0.8 x 0.8 mm is brought to 1 mm slices (nearest slices, since its voxels are
//! more than three times longer than wide), and one of 2 mm slices too (cubic). Beside each, the time of passes that
//! only read the smaller and write the larger volume, as the floor of what memory allows, and the peak memory.

use std::time::Instant;

use msd_data::{Geometry, LabelMap, Plan, Volume, preprocess};
use ndarray::{Array3, Array4};
use rayon::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let [d, h, w] = args.try_into().unwrap_or([300, 512, 512]);
    for (slice_mm, target) in [(2.5, [1.0, 0.8, 0.8]), (2.0, [1.0, 0.8, 0.8]), (2.0, [1.0, 0.7, 0.7])] {
        let geometry = Geometry::new([d, h, w], [slice_mm, 0.8, 0.8]);
        let image = Volume {
            data: Array4::from_shape_fn((1, d, h, w), |(_, z, y, x)| ((z * 7 + y * 3 + x * 5) % 2000) as f32 - 1000.0),
            geometry: geometry.clone(),
        };
        let labels = LabelMap {
            data: Array3::from_shape_fn((d, h, w), |(z, y, x)| u16::from((z / 9 + y / 40 + x / 40) % 5 == 0)),
            geometry,
        };
        let start = Instant::now();
        let case = preprocess(image, Some(labels), &ct_plan(target)?)?;
        let seconds = start.elapsed().as_secs_f64();
        let shape = case.properties.shape;
        let larger = case.image.len().max(d * h * w) * 4;
        let peak = peak_bytes().unwrap_or(0);
        drop(case);
        let source = vec![1.0; d * h * w];
        let axes = [d, h, w].iter().zip(shape).filter(|(a, b)| **a != *b).count();
        let floor = copy_seconds(&source, shape.iter().product());
        println!(
            "{slice_mm} mm slices to {target:?} mm: {shape:?} in {seconds:.2} s; {axes} passes over memory take {:.2} s; peak \
             {:.2} GB with input and output, {:.2} times the larger volume",
            floor * axes as f64,
            peak as f64 / 1e9,
            peak as f64 / larger as f64
        );
        reset_peak();
    }
    Ok(())
}

/// Time to read a volume and write one of `n_out` voxels, on all threads, into fresh memory.
fn copy_seconds(from: &[f32], n_out: usize) -> f64 {
    let start = Instant::now();
    let mut out = vec![0.0f32; n_out];
    let n = from.len() as f64 / n_out as f64;
    out.par_chunks_mut(1 << 16).enumerate().for_each(|(i, chunk)| {
        let first = ((i << 16) as f64 * n) as usize;
        let source = from[first.min(from.len() - 1)..].iter().cycle();
        chunk.iter_mut().zip(source).for_each(|(to, v)| *to = *v);
    });
    assert!(out.iter().step_by(4096).any(|v| *v != 0.0));
    start.elapsed().as_secs_f64()
}

fn ct_plan(spacing_mm: [f64; 3]) -> Result<Plan, serde_json::Error> {
    let statistics = serde_json::json!({
        "mean": 0.0, "median": 0.0, "std": 300.0, "min": -1000.0, "max": 1000.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0
    });
    serde_json::from_value(serde_json::json!({
        "dataset_name": "Large", "modalities": ["CT"], "labels": [], "spacing_mm": spacing_mm, "median_shape": [1.0, 1.0, 1.0],
        "patch_size": [8, 8, 8], "batch_size": 2, "strides": [], "kernels": [[3, 3, 3]], "normalization": ["ct"],
        "use_mask_for_norm": [false], "intensity": [statistics], "batch_dice": false,
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]
    }))
}

fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Linux: the peak starts again from what is held now.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
