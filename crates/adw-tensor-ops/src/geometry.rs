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
        Self {
            kernel,
            stride,
            padding: kernel.map(|k| (k.max(1) - 1) / 2),
        }
    }

    /// Kernel = stride, no padding: the geometry of the U-Net's transposed convolutions.
    pub fn non_overlapping(stride: [usize; 3]) -> Self {
        Self {
            kernel: stride,
            stride,
            padding: [0; 3],
        }
    }

    /// `floor((n + 2 padding - kernel) / stride) + 1` per axis.
    ///
    /// # Errors
    /// If a kernel or stride is 0, or the kernel does not fit into the padded input.
    pub fn output_size(&self, op: &'static str, input: [usize; 3]) -> Result<[usize; 3]> {
        let mut out = [0; 3];
        for i in 0..3 {
            let (k, s, padded) = (
                self.kernel[i],
                self.stride[i],
                input[i] + 2 * self.padding[i],
            );
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
}
