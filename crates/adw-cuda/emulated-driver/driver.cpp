// A CUDA driver whose devices are the host: what candle and cudarc ask of libcuda.so.1, with this workspace's kernels run
// by ../../adw-cuda-build/include/emulate.h. The program that was built for a GPU runs on it unchanged, on a machine that has none.
//
// Device memory is host memory between guards, filled with not-a-number before its first use and after its last; memory
// that was freed lies idle for a while. So code that reads what was never written, or was freed, computes nonsense that
// tests see; and after every launch the guards, or on reuse the idle memory, show what a kernel wrote where it must not.
// Streams are in order and done at once. What is not emulated: asynchrony, speed, several programs on one device, and
// every function that is not here (the build adds stubs that say their name and fail).
//
// Kernels are looked up by name in the shared objects `kernels-*.so` beside this library, candle's own in candle.h. A
// kernel of candle's that is not there fails at its launch, with a line on stderr that names it.
//
// For tests, environment variables:
//   ADW_EMULATED_CUDA_DEVICES  number of devices (1)
//   ADW_EMULATED_CUDA_CAPABILITY  compute capability, as 90 (the default) for 9.0
//   ADW_EMULATED_CUDA_MEMORY   bytes of a device (80 GB); whatever the host has
//   ADW_EMULATED_CUDA_FAIL_AT  this launch (from 1) and every call after it fails, as on a device that was lost
//   ADW_EMULATED_CUDA_SKIP     1: launches do nothing and memory is not touched; copies to the host give zeros
//   ADW_EMULATED_CUDA_ORDER    1: blocks and threads run in the opposite order
//   ADW_EMULATED_CUDA_LOG      a file that gets a line of JSON per launch
#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "candle.h"

namespace {

using Result = int;
enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

struct Message {
    Result result;
    const char *name, *words;
};
constexpr Message MESSAGES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};

constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xa5, POISON = 0xff;
// How much freed memory lies idle before it goes back to the host.
constexpr size_t MOST_IDLE = size_t(256) << 20;
// Dynamic shared memory of a block that may be had without asking.
constexpr int FREE_SHARED = 48 * 1024;

// What ADW_KERNEL makes of a kernel on the host: argument and configuration in, an error message or null out.
using Kernel = const char *(*)(const void *, const unsigned *);

struct Function {
    std::string name;
    Kernel kernel = nullptr;
    candle::Kernel candles = nullptr;
    int shared = FREE_SHARED;
};

