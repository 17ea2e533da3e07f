//! Convolutions as cuDNN describes them.

use crate::work::Work;

/// Implementation of convolutions on a CUDA device. Both give the same bits every time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConvolutionBackend {
    /// Kernels of the workspace.
    #[default]
    Own,
    /// cuDNN: per pass and shape the first algorithm in the list of its heuristics (`cudnnGetConvolution*Algorithm_v7`)
    /// that is deterministic and needs at most 512 MiB of workspace. Passes without such an algorithm run on kernels of
    /// the workspace.
    Cudnn,
}

/// Pass of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvPass {
    /// Output `y` from `x` and `w`.
    Forward,
    /// Gradient of `x` from that of `y` and `w`.
    GradInput,
    /// Gradient of `w` from `x` and the gradient of `y`.
    GradWeight,
}

/// Shapes of a convolution; sizes are D, H, W.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// Element type: bf16 if true, else f32.
    pub bf16: bool,
    /// Number of samples.
    pub batch: usize,
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Spatial size of the input.
    pub input: [usize; 3],
    /// Spatial size of the output.
    pub output: [usize; 3],
    /// Size of the kernel.
    pub kernel: [usize; 3],
    /// Stride per axis.
    pub stride: [usize; 3],
    /// Zeros before and after the input, per axis.
    pub padding: [usize; 3],
}

impl Convolution {
    /// Bytes and operations of one pass: the two operands read and the result written once, `2 taps Cin Cout` operations per
    /// output voxel.
    pub fn work(&self) -> Work {
        let product = |v: [usize; 3]| v.iter().product::<usize>();
        let outputs = self.batch * product(self.output);
        let weights = self.channels_out * product(self.kernel) * self.channels_in;
        let elements = self.batch * product(self.input) * self.channels_in + weights + outputs * self.channels_out;
        Work::new(elements * if self.bf16 { 2 } else { 4 }, 2 * weights * outputs).on_tensor_cores(self.bf16)
    }
}
