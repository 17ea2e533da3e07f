// Soft Dice + cross-entropy over all scales of deep supervision: three launches for all of them. Probabilities are never
// stored; both passes read the logits once and compute the softmax in registers. The target of a coarser scale is read
// from the finest one at the centre of the cell, floor((i + 1/2) size_in / size_out).
#include "device.cuh"

constexpr int THREADS = 256;
constexpr int CHUNK = 4096;  // voxels of a block
constexpr int MAX_SCALES = 8;

struct Scale {
    const void *logits;  // [B, size, K]
    void *grad;          // as the logits
    int size[3];
    u32 chunks;       // per sample
    u32 first_block;  // of the launch
    float weight;     // of the gradient
};

struct Params {
    Scale scales[MAX_SCALES];
    const unsigned char *target;  // [B, target_size]
    float *partial;               // [blocks, 3, K]: intersection, predicted, reference
    float *cross_entropy;         // [blocks]
    u32 *unknown;                 // [blocks]: 1 + the largest label that has no class, or 0
    float *coefficients;          // [scales, groups, 2, K]: of p everywhere, and on the target
    float *loss;                  // [scales]
    u32 *status;                  // [scales]: the largest of `unknown`
    int target_size[3];
    u32 num_scales, batch, classes, batch_dice;
    float smooth;
};

// What a block works on: some voxels of one sample at one scale.
struct Part {
    u32 scale, batch_idx, first, end;

    __device__ explicit Part(const Params &p) {
        scale = 0;
        while (scale + 1 < p.num_scales && blockIdx.x >= p.scales[scale + 1].first_block) ++scale;
        const Scale &s = p.scales[scale];
        const u32 block = blockIdx.x - s.first_block;
        batch_idx = block / s.chunks;
        first = block % s.chunks * CHUNK;
        end = u32(min(int(first + CHUNK), s.size[0] * s.size[1] * s.size[2]));
    }
};

__device__ u32 label(const Params &p, const Scale &s, u32 batch_idx, u32 voxel) {
    const u32 w = voxel % s.size[2], h = voxel / s.size[2] % s.size[1], d = voxel / s.size[2] / s.size[1];
    const u32 td = (2 * d + 1) * p.target_size[0] / (2 * s.size[0]);
    const u32 th = (2 * h + 1) * p.target_size[1] / (2 * s.size[1]);
    const u32 tw = (2 * w + 1) * p.target_size[2] / (2 * s.size[2]);
    return p.target[((i64(batch_idx) * p.target_size[0] + td) * p.target_size[1] + th) * p.target_size[2] + tw];
}

struct Softmax {
    float largest, scale, log_sum;

    template <class T>
    __device__ Softmax(const T *x, u32 classes) {
        largest = to_float(x[0]);
        for (u32 k = 1; k < classes; ++k) {
            const float v = to_float(x[k]);
            largest = v > largest ? v : largest;
        }
        float sum = 0.f;
        for (u32 k = 0; k < classes; ++k) sum += expf(to_float(x[k]) - largest);
        scale = 1.f / sum;
        log_sum = largest + logf(sum);
    }

    __device__ float of(float x) const { return expf(x - largest) * scale; }
};

// Classes [K * blockIdx.y, + K) of the sums.
template <class T, int K>
__device__ void sums(const Params &p) {
    ADW_SHARED(memory);
    float *shared = reinterpret_cast<float *>(memory);  // [warps][3 K + 2]
    const Part part(p);
    const Scale &s = p.scales[part.scale];
    const i64 voxels = i64(s.size[0]) * s.size[1] * s.size[2];
    const T *logits = static_cast<const T *>(s.logits) + i64(part.batch_idx) * voxels * p.classes;
    const u32 k0 = blockIdx.y * K;
    float acc[3][K], cross_entropy = 0.f;
    u32 unknown = 0;
#pragma unroll
    for (int n = 0; n < 3; ++n)
#pragma unroll
        for (int k = 0; k < K; ++k) acc[n][k] = 0.f;
    for (u32 v = part.first + threadIdx.x; v < part.end; v += THREADS) {
        const T *x = logits + i64(v) * p.classes;
        const Softmax softmax(x, p.classes);
        const u32 t = label(p, s, part.batch_idx, v);
        if (t >= p.classes) {
            unknown = t + 1 > unknown ? t + 1 : unknown;
            continue;
        }
        cross_entropy += softmax.log_sum - to_float(x[t]);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            if (k0 + k >= p.classes) continue;
            const float q = softmax.of(to_float(x[k0 + k])), hit = t == k0 + k ? 1.f : 0.f;
            acc[0][k] += q * hit;
            acc[1][k] += q;
            acc[2][k] += hit;
        }
    }
    constexpr int NUM = 3 * K + 2;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < 3; ++n)
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const float sum = warp_sum(acc[n][k]);
            if (lane == 0) shared[warp * NUM + n * K + k] = sum;
        }
    cross_entropy = warp_sum(cross_entropy);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const u32 other = u32(__shfl_xor_sync(0xffffffffu, float(unknown), mask));
        unknown = other > unknown ? other : unknown;
    }
    if (lane == 0) {
        shared[warp * NUM + 3 * K] = cross_entropy;
        shared[warp * NUM + 3 * K + 1] = float(unknown);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < NUM; i += THREADS) {
        float sum = 0.f, largest = 0.f;
        for (u32 w = 0; w < THREADS / 32; ++w) {
            const float v = shared[w * NUM + i];
            sum += v;
            largest = v > largest ? v : largest;
        }
        const u32 k = k0 + i % K;
        if (i < 3 * K) {
            if (k < p.classes) p.partial[(i64(blockIdx.x) * 3 + i / K) * p.classes + k] = sum;
        } else if (blockIdx.y == 0) {
            if (i == 3 * K) p.cross_entropy[blockIdx.x] = sum;
            else p.unknown[blockIdx.x] = u32(largest);
        }
    }
}

