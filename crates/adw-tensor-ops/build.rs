//! The CUDA kernels, in builds with CUDA.

fn main() {
    adw_cuda_build::kernels(&[
        "src/conv3d/conv3d.cu",
        "src/gumbel_softmax/gumbel_softmax.cu",
        "src/loss/loss.cu",
        "src/norm_act/norm_act.cu",
    ]);
}
