// Intensity transforms and mirroring of a batch of patches [B, C, D, H, W], f32, with parameters per plane, that is sample
// and channel: formulas in mod.rs. Blocks: (chunks of a plane's voxels, planes); those of planes that a launch has nothing
// to do for end at once. The arithmetic is that of msd-data on the CPU, operation by operation.
#include "device.cuh"

constexpr u32 THREADS = 256;
constexpr u32 CHUNK = 8192;  // voxels of a block

// What is done to a plane.
constexpr u32 NOISE = 1, BLUR = 2, BRIGHTNESS = 4, CONTRAST = 8, LOW_RESOLUTION = 16, GAMMA_INVERTED = 32, GAMMA = 64;
constexpr u32 MASKED = 128, MIRROR = 256;  // and the next two bits: D, H, W

struct Axis {
    float weights[4];  // of the blur: at distance 0 to 3
    u32 reach;         // the largest distance
    u32 coarse;        // samples at the low resolution
};

struct Plane {
    Axis axes[3];
    u32 steps;
    float brightness, contrast, gamma_inverted, gamma, noise;
    u32 key[8];
    u64 position;  // of the noise, in words of its stream
};

struct Moments {
    double sum, squares;  // of deviations from the origin
    float origin, min, max;
    u32 _unused;
};

struct Params {
    const Plane *planes;
    const float *from;
    float *to;
    const short *labels;     // [B, D, H, W]; below 0: outside
    unsigned char *target;   // [B, D, H, W]
    Moments *before, *after; // [planes, chunks]
    int size[3];
    u32 voxels, channels, chunks;
    u32 axis, step;
};

// The voxels of this block, every THREADS-th for this thread.
struct Chunk {
    u32 first, end;
    i64 base;

    __device__ explicit Chunk(const Params &p)
        : first(blockIdx.x * CHUNK + threadIdx.x),
          end(u32(min(int(blockIdx.x * CHUNK + CHUNK), int(p.voxels)))),
          base(i64(blockIdx.y) * p.voxels) {}
};

// log2(x) for normal x > 0: x = 2^e m, and the series of artanh for ln m.
__device__ float log2_series(float x) {
    constexpr int SQRT_HALF = 0x3f3504f3;
    const int bits = __float_as_int(x), e = (bits - SQRT_HALF) >> 23;
    const float m = __int_as_float(bits - e * (1 << 23)), y = (m - 1.f) / (m + 1.f), s = y * y;
    const float series = 1.f + s * (1.f / 3.f + s * (1.f / 5.f + s * (1.f / 7.f + s * (1.f / 9.f))));
    return float(e) + 2.f * 1.44269504f * y * series;
}

__device__ float exp2_series(float z) {
    z = z > -126.f ? z : -126.f;
    const float whole = floorf(z + 0.5f), t = (z - whole) * 0.693147181f;
    const float series =
        1.f + t * (1.f + t * (1.f / 2.f + t * (1.f / 6.f + t * (1.f / 24.f + t * (1.f / 120.f + t * (1.f / 720.f + t / 5040.f))))));
    return series * __int_as_float((int(whole) + 127) << 23);
}

// x^g for x in [0, 1] and g > 0.
__device__ float power_of(float x, float g) {
    constexpr float TINY = 1.17549435e-38f;
    return x < TINY ? 0.f : exp2_series(g * log2_series(x));
}

// Of 2 pi u, u in [0, 1): u = quarter / 4 + r, and short series of the rest.
__device__ void sin_cos_turns(float u, float &sin, float &cos) {
    const float quarter = floorf(4.f * u + 0.5f), x = (4.f * u - quarter) * 1.57079633f, s = x * x;
    const float a = x * (1.f - s * (1.f / 6.f - s * (1.f / 120.f - s * (1.f / 5040.f - s / 362880.f))));
    const float b = 1.f - s * (1.f / 2.f - s * (1.f / 24.f - s * (1.f / 720.f - s * (1.f / 40320.f - s / 3628800.f))));
    const int q = int(quarter);
    const float of_sin = q & 1 ? b : a, of_cos = q & 1 ? a : b;
    sin = q & 2 ? -of_sin : of_sin;
    cos = (q + 1) & 2 ? -of_cos : of_cos;
}

