// All Gumbel-softmaxes of a net in one launch, one warp each: noise, softmax and, for width choices, the gates; and their
// backward pass. The noise is that of philox.rs, bit for bit in its uniform numbers.
#include "device.cuh"

constexpr u32 WARP = 32;
constexpr u32 MAX_OPTIONS = 8;

struct Softmax {
    const float *logits;     // [n]
    float *probabilities;    // [n]
    float *gates;            // [channels], for width choices: sum of the probabilities of widths above the channel
    // Backward.
    const float *grad_gates;                 // [channels]
    const float *grad_options[MAX_OPTIONS];  // depth choices: [channels] per option, summed here
    float *grad_logits;                      // [n]
    u32 widths[MAX_OPTIONS];
    u32 n, channels, purpose, index;
};

struct Params {
    const Softmax *softmaxes;  // one per block
    u32 key[2];                // the seed
    u32 epoch, iteration, noisy;
    float tau;
};

// Ten rounds of Philox 4x32 (Salmon et al. 2011).
__device__ void philox(u32 (&c)[4], u32 k0, u32 k1) {
#pragma unroll 1
    for (int round = 0; round < 10; ++round) {
        const u32 a_high = __umulhi(c[0], 0xD2511F53u), a_low = c[0] * 0xD2511F53u;
        const u32 b_high = __umulhi(c[2], 0xCD9E8D57u), b_low = c[2] * 0xCD9E8D57u;
        const u32 next[4] = {b_high ^ c[1] ^ k0, b_low, a_high ^ c[3] ^ k1, a_low};
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] = next[i];
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

__device__ void forward(const Params &p) {
    ADW_SHARED(memory);
    float *x = reinterpret_cast<float *>(memory);
    const Softmax &s = p.softmaxes[blockIdx.x];
    const u32 i = threadIdx.x;
    if (i < s.n) {
        float noise = 0.f;
        if (p.noisy) {
            u32 words[4] = {i / 4, s.index | s.purpose << 24, p.iteration, p.epoch};
            philox(words, p.key[0], p.key[1]);
            const u32 word = i % 4 == 0 ? words[0] : i % 4 == 1 ? words[1] : i % 4 == 2 ? words[2] : words[3];
            noise = float(-log(-log((double(word) + 0.5) / 4294967296.0)));
        }
        x[i] = (s.logits[i] + noise) / p.tau;
    }
    __syncthreads();
    float largest = x[0], sum = 0.f;
    for (u32 j = 1; j < s.n; ++j) largest = x[j] > largest ? x[j] : largest;
    for (u32 j = 0; j < s.n; ++j) sum += expf(x[j] - largest);
    if (i < s.n) s.probabilities[i] = expf(x[i] - largest) / sum;
    if (!s.gates) return;
    for (u32 c = i; c < s.channels; c += WARP) {
        float gate = 0.f;
        for (u32 j = 0; j < s.n; ++j) gate += c < s.widths[j] ? expf(x[j] - largest) / sum : 0.f;
        s.gates[c] = gate;
    }
}

// d logits = p (g - sum p g) / tau, with g the gradients by the probabilities.
__device__ void backward(const Params &p) {
    const Softmax &s = p.softmaxes[blockIdx.x];
    const u32 lane = threadIdx.x;
    float mine = 0.f, dot = 0.f;
    for (u32 j = 0; j < s.n; ++j) {
        const float *from = s.gates ? s.grad_gates : s.grad_options[j];
        const u32 end = s.gates ? s.widths[j] : s.channels;
        float sum = 0.f;
        for (u32 c = lane; c < end; c += WARP) sum += from[c];
        sum = warp_sum(sum);
        dot += s.probabilities[j] * sum;
        if (lane == j) mine = sum;
    }
    if (lane < s.n) s.grad_logits[lane] = s.probabilities[lane] * (mine - dot) / p.tau;
}

ADW_KERNEL(gumbel_softmax, 32, 1, Params, forward(p))
ADW_KERNEL(gumbel_softmax_backward, 32, 1, Params, backward(p))
