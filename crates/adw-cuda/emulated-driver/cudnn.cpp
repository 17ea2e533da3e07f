// A cuDNN whose convolutions run on the host, beside the emulated driver: the part of libcudnn.so.9 that this workspace calls, by its
// older interface (descriptors of tensors, filters and convolutions). Maps and filters have their channels last.
//
// It refuses what the real one would refuse or what must not be asked of it: operands outside an allocation, descriptors
// that do not fit together, algorithms that give other bits every time, workspaces that are too small. Products are exact
// and summed in double precision; bf16 results are rounded to nearest even.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "candle.h"

extern "C" int cuCtxSynchronize();
extern "C" int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes);

namespace {

using Status = int;
enum : Status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1001,
    BAD_PARAM = 2000,
    SHAPE_MISMATCH = 2008,
    NOT_SUPPORTED = 3000,
    EXECUTION_FAILED = 5000,
};
enum Type { FLOAT = 0, BF16 = 9 };
enum Layout { NHWC = 1 };
enum Math { TENSOR_OP = 1, FMA = 3 };
enum Mode { CROSS_CORRELATION = 1 };

using Size = std::array<int, 3>;

int product(const Size &s) { return s[0] * s[1] * s[2]; }

Status complain(Status status, const char *what) {
    std::fprintf(stderr, "emulated cuDNN: %s\n", what);
    return status;
}

struct Tensor {
    int type = -1, batch = 0, channels = 0;
    Size size{};
    size_t count() const { return size_t(batch) * size_t(channels) * size_t(product(size)); }
    size_t bytes() const { return count() * (type == BF16 ? 2 : 4); }
};

struct Filter {
    int type = -1, out = 0, in = 0;
    Size kernel{};
    size_t count() const { return size_t(out) * size_t(in) * size_t(product(kernel)); }
    size_t bytes() const { return count() * (type == BF16 ? 2 : 4); }
};

struct Convolution {
    Size padding{}, stride{};
    int math = 0;
};

struct Perf {
    int algorithm;
    Status status;
    float time;
    size_t memory;
    int deterministic, math, reserved[3];
};

bool valid(const void *p, size_t bytes) {
    const auto at = reinterpret_cast<uint64_t>(p);
    return at % 16 == 0 && cuMemcpyDtoD_v2(at, at, bytes) == 0;
}

bool skip() {
    const char *text = std::getenv("ADW_EMULATED_CUDA_SKIP");
    return text && *text == '1';
}

std::vector<double> read(const void *p, int type, size_t count) {
    std::vector<double> out(count);
    for (size_t i = 0; i < count; ++i)
        out[i] = type == BF16 ? double(candle::value(static_cast<const candle::Bf16 *>(p)[i]))
                              : double(static_cast<const float *>(p)[i]);
    return out;
}

void write(void *p, int type, const std::vector<double> &values) {
    for (size_t i = 0; i < values.size(); ++i) {
        if (type == BF16) static_cast<candle::Bf16 *>(p)[i] = candle::convert<candle::Bf16>(float(values[i]));
        else static_cast<float *>(p)[i] = float(values[i]);
    }
}

Status fit(const Tensor &x, const Filter &w, const Tensor &y, const Convolution &c) {
    if (x.type != w.type || x.type != y.type) return complain(NOT_SUPPORTED, "element types differ");
    if (c.math != (x.type == BF16 ? TENSOR_OP : FMA))
        return complain(NOT_SUPPORTED, "bf16 goes on tensor cores here, f32 must not");
    if (x.batch != y.batch || x.channels != w.in || y.channels != w.out) return SHAPE_MISMATCH;
    for (int i = 0; i < 3; ++i)
        if (y.size[i] != (x.size[i] + 2 * c.padding[i] - w.kernel[i]) / c.stride[i] + 1) return SHAPE_MISMATCH;
    return SUCCESS;
}

// What an algorithm of any pass needs beside its operands: 1 needs something on tensor cores and in f32, where it must not
// use them, but not as it is listed by default.
size_t workspace(int algorithm) { return algorithm == 1 ? 4096 : 0; }

// Algorithms for several ways of multiplying. Of the gradients', 0 and 3 add in an order that changes.
Status list(bool gradient, Status fits, int most, int *count, Perf *perfs) {
    if (fits != SUCCESS) return fits;
    const Perf all[] = {
        {gradient ? 0 : 4, gradient ? SUCCESS : NOT_SUPPORTED, 1.f, 0, !gradient, 0, {}},
        {1, SUCCESS, 2.f, 0, 1, 0, {}},
        {1, SUCCESS, 2.f, workspace(1), 1, 1, {}},
        {gradient ? 3 : 0, SUCCESS, 3.f, 0, !gradient, 0, {}},
    };
    *count = 0;
    for (const Perf &p : all)
        if (*count < most) perfs[(*count)++] = p;
    return SUCCESS;
}

enum class Pass { Forward, GradInput, GradWeight };

