//! Elementwise updates of a tensor's storage: `dst = f(dst, a, b)`.
//!
//! An update says what happens to one element; [`InPlace`] makes a candle in-place op of it, parallel over fixed chunks.

use candle_core::cpu_backend::CpuStorage;
use candle_core::{InplaceOp3, Layout, Result, bail};
use rayon::prelude::*;

/// Elements per parallel task: large enough to hide the cost of a task, small enough to share a layer's weights.
const CHUNK: usize = 1 << 15;

/// f32 or f64.
pub(super) trait Real:
    Copy
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    fn of(v: f64) -> Self;
    fn sqrt(self) -> Self;
}

impl Real for f32 {
    fn of(v: f64) -> Self {
        v as f32
    }
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
}

impl Real for f64 {
    fn of(v: f64) -> Self {
        v
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
}

/// The new value of one element from the old one and two more operands.
pub(super) trait Update: Sync {
    const NAME: &'static str;
    fn apply<T: Real>(&self, dst: T, a: T, b: T) -> T;
}

/// Defines updates: a struct of f64 constants, and the new value of an element as a function of the constants and of the
/// operands in the tensors' own precision.
macro_rules! updates {
    ($($(#[$doc:meta])* $name:ident { $($constant:ident),* }: |$dst:ident, $a:ident, $b:ident| $value:expr;)*) => {
        $($(#[$doc])*
        struct $name {
            $($constant: f64,)*
        }

        impl in_place::Update for $name {
            const NAME: &'static str = stringify!($name);

            fn apply<T: Real>(&self, $dst: T, $a: T, $b: T) -> T {
                $(let $constant = T::of(self.$constant);)*
                $value
            }
        })*
    };
}
pub(super) use updates;

/// An update as a candle op. All operands must be contiguous and of one dtype.
pub(super) struct InPlace<U>(pub(super) U);

impl<U: Update> InplaceOp3 for InPlace<U> {
    fn name(&self) -> &'static str {
        U::NAME
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        dst_l: &Layout,
        a: &CpuStorage,
        a_l: &Layout,
        b: &CpuStorage,
        b_l: &Layout,
    ) -> Result<()> {
        let (d, a_r, b_r) = (range(U::NAME, dst_l)?, range(U::NAME, a_l)?, range(U::NAME, b_l)?);
        match (dst, a, b) {
            (CpuStorage::F32(dst), CpuStorage::F32(a), CpuStorage::F32(b)) => {
                update(&self.0, &mut dst[d], &a[a_r], &b[b_r]);
            }
            (CpuStorage::F64(dst), CpuStorage::F64(a), CpuStorage::F64(b)) => {
                update(&self.0, &mut dst[d], &a[a_r], &b[b_r]);
            }
            _ => bail!("{}: operands must all be F32 or all F64", U::NAME),
        }
        Ok(())
    }
}

fn range(name: &str, layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{name}: operands must be contiguous, got strides {:?}", layout.stride()),
    }
}

fn update<U: Update, T: Real>(update: &U, dst: &mut [T], a: &[T], b: &[T]) {
    dst.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((dst, a), b)| {
        for ((d, a), b) in dst.iter_mut().zip(a).zip(b) {
            *d = update.apply(*d, *a, *b);
        }
    });
}
