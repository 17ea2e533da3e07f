//! Vectors of pulp, and which of them an element type has in an instruction set.

use super::vector::{Element, Kernel, Simd};
use pulp::{Arch, Scalar256b, Scalar512b, WithSimd};

/// Defines the type of vectors of `$elem`, by the names of pulp's operations on them, and implements [`Simd`] for it.
macro_rules! vectors {
    (
        $(#[$doc:meta])*
        $name:ident of $elem:ident: $vector:ident, $splat:ident, $mul_add:ident, $mul:ident, $add:ident, $sub:ident,
        $greater_than:ident, $select:ident, $mask_between:ident, $load:ident, $store:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $name<S, const FUSED: bool>(S);

        impl<S: pulp::Simd, const FUSED: bool> Simd for $name<S, FUSED> {
            type Elem = $elem;
            type Vector = S::$vector;
            const LANES: usize = size_of::<S::$vector>() / size_of::<$elem>();
            // Without vector instructions that pulp uses, a vector takes two registers or more.
            const REGISTERS: usize = if FUSED { S::REGISTER_COUNT } else { S::REGISTER_COUNT / 2 };

            #[inline(always)]
            fn splat(self, x: $elem) -> Self::Vector {
                self.0.$splat(x)
            }

            #[inline(always)]
            fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
                // Without hardware for it, a fused operation is a slow library call.
                if FUSED { self.0.$mul_add(a, b, c) } else { self.0.$add(self.0.$mul(a, b), c) }
            }

            #[inline(always)]
            fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
                self.0.$add(a, b)
            }

            #[inline(always)]
            fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
                self.0.$sub(a, b)
            }

            #[inline(always)]
            fn leaky(self, x: Self::Vector, slope: Self::Vector) -> Self::Vector {
                let is_positive = self.0.$greater_than(x, self.splat(0.0));
                self.0.$select(is_positive, x, self.0.$mul(x, slope))
            }

            #[inline(always)]
            unsafe fn load_first(self, p: *const $elem, n: usize) -> Self::Vector {
                // SAFETY: the caller guarantees that the first `n` elements are valid; pulp does not read the others.
                unsafe { self.0.$load(self.0.$mask_between(0, n as _), p) }
            }

            #[inline(always)]
            unsafe fn store_first(self, p: *mut $elem, v: Self::Vector, n: usize) {
                // SAFETY: the caller guarantees that the first `n` elements are valid; pulp does not write the others.
                unsafe { self.0.$store(self.0.$mask_between(0, n as _), p, v) }
            }

            #[inline(never)]
            fn call<K: Kernel<$elem>>(self, kernel: K) -> K::Output {
                struct Run<K, const FUSED: bool>(K);
                impl<K: Kernel<$elem>, const FUSED: bool> WithSimd for Run<K, FUSED> {
                    type Output = K::Output;

                    #[inline(always)]
                    fn with_simd<S: pulp::Simd>(self, simd: S) -> K::Output {
                        self.0.run($name::<S, FUSED>(simd))
                    }
                }
                self.0.vectorize(Run::<K, FUSED>(kernel))
            }
        }
    };
}

vectors! {
    /// Vectors of f32 in the instruction set `S`; `FUSED`: it has an instruction for multiply-add.
    F32s of f32: f32s, splat_f32s, mul_add_f32s, mul_f32s, add_f32s, sub_f32s, greater_than_f32s, select_f32s,
    mask_between_m32s, mask_load_ptr_f32s, mask_store_ptr_f32s
}

vectors! {
    /// Vectors of f64 in the instruction set `S`; `FUSED`: it has an instruction for multiply-add.
    F64s of f64: f64s, splat_f64s, mul_add_f64s, mul_f64s, add_f64s, sub_f64s, greater_than_f64s, select_f64s,
    mask_between_m64s, mask_load_ptr_f64s, mask_store_ptr_f64s
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn exp(self) -> Self {
        f32::exp(self)
    }

    fn ln(self) -> Self {
        f32::ln(self)
    }

    fn dispatch<K: Kernel<f32>>(arch: Arch, kernel: K) -> K::Output {
        match arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(simd) => F32s::<_, true>(simd).call(kernel),
            #[cfg(target_arch = "x86_64")]
            Arch::V3(simd) => F32s::<_, true>(simd).call(kernel),
            #[cfg(target_arch = "aarch64")]
            Arch::Neon(simd) => F32s::<_, true>(simd).call(kernel),
            // Arrays of 8 elements, which the compiler turns into the vectors of the build's target.
            _ => F32s::<_, false>(Scalar256b).call(kernel),
        }
    }
}

impl Element for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn ln(self) -> Self {
        f64::ln(self)
    }

    // f64 serves gradient checks and golden tests: portable code alone.
    fn dispatch<K: Kernel<f64>>(_: Arch, kernel: K) -> K::Output {
        F64s::<_, false>(Scalar512b).call(kernel)
    }
}
