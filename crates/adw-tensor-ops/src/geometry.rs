//! Geometry of convolutions, and sizes that tensors can have.

use crate::error::{Error, Result};

/// Kernel, stride, zero padding and dilation of a 3D convolution, each per axis in the order D, H, W.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dGeometry {
    /// Size of the kernel.
    pub kernel: [usize; 3],
    /// Distance of neighbouring output voxels, in input voxels.
    pub stride: [usize; 3],
    /// Zeros put before and after the input.
    pub padding: [usize; 3],
    /// Distance of neighbouring kernel elements, in input voxels; 1 for an ordinary convolution.
    pub dilation: [usize; 3],
}

impl Conv3dGeometry {
    /// An ordinary convolution: no dilation.
    pub const fn new(kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Self {
        Self { kernel, stride, padding, dilation: [1; 3] }
    }

    /// Padding `(k - 1) / 2` and no dilation: with an odd kernel and stride 1 the output is as large as the input.
    pub const fn same(kernel: [usize; 3], stride: [usize; 3]) -> Self {
        let [d, h, w] = kernel;
        let padding = [d.saturating_sub(1) / 2, h.saturating_sub(1) / 2, w.saturating_sub(1) / 2];
        Self::new(kernel, stride, padding)
    }

    /// Kernel = stride, no padding: the geometry of the U-Net's transposed convolutions.
    pub const fn non_overlapping(stride: [usize; 3]) -> Self {
        Self::new(stride, stride, [0; 3])
    }

    /// Offset at which tap number `tap` of an axis reads: output `o` reads input `o * stride + offset`.
    pub(crate) fn tap_offset(&self, axis: usize, tap: usize) -> isize {
        (tap * self.dilation[axis]) as isize - self.padding[axis] as isize
    }

    /// Offset at which the input gradient reads the output's gradient through tap number `tap` of an axis: input
    /// `i = residue + stride * q` is read by output `q + offset`, or by none through this tap.
    pub(crate) fn transposed_tap_offset(&self, axis: usize, residue: usize, tap: usize) -> Option<isize> {
        let (stride, distance) = (self.stride[axis] as isize, residue as isize - self.tap_offset(axis, tap));
        (distance.rem_euclid(stride) == 0).then_some(distance / stride)
    }

    /// Input positions from the first to the last that the kernel covers along an axis.
    pub(crate) fn reach(&self, axis: usize) -> usize {
        self.kernel[axis].saturating_sub(1).saturating_mul(self.dilation[axis]).saturating_add(1)
    }

    /// Size of the padded input along an axis.
    fn padded(&self, axis: usize, input: [usize; 3]) -> usize {
        self.padding[axis].saturating_mul(2).saturating_add(input[axis])
    }

    /// Size of the output of an input of size `input`: `floor((n + 2 padding - dilation (kernel - 1) - 1) / stride) + 1` per
    /// axis. Errors name `op`.
    ///
    /// # Errors
    /// If a kernel, stride or dilation is 0, or the dilated kernel does not fit into the padded input.
    pub fn output_size(&self, op: &'static str, input: [usize; 3]) -> Result<[usize; 3]> {
        let mut out = [0; 3];
        for (i, out) in out.iter_mut().enumerate() {
            let (k, s, dilation, reach) = (self.kernel[i], self.stride[i], self.dilation[i], self.reach(i));
            let padded = self.padded(i, input);
            if k == 0 || s == 0 || dilation == 0 || reach > padded {
                return Err(Error::Argument {
                    op,
                    what: format!(
                        "kernel {:?}, stride {:?}, padding {:?} and dilation {:?} do not fit an input of {input:?}: kernel, \
                         stride and dilation must be at least 1, and the dilated kernel no larger than the padded input",
                        self.kernel, self.stride, self.padding, self.dilation
                    ),
                });
            }
            *out = (padded - reach) / s + 1;
        }
        Ok(out)
    }

    /// Checks that a padded input of `channels` channels could exist, so that no position in it overflows.
    ///
    /// # Errors
    /// If it is larger than any allocation.
    pub(crate) fn check_padded(&self, op: &'static str, input: [usize; 3], channels: usize) -> Result<()> {
        let [d, h, w] = [0, 1, 2].map(|i| self.padded(i, input));
        // Kernels fill vectors up.
        num_elements(op, "padded input", &[d, h, w, channels.saturating_add(64)]).map(|_| ())
    }

    /// Output size of the transposed convolution, `(n - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1`
    /// per axis: the input size of the convolution whose output size is `input`. Several have that, `output_padding` picks
    /// one.
    ///
    /// # Errors
    /// If a kernel, stride or dilation is 0, the output padding is smaller than neither stride nor dilation, or nothing is
    /// left of the output.
    pub fn transposed_size(
        &self,
        op: &'static str,
        input: [usize; 3],
        output_padding: [usize; 3],
    ) -> Result<[usize; 3]> {
        let mut out = [0; 3];
        for i in 0..3 {
            let (k, s, p) = (self.kernel[i], self.stride[i], self.padding[i]);
            if k == 0 || s == 0 || self.dilation[i] == 0 || output_padding[i] >= s.max(self.dilation[i]) {
                let what = format!(
                    "kernel {:?}, stride {:?}, dilation {:?} and output padding {output_padding:?}: kernel, stride and \
                     dilation must be at least 1, and the output padding smaller than the stride or the dilation",
                    self.kernel, self.stride, self.dilation
                );
                return Err(Error::Argument { op, what });
            }
            let whole = input[i]
                .saturating_sub(1)
                .saturating_mul(s)
                .saturating_add(self.reach(i))
                .saturating_add(output_padding[i]);
            out[i] = whole.saturating_sub(p.saturating_mul(2));
            if input[i] == 0 || out[i] == 0 {
                let what = format!("padding {:?} leaves nothing of the output for an input of {input:?}", self.padding);
                return Err(Error::Argument { op, what });
            }
        }
        Ok(out)
    }
}

/// The number of elements of a tensor of these dimensions.
///
/// # Errors
/// If no such tensor can exist: a dimension is 0, or it takes more bytes than an allocation may have.
pub(crate) fn num_elements(op: &'static str, what: &'static str, dims: &[usize]) -> Result<usize> {
    const LARGEST: usize = isize::MAX as usize / size_of::<f64>();
    let n = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= LARGEST);
    match n {
        Some(n) if n > 0 => Ok(n),
        _ => Err(Error::Shape {
            op,
            what,
            got: dims.to_vec().into(),
            expected: "dimensions of at least 1 whose product fits into memory".into(),
        }),
    }
}
