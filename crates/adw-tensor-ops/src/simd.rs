//! One algorithm, several instruction sets.
//!
//! A kernel is written once, generic over [`Simd`], as a [`Kernel`]; [`dispatch`] runs it compiled for the widest
//! instruction set of the processor it finds itself on. The build needs no `RUSTFLAGS`.

use crate::conv3d::tile::{self, Operands, Segment};
use candle_core::WithDType;

/// An element type that the ops compute in, and the vector types to do so with.
pub(crate) trait Element: WithDType + std::ops::Neg<Output = Self> {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Elem = Self>;
    #[cfg(target_arch = "aarch64")]
    type Neon: Simd<Elem = Self>;
    type Portable: Simd<Elem = Self>;

    /// Whether there is more than [`Portable`] for it.
    const HAS_VECTORS: bool;
    const ZERO: Self;
    const ONE: Self;

    fn exp(self) -> Self;
    fn ln(self) -> Self;
}

impl Element for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = x86::Avx512;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = x86::Avx2;
    #[cfg(target_arch = "aarch64")]
    type Neon = arm::Neon;
    type Portable = Portable<f32>;

    const HAS_VECTORS: bool = true;
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn exp(self) -> Self {
        f32::exp(self)
    }
    fn ln(self) -> Self {
        f32::ln(self)
    }
}

// f64 is there for gradient checks and golden tests: portable code only.
impl Element for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Portable<f64>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Portable<f64>;
    #[cfg(target_arch = "aarch64")]
    type Neon = Portable<f64>;
    type Portable = Portable<f64>;

    const HAS_VECTORS: bool = false;
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
}

