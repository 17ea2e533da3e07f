// A CUDA driver whose device is the host: what candle and cudarc ask of libcuda.so.1, with this workspace's kernels run by
// ../include/emulate.h. The program that was built for a GPU runs on it unchanged, on a machine that has none.
//
// Device memory is host memory with guards around every allocation, filled with not-a-number before its first use and
// after its last, so that code that reads what was never written, or what was freed, computes nonsense that tests see.
// Streams are in order and done at once. What is not emulated: asynchrony, several streams, speed.
//
// Kernels are looked up by name in the shared objects `kernels-*.so` beside this library. Of candle's own kernels those
// that copy, cast and add are here; any other one fails with a line on stderr that names it.
//
// For tests, environment variables: ADW_EMULATED_CUDA_DEVICES (number of devices), ADW_EMULATED_CUDA_MEMORY (bytes of a
// device), ADW_EMULATED_CUDA_FAIL_AT (this launch and all that comes after it fails, as on a device that was lost),
// ADW_EMULATED_CUDA_SKIP (launches do nothing, and memory is never touched), ADW_EMULATED_CUDA_LOG (a file that gets a
// line per launch).
#include <dirent.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

using Result = int;
enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xa5, POISON = 0xff;
constexpr int MOST_SHARED = 227 * 1024, FREE_SHARED = 48 * 1024;

using Native = void (*)(void **);
using Kernel = const char *(*)(const void *, const unsigned *);

struct Function {
    std::string name;
    Kernel kernel = nullptr;
    Native native = nullptr;
    int shared = FREE_SHARED;
};

long long number(const char *name, long long otherwise) {
    const char *text = std::getenv(name);
    return text && *text ? std::atoll(text) : otherwise;
}

struct State {
    std::mutex mutex;
    std::map<uint64_t, size_t> allocations;
    size_t used = 0;
    const size_t memory = size_t(number("ADW_EMULATED_CUDA_MEMORY", 80LL << 30));
    const long long fail_at = number("ADW_EMULATED_CUDA_FAIL_AT", -1);
    const bool skip = std::getenv("ADW_EMULATED_CUDA_SKIP") != nullptr;
    long long launches = 0;
    bool lost = false;
    std::map<std::string, std::unique_ptr<Function>> functions;
    std::vector<void *> libraries;
    FILE *log = nullptr;

    State() {
        if (const char *file = std::getenv("ADW_EMULATED_CUDA_LOG")) log = std::fopen(file, "w");
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

Result complain(Result result, const std::string &what) {
    std::fprintf(stderr, "emulated CUDA: %s\n", what.c_str());
    return result;
}

// Whether [p, p + bytes) lies in one allocation.
bool valid(const State &s, uint64_t p, size_t bytes) {
    auto after = s.allocations.upper_bound(p);
    if (after == s.allocations.begin()) return false;
    const auto &[begin, size] = *--after;
    return p + bytes <= begin + size;
}

Result allocate(uint64_t *out, size_t bytes) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (s.lost) return LAUNCH_FAILED;
    if (bytes == 0) return INVALID_VALUE;
    if (s.used + bytes > s.memory) return OUT_OF_MEMORY;
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
    s.allocations[*out] = bytes;
    s.used += bytes;
    return SUCCESS;
}

Result release(uint64_t p) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    const auto found = s.allocations.find(p);
    if (found == s.allocations.end()) return complain(INVALID_VALUE, "freed what was not allocated");
    const size_t bytes = found->second;
    char *base = reinterpret_cast<char *>(p) - GUARD;
    s.used -= bytes;
    s.allocations.erase(found);
    if (s.skip) {
        munmap(base, bytes + 2 * GUARD);
        return SUCCESS;
    }
    for (size_t i = 0; i < GUARD; ++i) {
        if (static_cast<unsigned char>(base[i]) == GUARD_BYTE &&
            static_cast<unsigned char>(base[GUARD + bytes + i]) == GUARD_BYTE)
            continue;
        complain(INVALID_VALUE, "something wrote outside an allocation of " + std::to_string(bytes) + " bytes");
        std::abort();
    }
    std::memset(base + GUARD, POISON, bytes);
    std::free(base);
    return SUCCESS;
}

