// 3D convolution on channels-last maps as implicit GEMM: outputs and input gradients (one kernel), weight gradients.
//
// A block takes a box of up to 128 output voxels and keeps the region of the input that they read in shared memory, a slice of
// the channels at a time. All taps of the kernel read that one region at shifted addresses, so an input value is loaded
// (and normalised) about 2.8 times for a 3x3x3 kernel, not 27 times; with channels last, a shift of the taps is one
// addition to an address. bf16 multiplies on tensor cores, f32 in register tiles; the two differ in `Mma` only.
//
// Rows in shared memory are 16 bytes longer than their contents: eight of them then lie in different banks.
#include "device.cuh"

constexpr int M = 128;            // voxels of a block, at most
constexpr int MAX_TAPS = 8;       // per axis
constexpr int MOST_TAPS = 27;     // of all axes together
constexpr int STAGES = 3;         // tiles of weights on their way

template <class T>
struct Mma;

// Accumulators acc[..][i] of a 16 x 8 tile, by lane: `row` and `col` say which elements they are.
template <>
struct Mma<bf16> {
    static constexpr int ROWS = 1;  // rows of A, per 16, whose address a lane needs
    static __device__ int row_of(int, int lane) { return lane % 16; }
    static __device__ int column_of(int lane) { return lane / 16 * 8; }
    static __device__ int row(int i, int lane) { return lane / 4 + 8 * (i / 2); }
    static __device__ int col(int i, int lane) { return 2 * (lane % 4) + i % 2; }

    template <int NT>
    static __device__ void load_b(u32 (&b)[NT][2], const bf16 *tile, int stride, int lane) {
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
            u32 r[4];
            load_matrices<true>(r, tile + lane % 16 * stride + j * 8 + lane / 16 * 8);
            b[j][0] = r[0], b[j][1] = r[1];
            b[j + 1][0] = r[2], b[j + 1][1] = r[3];
        }
    }

    // acc += A B over 16 of k: A's elements at `a + rows`, B [16][stride].
    template <int MT, int NT>
    static __device__ void step(float (&acc)[MT][NT][4], const bf16 *a, const int (&rows)[MT][ROWS], const bf16 *b,
                                int stride, int lane) {
        u32 bf[NT][2];
        load_b<NT>(bf, b, stride, lane);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            u32 af[4];
            load_matrices<false>(af, a + rows[m][0]);
#pragma unroll
            for (int j = 0; j < NT; ++j) mma_16x8x16(acc[m][j], af, bf[j]);
        }
    }

    template <int NT>
    struct B {
        u32 f[NT][2];
        __device__ void load(const bf16 *tile, int stride, int lane) { load_b<NT>(f, tile, stride, lane); }
    };

    // acc += A^T B over 16 voxels: voxel v's row of A at `a + rows[v]`, 16 columns of it.
    template <int NT>
    static __device__ void step_transposed(float (&acc)[NT][4], const bf16 *a, const int *rows, const B<NT> &b,
                                           const bf16 *, int, int lane) {
        u32 af[4];
        load_matrices<true>(af, a + rows[lane % 8 + lane / 16 * 8] + lane / 8 % 2 * 8);
#pragma unroll
        for (int j = 0; j < NT; ++j) mma_16x8x16(acc[j], af, b.f[j]);
    }
};

template <>
struct Mma<float> {
    static constexpr int ROWS = 4;
    static __device__ int row_of(int r, int lane) { return lane / 8 * 4 + r; }
    static __device__ int column_of(int) { return 0; }
    static __device__ int row(int i, int lane) { return lane / 8 * 4 + i; }
    static __device__ int col(int, int lane) { return lane % 8; }

    template <int MT, int NT>
    static __device__ void step(float (&acc)[MT][NT][4], const float *a, const int (&rows)[MT][ROWS], const float *b,
                                int stride, int lane) {
#pragma unroll
        for (int k = 0; k < 16; k += 4) {
            Piece<float> av[MT][4];
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int r = 0; r < 4; ++r) av[m][r] = load_piece(a + rows[m][r] + k);
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int j = 0; j < NT; ++j) {
                    const float bv = b[(k + e) * stride + j * 8 + lane % 8];
#pragma unroll
                    for (int m = 0; m < MT; ++m)
#pragma unroll
                        for (int r = 0; r < 4; ++r) acc[m][j][r] += av[m][r].v[e] * bv;
                }
        }
    }

    template <int NT>
    struct B {
        __device__ void load(const float *, int, int) {}
    };

    template <int NT>
    static __device__ void step_transposed(float (&acc)[NT][4], const float *a, const int *rows, const B<NT> &,
                                           const float *tile, int stride, int lane) {
#pragma unroll 4
        for (int v = 0; v < 16; ++v) {
            const Piece<float> av = load_piece(a + rows[v] + lane / 8 * 4);
#pragma unroll
            for (int j = 0; j < NT; ++j) {
                const float bv = tile[v * stride + j * 8 + lane % 8];
#pragma unroll
                for (int r = 0; r < 4; ++r) acc[j][r] += av.v[r] * bv;
            }
        }
    }
};

