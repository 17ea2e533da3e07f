//! Vectors of f32 in AVX-512 and AVX2.

use super::vector::{Kernel, Simd, memory_operations, operations};
use std::arch::x86_64::{
    __m256, __m256i, __m512, _CMP_GT_OQ, _mm_castps_pd, _mm_movehl_ps, _mm_store_ss, _mm_storel_pd, _mm_storeu_ps,
    _mm256_add_ps, _mm256_blendv_ps, _mm256_castps256_ps128, _mm256_cmp_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps, _mm256_sub_ps, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_mov_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps, _mm512_sub_ps,
};

/// 16 lanes of f32, 32 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Mask of the first `n <= 16` lanes.
#[inline(always)]
fn first_lanes_16(n: usize) -> u16 {
    ((1u32 << n) - 1) as u16
}

impl Simd for Avx512 {
    type Elem = f32;
    type Vector = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    operations! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn leaky(x: __m512, slope: __m512) -> __m512 {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_setzero_ps());
            _mm512_mask_mov_ps(_mm512_mul_ps(x, slope), positive, x)
        }
    }

    // Masked lanes are neither read nor written.
    memory_operations! {
        unsafe fn load(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        unsafe fn store(p: *mut f32, v: __m512) { _mm512_storeu_ps(p, v) }
        unsafe fn load_first(p: *const f32, n: usize) -> __m512 { _mm512_maskz_loadu_ps(first_lanes_16(n), p) }
        unsafe fn store_first(p: *mut f32, v: __m512, n: usize) { _mm512_mask_storeu_ps(p, first_lanes_16(n), v) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn call<K: Kernel<f32>>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
}

/// 8 lanes of f32 with fused multiply-add, 16 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Mask of the first `n <= 8` lanes.
#[inline(always)]
fn first_lanes_8(n: usize) -> __m256i {
    /// The 8 numbers from `8 - n` on select the first `n` lanes.
    static LANE_MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(n <= 8, "more lanes than a vector has");
    // SAFETY: n <= 8, so the 8 numbers lie inside LANE_MASK; called by operations of `Avx2` alone.
    unsafe { _mm256_loadu_si256(LANE_MASK.as_ptr().add(8 - n).cast()) }
}

impl Simd for Avx2 {
    type Elem = f32;
    type Vector = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    operations! {
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn leaky(x: __m256, slope: __m256) -> __m256 {
            let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps());
            _mm256_blendv_ps(_mm256_mul_ps(x, slope), x, positive)
        }
    }

    // Masked lanes are neither read nor written.
    memory_operations! {
        unsafe fn load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        unsafe fn store(p: *mut f32, v: __m256) { _mm256_storeu_ps(p, v) }
        unsafe fn load_first(p: *const f32, n: usize) -> __m256 { _mm256_maskload_ps(p, first_lanes_8(n)) }
        unsafe fn store_first(p: *mut f32, v: __m256, n: usize) {
            // Not by a mask: AMD's processors take some twenty micro-operations for a masked store.
            if n == 8 {
                return _mm256_storeu_ps(p, v);
            }
            let (mut p, mut rest) = (p, _mm256_castps256_ps128(v));
            if n & 4 != 0 {
                _mm_storeu_ps(p, rest);
                (p, rest) = (p.add(4), _mm256_extractf128_ps::<1>(v));
            }
            if n & 2 != 0 {
                _mm_storel_pd(p.cast(), _mm_castps_pd(rest));
                (p, rest) = (p.add(2), _mm_movehl_ps(rest, rest));
            }
            if n & 1 != 0 {
                _mm_store_ss(p, rest);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn call<K: Kernel<f32>>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
}
