//! The CUDA kernels, in builds with CUDA.

fn main() {
    adw_cuda_build::kernels(&["src/optim/cuda/optim.cu"]);
}
