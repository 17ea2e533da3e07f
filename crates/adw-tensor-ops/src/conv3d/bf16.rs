//! Convolutions whose factors are rounded to bf16: on the matrix unit where the processor has one, else by the kernels of
//! full precision, which round what they read. Both round the same factors and agree to the accuracy of f32.

use super::amx::Amx;
use super::job::{Correlation, Source, WeightGradient};

/// Channels of a job on each side from which factors are rounded: with fewer, most of a tile of the matrix unit would be
/// empty. The rule is that of the unit on processors without one, too, so that both round the same factors.
const MIN_CHANNELS: usize = 16;

/// Multiplication of factors in bf16.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bf16 {
    /// By the matrix unit.
    MatrixUnit(Amx),
    /// By the kernels of full precision, after rounding.
    Rounded,
}

impl Bf16 {
    /// The way of this processor.
    pub(crate) fn detect() -> Self {
        Amx::detect().map_or(Self::Rounded, Self::MatrixUnit)
    }
}

/// Rounds numbers in place to values of bf16, the upper halves of f32, to the nearest, ties to even.
pub(super) fn round(values: &mut [f32]) {
    for x in values {
        let bits = x.to_bits();
        let rounded = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
        *x = if x.is_nan() { *x } else { rounded };
    }
}

/// Returns true if the factors of this job are rounded.
pub(super) fn suits_correlation<T>(job: &Correlation<T>) -> bool {
    let has_taps = job.axes.iter().all(|a| !a.taps.is_empty() && a.is_contiguous());
    has_taps && job.k_channels() >= MIN_CHANNELS && job.out_channels >= MIN_CHANNELS
}

/// Returns true if the factors of this job are rounded: those of a stride are not.
pub(super) fn suits_weight_gradient<T>(job: &WeightGradient<T>) -> bool {
    let is_dense = job.axes.iter().all(|a| a.step == 1 && a.is_contiguous());
    is_dense && job.in_channels() >= MIN_CHANNELS && job.out_channels() >= MIN_CHANNELS
}

/// The maps, read through `round`.
pub(super) fn rounded<'a, T: Copy>(sources: &[Source<'a, T>], round: fn(&mut [T])) -> Vec<Source<'a, T>> {
    sources.iter().map(|&source| Source { round: Some(round), ..source }).collect()
}