// A map, read as leaky(scale * x + shift) if there is a scale.
struct Source {
    const void *data;
    const float *scale, *shift;  // [B, C]
    u32 channels;
    float slope;
};

// Up to two maps whose channels lie side by side.
struct Sources {
    Source maps[2];
    u32 channels;   // of both
    u32 in_pieces;  // whether no 16-byte piece lies across a border
};

// The map that a channel of both belongs to, and which of its own channels it is.
struct MapChannel {
    const Source *map;
    u32 channel;

    __device__ __forceinline__ MapChannel(const Sources &s, u32 c) {
        const bool second = c >= s.maps[0].channels;
        map = &s.maps[second];
        channel = c - (second ? s.maps[0].channels : 0u);
    }
};

// Channels [channel, channel + LEN) of the maps, for one thread: where they are and what normalises them.
template <class T>
struct ChannelPiece {
    static constexpr int LEN = Piece<T>::LEN;
    const Sources &sources;
    u32 channel, batch_idx;
    const Source *source;
    u32 local;
    float scale[LEN], shift[LEN];

    __device__ __forceinline__ ChannelPiece(const Sources &s, u32 c, u32 b) : sources(s), channel(c), batch_idx(b) {
        const MapChannel of(s, c);
        source = of.map, local = of.channel;
        const bool there = s.in_pieces && c < s.channels && source->scale;
#pragma unroll
        for (int e = 0; e < LEN; ++e) {
            scale[e] = there ? source->scale[b * source->channels + local + e] : 1.f;
            shift[e] = there ? source->shift[b * source->channels + local + e] : 0.f;
        }
    }

    // Of the voxel with this index in the whole batch, as it lies; only if `in_pieces`, and within the channels.
    __device__ __forceinline__ Piece<T> raw(i64 voxel) const {
        return load_piece(static_cast<const T *>(source->data) + voxel * source->channels + local);
    }

    __device__ __forceinline__ Piece<T> normalised(Piece<T> out) const {
        if (source->scale) {
#pragma unroll
            for (int e = 0; e < LEN; ++e)
                out.v[e] = from_float<T>(leaky(scale[e] * to_float(out.v[e]) + shift[e], source->slope));
        }
        return out;
    }

    __device__ __forceinline__ Piece<T> load(i64 voxel) const {
        Piece<T> out;
        if (sources.in_pieces) return channel < sources.channels ? normalised(raw(voxel)) : zero();
// Unrolled, rare as it is: an index that is not constant would put the piece into local memory.
#pragma unroll
        for (int e = 0; e < LEN; ++e) {
            const u32 c = channel + e;
            if (c >= sources.channels) {
                out.v[e] = from_float<T>(0.f);
                continue;
            }
            const MapChannel of(sources, c);
            const Source &s = *of.map;
            T x = static_cast<const T *>(s.data)[voxel * s.channels + of.channel];
            if (s.scale) {
                const u32 at = batch_idx * s.channels + of.channel;
                x = from_float<T>(leaky(s.scale[at] * to_float(x) + s.shift[at], s.slope));
            }
            out.v[e] = x;
        }
        return out;
    }

    static __device__ Piece<T> zero() {
        Piece<T> p;
#pragma unroll
        for (int e = 0; e < LEN; ++e) p.v[e] = from_float<T>(0.f);
        return p;
    }
};

// A box of 32 to 128 positions, and the region of a map that they reach.
struct Tiling {
    int log_size[3];  // of the box; sums to 7, or to less if the region would not fit into shared memory
    int tiles[3];     // boxes per axis
    int count[3];     // positions per axis
    int step[3];      // positions of the map from one to the next
    int first[3];     // offset of the first tap
    int region[3];    // size of the region
    int map[3];       // size of the map
};

