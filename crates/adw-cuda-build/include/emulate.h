// CUDA's execution model on the host, for tests without a GPU: the same kernel sources, compiled by a C++ compiler.
//
// Every thread of a block is a fiber with a stack of its own; blocks run one after the other. A fiber runs until it waits
// at a barrier (of its warp or of its block), so results do not depend on timing. `order` reverses the order in which
// fibers are resumed: a kernel that lacks a barrier gives other results, or the poison that shared memory starts with.
//
// What is emulated: blockIdx, threadIdx, gridDim, dynamic shared memory, __syncthreads, warp shuffles, bf16 with rounding
// to nearest even, cp.async (which copies when it is waited for, and poisons until then), ldmatrix and mma.sync with the fragment layouts of the PTX manual
// ("Warp-level matrix instructions"). What is not: caches, bank conflicts, speed, weak memory ordering.
//
// The launch ends with an error, not with a wrong number, when threads of a block are left waiting for each other, when
// lanes of a warp meet at different collectives, or when an address is not aligned as the GPU wants it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <setjmp.h>
#include <ucontext.h>
#ifdef ADW_EMULATED_PARALLEL
#include <thread>
#endif
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __host__

namespace emulated {

struct Dim3 {
    unsigned x, y, z;
};

enum class State { Ready, AtWarpBarrier, AtBlockBarrier, Done };

// 16 bytes on their way to shared memory.
struct Copy {
    void *to;
    const void *from;
};

struct Fiber {
    jmp_buf context;
    State state;
    // Which collective it waits at, to tell apart lanes that took different ways.
    int collective;
    std::unique_ptr<char[]> stack;
    // Whether it has begun: then it waits in its kernel, or between two.
    bool begun = false;
    // Copies that have begun, and where the groups end that were committed.
    std::vector<Copy> copies;
    std::vector<size_t> groups;
};

constexpr size_t STACK_BYTES = 32 * 1024;
constexpr unsigned WARP = 32;
constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xa5;

// One block at a time, and what it needs. Fibers outlive the blocks they run: to begin one takes system calls.
struct Block {
    std::vector<Fiber> fibers;
    std::vector<char> shared;
    // Of it, what the kernel may use; behind it a guard.
    size_t shared_bytes = 0;
    // What lanes of a warp hand each other: 64 bytes per thread.
    std::vector<char> exchange;
    jmp_buf scheduler;
    unsigned current = 0;
    const char *error = nullptr;
    void (*body)(void *) = nullptr;
    void *argument = nullptr;
};

inline thread_local Block *block = nullptr;

inline char *shared_begin(Block &b) {
    return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(b.shared.data()) + 15) / 16 * 16);
}

inline void leave(State state, int collective) {
    Block *b = block;
    Fiber &self = b->fibers[b->current];
    self.state = state;
    self.collective = collective;
    if (_setjmp(self.context) == 0) _longjmp(b->scheduler, 1);
}

[[noreturn]] inline void fail(const char *what) {
    block->error = what;
    block->fibers[block->current].state = State::Done;
    _longjmp(block->scheduler, 1);
}

// A fiber's life: its thread of one block after the other, maybe of several launches.
inline void entry() {
    // Read once: the operating system's thread may be another one in the next launch, and `block` that thread's.
    Block *const b = block;
    for (;;) {
        b->body(b->argument);
        Fiber &self = b->fibers[b->current];
        self.state = State::Done;
        if (_setjmp(self.context) == 0) _longjmp(b->scheduler, 1);
    }
}

// Runs one fiber until it waits or is done.
inline void resume(Block &b, unsigned thread) {
    b.current = thread;
    if (_setjmp(b.scheduler) != 0) return;
    Fiber &fiber = b.fibers[thread];
    if (fiber.begun) _longjmp(fiber.context, 1);
    // A context of its own is needed once, for the stack; from then on jumps, which cost no system call.
    fiber.begun = true;
    fiber.stack.reset(new char[STACK_BYTES]);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = fiber.stack.get();
    start.uc_stack.ss_size = STACK_BYTES;
    start.uc_link = nullptr;
    makecontext(&start, entry, 0);
    setcontext(&start);
}