Status run(Pass pass, const Tensor &xt, void *x, const Filter &wt, void *w, const Tensor &yt, void *y, const Convolution &c,
           int algorithm, void *space, size_t bytes, const void *alpha, const void *beta) {
    if (cuCtxSynchronize() != 0) return EXECUTION_FAILED;
    if (const Status status = fit(xt, wt, yt, c)) return status;
    float one, zero;
    std::memcpy(&one, alpha, sizeof(one));
    std::memcpy(&zero, beta, sizeof(zero));
    if (one != 1.f || zero != 0.f) return complain(NOT_SUPPORTED, "only alpha 1 and beta 0 are emulated");
    if (pass != Pass::Forward && algorithm != 1) return complain(BAD_PARAM, "an algorithm that gives other bits every time");
    // As an algorithm that was listed and cannot run after all.
    if (std::getenv("ADW_EMULATED_CUDNN_FAILS")) return NOT_SUPPORTED;
    if (const size_t needed = workspace(algorithm)) {
        if (bytes < needed || !valid(space, needed)) return complain(BAD_PARAM, "the workspace is too small");
        if (!skip()) std::memset(space, 0xff, needed);
    }
    if (!valid(x, xt.bytes()) || !valid(w, wt.bytes()) || !valid(y, yt.bytes()))
        return complain(BAD_PARAM, "an operand lies outside an allocation, or askew");
    if (skip()) return SUCCESS;
    std::vector<double> xs(xt.count()), ws(wt.count()), ys(yt.count());
    if (pass != Pass::GradInput) xs = read(x, xt.type, xs.size());
    if (pass != Pass::GradWeight) ws = read(w, wt.type, ws.size());
    if (pass != Pass::Forward) ys = read(y, yt.type, ys.size());
    const int taps = product(wt.kernel), inputs = product(xt.size), outputs = product(yt.size);
    const auto at = [](int i, const Size &s) { return Size{i / s[2] / s[1], i / s[2] % s[1], i % s[2]}; };
    for (int b = 0; b < xt.batch; ++b)
        for (int o = 0; o < outputs; ++o)
            for (int tap = 0; tap < taps; ++tap) {
                const Size to = at(o, yt.size), k = at(tap, wt.kernel);
                Size from;
                bool inside = true;
                for (int i = 0; i < 3; ++i) {
                    from[i] = to[i] * c.stride[i] + k[i] - c.padding[i];
                    inside = inside && from[i] >= 0 && from[i] < xt.size[i];
                }
                if (!inside) continue;
                const size_t input = size_t((from[0] * xt.size[1] + from[1]) * xt.size[2] + from[2]);
                double *xp = &xs[(size_t(b) * inputs + input) * xt.channels], *yp = &ys[(size_t(b) * outputs + o) * yt.channels];
                for (int co = 0; co < wt.out; ++co) {
                    double *wp = &ws[(size_t(co) * taps + tap) * wt.in];
                    for (int ci = 0; ci < wt.in; ++ci) {
                        if (pass == Pass::Forward) yp[co] += xp[ci] * wp[ci];
                        if (pass == Pass::GradInput) xp[ci] += yp[co] * wp[ci];
                        if (pass == Pass::GradWeight) wp[ci] += xp[ci] * yp[co];
                    }
                }
            }
    if (pass == Pass::Forward) write(y, yt.type, ys);
    if (pass == Pass::GradInput) write(x, xt.type, xs);
    if (pass == Pass::GradWeight) write(w, wt.type, ws);
    return SUCCESS;
}

}  // namespace

#define ADW_EXPORT extern "C" __attribute__((visibility("default")))

ADW_EXPORT size_t cudnnGetVersion() { return 91900; }
ADW_EXPORT const char *cudnnGetErrorString(Status status) {
    switch (status) {
        case SUCCESS: return "CUDNN_STATUS_SUCCESS";
        case NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
        case BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
        case SHAPE_MISMATCH: return "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH";
        case NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
        default: return "CUDNN_STATUS_EXECUTION_FAILED";
    }
}
ADW_EXPORT void cudnnGetLastErrorString(char *message, size_t size) {
    if (size > 0) message[0] = 0;
}
ADW_EXPORT Status cudnnCreate(void **handle) {
    if (std::getenv("ADW_EMULATED_CUDNN_MISSING") || cuCtxSynchronize() != 0) return NOT_INITIALIZED;
    *handle = new char;
    return SUCCESS;
}
ADW_EXPORT Status cudnnDestroy(void *handle) {
    delete static_cast<char *>(handle);
    return SUCCESS;
}
ADW_EXPORT Status cudnnSetStream(void *, void *) { return SUCCESS; }

ADW_EXPORT Status cudnnCreateTensorDescriptor(Tensor **t) { return *t = new Tensor, SUCCESS; }
ADW_EXPORT Status cudnnDestroyTensorDescriptor(Tensor *t) { return delete t, SUCCESS; }
ADW_EXPORT Status cudnnSetTensorNdDescriptor(Tensor *t, int type, int rank, const int *dims, const int *strides) {
    if (rank != 5 || (type != FLOAT && type != BF16)) return NOT_SUPPORTED;
    *t = {type, dims[0], dims[1], {dims[2], dims[3], dims[4]}};
    const int row = dims[4] * dims[1];
    const int expected[] = {dims[2] * dims[3] * row, 1, dims[3] * row, row, dims[1]};
    for (int i = 0; i < 5; ++i)
        if (dims[i] < 1 || strides[i] != expected[i]) return complain(NOT_SUPPORTED, "a tensor without channels last");
    return SUCCESS;
}