__device__ __forceinline__ int positions(const Tiling &t) { return 1 << (t.log_size[0] + t.log_size[1] + t.log_size[2]); }

struct Box {
    int start[3];  // first position

    __device__ __forceinline__ Box(const Tiling &t, int tile) {
        start[2] = tile % t.tiles[2] << t.log_size[2];
        start[1] = tile / t.tiles[2] % t.tiles[1] << t.log_size[1];
        start[0] = tile / t.tiles[2] / t.tiles[1] << t.log_size[0];
    }
};

// Position m of a box, along the three axes.
__device__ __forceinline__ void within(const Tiling &t, int m, int (&at)[3]) {
    at[2] = m & ((1 << t.log_size[2]) - 1);
    at[1] = m >> t.log_size[2] & ((1 << t.log_size[1]) - 1);
    at[0] = m >> (t.log_size[2] + t.log_size[1]);
}

// Voxel of the region that position m reads with the tap of offset `first`; behind the last, some other one.
__device__ __forceinline__ int region_voxel(const Tiling &t, int m) {
    int at[3];
    within(t, m & (positions(t) - 1), at);
    return (at[0] * t.step[0] * t.region[1] + at[1] * t.step[1]) * t.region[2] + at[2] * t.step[2];
}

// Divisions take longer than all else that is done with a value, so each block makes its tables of voxels once.

// The voxels that a block reads of a map, one after the other, -1 for those outside: of one region of one sample.
struct Listed {
    const int *voxel;  // of the sample
    int num;
    i64 first;         // of the sample

    static __device__ __forceinline__ void make(int *table, const Tiling &t, const Box &box, int threads) {
        const int num = t.region[0] * t.region[1] * t.region[2];
        for (int v = threadIdx.x; v < num; v += threads) {
            const int rest = v / t.region[2];
            const int w = box.start[2] * t.step[2] + t.first[2] + v % t.region[2];
            const int h = box.start[1] * t.step[1] + t.first[1] + rest % t.region[1];
            const int d = box.start[0] * t.step[0] + t.first[0] + rest / t.region[1];
            const bool inside = u32(d) < u32(t.map[0]) && u32(h) < u32(t.map[1]) && u32(w) < u32(t.map[2]);
            table[v] = inside ? (d * t.map[1] + h) * t.map[2] + w : -1;
        }
    }
    __device__ __forceinline__ int count() const { return num; }
    __device__ __forceinline__ i64 operator()(int v) const { return voxel[v] >= 0 ? first + voxel[v] : -1; }
};

// A voxel of a box: where it lies in the box, ten bits for each axis, and how far from the first one in the map.
struct Place {
    u32 at;
    int offset;
};

// The same for a box of a fixed size that moves through a map.
struct Placed {
    const Place *places;
    int num, origin[3], map[3];
    i64 first;  // voxel of the origin, which may lie outside

    static __device__ __forceinline__ void make(Place *table, const int (&size)[3], const int (&map)[3], int threads) {
        for (int v = threadIdx.x; v < size[0] * size[1] * size[2]; v += threads) {
            const int w = v % size[2], h = v / size[2] % size[1], d = v / size[2] / size[1];
            table[v] = {u32(d | h << 10 | w << 20), (d * map[1] + h) * map[2] + w};
        }
    }
    __device__ __forceinline__ Placed(const Place *table, int n, const int (&o)[3], const int (&m)[3], u32 batch_idx)
        : places(table), num(n), origin{o[0], o[1], o[2]}, map{m[0], m[1], m[2]},
          first(((i64(batch_idx) * m[0] + o[0]) * m[1] + o[1]) * m[2] + o[2]) {}
    __device__ __forceinline__ int count() const { return num; }
    __device__ __forceinline__ i64 operator()(int v) const {
        const Place p = places[v];
        const u32 d = u32(origin[0]) + (p.at & 1023), h = u32(origin[1]) + (p.at >> 10 & 1023), w = u32(origin[2]) + (p.at >> 20);
        return d < u32(map[0]) && h < u32(map[1]) && w < u32(map[2]) ? first + p.offset : -1;
    }
};

// Channels [channel, channel + CK) of voxels into shared memory, zeros for those outside. A thread keeps one piece of the
// channels.
template <class T, int CK, int THREADS>
struct Rows {
    static constexpr int LEN = Piece<T>::LEN, PIECES = CK / LEN, ROW = CK + LEN, STEP = THREADS / PIECES;
    static_assert(THREADS % PIECES == 0, "a thread keeps one piece of the channels");