__device__ __forceinline__ u32 rotated(u32 v, int by) { return v << by | v >> (32 - by); }

__device__ __forceinline__ void quarter_round(u32 &a, u32 &b, u32 &c, u32 &d) {
    a += b, d = rotated(d ^ a, 16);
    c += d, b = rotated(b ^ c, 12);
    a += b, d = rotated(d ^ a, 8);
    c += d, b = rotated(b ^ c, 7);
}

// Block `counter` of stream 0 of ChaCha with 8 rounds (Bernstein 2008): 16 words.
__device__ void chacha8(u32 *out, const u32 *key, u64 counter) {
    u32 first[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
#pragma unroll
    for (int i = 0; i < 8; ++i) first[4 + i] = key[i];
    first[12] = u32(counter), first[13] = u32(counter >> 32), first[14] = first[15] = 0;
    u32 s[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i] = first[i];
#pragma unroll
    for (int round = 0; round < 4; ++round) {
#pragma unroll
        for (int i = 0; i < 4; ++i) quarter_round(s[i], s[4 + i], s[8 + i], s[12 + i]);
#pragma unroll
        for (int i = 0; i < 4; ++i) quarter_round(s[i], s[4 + (i + 1) % 4], s[8 + (i + 2) % 4], s[12 + (i + 3) % 4]);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) out[i] = s[i] + first[i];
}

// Words of random numbers that a block makes: for as many elements of a sample. Blocks: (elements, samples).
constexpr u32 WORDS = 2048, PAIRS = 64;

__device__ void noise(const Params &p) {
    ADW_SHARED(memory);
    u32 *words = reinterpret_cast<u32 *>(memory);  // 17 for 16: threads write to different banks
    const Plane &plane = p.planes[blockIdx.y * p.channels];
    if (!(plane.steps & NOISE)) return;
    const u64 position = plane.position + u64(blockIdx.x) * WORDS;
    if (threadIdx.x < WORDS / 16 + 1) chacha8(words + threadIdx.x * 17, plane.key, position / 16 + threadIdx.x);
    __syncthreads();
    const u32 n = p.channels * p.voxels, skip = u32(position % 16);
    float *x = p.to + i64(blockIdx.y) * n;
    const auto uniform = [&](u32 i) { return float(words[i + i / 16] >> 8) / 16777216.f; };
    for (u32 i = threadIdx.x; i < WORDS / 2; i += THREADS) {
        const u32 at = i / PAIRS * 2 * PAIRS + i % PAIRS, element = blockIdx.x * WORDS + at;
        // Half a step up: the logarithm is finite.
        const float u = uniform(skip + at) + 1.f / 33554432.f;
        const float square = -2.f * 0.693147181f * log2_series(u), radius = plane.noise * sqrtf(square > 0.f ? square : 0.f);
        float sin, cos;
        sin_cos_turns(uniform(skip + at + PAIRS), sin, cos);
        if (element < n) x[element] += radius * cos;
        if (element + PAIRS < n) x[element + PAIRS] += radius * sin;
    }
}

// Sample `i` of a line that is mirrored about its ends, as often as needed.
__device__ int mirrored(int i, int n) {
    if (i >= 0 && i < n) return i;
    if (n == 1) return 0;
    const int period = 2 * (n - 1);
    i %= period;
    i = i < 0 ? i + period : i;
    return min(i, period - i);
}

// One axis of the blur or of the loss of resolution.
template <u32 STEP>
__device__ void along(const Params &p) {
    const Plane &plane = p.planes[blockIdx.y];
    if (!(plane.steps & STEP)) return;
    const Axis &axis = plane.axes[p.axis];
    const Chunk chunk(p);
    const float *from = p.from + chunk.base;
    float *to = p.to + chunk.base;
    const int n = p.size[p.axis];
    const u32 inner = p.axis == 2 ? 1 : p.axis == 1 ? p.size[2] : p.size[1] * p.size[2];
    const float weights[4] = {axis.weights[0], axis.weights[1], axis.weights[2], axis.weights[3]};
    const int reach = int(axis.reach), coarse = int(axis.coarse);
    for (u32 v = chunk.first; v < chunk.end; v += THREADS) {
        const int i = int(v / inner % u32(n));
        const float *line = from + (v - u32(i) * inner);
        float sum = 0.f;
        if constexpr (STEP == BLUR) {
#pragma unroll
            for (int k = -3; k <= 3; ++k)
                if (k >= -reach && k <= reach) sum += weights[k < 0 ? -k : k] * line[i64(mirrored(i + k, n)) * inner];
        } else {
            float x = (float(i) + 0.5f) * float(coarse) / float(n) - 0.5f;
            x = x > 0.f ? x : 0.f;
            x = x < float(coarse - 1) ? x : float(coarse - 1);
            const int low = int(x), high = min(low + 1, coarse - 1);
            const float t = x - float(low);
            const auto nearest = [&](int j) { return min(int((float(j) + 0.5f) * float(n) / float(coarse)), n - 1); };
            sum = (1.f - t) * line[i64(nearest(low)) * inner];
            sum += t * line[i64(nearest(high)) * inner];
        }
        to[v] = sum;
    }
}

__device__ void join(Moments &m, const Moments &other) {
    m.sum += other.sum;
    m.squares += other.squares;
    m.min = other.min < m.min ? other.min : m.min;
    m.max = other.max > m.max ? other.max : m.max;
}

// Of all threads, in a fixed order; the same in every thread. Shared memory: a Moments per thread.
__device__ Moments block_moments(const Moments &mine) {
    ADW_SHARED(memory);
    Moments *shared = reinterpret_cast<Moments *>(memory);
    __syncthreads();
    shared[threadIdx.x] = mine;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) join(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
    return shared[0];
}

__device__ void add(Moments &m, float v) {
    const double d = double(v - m.origin);
    m.sum += d;
    m.squares += d * d;
    m.min = v < m.min ? v : m.min;
    m.max = v > m.max ? v : m.max;
}

struct Statistics {
    float mean, std, min, max;

    // Of a plane, from its chunks.
    __device__ Statistics(const Params &p, const Moments *partial) {
        const Moments *of_plane = partial + i64(blockIdx.y) * p.chunks;
        Moments m = of_plane[0];
        m.sum = m.squares = 0.;
        for (u32 i = threadIdx.x; i < p.chunks; i += THREADS) join(m, of_plane[i]);
        m = block_moments(m);
        const double n = double(p.voxels), variance = m.squares - m.sum * m.sum / n;
        mean = float(double(m.origin) + m.sum / n);
        std = float(sqrt((variance > 0. ? variance : 0.) / (n > 2. ? n - 1. : 1.)));
        min = m.min;
        max = m.max;
    }
};

__device__ void moments(const Params &p) {
    if (!(p.planes[blockIdx.y].steps & p.step)) return;
    const Chunk chunk(p);
    const float *x = p.from + chunk.base, origin = x[0];
    Moments m{0., 0., origin, origin, origin, 0};
    for (u32 v = chunk.first; v < chunk.end; v += THREADS) add(m, x[v]);
    m = block_moments(m);
    if (threadIdx.x == 0) p.before[i64(blockIdx.y) * p.chunks + blockIdx.x] = m;
}

// v b, or (v b - mean) c + mean within the range of v b.
__device__ void contrast(const Params &p) {
    const Plane &plane = p.planes[blockIdx.y];
    if (!(plane.steps & (BRIGHTNESS | CONTRAST))) return;
    const Chunk chunk(p);
    float *x = p.to + chunk.base;
    const float b = plane.brightness, c = plane.contrast;
    if (!(plane.steps & CONTRAST)) {
        for (u32 v = chunk.first; v < chunk.end; v += THREADS) x[v] *= b;
        return;
    }
    const Statistics before(p, p.before);
    const float mean = b * before.mean, lowest = b * before.min, highest = b * before.max;
    for (u32 v = chunk.first; v < chunk.end; v += THREADS) {
        const float contrasted = (x[v] * b - mean) * c + mean, raised = contrasted < lowest ? lowest : contrasted;
        x[v] = raised > highest ? highest : raised;
    }
}

// ((sign v - min) / range)^g range + min, and the moments of the result.
__device__ void gamma_power(const Params &p) {
    const Plane &plane = p.planes[blockIdx.y];
    if (!(plane.steps & p.step)) return;
    const Chunk chunk(p);
    float *x = p.to + chunk.base;
    const bool inverted = p.step != GAMMA;
    const Statistics before(p, p.before);
    const float sign = inverted ? -1.f : 1.f, g = inverted ? plane.gamma_inverted : plane.gamma;
    const float range = before.max - before.min, lowest = inverted ? -before.max : before.min;
    const float scale = 1.f / (range > 1e-7f ? range : 1e-7f), origin = sign * before.mean;
    Moments after{0., 0., origin, origin, origin, 0};
    for (u32 v = chunk.first; v < chunk.end; v += THREADS) {
        float part = (sign * x[v] - lowest) * scale;
        part = part > 0.f ? part : 0.f;
        part = part < 1.f ? part : 1.f;
        const float y = power_of(part, g) * range + lowest;
        add(after, y);
        x[v] = y;
    }
    after = block_moments(after);
    if (threadIdx.x == 0) p.after[i64(blockIdx.y) * p.chunks + blockIdx.x] = after;
}

// Back to the old mean and standard deviation, and to the old sign.
__device__ void gamma_rescale(const Params &p) {
    if (!(p.planes[blockIdx.y].steps & p.step)) return;
    const Chunk chunk(p);
    float *x = p.to + chunk.base;
    const Statistics before(p, p.before), after(p, p.after);
    const float factor = before.std / (after.std > 1e-8f ? after.std : 1e-8f);
    const float sign = p.step != GAMMA ? -1.f : 1.f;
    for (u32 v = chunk.first; v < chunk.end; v += THREADS) x[v] = sign * (x[v] - after.mean) * factor + before.mean;
}

// Reversed axes; 0 outside in masked channels; and, from the first channel's blocks, the labels, reversed alike.
__device__ void finish(const Params &p) {
    const u32 steps = p.planes[blockIdx.y].steps, sample = blockIdx.y / p.channels;
    const bool masked = steps & MASKED, first_channel = blockIdx.y % p.channels == 0;
    const Chunk chunk(p);
    const i64 of_sample = i64(sample) * p.voxels;
    for (u32 v = chunk.first; v < chunk.end; v += THREADS) {
        int w = int(v % u32(p.size[2])), h = int(v / u32(p.size[2]) % u32(p.size[1]));
        int d = int(v / u32(p.size[2]) / u32(p.size[1]));
        d = steps & MIRROR ? p.size[0] - 1 - d : d;
        h = steps & (MIRROR << 1) ? p.size[1] - 1 - h : h;
        w = steps & (MIRROR << 2) ? p.size[2] - 1 - w : w;
        const i64 source = (i64(d) * p.size[1] + h) * p.size[2] + w;
        const int label = masked || first_channel ? p.labels[of_sample + source] : 0;
        p.to[chunk.base + v] = masked && label < 0 ? 0.f : p.from[chunk.base + source];
        if (first_channel) p.target[of_sample + v] = static_cast<unsigned char>(max(label, 0));
    }
}

ADW_KERNEL(augment_noise, THREADS, 4, Params, noise(p))
ADW_KERNEL(augment_blur, THREADS, 4, Params, along<BLUR>(p))
ADW_KERNEL(augment_low_resolution, THREADS, 4, Params, along<LOW_RESOLUTION>(p))
ADW_KERNEL(augment_moments, THREADS, 4, Params, moments(p))
ADW_KERNEL(augment_contrast, THREADS, 4, Params, contrast(p))
ADW_KERNEL(augment_gamma_power, THREADS, 4, Params, gamma_power(p))
ADW_KERNEL(augment_gamma_rescale, THREADS, 4, Params, gamma_rescale(p))
ADW_KERNEL(augment_finish, THREADS, 4, Params, finish(p))
