// What all kernels share: element types, 16-byte pieces, reductions in a fixed order, and the matrix instructions behind
// functions that a host compiler can stand in for (emulate.h).
//
// A kernel takes one argument, a plain struct that its Rust launcher mirrors with #[repr(C)]. Pointers in it are
// device addresses; sizes are 32-bit, offsets into maps 64-bit.
#pragma once

#ifdef ADW_EMULATED
#include "emulate.h"
#else
#include <cuda_bf16.h>
#endif

using bf16 = __nv_bfloat16;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// extern "C" NAME, launched with THREADS threads, at least MIN_BLOCKS blocks of them resident on a multiprocessor.
#ifdef ADW_EMULATED
#define ADW_KERNEL(NAME, THREADS, MIN_BLOCKS, PARAMS, CALL)                         \
    extern "C" const char *NAME(const void *params, const unsigned *config) {       \
        PARAMS p;                                                                   \
        std::memcpy(static_cast<void *>(&p), params, sizeof(p));                    \
        if (config[3] != (THREADS)) return "launched with a wrong number of threads"; \
        if (config[6] != 0 && config[6] != sizeof(PARAMS)) return "the launcher's struct has another size"; \
        return emulated::launch([p] { CALL; }, config);                             \
    }
#define ADW_SHARED(NAME) char *const NAME = static_cast<char *>(emulated::dynamic_shared())
#else
#define ADW_KERNEL(NAME, THREADS, MIN_BLOCKS, PARAMS, CALL) \
    extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) NAME(const __grid_constant__ PARAMS p) { CALL; }
#define ADW_SHARED(NAME) extern __shared__ __align__(16) char NAME[]
#endif

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }

// 16 bytes: what one thread moves at a time.
template <class T>
struct alignas(16) Piece {
    static constexpr int LEN = 16 / sizeof(T);
    T v[LEN];
};

template <class T>
__device__ __forceinline__ Piece<T> load_piece(const T *p) {
#ifdef ADW_EMULATED
    emulated::check_aligned(p, 16);
#endif
    return *reinterpret_cast<const Piece<T> *>(p);
}

template <class T>
__device__ __forceinline__ void store_piece(T *p, const Piece<T> &v) {
#ifdef ADW_EMULATED
    emulated::check_aligned(p, 16);
#endif
    *reinterpret_cast<Piece<T> *>(p) = v;
}

// N elements as floats: one access of 16 bytes if N is a piece, else one by one.
template <class T, int N>
__device__ __forceinline__ void load_floats(float (&out)[N], const T *p) {
    if constexpr (N == Piece<T>::LEN) {
        const Piece<T> piece = load_piece(p);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = to_float(piece.v[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = to_float(p[i]);
    }
}

template <class T, int N>
__device__ __forceinline__ void store_floats(T *p, const float (&v)[N]) {
    if constexpr (N == Piece<T>::LEN) {
        Piece<T> piece;
#pragma unroll
        for (int i = 0; i < N; ++i) piece.v[i] = from_float<T>(v[i]);
        store_piece(p, piece);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) p[i] = from_float<T>(v[i]);
    }
}

// Has the compiler keep a number that it would rather compute again, in every turn of a loop.
__device__ __forceinline__ void keep(int &v) {
#ifdef ADW_EMULATED
    (void)v;
#else
    asm volatile("" : "+r"(v));
#endif
}

__device__ __forceinline__ float leaky(float v, float slope) { return v > 0.f ? v : v * slope; }

// The same sum in every lane, in a fixed order.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

// Copies 16 bytes from device to shared memory without passing through registers. `copy_wait<N>` returns when all but
// the last N groups that this thread committed have arrived; a barrier then makes them visible to the others.
__device__ __forceinline__ void copy_async(void *shared, const void *global) {
#ifdef ADW_EMULATED
    emulated::copy_begin(shared, global);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
#endif
}

__device__ __forceinline__ void copy_commit() {
#ifdef ADW_EMULATED
    emulated::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int N>
__device__ __forceinline__ void copy_wait() {
#ifdef ADW_EMULATED
    emulated::copy_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8x8 matrices of bf16 from shared memory; lane 8 i + r passes the address of row r of matrix i (16 bytes, aligned).
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(u32 (&out)[4], const bf16 *row) {
#ifdef ADW_EMULATED
    emulated_ldmatrix_x4(out, row, TRANSPOSED);
#else
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(address)
                     : "memory");
    }
#endif
}

// d += a b: 16x16 times 16x8 in bf16, summed in f32 on the tensor cores.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef ADW_EMULATED
    emulated_mma_m16n8k16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
