//! Elements, vectors of them, and kernels that compute with vectors.

use candle_core::WithDType;

/// An element type that the ops compute in, and its vector types.
pub(crate) trait Element: WithDType + std::ops::Neg<Output = Self> {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Elem = Self>;
    #[cfg(target_arch = "aarch64")]
    type Neon: Simd<Elem = Self>;
    type Portable: Simd<Elem = Self>;

    const ZERO: Self;
    const ONE: Self;

    fn exp(self) -> Self;
    fn ln(self) -> Self;
}

/// A vector of `LANES` elements of an instruction set, and its operations.
///
/// Code that is generic over this trait runs inside [`Simd::call`], so only where the processor has the instructions; that
/// is why the operations on values are safe.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type Elem: Element;
    type Vector: Copy;
    const LANES: usize;
    /// Architectural vector registers, which limit the size of a tile of accumulators.
    const REGISTERS: usize;

    /// Vector whose lanes are all `x`.
    fn splat(x: Self::Elem) -> Self::Vector;
    /// `a * b + c`
    fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a + b`
    fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`
    fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `x` in lanes where it is positive, `slope * x` in the others.
    fn leaky(x: Self::Vector, slope: Self::Vector) -> Self::Vector;

    /// Reads `LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` elements.
    unsafe fn load(p: *const Self::Elem) -> Self::Vector;

    /// Writes `LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` elements.
    unsafe fn store(p: *mut Self::Elem, v: Self::Vector);

    /// Reads the first `n <= LANES` elements; the other lanes are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` elements.
    unsafe fn load_first(p: *const Self::Elem, n: usize) -> Self::Vector;

    /// Writes the first `n <= LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for writing `n` elements.
    unsafe fn store_first(p: *mut Self::Elem, v: Self::Vector, n: usize);

    /// Runs a kernel in a function of its own that is compiled for this instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn call<K: Kernel<Self::Elem>>(kernel: K) -> K::Output;

    /// Reads the first `n <= LANES` elements, by a plain load if those are all.
    ///
    /// # Safety
    /// `p` is valid for reading `n` elements.
    #[inline(always)]
    unsafe fn load_up_to(p: *const Self::Elem, n: usize) -> Self::Vector {
        // SAFETY: the caller guarantees that `n` elements are valid.
        unsafe { if n == Self::LANES { Self::load(p) } else { Self::load_first(p, n) } }
    }

    /// Writes the first `n <= LANES` elements, by a plain store if those are all.
    ///
    /// # Safety
    /// `p` is valid for writing `n` elements.
    #[inline(always)]
    unsafe fn store_up_to(p: *mut Self::Elem, v: Self::Vector, n: usize) {
        // SAFETY: the caller guarantees that `n` elements are valid.
        unsafe { if n == Self::LANES { Self::store(p, v) } else { Self::store_first(p, v, n) } }
    }

    /// Reads a slice of at most `LANES` elements; the other lanes are zero.
    #[inline(always)]
    fn read(from: &[Self::Elem]) -> Self::Vector {
        assert!(from.len() <= Self::LANES, "longer than a vector");
        // SAFETY: the slice is that long.
        unsafe { Self::load_up_to(from.as_ptr(), from.len()) }
    }

    /// Writes the first elements to a slice of at most `LANES` elements.
    #[inline(always)]
    fn write(to: &mut [Self::Elem], v: Self::Vector) {
        assert!(to.len() <= Self::LANES, "longer than a vector");
        // SAFETY: the slice is that long.
        unsafe { Self::store_up_to(to.as_mut_ptr(), v, to.len()) }
    }
}

/// Implements operations of [`Simd`] by intrinsics, inlined everywhere: an instruction set reaches an operation only if
/// that is inlined into the function that is compiled for it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! operations {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? { $($body:tt)* })*) => {
        $($(#[$doc])*
        #[inline(always)]
        fn $name($($arg: $type),*) $(-> $result)? {
            // SAFETY: the processor has the instructions, since code generic over `Simd` runs inside `Simd::call`.
            unsafe { $($body)* }
        })*
    };
}

/// Implements the operations of [`Simd`] on memory like [`operations`].
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! memory_operations {
    ($(unsafe fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? { $($body:tt)* })*) => {
        $(#[inline(always)]
        unsafe fn $name($($arg: $type),*) $(-> $result)? {
            // SAFETY: the processor has the instructions, since code generic over `Simd` runs inside `Simd::call`; the
            // caller guarantees that the elements are valid.
            unsafe { $($body)* }
        })*
    };
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use {memory_operations, operations};

/// A computation that is compiled once per instruction set. Implementations mark `run` `#[inline(always)]`, or the
/// instruction set does not reach their body.
pub(crate) trait Kernel<T: Element> {
    type Output;

    /// Computes with the vectors of `S`.
    fn run<S: Simd<Elem = T>>(self) -> Self::Output;
}