ADW_EXPORT Status cudnnCreateFilterDescriptor(Filter **w) { return *w = new Filter, SUCCESS; }
ADW_EXPORT Status cudnnDestroyFilterDescriptor(Filter *w) { return delete w, SUCCESS; }
ADW_EXPORT Status cudnnSetFilterNdDescriptor(Filter *w, int type, int layout, int rank, const int *dims) {
    if (rank != 5 || layout != NHWC) return NOT_SUPPORTED;
    *w = {type, dims[0], dims[1], {dims[2], dims[3], dims[4]}};
    return SUCCESS;
}

ADW_EXPORT Status cudnnCreateConvolutionDescriptor(Convolution **c) { return *c = new Convolution, SUCCESS; }
ADW_EXPORT Status cudnnDestroyConvolutionDescriptor(Convolution *c) { return delete c, SUCCESS; }
ADW_EXPORT Status cudnnSetConvolutionNdDescriptor(Convolution *c, int rank, const int *padding, const int *stride,
                                                  const int *dilation, int mode, int type) {
    if (rank != 3 || mode != CROSS_CORRELATION || type != FLOAT) return NOT_SUPPORTED;
    for (int i = 0; i < 3; ++i) {
        c->padding[i] = padding[i];
        c->stride[i] = stride[i];
        if (dilation[i] != 1) return NOT_SUPPORTED;
    }
    return SUCCESS;
}
ADW_EXPORT Status cudnnSetConvolutionMathType(Convolution *c, int math) { return c->math = math, SUCCESS; }

ADW_EXPORT Status cudnnGetConvolutionForwardAlgorithm_v7(void *, const Tensor *x, const Filter *w, const Convolution *c,
                                                         const Tensor *y, int most, int *count, Perf *perfs) {
    return list(false, fit(*x, *w, *y, *c), most, count, perfs);
}
ADW_EXPORT Status cudnnGetConvolutionBackwardDataAlgorithm_v7(void *, const Filter *w, const Tensor *y, const Convolution *c,
                                                              const Tensor *x, int most, int *count, Perf *perfs) {
    return list(true, fit(*x, *w, *y, *c), most, count, perfs);
}
ADW_EXPORT Status cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *, const Tensor *x, const Tensor *y,
                                                                const Convolution *c, const Filter *w, int most, int *count,
                                                                Perf *perfs) {
    return list(true, fit(*x, *w, *y, *c), most, count, perfs);
}

ADW_EXPORT Status cudnnGetConvolutionForwardWorkspaceSize(void *, const Tensor *, const Filter *, const Convolution *,
                                                          const Tensor *, int algorithm, size_t *bytes) {
    return *bytes = workspace(algorithm), SUCCESS;
}
ADW_EXPORT Status cudnnGetConvolutionBackwardDataWorkspaceSize(void *, const Filter *, const Tensor *, const Convolution *,
                                                               const Tensor *, int algorithm, size_t *bytes) {
    return *bytes = workspace(algorithm), SUCCESS;
}
ADW_EXPORT Status cudnnGetConvolutionBackwardFilterWorkspaceSize(void *, const Tensor *, const Tensor *,
                                                                 const Convolution *, const Filter *, int algorithm,
                                                                 size_t *bytes) {
    return *bytes = workspace(algorithm), SUCCESS;
}

ADW_EXPORT Status cudnnConvolutionForward(void *, const void *alpha, const Tensor *xt, void *x, const Filter *wt, void *w,
                                          const Convolution *c, int algorithm, void *workspace, size_t bytes,
                                          const void *beta, const Tensor *yt, void *y) {
    return run(Pass::Forward, *xt, x, *wt, w, *yt, y, *c, algorithm, workspace, bytes, alpha, beta);
}
ADW_EXPORT Status cudnnConvolutionBackwardData(void *, const void *alpha, const Filter *wt, void *w, const Tensor *yt,
                                               void *y, const Convolution *c, int algorithm, void *workspace, size_t bytes,
                                               const void *beta, const Tensor *xt, void *x) {
    return run(Pass::GradInput, *xt, x, *wt, w, *yt, y, *c, algorithm, workspace, bytes, alpha, beta);
}
ADW_EXPORT Status cudnnConvolutionBackwardFilter(void *, const void *alpha, const Tensor *xt, void *x, const Tensor *yt,
                                                 void *y, const Convolution *c, int algorithm, void *workspace,
                                                 size_t bytes, const void *beta, const Filter *wt, void *w) {
    return run(Pass::GradWeight, *xt, x, *wt, w, *yt, y, *c, algorithm, workspace, bytes, alpha, beta);
}
