//! Augmented patches per second of one core's time, and the time of each transform:
//! `cargo run --release -p msd-data --example augmentation_speed -- D H W [VOLUME D H W]`.
//!
//! Patches of D x H x W are drawn from a volume of noise, or from the f32 voxels in the file VOLUME, with labels in blocks. The last line is JSON, for `benchmarks/augmentation.py`, which times nnU-Net's transforms beside it.

use std::sync::Arc;
use std::time::Instant;

use msd_data::{Augmentation, BatchKey, Geometry, LabelMap, PatchSampler, Plan, Purpose, Volume, preprocess};
use ndarray::{Array3, Array4};

/// Makes one transform certain.
type Change = fn(&mut Augmentation);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).map(|arg| arg.parse::<usize>()).transpose();
    let triple = |i: usize| -> Result<Option<[usize; 3]>, Box<dyn std::error::Error>> {
        Ok(match (number(i)?, number(i + 1)?, number(i + 2)?) {
            (Some(d), Some(h), Some(w)) => Some([d, h, w]),
            _ => None,
        })
    };
    let patch = triple(0)?.unwrap_or([40, 56, 40]);
    let shape = triple(4)?.unwrap_or(patch.map(|n| 2 * n));
    let [d, h, w] = shape;
    let voxels = if let Some(file) = args.get(3) {
        let bytes = std::fs::read(file)?;
        let (values, _) = bytes.as_chunks();
        values.iter().map(|&b| f32::from_le_bytes(b)).collect()
    } else {
        let mut n = 1u32;
        let mut noise = || {
            n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (n >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..d * h * w).map(|_| noise()).collect()
    };
    let geometry = Geometry::new(shape, [1.0; 3]);
    let image = Volume { data: Array4::from_shape_vec((1, d, h, w), voxels)?, geometry: geometry.clone() };
    // Structures of some voxels across, as organs are.
    let labels = Array3::from_shape_fn(shape, |(z, y, x)| ((z / 9 + y / 11 + x / 10) % 3) as u16);
    let plan: Plan = serde_json::from_value(serde_json::json!({
        "dataset_name": "Speed", "modalities": ["MRI"], "labels": [], "spacing_mm": [1.0, 1.0, 1.0],
        "median_shape": [1.0, 1.0, 1.0], "patch_size": patch, "batch_size": 1, "strides": [], "kernels": [[3, 3, 3]],
        "normalization": ["z_score"], "use_mask_for_norm": [false], "intensity": [], "batch_dice": false,
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]
    }))?;
    let case = Arc::new(preprocess(image, Some(LabelMap { data: labels, geometry }), &plan)?);
    let time = |augmentation, patches: u64| -> msd_data::Result<f64> {
        let sampler = PatchSampler::new(vec![Arc::clone(&case)], patch, 1, augmentation, &[false])?;
        let start = Clock::start();
        for iteration in 0..patches {
            let key = BatchKey { seed: 1, purpose: Purpose::Weights, epoch: 0, iteration };
            sampler.batch(key)?;
        }
        Ok(start.seconds() / patches as f64)
    };
    let few = (20_000_000 / patch.iter().product::<usize>() as u64).max(4);
    let none = time(Augmentation::none(), few)?;
    println!("crop: {:.3} ms", none * 1e3);
    let each: [(&str, Change); 9] = [
        ("rotation", |a| a.rotation = 1.0),
        ("scaling", |a| a.scaling = 1.0),
        ("noise", |a| a.noise = 1.0),
        ("blur", |a| a.blur = 1.0),
        ("brightness", |a| a.brightness = 1.0),
        ("contrast", |a| a.contrast = 1.0),
        ("low_resolution", |a| a.low_resolution = 1.0),
        ("gamma", |a| a.gamma = 1.0),
        ("mirror", |a| a.mirror = 1.0),
    ];
    for (name, change) in each {
        let mut augmentation = Augmentation::none();
        change(&mut augmentation);
        println!("{name}: {:.3} ms more", (time(augmentation, few)? - none) * 1e3);
    }
    // Long enough for every transform to be drawn about as often as it should be.
    let many = (10 * few).max(200);
    let seconds = time(Augmentation::full(), many)?;
    println!("{}", serde_json::json!({ "patch": patch, "patches_per_second": 1.0 / seconds }));
    Ok(())
}

/// Time that this thread was at work, where Linux says so; else time that passed.
struct Clock(Instant, Option<f64>);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), Self::at_work())
    }

    fn seconds(&self) -> f64 {
        match (self.1, Self::at_work()) {
            (Some(start), Some(end)) => end - start,
            _ => self.0.elapsed().as_secs_f64(),
        }
    }

    fn at_work() -> Option<f64> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
    }
}