struct Module {
    // The text of a module in PTX; empty for machine code, whose kernels are those of this workspace.
    std::string ptx;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Event {
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
};

// A device, its one context and its memory pool.
struct Device {
    size_t used = 0, most_used = 0;
    uint64_t release_threshold = 0;
};

struct Allocation {
    size_t bytes;
    Device *device;
};

long long number(const char *name, long long otherwise) {
    const char *text = std::getenv(name);
    return text && *text ? std::atoll(text) : otherwise;
}

int capability() { return int(number("ADW_EMULATED_CUDA_CAPABILITY", 90)); }

// Dynamic shared memory of a block, on demand.
int most_shared() {
    switch (capability()) {
        case 80: return 163 * 1024;
        case 86:
        case 89: return 99 * 1024;
        default: return 227 * 1024;
    }
}

struct State {
    std::mutex mutex;
    const size_t memory = size_t(number("ADW_EMULATED_CUDA_MEMORY", 80'000'000'000));
    const long long fail_at = number("ADW_EMULATED_CUDA_FAIL_AT", 0);
    const bool skip = number("ADW_EMULATED_CUDA_SKIP", 0) != 0;
    const unsigned order = number("ADW_EMULATED_CUDA_ORDER", 0) != 0;
    std::vector<Device> devices{size_t(std::max(0LL, number("ADW_EMULATED_CUDA_DEVICES", 1)))};
    bool initialized = false;
    // After a launch that failed, as on a device, nothing works any more.
    bool lost = false;
    long long launches = 0;
    std::map<uint64_t, Allocation> allocations;
    std::deque<std::pair<char *, size_t>> idle;
    size_t idle_bytes = 0;
    std::set<const void *> streams;
    std::vector<void *> libraries;
    FILE *log = nullptr;

    State() {
        if (const char *file = std::getenv("ADW_EMULATED_CUDA_LOG")) {
            log = std::fopen(file, "w");
            if (!log) std::fprintf(stderr, "emulated CUDA: cannot write %s\n", file);
        }
        Dl_info self;
        if (!dladdr(reinterpret_cast<void *>(&number), &self)) return;
        std::string folder(self.dli_fname);
        folder = folder.substr(0, folder.rfind('/') + 1);
        DIR *entries = opendir(folder.empty() ? "." : folder.c_str());
        if (!entries) return;
        while (const dirent *entry = readdir(entries)) {
            const std::string name = entry->d_name;
            if (name.rfind("kernels-", 0) != 0) continue;
            // Each with symbols of its own: kernels of different sources share names of structs and functions.
            void *library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
            if (library) libraries.push_back(library);
            else std::fprintf(stderr, "emulated CUDA: %s\n", dlerror());
        }
        closedir(entries);
    }
};

State &state() {
    // Never destroyed: device memory is freed by destructors that may run later.
    static State *s = new State;
    return *s;
}

thread_local Device *current = nullptr;
// For the signal handler: what runs, of all threads, as launches take turns.
const char *volatile running = nullptr;
struct sigaction before_segv, before_bus, before_fpe;

Result complain(Result result, const std::string &what) {
    std::fprintf(stderr, "emulated CUDA: %s\n", what.c_str());
    return result;
}

// Names the kernel that crashes; then the crash takes the course it would have taken.
void on_crash(int signal, siginfo_t *, void *) {
    if (const char *name = running) {
        const char *words[] = {"emulated CUDA: crash in kernel ", name, ": an address that is not the device's?\n"};
        for (const char *w : words)
            if (write(2, w, std::strlen(w)) < 0) break;
    }
    sigaction(signal, signal == SIGSEGV ? &before_segv : signal == SIGBUS ? &before_bus : &before_fpe, nullptr);
}

// What a call that needs a device finds first.
Result enter(const State &s) {
    if (!s.initialized) return NOT_INITIALIZED;
    if (!current) return INVALID_CONTEXT;
    return s.lost ? LAUNCH_FAILED : SUCCESS;
}

#define ADW_ENTER                                         \
    State &s = state();                                   \
    const std::lock_guard<std::mutex> lock(s.mutex);      \
    if (const Result result = enter(s)) return result
// Null and 1 are the device's own stream, 2 is that of the calling thread.
#define ADW_ENTER_STREAM(STREAM) \
    ADW_ENTER;                   \
    if (reinterpret_cast<uintptr_t>(STREAM) > 2 && !s.streams.count(STREAM)) return INVALID_HANDLE

// Whether [p, p + bytes) lies in one allocation.
bool valid(const State &s, uint64_t p, size_t bytes) {
    auto after = s.allocations.upper_bound(p);
    if (after == s.allocations.begin()) return false;
    const auto &[begin, allocation] = *--after;
    return p + bytes <= begin + allocation.bytes;
}

bool all_are(const char *bytes, size_t n, unsigned char byte) {
    return n == 0 || (static_cast<unsigned char>(bytes[0]) == byte && std::memcmp(bytes, bytes + 1, n - 1) == 0);
}

// Ends the program if something wrote beside an allocation: a test must not go on from there.
void check_guards(uint64_t p, const Allocation &a, const char *after) {
    const char *bytes = reinterpret_cast<const char *>(p);
    if (all_are(bytes - GUARD, GUARD, GUARD_BYTE) && all_are(bytes + a.bytes, GUARD, GUARD_BYTE)) return;
    complain(0, std::string("something wrote beside an allocation of ") + std::to_string(a.bytes) +
                    " bytes; seen after " + after);
    std::abort();
}

void give_back_idle(State &s, size_t most) {
    while (s.idle_bytes > most) {
        const auto [base, bytes] = s.idle.front();
        if (!all_are(base, bytes, POISON)) {
            complain(0, "something wrote to memory of " + std::to_string(bytes - 2 * GUARD) + " bytes that was freed");
            std::abort();
        }
        std::free(base);
        s.idle_bytes -= bytes;
        s.idle.pop_front();
    }
}

Result allocate(State &s, uint64_t *out, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > s.memory || current->used + bytes > s.memory) return OUT_OF_MEMORY;
    const size_t all = bytes + 2 * GUARD;
    char *base;
    if (s.skip) {
        void *mapped = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
        base = static_cast<char *>(mapped);
    } else {
        base = static_cast<char *>(std::aligned_alloc(GUARD, (all + GUARD - 1) / GUARD * GUARD));
        if (!base) return OUT_OF_MEMORY;
        std::memset(base, GUARD_BYTE, GUARD);
        std::memset(base + GUARD, POISON, bytes);
        std::memset(base + GUARD + bytes, GUARD_BYTE, GUARD);
    }
    *out = reinterpret_cast<uint64_t>(base + GUARD);
    s.allocations[*out] = {bytes, current};
    current->used += bytes;
    current->most_used = std::max(current->most_used, current->used);
    return SUCCESS;
}

// Gives memory back even when the device is lost: the host is not.
Result release(uint64_t p) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    const Result result = enter(s);
    const auto found = s.allocations.find(p);
    if (found == s.allocations.end()) return complain(INVALID_VALUE, "freed what was not allocated");
    const Allocation a = found->second;
    char *base = reinterpret_cast<char *>(p) - GUARD;
    const size_t all = a.bytes + 2 * GUARD;
    a.device->used -= a.bytes;
    s.allocations.erase(found);
    if (s.skip) {
        munmap(base, all);
        return result;
    }
    check_guards(p, a, "it was freed");
    std::memset(base, POISON, all);
    s.idle.emplace_back(base, all);
    s.idle_bytes += all;
    give_back_idle(s, MOST_IDLE);
    return result;
}

enum class Side { Host, Device };

Result copy(State &s, uint64_t to, Side to_side, uint64_t from, Side from_side, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    if ((to_side == Side::Device && !valid(s, to, bytes)) || (from_side == Side::Device && !valid(s, from, bytes)))
        return complain(INVALID_VALUE, "a copy outside an allocation");
    if (!s.skip) {
        std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
    } else if (to_side == Side::Host) {
        std::memset(reinterpret_cast<void *>(to), 0, bytes);
    }
    return SUCCESS;
}

Result fill(State &s, uint64_t p, const void *element, size_t size, size_t count) {
    if (!valid(s, p, size * count)) return complain(INVALID_VALUE, "a fill outside an allocation");
    if (s.skip) return SUCCESS;
    char *to = reinterpret_cast<char *>(p);
    if (size == 1) {
        std::memset(to, *static_cast<const unsigned char *>(element), count);
    } else {
        for (size_t i = 0; i < count; ++i) std::memcpy(to + i * size, element, size);
    }
    return SUCCESS;
}

Result launch(State &s, const Function &f, const unsigned (&grid)[3], const unsigned (&block)[3], unsigned shared,
              void **params) {
    ++s.launches;
    if (s.log) {
        std::fprintf(s.log, "{\"kernel\":\"%s\",\"grid\":[%u,%u,%u],\"threads\":%u,\"shared\":%u,\"memory\":%zu}\n",
                     f.name.c_str(), grid[0], grid[1], grid[2], block[0] * block[1] * block[2], shared, current->used);
        // A program that is killed, or ends without destructors, leaves all of them.
        std::fflush(s.log);
    }
    if (s.fail_at > 0 && s.launches >= s.fail_at) {
        s.lost = true;
        return LAUNCH_FAILED;
    }
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535 ||
        threads == 0 || threads > 1024)
        return complain(INVALID_VALUE, f.name + ": blocks or threads in numbers that no device takes");
    if (int64_t(shared) > f.shared)
        return complain(INVALID_VALUE, f.name + ": " + std::to_string(shared) +
                                           " bytes of shared memory, but the function was allowed " +
                                           std::to_string(f.shared));
    if (s.skip) return SUCCESS;
    if (!f.kernel && !f.candles) return complain(NOT_SUPPORTED, "candle's kernel " + f.name + " is not emulated");
    running = f.name.c_str();
    const char *error = nullptr;
    if (f.candles) {
        f.candles(params);
    } else if (block[1] != 1 || block[2] != 1) {
        error = "blocks have one dimension here";
    } else {
        // Zero: this side does not know the size of the kernel's argument.
        const unsigned config[] = {grid[0], grid[1], grid[2], block[0], shared, s.order, 0};
        error = f.kernel(params[0], config);
    }
    running = nullptr;
    for (const auto &[p, a] : s.allocations) check_guards(p, a, f.name.c_str());
    if (error) {
        s.lost = true;
        return complain(LAUNCH_FAILED, f.name + ": " + error);
    }
    return SUCCESS;
}

}  // namespace

