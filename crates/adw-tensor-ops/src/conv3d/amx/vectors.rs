//! Vectors of channels that are read from maps and rounded to bf16.

use super::unit::ROWS;
use crate::conv3d::job::Source;
use crate::conv3d::packing::{Lanes, lanes_of};
use std::arch::x86_64::{
    __m256i, __m512, _CMP_GT_OQ, _mm256_mask_storeu_epi16, _mm512_cmp_ps_mask, _mm512_cvtneps_pbh, _mm512_fmadd_ps,
    _mm512_mask_mul_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::mem::transmute;

/// 16 values, rounded to the nearest bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn round(x: __m512) -> __m256i {
    // SAFETY: both are 32 bytes of plain data.
    unsafe { transmute(_mm512_cvtneps_pbh(x)) }
}

/// The first `n <= 16` values from `p`.
///
/// # Safety
/// They are valid for reading.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
    // SAFETY: masked values are not read; the caller guarantees that the others are valid.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
}

/// Writes the first `n <= 16` values to `p`.
///
/// # Safety
/// They are valid for writing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn store_first(p: *mut u16, x: __m256i, n: usize) {
    // SAFETY: masked values are not written; the caller guarantees that the others are valid.
    unsafe { _mm256_mask_storeu_epi16(p.cast(), ((1u32 << n) - 1) as u16, x) }
}

/// At most a vector of channels of one map, all in the same tile of 16 channels, and their normalisation.
pub(super) struct Channels<'a> {
    source: &'a Source<'a, f32>,
    pub(super) lanes: Lanes,
    /// Scale, shift and slope.
    norm: Option<(__m512, __m512, __m512)>,
}

/// All channels of maps that are read side by side, cut at multiples of 16.
#[target_feature(enable = "avx512f")]
pub(super) fn channels<'a>(sources: &'a [Source<'a, f32>], batch_idx: usize) -> Vec<Channels<'a>> {
    let mut all = Vec::new();
    for whole in lanes_of(sources, ROWS) {
        let head = whole.len.min(ROWS - whole.first % ROWS);
        for (skip, len) in [(0, head), (head, whole.len - head)] {
            if len == 0 {
                continue;
            }
            let lanes =
                Lanes { first_of_source: whole.first_of_source + skip, first: whole.first + skip, len, ..whole };
            let source = &sources[lanes.source];
            let norm = source.norm.map(|norm| {
                let i = batch_idx * source.channels + lanes.first_of_source;
                let (scale, shift) = (&norm.scale[i..][..len], &norm.shift[i..][..len]);
                // SAFETY: the slices are that long.
                unsafe {
                    (load_first(scale.as_ptr(), len), load_first(shift.as_ptr(), len), _mm512_set1_ps(norm.slope))
                }
            });
            all.push(Channels { source, lanes, norm });
        }
    }
    all
}

impl Channels<'_> {
    /// Reads the channels of a voxel, counted over all samples, and normalises them.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn read(&self, voxel: usize) -> __m512 {
        let Lanes { first_of_source, len, .. } = self.lanes;
        let values = &self.source.data[voxel * self.source.channels + first_of_source..][..len];
        // SAFETY: the slice is that long.
        let x = unsafe { load_first(values.as_ptr(), len) };
        match self.norm {
            None => x,
            Some((scale, shift, slope)) => {
                let y = _mm512_fmadd_ps(x, scale, shift);
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, _mm512_setzero_ps());
                _mm512_mask_mul_ps(y, !positive, y, slope)
            }
        }
    }
}
