// Instance normalisation + affine + width gate + LeakyReLU on channels-last maps [B, voxels, C]: formulas in mod.rs.
//
// A map is never stored normalised. Each pass reads every map once, in 16-byte pieces: a thread keeps one piece of the
// channels (and what normalises them, in registers) and walks over voxels. Sums leave a block as one number per channel and
// are joined by a second, small kernel in the order of the blocks, in f64: the same bits every time.
#include "device.cuh"

constexpr int THREADS = 256;
// Of the kernels that join partial sums: 32 channels side by side, so that a warp reads whole lines.
constexpr int JOIN_CHANNELS = 32;
constexpr int JOIN_PARTS = 16;
constexpr int JOIN_THREADS = JOIN_CHANNELS * JOIN_PARTS;

// A raw map and the numbers [B, C] that normalise it: z = leaky(scale * y + shift).
struct Normalised {
    const void *y;
    const float *mean, *scale, *shift;
};

// Blocks (x: chunk of voxels, y: sample) over a map.
struct MapShape {
    u32 voxels, channels, chunk, batch;
};

// Where a thread works: one piece of the channels, every `rows`-th voxel of its block's chunk.
template <int VEC>
struct Walk {
    u32 channel, row, rows, first, end;
    i64 base;
    bool active;

    __device__ Walk(const MapShape &s) {
        const u32 pieces = s.channels / VEC;
        rows = THREADS / pieces;
        row = threadIdx.x / pieces;
        channel = threadIdx.x % pieces * VEC;
        active = row < rows;
        first = blockIdx.x * s.chunk + row;
        end = min(int(s.voxels), int((blockIdx.x + 1) * s.chunk));
        base = i64(blockIdx.y) * s.voxels * s.channels + channel;
        if (!active) first = end;
    }

    __device__ i64 at(u32 voxel, const MapShape &s) const { return base + i64(voxel) * s.channels; }
};

// Per channel, the sum over the block's rows of `NUM` numbers, into shared memory [NUM][C]. `shared`: NUM (rows + 1) C floats.
template <int NUM, int VEC>
__device__ float *sum_rows(const float (&acc)[NUM][VEC], const Walk<VEC> &w, u32 channels, float *shared) {
    float *sums = shared + NUM * w.rows * channels;
    if (w.active) {
#pragma unroll
        for (int n = 0; n < NUM; ++n)
#pragma unroll
            for (int i = 0; i < VEC; ++i) shared[(n * w.rows + w.row) * channels + w.channel + i] = acc[n][i];
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < NUM * channels; i += THREADS) {
        const u32 n = i / channels, c = i % channels;
        float sum = 0.f;
        for (u32 r = 0; r < w.rows; ++r) sum += shared[(n * w.rows + r) * channels + c];
        sums[i] = sum;
    }
    __syncthreads();
    return sums;
}

struct MomentsParams {
    const void *y;
    float *partial;  // [B, chunks, C, 2]: mean and sum of squared deviations
    float *counts;   // [B, chunks]
    MapShape shape;
};

// Deviations are taken from the chunk's first voxel: squares of a map with a large mean would cancel.
template <class T, int VEC>
__device__ void moments(const MomentsParams &p) {
    ADW_SHARED(memory);
    const MapShape s = p.shape;
    const T *y = static_cast<const T *>(p.y);
    const Walk<VEC> w(s);
    float origin[VEC], acc[2][VEC];
    const u32 start = blockIdx.x * s.chunk;
    load_floats<T, VEC>(origin, y + w.at(start, s));
#pragma unroll
    for (int i = 0; i < VEC; ++i) acc[0][i] = acc[1][i] = 0.f;
    for (u32 v = w.first; v < w.end; v += w.rows) {
        float x[VEC];
        load_floats<T, VEC>(x, y + w.at(v, s));
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const float d = x[i] - origin[i];
            acc[0][i] += d;
            acc[1][i] += d * d;
        }
    }
    const float *sums = sum_rows<2, VEC>(acc, w, s.channels, reinterpret_cast<float *>(memory));
    const float n = float(min(int(s.chunk), int(s.voxels - start)));
    const i64 block = i64(blockIdx.y) * gridDim.x + blockIdx.x;
    const T *first = y + (i64(blockIdx.y) * s.voxels + start) * s.channels;
    for (u32 c = threadIdx.x; c < s.channels; c += THREADS) {
        const float sum = sums[c], squares = sums[s.channels + c];
        float *out = p.partial + (block * s.channels + c) * 2;
        out[0] = to_float(first[c]) + sum / n;
        out[1] = squares - sum * sum / n;
    }
    if (threadIdx.x == 0) p.counts[block] = n;
}