enum class Side { Host, Device };

Result copy(uint64_t to, Side to_side, uint64_t from, Side from_side, size_t bytes) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (s.lost) return LAUNCH_FAILED;
    if ((to_side == Side::Device && !valid(s, to, bytes)) || (from_side == Side::Device && !valid(s, from, bytes)))
        return complain(INVALID_VALUE, "a copy outside an allocation");
    if (!s.skip) {
        std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
    } else if (to_side == Side::Host) {
        std::memset(reinterpret_cast<void *>(to), 0, bytes);
    }
    return SUCCESS;
}

// candle's elementwise kernels: element count, rank, dims followed by the strides of each operand (or null), operands.
struct Strided {
    size_t count, rank;
    const size_t *info;

    explicit Strided(void **a)
        : count(*static_cast<size_t *>(a[0])),
          rank(*static_cast<size_t *>(a[1])),
          info(*static_cast<const size_t **>(a[2])) {}

    size_t index(size_t i, size_t operand) const {
        if (!info) return i;
        size_t at = 0;
        for (size_t d = rank; d-- > 0; i /= info[d]) at += i % info[d] * info[(1 + operand) * rank + d];
        return at;
    }
};

template <class T>
T *pointer(void *argument) {
    return *static_cast<T **>(argument);
}

struct Bf16 {
    uint16_t bits;
};
float value(float v) { return v; }
double value(double v) { return v; }
uint8_t value(uint8_t v) { return v; }
float value(Bf16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
template <class T, class V>
void store(T &to, V v) {
    to = T(v);
}
template <class V>
void store(Bf16 &to, V v) {
    const float f = float(v);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    to.bits = f != f ? 0x7fff : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T>
void copy_strided(void **a) {
    const Strided s(a);
    const T *in = pointer<const T>(a[3]);
    T *out = pointer<T>(a[4]);
    for (size_t i = 0; i < s.count; ++i) out[i] = in[s.index(i, 0)];
}

template <class From, class To>
void cast(void **a) {
    const Strided s(a);
    const From *in = pointer<const From>(a[3]);
    To *out = pointer<To>(a[4]);
    for (size_t i = 0; i < s.count; ++i) store(out[i], value(in[s.index(i, 0)]));
}

template <class T, class F>
void binary(void **a, F f) {
    const Strided s(a);
    const T *x = pointer<const T>(a[3]), *y = pointer<const T>(a[4]);
    T *out = pointer<T>(a[5]);
    for (size_t i = 0; i < s.count; ++i) store(out[i], f(value(x[s.index(i, 0)]), value(y[s.index(i, 1)])));
}
template <class T>
void add(void **a) {
    binary<T>(a, [](auto x, auto y) { return x + y; });
}
template <class T>
void subtract(void **a) {
    binary<T>(a, [](auto x, auto y) { return x - y; });
}
template <class T>
void multiply(void **a) {
    binary<T>(a, [](auto x, auto y) { return x * y; });
}

// x * a + b
void affine(void **a) {
    const Strided s(a);
    const float *in = pointer<const float>(a[3]);
    float *out = pointer<float>(a[4]);
    const float factor = *static_cast<float *>(a[5]), term = *static_cast<float *>(a[6]);
    for (size_t i = 0; i < s.count; ++i) out[i] = in[s.index(i, 0)] * factor + term;
}

Native candle_kernel(const std::string &name) {
    static const std::map<std::string, Native> all = {
        {"ucopy_f32", copy_strided<float>},
        {"ucopy_bf16", copy_strided<Bf16>},
        {"ucopy_f64", copy_strided<double>},
        {"ucopy_u8", copy_strided<uint8_t>},
        {"ucopy_u32", copy_strided<uint32_t>},
        {"cast_f32_bf16", cast<float, Bf16>},
        {"cast_bf16_f32", cast<Bf16, float>},
        {"cast_f32_f64", cast<float, double>},
        {"cast_f64_f32", cast<double, float>},
        {"cast_u8_f32", cast<uint8_t, float>},
        {"cast_f32_u8", cast<float, uint8_t>},
        {"cast_u8_i64", cast<uint8_t, int64_t>},
        {"badd_f32", add<float>},
        {"badd_bf16", add<Bf16>},
        {"bsub_f32", subtract<float>},
        {"bmul_f32", multiply<float>},
        {"affine_f32", affine},
    };
    const auto found = all.find(name);
    return found == all.end() ? nullptr : found->second;
}

}  // namespace

#define ADW_EXPORT extern "C" __attribute__((visibility("default"))) Result

ADW_EXPORT cuInit(unsigned) { return number("ADW_EMULATED_CUDA_DEVICES", 1) > 0 ? SUCCESS : NO_DEVICE; }
ADW_EXPORT cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}
ADW_EXPORT cuDeviceGetCount(int *count) {
    *count = int(number("ADW_EMULATED_CUDA_DEVICES", 1));
    return SUCCESS;
}
ADW_EXPORT cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < number("ADW_EMULATED_CUDA_DEVICES", 1) ? SUCCESS : INVALID_DEVICE;
}
ADW_EXPORT cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, size_t(length), "the host, emulated");
    return SUCCESS;
}
ADW_EXPORT cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;               // threads of a block
        case 16: *value = 132; break;               // multiprocessors
        case 75: *value = 9; break;                 // compute capability
        case 76: *value = 0; break;
        case 97: *value = MOST_SHARED; break;       // shared memory of a block, on demand
        case 115: *value = 1; break;                // memory pools
        default: *value = 0;
    }
    return SUCCESS;
}
ADW_EXPORT cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = state().memory;
    return SUCCESS;
}
ADW_EXPORT cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &state();
    return SUCCESS;
}
ADW_EXPORT cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
ADW_EXPORT cuCtxGetCurrent(void **context) {
    *context = &state();
    return SUCCESS;
}
ADW_EXPORT cuCtxSetCurrent(void *) { return SUCCESS; }
ADW_EXPORT cuCtxDestroy_v2(void *) { return SUCCESS; }
ADW_EXPORT cuCtxSynchronize() { return state().lost ? LAUNCH_FAILED : SUCCESS; }
ADW_EXPORT cuDeviceGetDefaultMemPool(void **pool, int) {
    *pool = &state();
    return SUCCESS;
}
ADW_EXPORT cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
ADW_EXPORT cuEventCreate(void **event, unsigned) {
    *event = &state();
    return SUCCESS;
}
ADW_EXPORT cuEventDestroy_v2(void *) { return SUCCESS; }
ADW_EXPORT cuEventRecord(void *, void *) { return SUCCESS; }
ADW_EXPORT cuEventSynchronize(void *) { return SUCCESS; }
ADW_EXPORT cuEventElapsedTime_v2(float *ms, void *, void *) {
    *ms = 0.f;
    return SUCCESS;
}
ADW_EXPORT cuStreamCreate(void **stream, unsigned) {
    *stream = &state();
    return SUCCESS;
}
ADW_EXPORT cuStreamDestroy_v2(void *) { return SUCCESS; }
ADW_EXPORT cuStreamIsCapturing(void *, int *capturing) {
    *capturing = 0;
    return SUCCESS;
}
ADW_EXPORT cuStreamSynchronize(void *) { return state().lost ? LAUNCH_FAILED : SUCCESS; }
ADW_EXPORT cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }

ADW_EXPORT cuMemAlloc_v2(uint64_t *p, size_t bytes) { return allocate(p, bytes); }
ADW_EXPORT cuMemAllocAsync(uint64_t *p, size_t bytes, void *) { return allocate(p, bytes); }
ADW_EXPORT cuMemFree_v2(uint64_t p) { return release(p); }
ADW_EXPORT cuMemFreeAsync(uint64_t p, void *) { return release(p); }
ADW_EXPORT cuMemGetInfo_v2(size_t *free, size_t *total) {
    *total = state().memory;
    *free = state().memory - state().used;
    return SUCCESS;
}
ADW_EXPORT cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    return copy(to, Side::Device, reinterpret_cast<uint64_t>(from), Side::Host, bytes);
}
ADW_EXPORT cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    return copy(reinterpret_cast<uint64_t>(to), Side::Host, from, Side::Device, bytes);
}
ADW_EXPORT cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) {
    return copy(to, Side::Device, from, Side::Device, bytes);
}
ADW_EXPORT cuMemcpyPeerAsync(uint64_t to, void *, uint64_t from, void *, size_t bytes, void *) {
    return copy(to, Side::Device, from, Side::Device, bytes);
}
ADW_EXPORT cuMemsetD8Async(uint64_t p, unsigned char byte, size_t bytes, void *) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (s.lost) return LAUNCH_FAILED;
    if (!valid(s, p, bytes)) return complain(INVALID_VALUE, "a fill outside an allocation");
    if (!s.skip) std::memset(reinterpret_cast<void *>(p), byte, bytes);
    return SUCCESS;
}