#define ADW_EXPORT extern "C" __attribute__((visibility("default"))) Result

// The driver, devices, contexts.

ADW_EXPORT cuInit(unsigned) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (s.devices.empty()) return NO_DEVICE;
    if (!s.initialized) {
        struct sigaction action = {};
        action.sa_sigaction = on_crash;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before_segv);
        sigaction(SIGBUS, &action, &before_bus);
        sigaction(SIGFPE, &action, &before_fpe);
    }
    s.initialized = true;
    return SUCCESS;
}
ADW_EXPORT cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}
ADW_EXPORT cuDeviceGetCount(int *count) {
    *count = int(state().devices.size());
    return state().initialized ? SUCCESS : NOT_INITIALIZED;
}
ADW_EXPORT cuDeviceGet(int *device, int ordinal) {
    if (!state().initialized) return NOT_INITIALIZED;
    if (ordinal < 0 || size_t(ordinal) >= state().devices.size()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}
ADW_EXPORT cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, size_t(length), "the host, emulated");
    return SUCCESS;
}
ADW_EXPORT cuDeviceGetUuid_v2(void *uuid, int device) {
    std::memset(uuid, device, 16);
    return SUCCESS;
}
ADW_EXPORT cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = state().memory;
    return SUCCESS;
}
// An H100's.
ADW_EXPORT cuDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> values = {
        {1, 1024},           // threads of a block
        {2, 1024},           // ... along x
        {3, 1024},           // ... along y
        {4, 64},             // ... along z
        {5, 0x7fffffff},     // blocks along x
        {6, 65535},          // ... along y
        {7, 65535},          // ... along z
        {8, FREE_SHARED},    // shared memory of a block
        {10, 32},            // threads of a warp
        {12, 65536},         // registers of a block
        {13, 1980000},       // clock in kHz
        {16, 132},           // multiprocessors
        {39, 2048},          // threads of a multiprocessor
        {41, 1},             // one address space with the host
        {75, capability() / 10},
        {76, capability() % 10},
        {81, 228 * 1024},    // shared memory of a multiprocessor
        {82, 65536},         // registers of a multiprocessor
        {97, most_shared()},  // shared memory of a block, on demand
        {115, 1},            // memory pools
    };
    const auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return SUCCESS;
}
ADW_EXPORT cuDevicePrimaryCtxRetain(void **context, int device) {
    if (device < 0 || size_t(device) >= state().devices.size()) return INVALID_DEVICE;
    *context = &state().devices[size_t(device)];
    return state().lost ? LAUNCH_FAILED : SUCCESS;
}
ADW_EXPORT cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
ADW_EXPORT cuCtxGetCurrent(void **context) {
    *context = current;
    return state().initialized ? SUCCESS : NOT_INITIALIZED;
}
ADW_EXPORT cuCtxSetCurrent(void *context) {
    current = static_cast<Device *>(context);
    return SUCCESS;
}
ADW_EXPORT cuCtxDestroy_v2(void *) { return SUCCESS; }
ADW_EXPORT cuCtxSynchronize() {
    ADW_ENTER;
    return SUCCESS;
}