struct CoefficientsParams {
    const float *partial;               // [B, chunks, C, 2]
    const float *counts;                // [B, chunks]
    const float *gamma, *beta, *gate;   // [C]; gate may be absent
    float *mean, *variance, *scale, *shift;  // [B, C]
    u32 chunks, channels;
    u32 gate_behind;  // 1: behind the normalisation, 0: in front of it
    float eps;
};

// Joins moments of chunks and derives scale and shift from them. Blocks: (channels / 32, batch).
__device__ void coefficients(const CoefficientsParams &p) {
    ADW_SHARED(memory);
    double *count = reinterpret_cast<double *>(memory), *first = count + JOIN_THREADS, *second = first + JOIN_THREADS;
    const u32 lane = threadIdx.x % JOIN_CHANNELS, part = threadIdx.x / JOIN_CHANNELS;
    const u32 c = blockIdx.x * JOIN_CHANNELS + lane;
    // Sums of n, n d and m2 + n d^2 with d the distance of a chunk's mean from that of the first chunk, which keeps them small: no
    // division per chunk, whose latency would be all that this kernel waits for.
    const i64 chunk0 = i64(blockIdx.y) * p.chunks;
    const bool has_origin = c < p.channels && p.counts[chunk0] > 0.f;
    const double origin = has_origin ? double(p.partial[(chunk0 * p.channels + c) * 2]) : 0.;
    double n = 0., s1 = 0., s2 = 0.;
    if (c < p.channels) {
#pragma unroll 4
        for (u32 i = part; i < p.chunks; i += JOIN_PARTS) {
            const float *at = p.partial + ((chunk0 + i) * p.channels + c) * 2;
            const double ni = double(p.counts[chunk0 + i]);
            if (ni == 0.) continue;  // An empty chunk has no moments.
            const double d = double(at[0]) - origin;
            n += ni;
            s1 += ni * d;
            s2 += double(at[1]) + ni * d * d;
        }
    }
    count[threadIdx.x] = n;
    first[threadIdx.x] = s1;
    second[threadIdx.x] = s2;
    __syncthreads();
    if (part > 0 || c >= p.channels) return;
    for (u32 i = 1; i < JOIN_PARTS; ++i) {
        const u32 at = i * JOIN_CHANNELS + lane;
        n += count[at];
        s1 += first[at];
        s2 += second[at];
    }
    const double mu = origin + s1 / n, squares = s2 - s1 * s1 / n;
    const double variance = squares / n, gamma = p.gamma[c], beta = p.beta[c];
    const double m = p.gate ? double(p.gate[c]) : 1.;
    double a, b;
    if (p.gate_behind) {
        a = m * gamma / sqrt(variance + double(p.eps));
        b = m * beta;
    } else {
        a = gamma * m / sqrt(m * m * variance + double(p.eps));
        b = beta;
    }
    const u32 at = blockIdx.y * p.channels + c;
    p.mean[at] = float(mu);
    p.variance[at] = float(variance);
    p.scale[at] = float(a);
    p.shift[at] = float(b - a * mu);
}

struct WeightedSumParams {
    Normalised maps[3];
    const float *weights[3];  // one number each, on the device; absent: 1
    void *out;
    MapShape shape;
    u32 num_maps;
    float slopes[3];
};

// sum_l weight_l leaky_l(scale_l y_l + shift_l)
template <class T, int VEC>
__device__ void weighted_sum(const WeightedSumParams &p) {
    const MapShape s = p.shape;
    const Walk<VEC> w(s);
    if (!w.active) return;
    float scale[3][VEC], shift[3][VEC], weight[3];
#pragma unroll
    for (u32 l = 0; l < 3; ++l) {
        if (l >= p.num_maps) continue;
        weight[l] = p.weights[l] ? *p.weights[l] : 1.f;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const u32 at = blockIdx.y * s.channels + w.channel + i;
            scale[l][i] = p.maps[l].scale[at];
            shift[l][i] = p.maps[l].shift[at];
        }
    }
    for (u32 v = w.first; v < w.end; v += w.rows) {
        float sum[VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i) sum[i] = 0.f;
#pragma unroll
        for (u32 l = 0; l < 3; ++l) {
            if (l >= p.num_maps) continue;
            float y[VEC];
            load_floats<T, VEC>(y, static_cast<const T *>(p.maps[l].y) + w.at(v, s));
#pragma unroll
            for (int i = 0; i < VEC; ++i) sum[i] += weight[l] * leaky(scale[l][i] * y[i] + shift[l][i], p.slopes[l]);
        }
        store_floats<T, VEC>(static_cast<T *>(p.out) + w.at(v, s), sum);
    }
}

