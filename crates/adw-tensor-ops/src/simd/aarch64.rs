//! Vectors of f32 in NEON, which every aarch64 processor has.

use super::vector::{Kernel, Simd, memory_operations, operations};
use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vbslq_f32, vcgtq_f32, vdupq_n_f32, vfmaq_f32, vld1q_f32, vmulq_f32, vst1q_f32, vsubq_f32,
};

/// 4 lanes of f32, 32 registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

impl Simd for Neon {
    type Elem = f32;
    type Vector = float32x4_t;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    operations! {
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
        fn leaky(x: float32x4_t, slope: float32x4_t) -> float32x4_t {
            vbslq_f32(vcgtq_f32(x, vdupq_n_f32(0.0)), x, vmulq_f32(x, slope))
        }
    }

    memory_operations! {
        unsafe fn load(p: *const f32) -> float32x4_t { vld1q_f32(p) }
        unsafe fn store(p: *mut f32, v: float32x4_t) { vst1q_f32(p, v) }
        unsafe fn load_first(p: *const f32, n: usize) -> float32x4_t {
            let mut lanes = [0.0; 4];
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            vld1q_f32(lanes.as_ptr())
        }
        unsafe fn store_first(p: *mut f32, v: float32x4_t, n: usize) {
            let mut lanes = [0.0; 4];
            vst1q_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }

    #[inline(never)]
    unsafe fn call<K: Kernel<f32>>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
}