// Streams and events.

ADW_EXPORT cuStreamCreate(void **stream, unsigned) {
    ADW_ENTER;
    *stream = new char;
    s.streams.insert(*stream);
    return SUCCESS;
}
ADW_EXPORT cuStreamCreateWithPriority(void **stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
ADW_EXPORT cuStreamDestroy_v2(void *stream) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.streams.erase(stream)) return INVALID_HANDLE;
    delete static_cast<char *>(stream);
    return enter(s);
}
ADW_EXPORT cuStreamIsCapturing(void *stream, int *capturing) {
    ADW_ENTER_STREAM(stream);
    *capturing = 0;
    return SUCCESS;
}
ADW_EXPORT cuStreamSynchronize(void *stream) {
    ADW_ENTER_STREAM(stream);
    return SUCCESS;
}
ADW_EXPORT cuStreamQuery(void *stream) { return cuStreamSynchronize(stream); }
ADW_EXPORT cuStreamWaitEvent(void *stream, void *, unsigned) { return cuStreamSynchronize(stream); }
ADW_EXPORT cuLaunchHostFunc(void *stream, void (*call)(void *), void *argument) {
    if (const Result result = cuStreamSynchronize(stream)) return result;
    call(argument);
    return SUCCESS;
}

ADW_EXPORT cuEventCreate(void **event, unsigned) {
    ADW_ENTER;
    *event = new Event;
    return SUCCESS;
}
ADW_EXPORT cuEventDestroy_v2(void *event) {
    delete static_cast<Event *>(event);
    return state().lost ? LAUNCH_FAILED : SUCCESS;
}
ADW_EXPORT cuEventRecord(void *event, void *stream) {
    ADW_ENTER_STREAM(stream);
    *static_cast<Event *>(event) = {true, std::chrono::steady_clock::now()};
    return SUCCESS;
}
ADW_EXPORT cuEventSynchronize(void *) { return cuCtxSynchronize(); }
ADW_EXPORT cuEventQuery(void *) { return cuCtxSynchronize(); }
ADW_EXPORT cuEventElapsedTime_v2(float *ms, void *start, void *end) {
    ADW_ENTER;
    const Event &from = *static_cast<Event *>(start), &to = *static_cast<Event *>(end);
    if (!from.recorded || !to.recorded) return INVALID_HANDLE;
    *ms = std::chrono::duration<float, std::milli>(to.time - from.time).count();
    return SUCCESS;
}
ADW_EXPORT cuEventElapsedTime(float *ms, void *start, void *end) { return cuEventElapsedTime_v2(ms, start, end); }

