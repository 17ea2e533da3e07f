//! One algorithm, several instruction sets.
//!
//! A kernel is written once, generic over [`Simd`], as a [`Kernel`]; [`dispatch`] runs it compiled for an
//! [`InstructionSet`] of the processor, with the vectors of the crate pulp. The build needs no `RUSTFLAGS`.

mod instruction_set;
mod lanes;
mod vector;

pub use instruction_set::InstructionSet;
pub(crate) use instruction_set::dispatch;
pub(crate) use vector::{Element, Kernel, Simd};