// The gradient that reaches a normalised map: weight * outer + direct; either may be absent.
struct GradOutput {
    const void *outer, *direct;
    const float *weight;  // one number on the device
};

template <class T, int VEC>
struct GradReader {
    const T *outer, *direct;
    float weight;

    __device__ GradReader(const GradOutput &g)
        : outer(static_cast<const T *>(g.outer)),
          direct(static_cast<const T *>(g.direct)),
          weight(g.outer ? *g.weight : 0.f) {}

    // The whole gradient, and the outer one alone.
    __device__ void read(float (&grad)[VEC], float (&o)[VEC], i64 at) const {
        if (outer) {
            load_floats<T, VEC>(o, outer + at);
        } else {
#pragma unroll
            for (int i = 0; i < VEC; ++i) o[i] = 0.f;
        }
        if (direct) {
            load_floats<T, VEC>(grad, direct + at);
        } else {
#pragma unroll
            for (int i = 0; i < VEC; ++i) grad[i] = 0.f;
        }
#pragma unroll
        for (int i = 0; i < VEC; ++i) grad[i] += weight * o[i];
    }
};

struct GradSumsParams {
    Normalised map;
    GradOutput grad;
    float *partial;  // [B, chunks, 3, C]: sum gv, sum gv (y - mean), sum outer * z
    MapShape shape;
    float slope;
};

template <class T, int VEC>
__device__ void grad_sums(const GradSumsParams &p) {
    ADW_SHARED(memory);
    const MapShape s = p.shape;
    const Walk<VEC> w(s);
    const GradReader<T, VEC> reader(p.grad);
    const T *map = static_cast<const T *>(p.map.y);
    float scale[VEC], shift[VEC], mean[VEC], acc[3][VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const u32 at = blockIdx.y * s.channels + w.channel + i;
        scale[i] = p.map.scale[at];
        shift[i] = p.map.shift[at];
        mean[i] = p.map.mean[at];
        acc[0][i] = acc[1][i] = acc[2][i] = 0.f;
    }
    for (u32 v = w.first; v < w.end; v += w.rows) {
        float y[VEC], g[VEC], o[VEC];
        const i64 at = w.at(v, s);
        load_floats<T, VEC>(y, map + at);
        reader.read(g, o, at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const float pre = scale[i] * y[i] + shift[i];
            const float gv = pre > 0.f ? g[i] : g[i] * p.slope;
            acc[0][i] += gv;
            acc[1][i] += gv * (y[i] - mean[i]);
            acc[2][i] += o[i] * leaky(pre, p.slope);
        }
    }
    const float *sums = sum_rows<3, VEC>(acc, w, s.channels, reinterpret_cast<float *>(memory));
    float *out = p.partial + (i64(blockIdx.y) * gridDim.x + blockIdx.x) * 3 * s.channels;
    for (u32 i = threadIdx.x; i < 3 * s.channels; i += THREADS) out[i] = sums[i];
}

struct GradFinishParams {
    const float *partial;              // [B, chunks, 3, C]
    const float *variance;             // [B, C]
    const float *gamma, *beta, *gate;  // [C]; gate may be absent
    float *offset, *factor;            // [B, C]
    float *grad_gamma, *grad_beta, *grad_gate, *outer_dot;  // [C]; grad_gate absent without a gate
    u32 batch, chunks, channels, voxels, gate_behind;
    float eps;
};