// Memory.

ADW_EXPORT cuMemAlloc_v2(uint64_t *p, size_t bytes) {
    ADW_ENTER;
    return allocate(s, p, bytes);
}
ADW_EXPORT cuMemAllocAsync(uint64_t *p, size_t bytes, void *stream) {
    ADW_ENTER_STREAM(stream);
    return allocate(s, p, bytes);
}
ADW_EXPORT cuMemFree_v2(uint64_t p) { return release(p); }
ADW_EXPORT cuMemFreeAsync(uint64_t p, void *) { return release(p); }
ADW_EXPORT cuMemHostAlloc(void **p, size_t bytes, unsigned) {
    ADW_ENTER;
    *p = std::malloc(bytes);
    return *p ? SUCCESS : OUT_OF_MEMORY;
}
ADW_EXPORT cuMemFreeHost(void *p) {
    std::free(p);
    return SUCCESS;
}
ADW_EXPORT cuMemGetInfo_v2(size_t *free, size_t *total) {
    ADW_ENTER;
    *total = s.memory;
    *free = s.memory - current->used;
    return SUCCESS;
}
ADW_EXPORT cuDeviceGetDefaultMemPool(void **pool, int device) { return cuDevicePrimaryCtxRetain(pool, device); }
ADW_EXPORT cuDeviceGetMemPool(void **pool, int device) { return cuDevicePrimaryCtxRetain(pool, device); }
ADW_EXPORT cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }
namespace {
// CUmemPool_attribute: what the pool keeps, what it has, what is in use of it.
enum { REUSE_LAST = 3, THRESHOLD = 4, RESERVED = 5, RESERVED_HIGH = 6, USED = 7, USED_HIGH = 8 };
}  // namespace
ADW_EXPORT cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    Device &d = *static_cast<Device *>(pool);
    if (attribute == THRESHOLD) std::memcpy(&d.release_threshold, value, sizeof(uint64_t));
    if (attribute == RESERVED_HIGH || attribute == USED_HIGH) d.most_used = d.used;
    return attribute == RESERVED || attribute == USED ? INVALID_VALUE : SUCCESS;
}
ADW_EXPORT cuMemPoolGetAttribute(void *pool, int attribute, void *value) {
    const Device &d = *static_cast<Device *>(pool);
    if (attribute <= REUSE_LAST) {
        std::memset(value, 0, sizeof(int));
        return SUCCESS;
    }
    uint64_t v = d.used;
    if (attribute == THRESHOLD) v = d.release_threshold;
    if (attribute == RESERVED_HIGH || attribute == USED_HIGH) v = d.most_used;
    std::memcpy(value, &v, sizeof(v));
    return SUCCESS;
}