    template <class Voxels>
    static __device__ __forceinline__ void load(T *shared, const Sources &s, const Voxels &voxels, u32 channel, u32 batch_idx) {
        const ChannelPiece<T> piece(s, channel + threadIdx.x % PIECES * LEN, batch_idx);
        const auto each = [&](auto load) {
            for (int v = threadIdx.x / PIECES; v < voxels.count(); v += STEP) {
                const i64 voxel = voxels(v);
                store_piece(at(shared, v), voxel >= 0 ? load(voxel) : piece.zero());
            }
        };
        // A loop each, for what is the same for all voxels.
        if (!s.in_pieces) each([&](i64 voxel) { return piece.load(voxel); });
        else if (piece.channel >= s.channels) each([&](i64) { return piece.zero(); });
        else if (piece.source->scale) each([&](i64 voxel) { return piece.normalised(piece.raw(voxel)); });
        else each([&](i64 voxel) { return piece.raw(voxel); });
    }

    // The same in two steps, so that the block can compute in between: copies on their way without registers, which then
    // are normalised where they lie. Each thread finds its own copies complete after `copy_wait`.
    template <class Voxels>
    static __device__ __forceinline__ void begin(T *shared, const Sources &s, const Voxels &voxels, u32 channel, u32 batch_idx) {
        if (!s.in_pieces) return load(shared, s, voxels, channel, batch_idx);
        const u32 c = channel + threadIdx.x % PIECES * LEN;
        const MapChannel of(s, c);
        const u32 channels = of.map->channels;
        const T *from = static_cast<const T *>(of.map->data) + of.channel;
        for (int v = threadIdx.x / PIECES; v < voxels.count(); v += STEP) {
            const i64 voxel = c < s.channels ? voxels(v) : -1;
            if (voxel >= 0) copy_async(at(shared, v), from + voxel * channels);
            else store_piece(at(shared, v), ChannelPiece<T>::zero());
        }
    }
    template <class Voxels>
    static __device__ __forceinline__ void finish(T *shared, const Sources &s, const Voxels &voxels, u32 channel, u32 batch_idx) {
        const u32 c = channel + threadIdx.x % PIECES * LEN;
        if (!s.in_pieces || c >= s.channels || !MapChannel(s, c).map->scale) return;
        const ChannelPiece<T> piece(s, c, batch_idx);
        for (int v = threadIdx.x / PIECES; v < voxels.count(); v += STEP)
            if (voxels(v) >= 0) store_piece(at(shared, v), piece.normalised(load_piece(at(shared, v))));
    }

    static __device__ __forceinline__ T *at(T *shared, int v) { return shared + v * ROW + threadIdx.x % PIECES * LEN; }
};

struct CorrelateParams {
    Sources sources;
    const void *weight;  // [taps of the whole kernel, k rounded up to the slice, n rounded up to the tile]
    void *out;           // [B, output, channels_out]
    float *partial;      // [B, tiles, channels_out, 2]: mean and sum of squared deviations; may be absent
    float *counts;       // [B, tiles]
    Tiling tiling;
    int output[3], out_step[3], out_offset[3];
    int num_taps[3];
    int tap_offset[3][MAX_TAPS];  // from `tiling.first`
    int tap_weight[3][MAX_TAPS];  // index of the tap along its axis, times its stride among the taps
    u32 channels_out, weight_rows, weight_columns;
};

// Of a tap: where its weights begin, and how many elements further on it reads the region.
struct Tap {
    int weight, shift;
};

__device__ __forceinline__ int round_up(int n, int to) { return (n + to - 1) / to * to; }

