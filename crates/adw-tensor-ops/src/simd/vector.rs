//! Elements, vectors of them, and kernels that compute with vectors.

use candle_core::WithDType;
use pulp::Arch;

/// An element type that the ops compute in.
pub(crate) trait Element: WithDType + std::ops::Neg<Output = Self> {
    const ZERO: Self;
    const ONE: Self;

    fn exp(self) -> Self;
    fn ln(self) -> Self;
    /// Runs a kernel with this type's vectors for `arch`.
    fn dispatch<K: Kernel<Self>>(arch: Arch, kernel: K) -> K::Output;
}

/// Vectors of `LANES` elements in an instruction set, and their operations.
///
/// A value of such a type exists only where the processor has the instructions. Kernels get it as an argument and hand it
/// on, so that the operations on values are safe.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type Elem: Element;
    type Vector: Copy;
    const LANES: usize;
    /// Vectors that fit into the registers, which limits the size of a tile of accumulators.
    const REGISTERS: usize;

    /// Vector whose lanes are all `x`.
    fn splat(self, x: Self::Elem) -> Self::Vector;
    /// `a * b + c`
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a + b`
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `x` in lanes where it is positive, `slope * x` in the others.
    fn leaky(self, x: Self::Vector, slope: Self::Vector) -> Self::Vector;
    /// Runs a kernel in a function of its own that is compiled for this instruction set.
    fn call<K: Kernel<Self::Elem>>(self, kernel: K) -> K::Output;

    /// Reads `LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` elements.
    #[inline(always)]
    unsafe fn load(self, p: *const Self::Elem) -> Self::Vector {
        // SAFETY: the caller guarantees that the elements are valid, and a vector consists of its elements.
        unsafe { p.cast::<Self::Vector>().read_unaligned() }
    }

    /// Writes `LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` elements.
    #[inline(always)]
    unsafe fn store(self, p: *mut Self::Elem, v: Self::Vector) {
        // SAFETY: the caller guarantees that the elements are valid, and a vector consists of its elements.
        unsafe { p.cast::<Self::Vector>().write_unaligned(v) }
    }

    /// Reads the first `n <= LANES` elements; the other lanes are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` elements.
    unsafe fn load_first(self, p: *const Self::Elem, n: usize) -> Self::Vector;

    /// Writes the first `n <= LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for writing `n` elements.
    unsafe fn store_first(self, p: *mut Self::Elem, v: Self::Vector, n: usize);

    /// Reads the first `n <= LANES` elements, by a plain load if those are all.
    ///
    /// # Safety
    /// `p` is valid for reading `n` elements.
    #[inline(always)]
    unsafe fn load_up_to(self, p: *const Self::Elem, n: usize) -> Self::Vector {
        // SAFETY: the caller guarantees that `n` elements are valid.
        unsafe { if n == Self::LANES { self.load(p) } else { self.load_first(p, n) } }
    }

    /// Writes the first `n <= LANES` elements, by a plain store if those are all.
    ///
    /// # Safety
    /// `p` is valid for writing `n` elements.
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut Self::Elem, v: Self::Vector, n: usize) {
        // SAFETY: the caller guarantees that `n` elements are valid.
        unsafe { if n == Self::LANES { self.store(p, v) } else { self.store_first(p, v, n) } }
    }

    /// Reads a slice of at most `LANES` elements; the other lanes are zero.
    #[inline(always)]
    fn read(self, from: &[Self::Elem]) -> Self::Vector {
        assert!(from.len() <= Self::LANES, "longer than a vector");
        // SAFETY: the slice is that long.
        unsafe { self.load_up_to(from.as_ptr(), from.len()) }
    }

    /// Writes the first elements to a slice of at most `LANES` elements.
    #[inline(always)]
    fn write(self, to: &mut [Self::Elem], v: Self::Vector) {
        assert!(to.len() <= Self::LANES, "longer than a vector");
        // SAFETY: the slice is that long.
        unsafe { self.store_up_to(to.as_mut_ptr(), v, to.len()) }
    }
}

/// A computation that is compiled once per instruction set. Implementations mark `run` `#[inline(always)]`, or the
/// instruction set does not reach their body.
pub(crate) trait Kernel<T: Element> {
    type Output;

    /// Computes with the vectors of `S`.
    fn run<S: Simd<Elem = T>>(self, simd: S) -> Self::Output;
}