// Runs all threads of a block to their end.
inline void run_block(Block &b, unsigned threads, bool reversed) {
    b.current = 0;
    std::memset(shared_begin(b), 0xff, b.shared_bytes);
    std::memset(shared_begin(b) + b.shared_bytes, GUARD_BYTE, GUARD);
    for (unsigned t = 0; t < threads; ++t) {
        b.fibers[t].state = State::Ready, b.fibers[t].collective = 0;
        b.fibers[t].copies.clear(), b.fibers[t].groups.clear();
    }
    const unsigned warps = (threads + WARP - 1) / WARP;
    while (b.error == nullptr) {
        for (unsigned w = 0; w < warps && b.error == nullptr; ++w) {
            const unsigned warp = reversed ? warps - 1 - w : w;
            const unsigned begin = warp * WARP, end = std::min(threads, begin + WARP);
            while (b.error == nullptr) {
                for (unsigned i = begin; i < end && b.error == nullptr; ++i) {
                    const unsigned t = reversed ? end - 1 - (i - begin) : i;
                    if (b.fibers[t].state == State::Ready) resume(b, t);
                }
                unsigned waiting = 0;
                for (unsigned t = begin; t < end; ++t) {
                    waiting += b.fibers[t].state == State::AtWarpBarrier;
                    if (waiting > 0 && b.fibers[t].collective != b.fibers[begin].collective)
                        b.error = "lanes of a warp are at different collectives";
                }
                if (waiting == 0) break;
                if (waiting != WARP) b.error = "a warp collective without all 32 lanes";
                for (unsigned t = begin; t < end; ++t) b.fibers[t].state = State::Ready;
            }
        }
        unsigned waiting = 0, done = 0;
        for (unsigned t = 0; t < threads; ++t) {
            waiting += b.fibers[t].state == State::AtBlockBarrier;
            done += b.fibers[t].state == State::Done;
        }
        if (done == threads)
            for (size_t i = 0; i < GUARD; ++i)
                if (static_cast<unsigned char>(shared_begin(b)[b.shared_bytes + i]) != GUARD_BYTE)
                    b.error = "something wrote behind the shared memory of the launch";
        if (done == threads || b.error != nullptr) return;
        if (waiting != threads) b.error = "__syncthreads that some threads of the block do not reach";
        for (unsigned t = 0; t < threads; ++t) b.fibers[t].state = State::Ready;
    }
}

inline void *slot(unsigned lane) {
    return block->exchange.data() + ((block->current / WARP) * WARP + lane) * 64;
}

// Hands `mine` to the warp and calls `read(lane -> value)`; no lane goes on before all have read.
template <class T, class R>
inline auto collective(int kind, const T &mine, R read) {
    static_assert(sizeof(T) <= 64, "larger than an exchange slot");
    std::memcpy(slot(block->current % WARP), &mine, sizeof(T));
    leave(State::AtWarpBarrier, kind);
    const auto result = read([](unsigned lane) {
        T value;
        std::memcpy(&value, slot(lane), sizeof(T));
        return value;
    });
    leave(State::AtWarpBarrier, -kind);
    return result;
}

inline void check_aligned(const void *p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("a misaligned address");
}

inline void copy_begin(void *to, const void *from) {
    check_aligned(to, 16);
    check_aligned(from, 16);
    std::memset(to, 0xff, 16);
    block->fibers[block->current].copies.push_back({to, from});
}

inline void copy_commit() {
    Fiber &self = block->fibers[block->current];
    self.groups.push_back(self.copies.size());
}

// All but the last `left` groups arrive.
inline void copy_wait(size_t left) {
    Fiber &self = block->fibers[block->current];
    if (self.groups.size() <= left) return;
    const size_t arrived = self.groups.size() - left, end = self.groups[arrived - 1];
    for (size_t i = 0; i < end; ++i) std::memcpy(self.copies[i].to, self.copies[i].from, 16);
    self.copies.erase(self.copies.begin(), self.copies.begin() + std::ptrdiff_t(end));
    self.groups.erase(self.groups.begin(), self.groups.begin() + std::ptrdiff_t(arrived));
    for (size_t &group : self.groups) group -= end;
}

struct Bf16 {
    uint16_t bits;
};

struct Index {
    unsigned x;
    operator unsigned() const { return x; }
};

inline thread_local Dim3 block_index, grid_size;
inline thread_local unsigned block_size;

struct ThreadIndex {
    struct X {
        operator unsigned() const { return block->current; }
    } x;
};

// Gives one that an earlier launch has left, with its fibers, or a new one; or takes one.
inline std::unique_ptr<Block> spare_block(std::unique_ptr<Block> left = nullptr) {
    struct Spare {
        std::mutex mutex;
        std::vector<std::unique_ptr<Block>> blocks;
    };
    // Never destroyed: a launch may come late.
    static Spare *const spare = new Spare;
    const std::lock_guard<std::mutex> lock(spare->mutex);
    if (left) {
        spare->blocks.push_back(std::move(left));
        return nullptr;
    }
    if (spare->blocks.empty()) return std::make_unique<Block>();
    std::unique_ptr<Block> found = std::move(spare->blocks.back());
    spare->blocks.pop_back();
    return found;
}

// Blocks `begin` to `end` of a launch, one after the other.
template <class F>
inline const char *run_blocks(F &body, const unsigned *config, unsigned begin, unsigned end) {
    grid_size = {config[0], config[1], config[2]};
    block_size = config[3];
    std::unique_ptr<Block> own = spare_block();
    Block &b = *own;
    if (b.fibers.size() < config[3]) b.fibers.resize(config[3]);
    b.shared_bytes = config[4];
    b.shared.resize(b.shared_bytes + 16 + GUARD);
    b.exchange.resize(size_t(config[3] + WARP) * 64);
    b.body = [](void *f) { (*static_cast<F *>(f))(); };
    b.argument = &body;
    block = &b;
    for (unsigned n = begin; n < end && b.error == nullptr; ++n) {
        const unsigned i = config[5] ? begin + end - 1 - n : n;
        block_index = {i % grid_size.x, i / grid_size.x % grid_size.y, i / grid_size.x / grid_size.y};
        run_block(b, config[3], config[5] != 0);
    }
    block = nullptr;
    const char *const error = b.error;
    // After an error, fibers hang in the middle of a kernel.
    if (error == nullptr) spare_block(std::move(own));
    return error;
}