// y[q * out_step + out_offset] = sum over taps: x[q * step + offset] weight[tap]; with 4 warps of 32 voxels each.
// Blocks: (boxes of a sample, tiles of N output channels, samples).
template <class T, int N>
__device__ void correlate(const CorrelateParams &p) {
    constexpr int THREADS = 128, LEN = Piece<T>::LEN, CK = 64 / sizeof(T), ROW = CK + LEN, BROW = N + LEN;
    constexpr int MT = 2, NT = N / 8;
    using Unit = Mma<T>;
    ADW_SHARED(memory);
    const Tiling &t = p.tiling;
    const int region_voxels = t.region[0] * t.region[1] * t.region[2];
    int *out_voxel = reinterpret_cast<int *>(memory);  // [M], -1 outside the map
    Tap *tap_table = reinterpret_cast<Tap *>(out_voxel + M);
    int *in_voxel = reinterpret_cast<int *>(tap_table + MOST_TAPS);  // [region_voxels]
    T *weights = reinterpret_cast<T *>(memory + round_up(M * 4 + MOST_TAPS * int(sizeof(Tap)) + region_voxels * 4, 16));
    T *region = weights + STAGES * CK * BROW;

    const Box box(t, blockIdx.x);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 n0 = blockIdx.y * N, batch_idx = blockIdx.z;
    {
        int at[3];
        within(t, threadIdx.x, at);
        bool inside = int(threadIdx.x) < positions(t);
        int o[3];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const int q = box.start[i] + at[i];
            inside = inside && q < t.count[i];
            o[i] = q * p.out_step[i] + p.out_offset[i];
        }
        out_voxel[threadIdx.x] = inside ? (o[0] * p.output[1] + o[1]) * p.output[2] + o[2] : -1;
    }
    Listed::make(in_voxel, t, box, THREADS);
    const int taps = p.num_taps[0] * p.num_taps[1] * p.num_taps[2];
    if (int(threadIdx.x) < taps) {
        const int kw = threadIdx.x % p.num_taps[2], kh = threadIdx.x / p.num_taps[2] % p.num_taps[1];
        const int kd = threadIdx.x / p.num_taps[2] / p.num_taps[1];
        const int index = p.tap_weight[0][kd] + p.tap_weight[1][kh] + p.tap_weight[2][kw];
        const int shift = (p.tap_offset[0][kd] * t.region[1] + p.tap_offset[1][kh]) * t.region[2] + p.tap_offset[2][kw];
        tap_table[threadIdx.x] = {index * int(p.weight_rows) * int(p.weight_columns), shift * ROW};
    }
    int rows[MT][Unit::ROWS];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < Unit::ROWS; ++r) {
            rows[m][r] = region_voxel(t, warp * 32 + m * 16 + Unit::row_of(r, lane)) * ROW + Unit::column_of(lane);
            keep(rows[m][r]);
        }
    float acc[MT][NT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[m][j][i] = 0.f;

    // Weights of one tap and slice after the other, STAGES - 1 steps ahead of the products.
    constexpr int PIECES = N / LEN, COPIES = (CK * PIECES + THREADS - 1) / THREADS;
    const T *slice = static_cast<const T *>(p.weight) + n0;
    int next_tap = 0, next_stage = 0;
    const T *const end = slice + (taps > 0 ? i64(p.weight_rows) * p.weight_columns : 0);
    const auto fetch = [&] {
        if (slice < end) {
            const T *from = slice + tap_table[next_tap].weight;
            T *to = weights + next_stage * CK * BROW;
#pragma unroll
            for (int c = 0; c < COPIES; ++c) {
                const int i = threadIdx.x + c * THREADS, k = i / PIECES, n = i % PIECES * LEN;
                if (CK * PIECES % THREADS == 0 || k < CK) copy_async(to + k * BROW + n, from + k * p.weight_columns + n);
            }
            if (++next_tap == taps) next_tap = 0, slice += CK * p.weight_columns;
            next_stage = next_stage == STAGES - 1 ? 0 : next_stage + 1;
        }
        copy_commit();
    };
    const Listed voxels = {in_voxel, region_voxels, i64(batch_idx) * t.map[0] * t.map[1] * t.map[2]};
    __syncthreads();
    for (int s = 0; s < STAGES - 1; ++s) fetch();
    const bool idle = warp * 32 >= positions(t);  // all it does is to load
    int stage = 0;
    for (u32 k0 = 0; k0 < p.weight_rows; k0 += CK) {
        __syncthreads();
        Rows<T, CK, THREADS>::load(region, p.sources, voxels, k0, batch_idx);
        for (int tap = 0; tap < taps; ++tap) {
            // Its own weights have come, and nobody reads those of the step before any more.
            copy_wait<STAGES - 2>();
            __syncthreads();
            fetch();
            const int now = stage;
            stage = stage == STAGES - 1 ? 0 : stage + 1;
            if (idle) continue;
            const T *a = region + tap_table[tap].shift, *b = weights + now * CK * BROW;
#pragma unroll
            for (int k = 0; k < CK; k += 16) Unit::template step<MT, NT>(acc, a + k, rows, b + k * BROW, BROW, lane);
        }
    }

    // Through shared memory, so that stores are whole pieces in the order of the map.
    __syncthreads();
    T *tile = region;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                tile[(warp * 32 + m * 16 + Unit::row(i, lane)) * BROW + j * 8 + Unit::col(i, lane)] =
                    from_float<T>(acc[m][j][i]);
    __syncthreads();
    const u32 width = u32(min(N, int(p.channels_out - n0)));
    const i64 first_voxel = i64(batch_idx) * p.output[0] * p.output[1] * p.output[2];
    T *out = static_cast<T *>(p.out) + n0;
    if (p.channels_out % LEN == 0) {
        for (u32 i = threadIdx.x; i < M * (N / LEN); i += THREADS) {
            const u32 m = i / (N / LEN), n = i % (N / LEN) * LEN;
            if (out_voxel[m] >= 0 && n < width)
                store_piece(out + (first_voxel + out_voxel[m]) * p.channels_out + n, load_piece(tile + m * BROW + n));
        }
    } else {
        for (u32 i = threadIdx.x; i < M * width; i += THREADS) {
            const u32 m = i / width, n = i % width;
            if (out_voxel[m] >= 0) out[(first_voxel + out_voxel[m]) * p.channels_out + n] = tile[m * BROW + n];
        }
    }
    if (!p.partial) return;

    // Moments of what was stored, as deviations from the first voxel of the box (which is always inside).
    constexpr int PARTS = 8;
    float *sums = reinterpret_cast<float *>(weights);  // [PARTS][N][2]
    static_assert(PARTS * N * 2 * 4 <= STAGES * CK * BROW * int(sizeof(T)), "sums fit where the weights were");
    for (int i = threadIdx.x; i < PARTS * N; i += THREADS) {
        const int n = i % N, part = i / N;
        const float origin = to_float(tile[n]);
        float sum = 0.f, squares = 0.f;
        for (int m = part; m < M; m += PARTS) {
            if (out_voxel[m] < 0) continue;
            const float d = to_float(tile[m * BROW + n]) - origin;
            sum += d;
            squares += d * d;
        }
        sums[i * 2] = sum;
        sums[i * 2 + 1] = squares;
    }
    __syncthreads();
    float count = 1.f;
#pragma unroll
    for (int i = 0; i < 3; ++i) count *= float(min(1 << t.log_size[i], t.count[i] - box.start[i]));
    const i64 block = i64(batch_idx) * gridDim.x + blockIdx.x;
    for (u32 n = threadIdx.x; n < width; n += THREADS) {
        float sum = 0.f, squares = 0.f;
        for (int part = 0; part < PARTS; ++part) {
            sum += sums[(part * N + n) * 2];
            squares += sums[(part * N + n) * 2 + 1];
        }
        float *at = p.partial + (block * p.channels_out + n0 + n) * 2;
        at[0] = to_float(tile[n]) + sum / count;
        at[1] = squares - sum * sum / count;
    }
    if (blockIdx.y == 0 && threadIdx.x == 0) p.counts[block] = count;
}