// Sum of f(i) over i in [0, n), in f64 and a fixed order; the same in every thread.
template <class F>
__device__ double block_sum(double *shared, u32 n, F f) {
    double sum = 0.;
    for (u32 i = threadIdx.x; i < n; i += THREADS) sum += f(i);
    __syncthreads();
    shared[threadIdx.x] = sum;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    __syncthreads();
    return shared[0];
}

// The loss of a scale, and what its gradient takes of every probability. Blocks: scales.
__device__ void finish(const Params &p) {
    ADW_SHARED(memory);
    double *shared = reinterpret_cast<double *>(memory);
    const Scale &s = p.scales[blockIdx.x];
    const u32 groups = p.batch_dice ? 1 : p.batch, per_group = s.chunks * p.batch / groups, blocks = s.chunks * p.batch;
    const double voxels = double(p.batch) * s.size[0] * s.size[1] * s.size[2];
    const double ce = block_sum(shared, blocks, [&](u32 i) { return double(p.cross_entropy[s.first_block + i]); });
    const double share = double(s.weight) / (double(groups) * (p.classes - 1));
    double dice = 0.;
    for (u32 g = 0; g < groups; ++g) {
        float *everywhere = p.coefficients + (blockIdx.x * groups + g) * 2 * p.classes;
        const u32 first = s.first_block + g * per_group;
        if (threadIdx.x == 0) everywhere[0] = everywhere[p.classes] = 0.f;
        for (u32 k = 1; k < p.classes; ++k) {
            double sums[3];
#pragma unroll
            for (int n = 0; n < 3; ++n)
                sums[n] = block_sum(shared, per_group,
                                    [&](u32 i) { return double(p.partial[(i64(first + i) * 3 + n) * p.classes + k]); });
            const double top = 2. * sums[0] + p.smooth, sum = sums[1] + sums[2] + p.smooth;
            const double bottom = sum > 1e-8 ? sum : 1e-8;
            dice += top / bottom;
            if (threadIdx.x == 0) {
                everywhere[k] = float(share * top / (bottom * bottom));
                everywhere[p.classes + k] = float(-2. * share / bottom);
            }
        }
    }
    if (threadIdx.x == 0) {
        p.loss[blockIdx.x] = float(ce / voxels - dice / (double(groups) * (p.classes - 1)));
        u32 status = 0;
        for (u32 i = 0; i < blocks; ++i) status = p.unknown[s.first_block + i] > status ? p.unknown[s.first_block + i] : status;
        p.status[blockIdx.x] = status;
    }
}

// Of weight * loss by the logits, with q_k = everywhere_k + (on_target_k where the target is k):
// p_k (q_k - sum_j p_j q_j) + (p_k - t_k) weight / voxels.
template <class T>
__device__ void gradient(const Params &p) {
    const Part part(p);
    const Scale &s = p.scales[part.scale];
    const i64 voxels = i64(s.size[0]) * s.size[1] * s.size[2], first = i64(part.batch_idx) * voxels * p.classes;
    const T *logits = static_cast<const T *>(s.logits) + first;
    T *grad = static_cast<T *>(s.grad) + first;
    const u32 group = p.batch_dice ? part.scale : part.scale * p.batch + part.batch_idx;
    const float *everywhere = p.coefficients + i64(group) * 2 * p.classes, *on_target = everywhere + p.classes;
    const float ce = s.weight / (float(p.batch) * float(voxels));
    for (u32 v = part.first + threadIdx.x; v < part.end; v += THREADS) {
        const T *x = logits + i64(v) * p.classes;
        const Softmax softmax(x, p.classes);
        const u32 t = label(p, s, part.batch_idx, v);
        float dot = 0.f;
        for (u32 k = 0; k < p.classes; ++k)
            dot += softmax.of(to_float(x[k])) * (everywhere[k] + (k == t ? on_target[k] : 0.f));
        for (u32 k = 0; k < p.classes; ++k) {
            const float q = softmax.of(to_float(x[k]));
            const float at = k == t ? q * on_target[k] - ce : 0.f;
            grad[i64(v) * p.classes + k] = from_float<T>(q * (everywhere[k] - dot + ce) + at);
        }
    }
}

ADW_KERNEL(loss_sums_f32_k4, THREADS, 2, Params, (sums<float, 4>(p)))
ADW_KERNEL(loss_sums_f32_k16, THREADS, 2, Params, (sums<float, 16>(p)))
ADW_KERNEL(loss_sums_bf16_k4, THREADS, 2, Params, (sums<bf16, 4>(p)))
ADW_KERNEL(loss_sums_bf16_k16, THREADS, 2, Params, (sums<bf16, 16>(p)))
ADW_KERNEL(loss_finish, THREADS, 1, Params, finish(p))
ADW_KERNEL(loss_gradient_f32, THREADS, 2, Params, gradient<float>(p))
ADW_KERNEL(loss_gradient_bf16, THREADS, 2, Params, gradient<bf16>(p))