ADW_EXPORT cuModuleLoad(void **module, const char *) {
    *module = &state();
    return SUCCESS;
}
ADW_EXPORT cuModuleLoadData(void **module, const void *) {
    *module = &state();
    return SUCCESS;
}
ADW_EXPORT cuModuleUnload(void *) { return SUCCESS; }
ADW_EXPORT cuModuleGetFunction(void **out, void *, const char *name) {
    State &s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    std::unique_ptr<Function> &f = s.functions[name];
    if (!f) {
        f = std::make_unique<Function>();
        f->name = name;
        f->native = candle_kernel(name);
        for (void *library : s.libraries) {
            if (!f->native && !f->kernel) f->kernel = reinterpret_cast<Kernel>(dlsym(library, name));
        }
    }
    *out = f.get();
    return SUCCESS;
}
ADW_EXPORT cuFuncSetAttribute(void *function, int attribute, int value) {
    constexpr int MAX_DYNAMIC_SHARED = 8;
    if (attribute != MAX_DYNAMIC_SHARED) return SUCCESS;
    if (value > MOST_SHARED) return INVALID_VALUE;
    static_cast<Function *>(function)->shared = value;
    return SUCCESS;
}
ADW_EXPORT cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *, void **params, void **) {
    State &s = state();
    const Function &f = *static_cast<Function *>(function);
    const std::lock_guard<std::mutex> lock(s.mutex);
    ++s.launches;
    if (s.log) {
        std::fprintf(s.log,
                     "{\"kernel\":\"%s\",\"grid\":[%u,%u,%u],\"threads\":%u,\"shared\":%u,\"memory\":%zu}\n",
                     f.name.c_str(), gx, gy, gz, bx, shared, s.used);
        std::fflush(s.log);
    }
    if (s.fail_at >= 0 && s.launches >= s.fail_at) s.lost = true;
    if (s.lost) return LAUNCH_FAILED;
    if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx == 0 || bx > 1024)
        return complain(INVALID_VALUE, f.name + ": a grid that cannot be launched");
    if (int(shared) > f.shared)
        return complain(INVALID_VALUE, f.name + ": more shared memory than the function was allowed");
    if (s.skip) return SUCCESS;
    if (f.native) {
        f.native(params);
        return SUCCESS;
    }
    if (!f.kernel) return complain(NOT_FOUND, "there is no kernel " + f.name);
    if (by != 1 || bz != 1) return complain(INVALID_VALUE, f.name + ": blocks have one dimension here");
    // Zero: this side does not know the size of the kernel's argument.
    const unsigned config[] = {gx, gy, gz, bx, shared, 0, 0};
    if (const char *error = f.kernel(params[0], config)) {
        s.lost = true;
        return complain(LAUNCH_FAILED, f.name + ": " + error);
    }
    return SUCCESS;
}

ADW_EXPORT cuGetErrorName(Result result, const char **name);
ADW_EXPORT cuGetErrorString(Result result, const char **words) {
    switch (result) {
        case SUCCESS: *words = "no error"; break;
        case INVALID_VALUE: *words = "invalid argument"; break;
        case OUT_OF_MEMORY: *words = "out of memory"; break;
        case NO_DEVICE: *words = "no CUDA-capable device is detected"; break;
        case INVALID_DEVICE: *words = "invalid device ordinal"; break;
        case NOT_FOUND: *words = "named symbol not found"; break;
        case LAUNCH_FAILED: *words = "unspecified launch failure"; break;
        default: *words = "not emulated";
    }
    return SUCCESS;
}
ADW_EXPORT cuGetErrorName(Result result, const char **name) { return cuGetErrorString(result, name); }
