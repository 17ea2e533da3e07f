//! Instruction sets of the processor, and the call of a kernel compiled for one of them.

use super::vector::{Element, Kernel, Simd};
use std::fmt;
use std::sync::OnceLock;

/// An instruction set of this processor that kernels are compiled for. Values come from [`InstructionSet::available`] and
/// [`InstructionSet::detect`] alone, so holding one proves that the processor has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InstructionSet(Name);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    /// 16 lanes of f32.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes of f32, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 lanes of f32.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Arrays, compiled for the instruction set of the build's target.
    Portable,
}

impl fmt::Debug for InstructionSet {
    /// Writes the name alone, as in `Avx2`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl InstructionSet {
    /// All instruction sets of this processor, widest vectors first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                sets.push(Self(Name::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Self(Name::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Self(Name::Neon));
        sets.push(Self(Name::Portable));
        sets
    }

    /// The instruction set with the widest vectors of this processor, which every op uses.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<InstructionSet> = OnceLock::new();
        *DETECTED.get_or_init(|| Self::available()[0])
    }
}

/// Runs a kernel compiled for `set`.
pub(crate) fn dispatch<T: Element, K: Kernel<T>>(set: InstructionSet, kernel: K) -> K::Output {
    // SAFETY: an `InstructionSet` exists only for a processor that has it.
    unsafe {
        match set.0 {
            #[cfg(target_arch = "x86_64")]
            Name::Avx512 => T::Avx512::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Name::Avx2 => T::Avx2::call(kernel),
            #[cfg(target_arch = "aarch64")]
            Name::Neon => T::Neon::call(kernel),
            Name::Portable => T::Portable::call(kernel),
        }
    }
}
