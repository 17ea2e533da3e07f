//! Transforms of intensities. `channel` is a channel of a patch.

#![expect(
    clippy::inline_always,
    reason = "a transform is compiled anew for each set of vectors that it is dispatched to"
)]

use std::f32::consts::LN_2;

use pulp::{Arch, NullaryFnOnce};
use rand::Rng;

use super::vector_math::{log2, moments, power, sin_cos_turns};

/// Adds normally distributed noise of standard deviation `std`, by the method of Box and Muller.
pub(crate) fn add_noise(image: &mut [f32], std: f32, rng: &mut impl Rng) {
    for block in image.chunks_mut(2 * PAIRS) {
        let mut bytes = [0; 8 * PAIRS];
        rng.fill_bytes(&mut bytes);
        Arch::new().dispatch(AddNoise { block, std, bytes });
    }
}

/// Number of pairs of noise values that are made at once.
const PAIRS: usize = 64;
/// Number of elements whose noise is made at once, each from a random word.
pub(super) const NOISE_BLOCK: usize = 2 * PAIRS;

/// Addition of noise to a block, from random bytes.
struct AddNoise<'a> {
    block: &'a mut [f32],
    std: f32,
    bytes: [u8; 8 * PAIRS],
}

impl NullaryFnOnce for AddNoise<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (numbers, _) = self.bytes.as_chunks::<4>();
        // 24 random bits: u + 1 / 2^25 lies in (0, 1), so the logarithm is finite.
        let uniform = |i: usize| (u32::from_le_bytes(numbers[i]) >> 8) as f32 / (1u32 << 24) as f32;
        let mut noise = [0.0; 2 * PAIRS];
        for i in 0..PAIRS {
            let u = uniform(i) + 1.0 / (1u32 << 25) as f32;
            let radius = self.std * (-2.0 * LN_2 * log2(u)).max(0.0).sqrt();
            let (sin, cos) = sin_cos_turns(uniform(PAIRS + i));
            noise[i] = radius * cos;
            noise[PAIRS + i] = radius * sin;
        }
        for (v, noise) in self.block.iter_mut().zip(noise) {
            *v += noise;
        }
    }
}

/// Brightness x b, then contrast (x - mean) c + mean within the range before it, each if it was drawn.
pub(crate) struct BrightnessAndContrast<'a> {
    pub(crate) channel: &'a mut [f32],
    pub(crate) brightness: Option<f32>,
    pub(crate) contrast: Option<f32>,
}

impl NullaryFnOnce for BrightnessAndContrast<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let b = self.brightness.unwrap_or(1.0);
        let Some(c) = self.contrast else {
            return self.channel.iter_mut().for_each(|v| *v *= b);
        };
        let before = moments(self.channel);
        let (mean, min, max) = (b * before.mean, b * before.min, b * before.max);
        for v in self.channel {
            let contrasted = (*v * b - mean) * c + mean;
            let raised = if contrasted < min { min } else { contrasted };
            *v = if raised > max { max } else { raised };
        }
    }
}

/// Gamma correction ((x - min) / range)^g range + min, then shifted and scaled to the mean and standard deviation before it;
/// of the negative image if `inverted`.
pub(crate) struct Gamma<'a> {
    pub(crate) channel: &'a mut [f32],
    pub(crate) g: f32,
    pub(crate) inverted: bool,
}

impl NullaryFnOnce for Gamma<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { channel, g, inverted } = self;
        let sign = if inverted { -1.0 } else { 1.0 };
        let before = moments(channel);
        let extent = before.max - before.min;
        let min = if inverted { -before.max } else { before.min };
        let scale = 1.0 / extent.max(1e-7);
        for v in channel.iter_mut() {
            let x = (sign * *v - min) * scale;
            let x = if x > 0.0 { x } else { 0.0 };
            let x = if x < 1.0 { x } else { 1.0 };
            *v = power(x, g) * extent + min;
        }
        let after = moments(channel);
        let factor = before.std / after.std.max(1e-8);
        for v in channel.iter_mut() {
            *v = sign * (*v - after.mean) * factor + before.mean;
        }
    }
}

/// Applies a transform with the vectors of this processor.
pub(crate) fn apply(transform: impl NullaryFnOnce<Output = ()>) {
    Arch::new().dispatch(transform);
}
