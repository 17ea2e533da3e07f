//! Table of the tolerances of all tests, each with its reason.
//!
//! A tolerance is a bound on the difference between a value and its reference, not a typical error: entries are the largest
//! errors that a correct implementation shows, rounded up to a power of ten or a small multiple of one.

/// Numbers that a tolerance bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Every element by itself.
    Elements,
    /// Root mean square of the errors against that of the expected values (the relative L2 error). Right for sums of
    /// products: they round in proportion to their terms, so an element whose terms cancel has no digits of its own.
    RootMeanSquare,
}

/// Bound `abs + rel |expected|` on an error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Allowed error where 0 is expected.
    pub abs: f64,
    /// Allowed error as a fraction of the expected value.
    pub rel: f64,
    /// Numbers that are bounded.
    pub measure: Measure,
}

impl Tolerance {
    /// Bound on every element.
    pub const fn elements(abs: f64, rel: f64) -> Self {
        Self { abs, rel, measure: Measure::Elements }
    }

    /// Bound on the relative L2 error.
    pub const fn l2(rel: f64) -> Self {
        Self { abs: 0.0, rel, measure: Measure::RootMeanSquare }
    }
}

/// Copies and reorderings.
pub const EXACT: Tolerance = Tolerance::elements(0.0, 0.0);
/// Scalars and short closed forms in f64: a few roundings of 1.1e-16.
pub const F64_CLOSED_FORM: Tolerance = Tolerance::elements(1e-12, 0.0);
/// Sums of products in f64, up to some thousand terms.
pub const F64_SUM: Tolerance = Tolerance::l2(1e-14);
/// Sums of millions of terms in f64, in another order.
pub const F64_LONG_SUM: Tolerance = Tolerance::l2(1e-12);
/// f64 through a normalisation, whose division and root add roundings.
pub const F64_NORMALISED: Tolerance = Tolerance::l2(1e-13);
/// f64 gradients by two different formulas of the same derivative, through convolution and normalisation.
pub const F64_GRADIENT: Tolerance = Tolerance::l2(1e-10);
/// f64 gradients by two formulas, one of which subtracts large numbers that nearly cancel (a gate in front of a normalisation).
pub const F64_GRADIENT_CANCELLING: Tolerance = Tolerance::l2(1e-9);
/// Steps of an optimiser in f64: a few roundings per step, tens of steps.
pub const F64_STEPS: Tolerance = Tolerance::elements(1e-13, 1e-13);
/// A single step of an optimiser in f64, computed by hand.
pub const F64_STEP: Tolerance = Tolerance::elements(1e-15, 1e-15);

/// Central differences in f64 with steps of 1e-5: the difference of two losses loses about ten of sixteen digits.
pub const FINITE_DIFFERENCE: Tolerance = Tolerance::l2(1e-6);
/// Central differences through a whole network in f64: a step may move voxels across the kink of LeakyReLU.
pub const FINITE_DIFFERENCE_NETWORK: Tolerance = Tolerance::elements(1e-6, 1e-4);
/// Central differences in f64 of a function of few terms, all of order 1.
pub const FINITE_DIFFERENCE_FEW_TERMS: Tolerance = Tolerance::elements(1e-8, 0.0);

/// Convolutions in f32 beside their definition in f64: roundings of 6e-8 over the terms of a sum.
pub const F32_CONVOLUTION: Tolerance = Tolerance::l2(2e-6);
/// Convolutions of random shapes in f32: Winograd's transforms lose up to two more bits on unlucky shapes.
pub const F32_CONVOLUTION_ANY_SHAPE: Tolerance = Tolerance::l2(4e-6);
/// Kernels in f32 beside the CPU in f32: sums of thousands of terms in another order.
pub const F32_KERNEL: Tolerance = Tolerance::l2(1e-5);
/// Steps of an optimiser in f32: a rounding of 6e-8 of the weight per step, tens of steps.
pub const F32_STEPS: Tolerance = Tolerance::elements(1e-5, 1e-5);
/// Variance in f32 of numbers whose mean is 4000 times their deviation: the inputs themselves hold three digits of it.
pub const F32_VARIANCE_BESIDE_LARGE_MEAN: Tolerance = Tolerance::elements(0.0, 1e-3);
/// A number of order 1 in f32.
pub const F32_ROUNDING: Tolerance = Tolerance::elements(1e-7, 0.0);
/// Logarithm by a polynomial in f32: two units in the last place, and half an absolute one where it crosses 0.
pub const F32_LOGARITHM: Tolerance = Tolerance::elements(5e-8, 1e-7);
/// Power by logarithm and exponential in f32: the exponent multiplies the logarithm's error.
pub const F32_POWER: Tolerance = Tolerance::elements(0.0, 3e-6);
/// Sine and cosine by polynomials in f32.
pub const F32_SINE: Tolerance = Tolerance::elements(4e-7, 0.0);
/// Points of a cubic spline in f64 whose coefficients are cut off after some voxels.
pub const SPLINE: Tolerance = Tolerance::elements(1e-6, 0.0);
/// Millimetres that a NIfTI header holds in f32.
pub const NIFTI_LENGTH: Tolerance = Tolerance::elements(1e-6, 0.0);
/// Images in f32 after an interpolation or a filter.
pub const F32_IMAGE: Tolerance = Tolerance::elements(1e-5, 0.0);
/// Weighted means of overlapping windows in f32: a sum of some ten terms and a division.
pub const F32_WINDOW_MEAN: Tolerance = Tolerance::elements(2e-5, 0.0);
/// Images in f32 after several transforms or a power.
pub const F32_TRANSFORMED_IMAGE: Tolerance = Tolerance::elements(1e-4, 0.0);

/// Convolutions with factors rounded to bf16 beside the exact ones: eight significant bits are 0.2 to 0.4 % per factor, and
/// errors of different sign average out.
pub const BF16_FACTORS: Tolerance = Tolerance::l2(5e-3);
/// Kernels whose maps are bf16: 0.4 % per rounding of an input or result, several in a row.
pub const BF16_KERNEL: Tolerance = Tolerance::l2(2e-2);

/// Values that were rounded to f16 after a computation in f32 or f64: one unit in the last of 11 bits, or one subnormal.
pub const F16_ROUNDED: Tolerance = Tolerance::elements(6e-8, 1.0 / 1024.0);

/// Whole networks in f64 beside PyTorch in f64: a dozen layers, forward and backward.
pub const GOLDEN_F64: Tolerance = Tolerance::l2(1e-8);
/// Whole networks in f32 beside PyTorch in f64.
pub const GOLDEN_F32: Tolerance = Tolerance::l2(1e-4);
/// Gradient of a width gate before the normalisation, in f32: it is what the normalisation's eps leaves over, and f32
/// itself loses 1 to 2 % of it.
pub const GOLDEN_F32_PRE_NORM_ALPHA: Tolerance = Tolerance::l2(5e-2);
/// Single layers in f32 beside PyTorch in f32, sums in another order.
pub const GOLDEN_LAYER_F32: Tolerance = Tolerance::elements(1e-5, 1e-5);
/// Single layers in f64 beside PyTorch in f64.
pub const GOLDEN_LAYER_F64: Tolerance = Tolerance::elements(1e-12, 1e-12);
