//! One algorithm, several instruction sets.
//!
//! A kernel is written once, generic over [`Simd`], as a [`Kernel`]; [`dispatch`] runs it compiled for an
//! [`InstructionSet`] of the processor. The build needs no `RUSTFLAGS`.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod element;
mod instruction_set;
mod portable;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use instruction_set::InstructionSet;
pub(crate) use instruction_set::dispatch;
pub(crate) use vector::{Element, Kernel, Simd};
