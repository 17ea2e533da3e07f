//! Transforms of one voxel at a time. `channel` is one channel of a patch.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

/// Adds normally distributed noise of standard deviation `std` (Box-Muller).
pub(crate) fn add_noise(image: &mut [f32], std: f32, rng: &mut impl Rng) {
    for pair in image.chunks_mut(2) {
        // 1 - u lies in (0, 1]: the logarithm is finite.
        let radius = std * (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let (sin, cos) = (TAU * rng.random::<f32>()).sin_cos();
        for (v, direction) in pair.iter_mut().zip([cos, sin]) {
            *v += radius * direction;
        }
    }
}

/// x f
pub(crate) fn brightness(channel: &mut [f32], f: f32) {
    for v in channel {
        *v *= f;
    }
}

/// (x - mean) f + mean, within the old range.
pub(crate) fn contrast(channel: &mut [f32], f: f32) {
    let (mean, _) = mean_and_std(channel);
    let (min, max) = range(channel);
    for v in channel.iter_mut() {
        *v = ((*v - mean) * f + mean).clamp(min, max);
    }
}

/// ((x - min) / range)^g range + min, then shifted and scaled to the old mean and standard deviation; of the negative
/// image if `inverted`.
pub(crate) fn gamma(channel: &mut [f32], g: f32, inverted: bool) {
    let sign = if inverted { -1.0 } else { 1.0 };
    let (mean, std) = mean_and_std(channel);
    let (low, high) = range(channel);
    let (min, extent) = (if inverted { -high } else { low }, high - low);
    let scale = 1.0 / extent.max(1e-7);
    for v in channel.iter_mut() {
        *v = ((sign * *v - min) * scale).max(0.0).powf(g) * extent + min;
    }
    let (new_mean, new_std) = mean_and_std(channel);
    let factor = std / new_std.max(1e-8);
    for v in channel.iter_mut() {
        *v = sign * ((*v - new_mean) * factor + sign * mean);
    }
}

/// Mean and sample standard deviation, summed in f64 in a fixed order.
fn mean_and_std(values: &[f32]) -> (f32, f32) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares = values
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>();
    (mean as f32, (squares / (n - 1.0).max(1.0)).sqrt() as f32)
}

fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(min, max), &v| {
        (min.min(v), max.max(v))
    })
}
