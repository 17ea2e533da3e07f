use crate::error::{Error, Result};

/// Kernel, stride and zero padding of a 3D convolution, each per axis in the order D, H, W.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dGeometry {
    /// Size of the kernel.
    pub kernel: [usize; 3],
    /// Distance of neighbouring output voxels, in input voxels.
    pub stride: [usize; 3],
    /// Zeros put before and after the input.
    pub padding: [usize; 3],
}

impl Conv3dGeometry {
    /// Padding `(k - 1) / 2`: with an odd kernel and stride 1 the output is as large as the input.
    pub fn same(kernel: [usize; 3], stride: [usize; 3]) -> Self {
        Self { kernel, stride, padding: kernel.map(|k| (k.max(1) - 1) / 2) }
    }

    /// Kernel = stride, no padding: the geometry of the U-Net's transposed convolutions.
    pub fn non_overlapping(stride: [usize; 3]) -> Self {
        Self { kernel: stride, stride, padding: [0; 3] }
    }

    /// `floor((n + 2 padding - kernel) / stride) + 1` per axis.
    ///
    /// # Errors
    /// If a kernel or stride is 0, or the kernel does not fit into the padded input.
    pub fn output_size(&self, op: &'static str, input: [usize; 3]) -> Result<[usize; 3]> {
        let mut out = [0; 3];
        for i in 0..3 {
            let (k, s, padded) =
                (self.kernel[i], self.stride[i], self.padding[i].saturating_mul(2).saturating_add(input[i]));
            if k == 0 || s == 0 || k > padded {
                return Err(Error::Argument {
                    op,
                    what: format!(
                        "kernel {:?}, stride {:?} and padding {:?} do not fit an input of {input:?}: kernel and stride \
                         must be at least 1, and the kernel no larger than the padded input",
                        self.kernel, self.stride, self.padding
                    ),
                });
            }
            out[i] = (padded - k) / s + 1;
        }
        Ok(out)
    }

    /// Output size of the transposed convolution, `(n - 1) stride - 2 padding + kernel + output_padding` per axis: the
    /// input size of the convolution whose output size is `input`. Several have that, `output_padding` picks one.
    ///
    /// # Errors
    /// If a kernel or stride is 0, the output padding is not smaller than the stride, or nothing is left of the output.
    pub fn transposed_size(
        &self,
        op: &'static str,
        input: [usize; 3],
        output_padding: [usize; 3],
    ) -> Result<[usize; 3]> {
        let mut out = [0; 3];
        for i in 0..3 {
            let (k, s, p) = (self.kernel[i], self.stride[i], self.padding[i]);
            if k == 0 || s == 0 || output_padding[i] >= s {
                let what = format!(
                    "kernel {:?}, stride {:?} and output padding {output_padding:?}: kernel and stride must be at least \
                     1, and the output padding smaller than the stride",
                    self.kernel, self.stride
                );
                return Err(Error::Argument { op, what });
            }
            let whole = input[i].saturating_sub(1).saturating_mul(s).saturating_add(k + output_padding[i]);
            out[i] = whole.saturating_sub(p.saturating_mul(2));
            if input[i] == 0 || out[i] == 0 {
                let what = format!("padding {:?} leaves nothing of the output for an input of {input:?}", self.padding);
                return Err(Error::Argument { op, what });
            }
        }
        Ok(out)
    }
}

/// The number of elements of a tensor of these dimensions, if one can exist: every dimension at least 1, and no more
/// bytes than an allocation may have.
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