// Blocks: channels / 32. Under a gate in front of the normalisation its gradient is the residue that eps leaves, in
// closed form (mod.rs).
__device__ void grad_finish(const GradFinishParams &p) {
    ADW_SHARED(memory);
    double *parts = reinterpret_cast<double *>(memory);  // [3][threads]
    const u32 lane = threadIdx.x % JOIN_CHANNELS, part = threadIdx.x / JOIN_CHANNELS;
    const u32 c = blockIdx.x * JOIN_CHANNELS + lane;
    const bool there = c < p.channels;
    const double gamma = there ? p.gamma[c] : 0., beta = there ? p.beta[c] : 0.;
    const double m = there && p.gate ? double(p.gate[c]) : 1., eps = p.eps;
    double grad_gamma = 0., grad_beta = 0., grad_gate = 0., dot = 0.;
    for (u32 b = 0; b < p.batch; ++b) {
        double sums[3] = {0., 0., 0.};
        if (there) {
            for (u32 i = part; i < p.chunks; i += JOIN_PARTS) {
                const float *at = p.partial + (i64(b) * p.chunks + i) * 3 * p.channels + c;
#pragma unroll
                for (int n = 0; n < 3; ++n) sums[n] += double(at[n * p.channels]);
            }
        }
#pragma unroll
        for (int n = 0; n < 3; ++n) parts[n * JOIN_THREADS + threadIdx.x] = sums[n];
        __syncthreads();
        if (part == 0 && there) {
            for (u32 i = 1; i < JOIN_PARTS; ++i)
#pragma unroll
                for (int n = 0; n < 3; ++n) sums[n] += parts[n * JOIN_THREADS + i * JOIN_CHANNELS + lane];
            const double s1 = sums[0], s2 = sums[1], variance = p.variance[b * p.channels + c];
            double k;
            if (p.gate && !p.gate_behind) {
                const double power = m * m * variance + eps;
                k = m / sqrt(power);
                grad_gamma += k * s2;
                grad_beta += s1;
                grad_gate += gamma * eps / (power * sqrt(power)) * s2;
            } else {
                k = 1. / sqrt(variance + eps);
                grad_gamma += m * k * s2;
                grad_beta += m * s1;
                grad_gate += gamma * k * s2 + beta * s1;
            }
            dot += sums[2];
            p.offset[b * p.channels + c] = float(s1 / p.voxels);
            p.factor[b * p.channels + c] = float(k * k * s2 / p.voxels);
        }
        __syncthreads();
    }
    if (part > 0 || !there) return;
    p.grad_gamma[c] = float(grad_gamma);
    p.grad_beta[c] = float(grad_beta);
    if (p.gate) p.grad_gate[c] = float(grad_gate);
    p.outer_dot[c] = float(dot);
}

struct GradInputParams {
    Normalised map;
    GradOutput grad;
    const float *offset, *factor;  // [B, C]
    void *out;
    MapShape shape;
    float slope;
};

// grad y = scale * (gv - offset - factor * (y - mean))
template <class T, int VEC>
__device__ void grad_input(const GradInputParams &p) {
    const MapShape s = p.shape;
    const Walk<VEC> w(s);
    if (!w.active) return;
    const GradReader<T, VEC> reader(p.grad);
    const T *map = static_cast<const T *>(p.map.y);
    float scale[VEC], shift[VEC], mean[VEC], offset[VEC], factor[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const u32 at = blockIdx.y * s.channels + w.channel + i;
        scale[i] = p.map.scale[at];
        shift[i] = p.map.shift[at];
        mean[i] = p.map.mean[at];
        offset[i] = p.offset[at];
        factor[i] = p.factor[at];
    }
    for (u32 v = w.first; v < w.end; v += w.rows) {
        float y[VEC], g[VEC], o[VEC];
        const i64 at = w.at(v, s);
        load_floats<T, VEC>(y, map + at);
        reader.read(g, o, at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const float gv = scale[i] * y[i] + shift[i] > 0.f ? g[i] : g[i] * p.slope;
            g[i] = scale[i] * (gv - offset[i] - factor[i] * (y[i] - mean[i]));
        }
        store_floats<T, VEC>(static_cast<T *>(p.out) + w.at(v, s), g);
    }
}

// Of every kernel over maps: in pieces, and for channels that do not divide into pieces.
#define OVER_MAPS(NAME, PARAMS, BODY)                                              \
    ADW_KERNEL(NAME##_f32, THREADS, 2, PARAMS, (BODY<float, 4>(p)))                \
    ADW_KERNEL(NAME##_f32_any, THREADS, 2, PARAMS, (BODY<float, 1>(p)))            \
    ADW_KERNEL(NAME##_bf16, THREADS, 2, PARAMS, (BODY<bf16, 8>(p)))                \
    ADW_KERNEL(NAME##_bf16_any, THREADS, 2, PARAMS, (BODY<bf16, 1>(p)))

OVER_MAPS(norm_moments, MomentsParams, moments)
OVER_MAPS(norm_weighted_sum, WeightedSumParams, weighted_sum)
OVER_MAPS(norm_grad_sums, GradSumsParams, grad_sums)
OVER_MAPS(norm_grad_input, GradInputParams, grad_input)
ADW_KERNEL(norm_coefficients, JOIN_THREADS, 1, CoefficientsParams, coefficients(p))
ADW_KERNEL(norm_grad_finish, JOIN_THREADS, 1, GradFinishParams, grad_finish(p))