/// A vector of `LANES` elements and the few operations that the kernels need.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type Elem: Element;
    type Vector: Copy;
    const LANES: usize;
    /// Architectural vector registers: how large a tile of accumulators may be.
    const REGISTERS: usize;

    fn splat(x: Self::Elem) -> Self::Vector;
    /// `a * b + c`
    fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`
    fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `x` where it is positive, `slope * x` elsewhere
    fn leaky(x: Self::Vector, slope: Self::Vector) -> Self::Vector;
    /// # Safety
    /// `p` is valid for reading `LANES` elements.
    unsafe fn load(p: *const Self::Elem) -> Self::Vector;
    /// # Safety
    /// `p` is valid for writing `LANES` elements.
    unsafe fn store(p: *mut Self::Elem, v: Self::Vector);
    /// The first `n <= LANES` elements; the other lanes are zero.
    /// # Safety
    /// `p` is valid for reading `n` elements.
    unsafe fn load_first(p: *const Self::Elem, n: usize) -> Self::Vector;
    /// # Safety
    /// `p` is valid for writing `n <= LANES` elements.
    unsafe fn store_first(p: *mut Self::Elem, v: Self::Vector, n: usize);
    /// [`tile::tile`], a function of its own compiled for this instruction set: inlined everywhere, the many sizes of
    /// tiles would take minutes to compile.
    /// # Safety
    /// As for [`tile::tile`], and the processor has this instruction set.
    unsafe fn tile<const R: usize, const V: usize>(o: &Operands<Self::Elem>, segments: &[Segment]);
}

/// Arrays of eight, which the compiler turns into whatever vectors there are.
#[derive(Clone, Copy)]
pub(crate) struct Portable<T>(std::marker::PhantomData<T>);

impl<T: Element> Simd for Portable<T> {
    type Elem = T;
    type Vector = [T; 8];
    const LANES: usize = 8;
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(x: T) -> [T; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn mul_add(a: [T; 8], b: [T; 8], mut c: [T; 8]) -> [T; 8] {
        // Not a fused operation: without hardware for it, that is a slow library call.
        for i in 0..8 {
            c[i] += a[i] * b[i];
        }
        c
    }
    #[inline(always)]
    fn add(mut a: [T; 8], b: [T; 8]) -> [T; 8] {
        for i in 0..8 {
            a[i] += b[i];
        }
        a
    }
    #[inline(always)]
    fn sub(mut a: [T; 8], b: [T; 8]) -> [T; 8] {
        for i in 0..8 {
            a[i] -= b[i];
        }
        a
    }
    #[inline(always)]
    fn leaky(mut x: [T; 8], slope: [T; 8]) -> [T; 8] {
        for i in 0..8 {
            x[i] = if x[i] > T::ZERO { x[i] } else { x[i] * slope[i] };
        }
        x
    }
    #[inline(always)]
    unsafe fn load(p: *const T) -> [T; 8] {
        // SAFETY: the caller vouches for 8 readable elements; arrays have the alignment of their element.
        unsafe { *p.cast() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut T, v: [T; 8]) {
        // SAFETY: the caller vouches for 8 writable elements.
        unsafe { *p.cast() = v }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const T, n: usize) -> [T; 8] {
        let mut v = [T::ZERO; 8];
        for (i, v) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller vouches for n readable elements, and i < n.
            *v = unsafe { *p.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut T, v: [T; 8], n: usize) {
        for (i, &v) in v.iter().enumerate().take(n) {
            // SAFETY: the caller vouches for n writable elements, and i < n.
            unsafe { *p.add(i) = v }
        }
    }
    #[inline(never)]
    unsafe fn tile<const R: usize, const V: usize>(o: &Operands<T>, segments: &[Segment]) {
        // SAFETY: as the caller vouches.
        unsafe { tile::tile::<Self, R, V>(o, segments) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Operands, Segment, Simd, tile};
    use std::arch::x86_64::{
        __m256, __m512, _CMP_GT_OQ, _mm256_add_ps, _mm256_blendv_ps, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm256_sub_ps, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mask_mov_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
        _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
    };

    // SAFETY (of every block in this module that has no words of its own): the types are reached through `dispatch`
    // only, which has asked the processor for the instruction set; pointers are as the trait demands of the caller.

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    impl Simd for Avx512 {
        type Elem = f32;
        type Vector = __m512;
        const LANES: usize = 16;
        const REGISTERS: usize = 32;

        #[inline(always)]
        fn splat(x: f32) -> __m512 {
            // SAFETY: see the head of the module.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see the head of the module.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the head of the module.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the head of the module.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn leaky(x: __m512, slope: __m512) -> __m512 {
            // SAFETY: see the head of the module.
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_setzero_ps());
                _mm512_mask_mov_ps(_mm512_mul_ps(x, slope), positive, x)
            }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: see the head of the module.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: see the head of the module.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
            // SAFETY: see the head of the module; masked lanes are not read.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: see the head of the module; masked lanes are not written.
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v) }
        }
        #[target_feature(enable = "avx512f")]
        unsafe fn tile<const R: usize, const V: usize>(o: &Operands<f32>, segments: &[Segment]) {
            // SAFETY: as the caller vouches.
            unsafe { tile::tile::<Self, R, V>(o, segments) }
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// A window of 8 into it starting at `8 - n` has its first `n` lanes selected.
    static LANE_MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    impl Simd for Avx2 {
        type Elem = f32;
        type Vector = __m256;
        const LANES: usize = 8;
        const REGISTERS: usize = 16;

        #[inline(always)]
        fn splat(x: f32) -> __m256 {
            // SAFETY: see the head of the module.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see the head of the module.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: see the head of the module.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(a: __m256, b: __m256) -> __m256 {
            // SAFETY: see the head of the module.
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn leaky(x: __m256, slope: __m256) -> __m256 {
            // SAFETY: see the head of the module.
            unsafe {
                let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps());
                _mm256_blendv_ps(_mm256_mul_ps(x, slope), x, positive)
            }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: see the head of the module.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            // SAFETY: see the head of the module.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
            // SAFETY: n <= 8, so the window lies inside LANE_MASK; masked lanes are not read.
            unsafe { _mm256_maskload_ps(p, _mm256_loadu_si256(LANE_MASK.as_ptr().add(8 - n).cast())) }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m256, n: usize) {
            // SAFETY: n <= 8, so the window lies inside LANE_MASK; masked lanes are not written.
            unsafe {
                _mm256_maskstore_ps(p, _mm256_loadu_si256(LANE_MASK.as_ptr().add(8 - n).cast()), v);
            }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn tile<const R: usize, const V: usize>(o: &Operands<f32>, segments: &[Segment]) {
            // SAFETY: as the caller vouches.
            unsafe { tile::tile::<Self, R, V>(o, segments) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Operands, Segment, Simd, tile};
    use std::arch::aarch64::{
        float32x4_t, vaddq_f32, vbslq_f32, vcgtq_f32, vdupq_n_f32, vfmaq_f32, vld1q_f32, vmulq_f32, vst1q_f32,
        vsubq_f32,
    };

    #[derive(Clone, Copy)]
    pub(crate) struct Neon;

    impl Simd for Neon {
        type Elem = f32;
        type Vector = float32x4_t;
        const LANES: usize = 4;
        const REGISTERS: usize = 32;

        #[inline(always)]
        fn splat(x: f32) -> float32x4_t {
            // SAFETY: NEON is part of every aarch64 processor.
            unsafe { vdupq_n_f32(x) }
        }
        #[inline(always)]
        fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            // SAFETY: NEON is part of every aarch64 processor.
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            // SAFETY: NEON is part of every aarch64 processor.
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            // SAFETY: NEON is part of every aarch64 processor.
            unsafe { vsubq_f32(a, b) }
        }
        #[inline(always)]
        fn leaky(x: float32x4_t, slope: float32x4_t) -> float32x4_t {
            // SAFETY: NEON is part of every aarch64 processor.
            unsafe { vbslq_f32(vcgtq_f32(x, vdupq_n_f32(0.0)), x, vmulq_f32(x, slope)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> float32x4_t {
            // SAFETY: the caller vouches for 4 readable elements.
            unsafe { vld1q_f32(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: float32x4_t) {
            // SAFETY: the caller vouches for 4 writable elements.
            unsafe { vst1q_f32(p, v) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> float32x4_t {
            let mut lanes = [0.0; 4];
            // SAFETY: n <= 4 elements are readable at p and writable in lanes, which is then read whole.
            unsafe {
                std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
                vld1q_f32(lanes.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: float32x4_t, n: usize) {
            let mut lanes = [0.0; 4];
            // SAFETY: lanes holds 4 elements, of which n <= 4 are copied to p, where n are writable.
            unsafe {
                vst1q_f32(lanes.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
            }
        }
        #[inline(never)]
        unsafe fn tile<const R: usize, const V: usize>(o: &Operands<f32>, segments: &[Segment]) {
            // SAFETY: as the caller vouches.
            unsafe { tile::tile::<Self, R, V>(o, segments) }
        }
    }
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InstructionSet {
    /// 16 lanes of f32.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes of f32, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 lanes of f32.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// What the compiler makes of plain arrays.
    Portable,
}

impl InstructionSet {
    /// All that this processor has, widest first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                sets.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Self::Neon);
        sets.push(Self::Portable);
        sets
    }

    /// The widest one of this processor: what every op uses.
    pub fn detect() -> Self {
        static DETECTED: std::sync::OnceLock<InstructionSet> = std::sync::OnceLock::new();
        *DETECTED.get_or_init(|| Self::available()[0])
    }
}

/// A computation that is compiled once per instruction set. Implementations mark `run` `#[inline(always)]`, or the
/// instruction set does not reach their body.
pub(crate) trait Kernel<T: Element> {
    type Output;
    fn run<S: Simd<Elem = T>>(self) -> Self::Output;
}

/// Runs a kernel compiled for `set`, which must be one of [`InstructionSet::available`].
pub(crate) fn dispatch<T: Element, K: Kernel<T>>(set: InstructionSet, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512<T: Element, K: Kernel<T>>(kernel: K) -> K::Output {
        kernel.run::<T::Avx512>()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2<T: Element, K: Kernel<T>>(kernel: K) -> K::Output {
        kernel.run::<T::Avx2>()
    }
    match set {
        // SAFETY: values of InstructionSet come from `available`, which has asked the processor.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 if const { T::HAS_VECTORS } => unsafe { avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 if const { T::HAS_VECTORS } => unsafe { avx2(kernel) },
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon if const { T::HAS_VECTORS } => kernel.run::<T::Neon>(),
        _ => kernel.run::<T::Portable>(),
    }
}
