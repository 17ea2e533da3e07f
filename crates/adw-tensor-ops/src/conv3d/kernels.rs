//! Kernels of the convolution's passes, and their arguments.

use crate::error::{Error, Result};
use crate::geometry::Conv3dGeometry;
use crate::map::map_dims;
use crate::norm_act::{Moments, NormCoefficients};
use crate::precision::Precision;
use crate::storage::Computed;
use candle_core::Tensor;
use std::ops::Range;

/// Map that a convolution reads.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[B, D, H, W, C]`, contiguous.
    pub map: &'a Tensor,
    /// Coefficients that make the convolution read `leaky(scale * x + shift)` instead of `x`.
    pub norm: Option<&'a NormCoefficients>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(map: &'a Tensor) -> Self {
        Self { map, norm: None }
    }
}

/// Batch and spatial size of channels-last maps that are read side by side, and their channels.
pub(crate) fn input_dims(op: &'static str, inputs: &[Input]) -> Result<(usize, [usize; 3], usize)> {
    let mut found: Option<(usize, [usize; 3])> = None;
    let mut channels = 0;
    for input in inputs {
        let (b, size, c) = map_dims(op, "input", input.map)?;
        if found.is_some_and(|f| f != (b, size)) {
            return Err(Error::Shape {
                op,
                what: "input",
                got: input.map.shape().clone(),
                expected: "batch and size of the input beside it".into(),
            });
        }
        found = Some((b, size));
        channels += c;
    }
    let (b, size) = found.ok_or(Error::Argument { op, what: "no input, expected at least one".into() })?;
    Ok((b, size, channels))
}

/// Passes of a 3D convolution on one kind of device. Shapes have been checked.
///
/// Maps are `[B, D, H, W, C]`, inputs have their channels side by side, weights are `[Cout, Cin, kD, kH, kW]`.
pub(crate) trait Conv3dKernels {
    /// Output `[B, D', H', W', Cout]`, and its moments if `with_moments`.
    fn conv3d(
        &self,
        inputs: &[Input],
        weight: &Tensor,
        geometry: Conv3dGeometry,
        precision: Precision,
        with_moments: bool,
    ) -> Result<(Computed, Option<Moments>)>;

    /// Gradient with respect to the input channels `channels` of an input of spatial size `size`, `[B, D, H, W,
    /// channels.len()]`.
    fn conv3d_grad_input(
        &self,
        grad_output: Input,
        weight: &Tensor,
        geometry: Conv3dGeometry,
        precision: Precision,
        size: [usize; 3],
        channels: Range<usize>,
    ) -> Result<Computed>;

    /// Gradient with respect to the weight, `[Cout, Cin, kD, kH, kW]`.
    fn conv3d_grad_weight(
        &self,
        inputs: &[Input],
        grad_output: Input,
        geometry: Conv3dGeometry,
        precision: Precision,
    ) -> Result<Computed>;
}
