//! Arrays of eight elements, which the compiler turns into the vectors of the build's target.

use super::vector::{Element, Kernel, Simd};

/// 8 lanes of any element type.
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
        // SAFETY: the caller guarantees 8 readable elements; arrays have the alignment of their element.
        unsafe { *p.cast() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut T, v: [T; 8]) {
        // SAFETY: the caller guarantees 8 writable elements.
        unsafe { *p.cast() = v }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const T, n: usize) -> [T; 8] {
        let mut v = [T::ZERO; 8];
        for (i, v) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller guarantees n readable elements, and i < n.
            *v = unsafe { *p.add(i) };
        }
        v
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut T, v: [T; 8], n: usize) {
        for (i, &v) in v.iter().enumerate().take(n) {
            // SAFETY: the caller guarantees n writable elements, and i < n.
            unsafe { *p.add(i) = v }
        }
    }

    #[inline(never)]
    unsafe fn call<K: Kernel<T>>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
}
