// SGD with Nesterov momentum, Adam and the gradient norm over all parameters of a net: one launch each (two for the norm).
// Parameters, gradients and state are f32. The arithmetic is that of sgd.rs and adam.rs, element by element.
//
// Blocks walk over chunks of tensors; a table in the device's memory, made once, says which. The factor that clips
// gradients stays on the device: no step waits for the host.
#include "device.cuh"

constexpr int THREADS = 256;

struct Tensor {
    float *weight;
    const float *grad;
    float *first, *second;  // velocity, or the means of gradients and of their squares
    u64 len;
};

struct Chunk {
    u32 tensor, first;  // first element, in units of the chunk
};

struct List {
    const Tensor *tensors;
    const Chunk *chunks;  // one per block
    u32 chunk;            // elements
    u32 num_chunks;
};

// f(tensor, element) for every element of the block's chunk.
template <class F>
__device__ void for_each(const List &list, F f) {
    const Chunk c = list.chunks[blockIdx.x];
    const Tensor t = list.tensors[c.tensor];
    const u64 first = u64(c.first) * list.chunk, end = first + list.chunk < t.len ? first + list.chunk : t.len;
    for (u64 i = first + threadIdx.x; i < end; i += THREADS) f(t, i);
}

struct SgdParams {
    List list;
    const float *scale;  // of gradients, on the device; absent: 1
    float lr, momentum, decay;
    u32 _unused;
};

__device__ void sgd(const SgdParams &p) {
    const float scale = p.scale ? *p.scale : 1.f;
    if (!(scale >= 0.f)) return;
    for_each(p.list, [&](const Tensor &t, u64 i) {
        const float w = t.weight[i], g = t.grad[i] * scale + p.decay * w;
        const float v = p.momentum * t.first[i] + g;
        t.first[i] = v;
        t.weight[i] = w - p.lr * (g + p.momentum * v);
    });
}

struct AdamParams {
    List list;
    const float *scale;
    float step_size;        // lr / (1 - beta1^t)
    float root_correction;  // sqrt(1 - beta2^t)
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    u32 _unused;
};

__device__ void adam(const AdamParams &p) {
    const float scale = p.scale ? *p.scale : 1.f;
    if (!(scale >= 0.f)) return;
    for_each(p.list, [&](const Tensor &t, u64 i) {
        const float g = t.grad[i] * scale;
        const float m = p.beta1 * t.first[i] + p.one_minus_beta1 * g;
        const float v = p.beta2 * t.second[i] + p.one_minus_beta2 * (g * g);
        t.first[i] = m;
        t.second[i] = v;
        t.weight[i] -= p.step_size * m / (sqrtf(v) / p.root_correction + p.eps);
    });
}

struct EmaParams {
    List list;
    float decay, one_minus_decay;
};

__device__ void ema(const EmaParams &p) {
    for_each(p.list, [&](const Tensor &t, u64 i) {
        t.first[i] = p.decay * t.first[i] + p.one_minus_decay * t.weight[i];
    });
}

struct NormParams {
    List list;
    double *partial;  // [chunks]
    double *norm;     // of all gradients together
    float *scale;     // min(1, max_norm / (norm + 1e-6))
    double max_norm;
};

__device__ double block_sum(double sum) {
    ADW_SHARED(memory);
    double *shared = reinterpret_cast<double *>(memory);
    shared[threadIdx.x] = sum;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    return shared[0];
}

__device__ void norm_partial(const NormParams &p) {
    double sum = 0.;
    for_each(p.list, [&](const Tensor &t, u64 i) { sum += double(t.grad[i]) * double(t.grad[i]); });
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

__device__ void norm_finish(const NormParams &p) {
    double sum = 0.;
    for (u32 i = threadIdx.x; i < p.list.num_chunks; i += THREADS) sum += p.partial[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum), scale = p.max_norm / (norm + 1e-6);
    *p.norm = norm;
    // A norm that is no finite number has no factor: no step is taken.
    *p.scale = norm - norm == 0. ? float(scale < 1. ? scale : 1.) : float(norm - norm);
}

ADW_KERNEL(optim_sgd, THREADS, 2, SgdParams, sgd(p))
ADW_KERNEL(optim_adam, THREADS, 2, AdamParams, adam(p))
ADW_KERNEL(optim_ema, THREADS, 2, EmaParams, ema(p))
ADW_KERNEL(optim_norm_partial, THREADS, 2, NormParams, norm_partial(p))
ADW_KERNEL(optim_norm_finish, THREADS, 1, NormParams, norm_finish(p))