// dims[..] elements of which the first num[..] are read, strides[..] apart; the rest is 0.
struct PackParams {
    const void *weight;
    void *out;  // [dims]
    u32 dims[3], num[3], strides[3];
    u32 base;
};

// Weights in the order a product reads them, rounded to the maps' element type; or their gradient in the order of weights.
template <class From, class To>
__device__ void pack(const PackParams &p) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= p.dims[0] * p.dims[1] * p.dims[2]) return;
    const u32 at[3] = {i / p.dims[2] / p.dims[1], i / p.dims[2] % p.dims[1], i % p.dims[2]};
    float v = 0.f;
    if (at[0] < p.num[0] && at[1] < p.num[1] && at[2] < p.num[2])
        v = to_float(static_cast<const From *>(
            p.weight)[p.base + at[0] * p.strides[0] + at[1] * p.strides[1] + at[2] * p.strides[2]]);
    static_cast<To *>(p.out)[i] = from_float<To>(v);
}

struct GatherParams {
    Sources sources;
    void *out;  // [B, voxels, channels of all maps]
    u32 voxels, chunk;
};

// Maps side by side and normalised, as libraries read them. A thread keeps one piece of the channels. Blocks:
// (chunks of voxels, samples).
template <class T>
__device__ void gather(const GatherParams &p) {
    constexpr u32 LEN = Piece<T>::LEN;
    const u32 channels = p.sources.channels, pieces = (channels + LEN - 1) / LEN, rows = 256 / pieces;
    const u32 row = threadIdx.x / pieces, channel = threadIdx.x % pieces * LEN, batch_idx = blockIdx.y;
    if (row >= rows) return;
    const ChannelPiece<T> piece(p.sources, channel, batch_idx);
    const u32 end = (blockIdx.x + 1) * p.chunk, last = end < p.voxels ? end : p.voxels;
    for (u32 v = blockIdx.x * p.chunk + row; v < last; v += rows) {
        const i64 voxel = i64(batch_idx) * p.voxels + v;
        const Piece<T> values = piece.load(voxel);
        T *out = static_cast<T *>(p.out) + voxel * channels + channel;
        if (channels % LEN == 0) {
            store_piece(out, values);
        } else {
#pragma unroll
            for (u32 e = 0; e < LEN; ++e)
                if (channel + e < channels) out[e] = values.v[e];
        }
    }
}

