//! The element types.

use super::portable::Portable;
use super::vector::Element;

impl Element for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = super::x86::Avx512;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = super::x86::Avx2;
    #[cfg(target_arch = "aarch64")]
    type Neon = super::aarch64::Neon;
    type Portable = Portable<f32>;

    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn exp(self) -> Self {
        f32::exp(self)
    }

    fn ln(self) -> Self {
        f32::ln(self)
    }
}

// f64 serves gradient checks and golden tests: portable code only.
impl Element for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Portable<f64>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Portable<f64>;
    #[cfg(target_arch = "aarch64")]
    type Neon = Portable<f64>;
    type Portable = Portable<f64>;

    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn ln(self) -> Self {
        f64::ln(self)
    }
}
