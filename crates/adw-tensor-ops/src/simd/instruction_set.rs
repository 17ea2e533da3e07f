//! Instruction sets of the processor, and the call of a kernel compiled for one of them.

use super::vector::{Element, Kernel};
use pulp::Arch;
use std::fmt;
use std::sync::OnceLock;

/// An instruction set of this processor that kernels are compiled for. Values come from [`InstructionSet::available`] and
/// [`InstructionSet::detect`] alone, so holding one proves that the processor has it.
#[derive(Clone, Copy)]
pub struct InstructionSet {
    name: &'static str,
    arch: Arch,
}

impl PartialEq for InstructionSet {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for InstructionSet {}

impl fmt::Debug for InstructionSet {
    /// Writes the name alone, as in `Avx2`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl InstructionSet {
    /// All instruction sets of this processor, widest vectors first.
    pub fn available() -> Vec<Self> {
        let candidates = [
            #[cfg(target_arch = "x86_64")]
            ("Avx512", pulp::x86::V4::try_new().map(Arch::V4)),
            #[cfg(target_arch = "x86_64")]
            ("Avx2", pulp::x86::V3::try_new().map(Arch::V3)),
            #[cfg(target_arch = "aarch64")]
            ("Neon", pulp::aarch64::Neon::try_new().map(Arch::Neon)),
            ("Portable", Some(Arch::Scalar)),
        ];
        candidates.into_iter().filter_map(|(name, arch)| Some(Self { name, arch: arch? })).collect()
    }

    /// AVX2 on a processor with AVX-512, whose vectors are twice as long; none on others.
    pub(crate) fn shorter() -> Option<Self> {
        static SHORTER: OnceLock<Option<InstructionSet>> = OnceLock::new();
        *SHORTER.get_or_init(|| Self::available().into_iter().skip(1).find(|set| set.name == "Avx2"))
    }

    /// The instruction set with the widest vectors of this processor, which every op uses where channels fill them.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<InstructionSet> = OnceLock::new();
        *DETECTED.get_or_init(|| Self::available()[0])
    }
}

/// Runs a kernel compiled for `set`.
pub(crate) fn dispatch<T: Element, K: Kernel<T>>(set: InstructionSet, kernel: K) -> K::Output {
    T::dispatch(set.arch, kernel)
}