struct GradWeightParams {
    Sources sources;  // x, at the taps
    Sources grad;     // the gradient of the output: one map
    float *partial;   // [splits * parts, taps, ci, co]
    Tiling tiling;
    int kernel[3], dilation[3];
    u32 batch, parts;
    u32 buffers;  // one or two
};

// dW[tap, ci, co] = sum over voxels: x[voxel * step + dilation * tap, ci] grad[voxel, co]. Nine warps with three taps each: all 27 of
// a 3x3x3 kernel for 16 x 48 channels stay in registers while the block walks over its boxes. Of smaller kernels, several
// `parts` of a box's voxels are summed apart. Blocks: (16 of ci, 48 of co, splits of the boxes).
template <class T>
__device__ void grad_weight(const GradWeightParams &p) {
    constexpr int THREADS = 288, CI = 16, CO = 48, NT = CO / 8, SLOTS = 3;
    constexpr int LEN = Piece<T>::LEN, ROW = CI + LEN, BROW = CO + LEN;
    using Unit = Mma<T>;
    ADW_SHARED(memory);
    const Tiling &t = p.tiling;
    const int region_voxels = t.region[0] * t.region[1] * t.region[2];
    int *rows = reinterpret_cast<int *>(memory);  // [M]: elements from the region's start
    Place *out_places = reinterpret_cast<Place *>(rows + M), *in_places = out_places + M;
    // Of gradients [M][BROW] and a region each.
    T *buffers = reinterpret_cast<T *>(memory + round_up(M * 4 + (M + region_voxels) * int(sizeof(Place)), 16));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 ci0 = blockIdx.x * CI, co0 = blockIdx.y * CO;
    if (threadIdx.x < M) rows[threadIdx.x] = region_voxel(t, threadIdx.x) * ROW;
    const int box_size[3] = {1 << t.log_size[0], 1 << t.log_size[1], 1 << t.log_size[2]};
    Placed::make(out_places, box_size, t.count, THREADS);
    Placed::make(in_places, t.region, t.map, THREADS);

    const int taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    int shift[SLOTS], part[SLOTS];
    float acc[SLOTS][NT][4];
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        const int slot = warp * SLOTS + s, tap = slot % taps;
        part[s] = slot / taps < int(p.parts) ? slot / taps : -1;
        const int kw = tap % p.kernel[2] * p.dilation[2], kh = tap / p.kernel[2] % p.kernel[1] * p.dilation[1];
        const int kd = tap / p.kernel[2] / p.kernel[1] * p.dilation[0];
        shift[s] = ((kd * t.region[1] + kh) * t.region[2] + kw) * ROW;
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[s][j][i] = 0.f;
    }
    const u32 per_sample = t.tiles[0] * t.tiles[1] * t.tiles[2], tiles = per_sample * p.batch;
    using XRows = Rows<T, CI, THREADS>;
    using GradRows = Rows<T, CO, THREADS>;
    const int buffer = M * BROW + region_voxels * ROW;
    // With two buffers the next box comes while this one is multiplied: a block fills a multiprocessor's registers, so no
    // other computes meanwhile.
    const auto with_voxels = [&](u32 tile, T *grads, auto x_do, auto grad_do) {
        const Box box(t, tile % per_sample);
        const u32 batch_idx = tile / per_sample;
        const int origin[3] = {box.start[0] * t.step[0] + t.first[0], box.start[1] * t.step[1] + t.first[1],
                               box.start[2] * t.step[2] + t.first[2]};
        x_do(grads + M * BROW, p.sources, Placed(in_places, region_voxels, origin, t.map, batch_idx), ci0, batch_idx);
        grad_do(grads, p.grad, Placed(out_places, positions(t), box.start, t.count, batch_idx), co0, batch_idx);
    };
    const auto begin = [&](u32 tile, T *grads) {
        if (tile < tiles) with_voxels(tile, grads, XRows::template begin<Placed>, GradRows::template begin<Placed>);
        copy_commit();
    };
    __syncthreads();
    begin(blockIdx.z, buffers);
    for (u32 tile = blockIdx.z, i = 0; tile < tiles; tile += gridDim.z, ++i) {
        T *grads = buffers + i % p.buffers * buffer, *region = grads + M * BROW;
        copy_wait<0>();
        with_voxels(tile, grads, XRows::template finish<Placed>, GradRows::template finish<Placed>);
        // From here on all see this buffer, and nobody reads the other one any more.
        __syncthreads();
        if (p.buffers == 2) begin(tile + gridDim.z, buffers + (i + 1) % 2 * buffer);
        for (int k = 0; k < positions(t) / 16; ++k) {
            typename Unit::template B<NT> b;
            const T *at = grads + k * 16 * BROW;
            b.load(at, BROW, lane);
#pragma unroll
            for (int s = 0; s < SLOTS; ++s)
                if (k % int(p.parts) == part[s])
                    Unit::template step_transposed<NT>(acc[s], region + shift[s], rows + k * 16, b, at, BROW, lane);
        }
        if (p.buffers == 1) {
            __syncthreads();
            begin(tile + gridDim.z, buffers);
        }
    }
    const u32 ci = p.sources.channels, co = p.grad.channels;
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        if (part[s] < 0) continue;
        const int tap = (warp * SLOTS + s) % taps;
        float *out = p.partial + (i64(blockIdx.z) * p.parts + part[s]) * taps * ci * co + i64(tap) * ci * co;
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 r = ci0 + Unit::row(i, lane), c = co0 + j * 8 + Unit::col(i, lane);
                if (r < ci && c < co) out[i64(r) * co + c] = acc[s][j][i];
            }
    }
}