ADW_EXPORT cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    ADW_ENTER_STREAM(stream);
    return copy(s, to, Side::Device, reinterpret_cast<uint64_t>(from), Side::Host, bytes);
}
ADW_EXPORT cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
ADW_EXPORT cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    ADW_ENTER_STREAM(stream);
    return copy(s, reinterpret_cast<uint64_t>(to), Side::Host, from, Side::Device, bytes);
}
ADW_EXPORT cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}
ADW_EXPORT cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    ADW_ENTER_STREAM(stream);
    return copy(s, to, Side::Device, from, Side::Device, bytes);
}
ADW_EXPORT cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}
ADW_EXPORT cuMemcpyPeerAsync(uint64_t to, void *, uint64_t from, void *, size_t bytes, void *stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
ADW_EXPORT cuMemsetD8Async(uint64_t p, unsigned char value, size_t count, void *stream) {
    ADW_ENTER_STREAM(stream);
    return fill(s, p, &value, sizeof(value), count);
}
ADW_EXPORT cuMemsetD8_v2(uint64_t p, unsigned char value, size_t count) {
    return cuMemsetD8Async(p, value, count, nullptr);
}
ADW_EXPORT cuMemsetD16Async(uint64_t p, unsigned short value, size_t count, void *stream) {
    ADW_ENTER_STREAM(stream);
    return fill(s, p, &value, sizeof(value), count);
}
ADW_EXPORT cuMemsetD32Async(uint64_t p, unsigned value, size_t count, void *stream) {
    ADW_ENTER_STREAM(stream);
    return fill(s, p, &value, sizeof(value), count);
}

// Modules, functions, launches.

ADW_EXPORT cuModuleLoadData(void **module, const void *image) {
    ADW_ENTER;
    // A fat binary, or an object file: machine code.
    uint32_t magic;
    std::memcpy(&magic, image, sizeof(magic));
    auto loaded = std::make_unique<Module>();
    if (magic != 0xba55ed50 && std::memcmp(image, "\x7f" "ELF", 4) != 0) {
        loaded->ptx = static_cast<const char *>(image);
        if (loaded->ptx.find(".entry") == std::string::npos) return INVALID_IMAGE;
    }
    *module = loaded.release();
    return SUCCESS;
}
ADW_EXPORT cuModuleUnload(void *module) {
    delete static_cast<Module *>(module);
    return state().lost ? LAUNCH_FAILED : SUCCESS;
}
ADW_EXPORT cuModuleGetFunction(void **out, void *module, const char *name) {
    ADW_ENTER;
    Module &m = *static_cast<Module *>(module);
    std::unique_ptr<Function> &f = m.functions[name];
    if (!f) {
        auto found = std::make_unique<Function>();
        found->name = name;
        if (!m.ptx.empty()) {
            if (m.ptx.find(".entry " + found->name + "(") == std::string::npos) return NOT_FOUND;
            // One that is not emulated may be asked for, not launched.
            found->candles = candle::kernel(name);
        } else {
            for (void *library : s.libraries)
                if (!found->kernel) found->kernel = reinterpret_cast<Kernel>(dlsym(library, name));
            if (!found->kernel) return complain(NOT_FOUND, std::string("there is no kernel ") + name);
        }
        f = std::move(found);
    }
    *out = f.get();
    return SUCCESS;
}
namespace {
// CUfunction_attribute.
enum { MAX_THREADS = 0, MAX_DYNAMIC_SHARED = 8 };
}  // namespace
ADW_EXPORT cuFuncSetAttribute(void *function, int attribute, int value) {
    ADW_ENTER;
    if (attribute != MAX_DYNAMIC_SHARED) return SUCCESS;
    if (value < 0 || value > most_shared()) return INVALID_VALUE;
    static_cast<Function *>(function)->shared = value;
    return SUCCESS;
}
ADW_EXPORT cuFuncGetAttribute(int *value, int attribute, void *function) {
    ADW_ENTER;
    *value = attribute == MAX_THREADS ? 1024 : 0;
    if (attribute == MAX_DYNAMIC_SHARED) *value = static_cast<Function *>(function)->shared;
    return SUCCESS;
}
ADW_EXPORT cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **params, void **) {
    ADW_ENTER_STREAM(stream);
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch(s, *static_cast<Function *>(function), grid, block, shared, params);
}

// Errors.

ADW_EXPORT cuGetErrorName(Result result, const char **name) {
    *name = "CUDA_ERROR_UNKNOWN";
    for (const Message &m : MESSAGES)
        if (m.result == result) *name = m.name;
    return SUCCESS;
}
ADW_EXPORT cuGetErrorString(Result result, const char **words) {
    *words = "an error of which the emulated driver has no words";
    for (const Message &m : MESSAGES)
        if (m.result == result) *words = m.words;
    return SUCCESS;
}