// config: grid x, y, z, threads, bytes of dynamic shared memory, order (0 or 1), bytes of the argument (0: not known).
// Returns null or what went wrong.
template <class F>
inline const char *launch(F body, const unsigned *config) {
    const unsigned blocks = config[0] * config[1] * config[2];
#ifdef ADW_EMULATED_PARALLEL
    // Blocks do not depend on each other. Few of them are not worth a thread.
    const unsigned workers = std::min(std::max(1u, std::thread::hardware_concurrency()), (blocks + 3) / 4);
    std::vector<std::thread> threads;
    std::vector<const char *> errors(workers, nullptr);
    for (unsigned w = 1; w < workers; ++w)
        threads.emplace_back([&, w] {
            errors[w] = run_blocks(body, config, unsigned(uint64_t(blocks) * w / workers),
                                   unsigned(uint64_t(blocks) * (w + 1) / workers));
        });
    errors[0] = run_blocks(body, config, 0, blocks / workers);
    for (std::thread &t : threads) t.join();
    for (const char *error : errors)
        if (error) return error;
    return nullptr;
#else
    return run_blocks(body, config, 0, blocks);
#endif
}

inline void *dynamic_shared() { return shared_begin(*block); }

}  // namespace emulated

using __nv_bfloat16 = emulated::Bf16;
static constexpr emulated::ThreadIndex threadIdx{};
#define blockIdx (emulated::block_index)
#define gridDim (emulated::grid_size)

inline float __bfloat162float(__nv_bfloat16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline void __syncthreads() { emulated::leave(emulated::State::AtBlockBarrier, 0); }

inline float __shfl_xor_sync(unsigned, float v, int mask) {
    const unsigned lane = threadIdx.x % 32;
    return emulated::collective(1, v, [&](auto get) { return get(lane ^ unsigned(mask)); });
}

inline int __float_as_int(float f) {
    int bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float __int_as_float(int bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

// Four 8x8 matrices of 16-bit elements. Lane 8 i + r gives the address of row r of matrix i; lane l gets of every matrix
// the elements (l / 4, 2 (l % 4)) and the one beside it, or, transposed, (2 (l % 4), l / 4) and the one below it.
inline void emulated_ldmatrix_x4(uint32_t (&out)[4], const void *row, bool transposed) {
    emulated::check_aligned(row, 16);
    const unsigned lane = threadIdx.x % 32;
    struct Result {
        uint32_t r[4];
    };
    const Result result = emulated::collective(2 + transposed, row, [&](auto get) {
        Result r;
        for (unsigned i = 0; i < 4; ++i) {
            uint16_t pair[2];
            for (unsigned e = 0; e < 2; ++e) {
                const unsigned major = lane / 4, minor = 2 * (lane % 4) + e;
                const auto *p = static_cast<const char *>(get(8 * i + (transposed ? minor : major)));
                std::memcpy(&pair[e], p + 2 * (transposed ? major : minor), 2);
            }
            r.r[i] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
        }
        return r;
    });
    for (int i = 0; i < 4; ++i) out[i] = result.r[i];
}

// D += A B, A 16x16 row-major, B 16x8 column-major, both bf16; D f32. With g = lane / 4, t = lane % 4:
// a[i] holds A[g + 8 (i % 2)][2 t + 8 (i / 2)] and the one right of it, b[i] holds B[2 t + 8 i][g] and the one below it,
// d[i] is D[g + 8 (i / 2)][2 t + i % 2].
inline void emulated_mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragment {
        uint32_t a[4], b[2];
    };
    Fragment mine;
    std::memcpy(mine.a, a, sizeof(mine.a));
    std::memcpy(mine.b, b, sizeof(mine.b));
    const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const auto half_of = [](uint32_t word, unsigned half) {
        return __bfloat162float(__nv_bfloat16{uint16_t(word >> (16 * half))});
    };
    struct Result {
        float d[4];
    };
    Result result;
    std::memcpy(result.d, d, sizeof(result.d));
    result = emulated::collective(4, mine, [&](auto get) {
        for (unsigned pair = 0; pair < 8; ++pair) {
            // Columns 2 pair and 2 pair + 1 of A lie with lane 4 row + pair % 4, register row half + 2 (pair / 4).
            const Fragment low = get(4 * g + pair % 4);
            const Fragment column[2] = {get(4 * (2 * t) + pair % 4), get(4 * (2 * t + 1) + pair % 4)};
            for (unsigned i = 0; i < 4; ++i)
                for (unsigned e = 0; e < 2; ++e)
                    result.d[i] += half_of(low.a[i / 2 + 2 * (pair / 4)], e) * half_of(column[i % 2].b[pair / 4], e);
        }
        return result;
    });
    std::memcpy(d, result.d, sizeof(result.d));
}
