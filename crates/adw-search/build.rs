//! The CUDA kernels, in builds with CUDA.

fn main() {
    adw_cuda::compile::kernels(&["src/optim/optim.cu"]);
}