struct GradWeightFinishParams {
    const float *partial;  // [parts, taps, ci, co]
    float *out;            // [co, ci, taps]
    u32 parts, taps, ci, co;
};

__device__ void grad_weight_finish(const GradWeightFinishParams &p) {
    const u32 i = blockIdx.x * 256 + threadIdx.x, n = p.taps * p.ci * p.co;
    if (i >= n) return;
    float sum = 0.f;
    for (u32 part = 0; part < p.parts; ++part) sum += p.partial[i64(part) * n + i];
    const u32 co = i % p.co, ci = i / p.co % p.ci, tap = i / p.co / p.ci;
    p.out[(i64(co) * p.ci + ci) * p.taps + tap] = sum;
}

ADW_KERNEL(conv_correlate_f32_n16, 128, 2, CorrelateParams, (correlate<float, 16>(p)))
ADW_KERNEL(conv_correlate_f32_n48, 128, 2, CorrelateParams, (correlate<float, 48>(p)))
ADW_KERNEL(conv_correlate_f32_n96, 128, 2, CorrelateParams, (correlate<float, 96>(p)))
ADW_KERNEL(conv_correlate_bf16_n16, 128, 2, CorrelateParams, (correlate<bf16, 16>(p)))
ADW_KERNEL(conv_correlate_bf16_n48, 128, 2, CorrelateParams, (correlate<bf16, 48>(p)))
ADW_KERNEL(conv_correlate_bf16_n96, 128, 2, CorrelateParams, (correlate<bf16, 96>(p)))
ADW_KERNEL(conv_pack_f32, 256, 1, PackParams, (pack<float, float>(p)))
ADW_KERNEL(conv_pack_bf16, 256, 1, PackParams, (pack<float, bf16>(p)))
ADW_KERNEL(conv_unpack_bf16, 256, 1, PackParams, (pack<bf16, float>(p)))
ADW_KERNEL(conv_gather_f32, 256, 1, GatherParams, gather<float>(p))
ADW_KERNEL(conv_gather_bf16, 256, 1, GatherParams, gather<bf16>(p))
ADW_KERNEL(conv_grad_weight_f32, 288, 1, GradWeightParams, grad_weight<float>(p))
ADW_KERNEL(conv_grad_weight_bf16, 288, 1, GradWeightParams, grad_weight<bf16>(p))
ADW_KERNEL(conv_grad_weight_finish, 256, 1, GradWeightFinishParams, grad_weight_finish(p))
