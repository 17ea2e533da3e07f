//! Elementary functions as plain arithmetic, so that a loop over them fills the vectors of the processor. Each is inlined
//! and thereby compiled for the instruction set of the loop.
#![expect(clippy::inline_always, reason = "compiled for the instruction set of the loop around it")]

use std::f32::consts::{FRAC_PI_2, LN_2, LOG2_E, SQRT_2};

/// Computes log2(x) for normal x > 0, to about 1e-7 of its value or, near 1, of x - 1.
///
/// x = 2^e m with m in [1/sqrt 2, sqrt 2); ln m = 2 artanh(y), y = (m - 1) / (m + 1), of which the series is cut after
/// y^9 / 9 (below 2e-8).
#[inline(always)]
pub(super) fn log2(x: f32) -> f32 {
    let bits = x.to_bits() as i32;
    let sqrt_half = (SQRT_2 / 2.0).to_bits() as i32;
    let e = (bits - sqrt_half) >> 23;
    let m = f32::from_bits((bits - (e << 23)) as u32);
    let y = (m - 1.0) / (m + 1.0);
    let s = y * y;
    let series = 1.0 + s * (1.0 / 3.0 + s * (1.0 / 5.0 + s * (1.0 / 7.0 + s * (1.0 / 9.0))));
    e as f32 + 2.0 * LOG2_E * y * series
}

/// Computes 2^z for z in [-126, 127], to about 1e-7; below, about 2^-126.
#[inline(always)]
pub(super) fn exp2(z: f32) -> f32 {
    let z = z.max(-126.0);
    let whole = (z + 0.5).floor();
    let t = (z - whole) * LN_2;
    // t is at most 0.35, t^7 / 7! below 2e-7 and the next term below 6e-9.
    let series = 1.0
        + t * (1.0
            + t * (1.0 / 2.0
                + t * (1.0 / 6.0 + t * (1.0 / 24.0 + t * (1.0 / 120.0 + t * (1.0 / 720.0 + t / 5040.0))))));
    series * f32::from_bits(((whole as i32 + 127) << 23) as u32)
}

/// Computes x^g for x in [0, 1] and g > 0; 0 for x = 0.
#[inline(always)]
pub(super) fn power(x: f32, g: f32) -> f32 {
    let tiny = f32::MIN_POSITIVE;
    let value = exp2(g * log2(x.max(tiny)));
    if x < tiny { 0.0 } else { value }
}

/// Computes the sine and cosine of 2 pi u for u in [0, 1), to about 1e-7.
///
/// u = q / 4 + r with r in [-1/8, 1/8], where the series of both are short.
#[inline(always)]
pub(super) fn sin_cos_turns(u: f32) -> (f32, f32) {
    let quarter = (4.0 * u + 0.5).floor();
    let x = (4.0 * u - quarter) * FRAC_PI_2;
    let s = x * x;
    let sin = x * (1.0 - s * (1.0 / 6.0 - s * (1.0 / 120.0 - s * (1.0 / 5040.0 - s / 362_880.0))));
    let cos = 1.0 - s * (1.0 / 2.0 - s * (1.0 / 24.0 - s * (1.0 / 720.0 - s * (1.0 / 40_320.0 - s / 3_628_800.0))));
    let quarter = quarter as i32;
    let (a, b) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let sin_sign = if quarter & 2 == 0 { 1.0 } else { -1.0 };
    let cos_sign = if (quarter + 1) & 2 == 0 { 1.0 } else { -1.0 };
    (sin_sign * a, cos_sign * b)
}

/// Mean, deviation and extremes of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct IntensityMoments {
    pub(super) mean: f32,
    /// Sample standard deviation.
    pub(super) std: f32,
    pub(super) min: f32,
    pub(super) max: f32,
}

/// Number of sums taken side by side. It decides the order of additions, whatever the processor's vectors.
pub(super) const LANES: usize = 16;

/// Computes the moments of a channel in one pass, in f64 about its first value. The order of additions depends on the
/// length alone.
#[inline(always)]
pub(super) fn moments(values: &[f32]) -> IntensityMoments {
    let shift = values.first().copied().unwrap_or(0.0);
    let (mut sum, mut squares) = ([0.0f64; LANES], [0.0f64; LANES]);
    let (mut min, mut max) = ([shift; LANES], [shift; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut rest_padded = [shift; LANES];
    rest_padded[..rest.len()].copy_from_slice(rest);
    for chunk in chunks.iter().chain([&rest_padded]) {
        for i in 0..LANES {
            let v = chunk[i];
            let d = f64::from(v - shift);
            sum[i] += d;
            squares[i] += d * d;
            min[i] = if v < min[i] { v } else { min[i] };
            max[i] = if v > max[i] { v } else { max[i] };
        }
    }
    let n = values.len().max(1) as f64;
    let (sum, squares): (f64, f64) = (sum.iter().sum(), squares.iter().sum());
    let variance = (squares - sum * sum / n).max(0.0) / (n - 1.0).max(1.0);
    IntensityMoments {
        mean: (f64::from(shift) + sum / n) as f32,
        std: variance.sqrt() as f32,
        min: min.into_iter().fold(shift, f32::min),
        max: max.into_iter().fold(shift, f32::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adw_testing::{assert_close, tolerance};

    #[test]
    fn as_the_standard_library_to_single_precision() {
        for i in 1..=20_000u16 {
            let x = f32::from(i) / 20_000.0;
            let (found, expected) = (log2(x), f64::from(x).log2());
            assert_close(format!("log2 {x}"), &[found], &[expected], tolerance::F32_LOGARITHM);
            for g in [0.7f32, 1.0, 1.5] {
                let (found, expected) = (power(x, g), f64::from(x).powf(f64::from(g)));
                assert_close(format!("{x}^{g}"), &[found], &[expected], tolerance::F32_POWER);
            }
            let u = (x - 1.0 / 20_000.0).max(0.0);
            let (sin, cos) = sin_cos_turns(u);
            let (s, c) = (std::f64::consts::TAU * f64::from(u)).sin_cos();
            assert_close(format!("sine and cosine of {u} turns"), &[sin, cos], &[s, c], tolerance::F32_SINE);
        }
        assert_eq!(power(0.0, 0.7), 0.0);
        assert!((exp2(-200.0) - 2f32.powi(-126)).abs() < 1e-38);
    }

    #[test]
    fn moments_of_any_length() {
        for n in [1usize, 2, 15, 16, 17, 1000] {
            let values: Vec<f32> = (0..n).map(|i| 1000.0 + (i * 37 % 101) as f32).collect();
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
            let std = (squares / (n as f64 - 1.0).max(1.0)).sqrt();
            let found = moments(&values);
            assert_close("moments", &[found.mean, found.std], &[mean, std], tolerance::F32_TRANSFORMED_IMAGE);
            let extremes = values.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
            assert_eq!((found.min, found.max), extremes);
        }
    }
}
