//! Convolutions in bfloat16 on the processor's matrix unit (Intel AMX): factors rounded to bf16, products summed in f32.
//!
//! A tile of the unit holds 16 rows of 64 bytes. One instruction multiplies 16 rows of 32 factors with 32 rows of 16 (stored
//! as 16 rows of pairs) and adds to 16 x 16 sums: 16 times what a multiply-add of AVX-512 does, so the direct sum beats
//! Winograd's transforms here, and nothing but the factors is rounded.
//!
//! ```text
//! c[r][j] += sum over segments s, k < 32 steps:  a[s][r][k] * b[s][k][j]
//! ```
//! Two tiles of rows by two of columns stay in the unit for the whole sum.
//!
//! Rust has no stable functions for these instructions, hence the assembler. Linux only: a process must request
//! the unit's state from the system first.

pub(super) mod correlation;
mod unit;
mod vectors;
pub(super) mod weight_gradient;

pub(crate) use unit::Amx;
