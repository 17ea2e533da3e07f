//! The CUDA kernels, in builds with CUDA.

fn main() {
    adw_cuda_build::kernels(&[
        "src/conv3d/cuda/conv3d.cu",
        "src/gumbel_softmax/cuda/gumbel_softmax.cu",
        "src/loss/cuda/loss.cu",
        "src/norm_act/cuda/norm_act.cu",
    ]);
}
