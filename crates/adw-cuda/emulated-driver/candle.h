// Those of candle's own CUDA kernels that copy, convert and compute element by element, and its reductions: enough for
// tensors to be made, moved, cut, joined and looked at. By the names and with the arguments that candle launches them
// with; each runs as a loop, as nothing here tests candle's kernels. Sums are exact where the device's are rounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <type_traits>

namespace candle {

// A kernel on the arguments of its launch, each given by its address.
using Kernel = void (*)(void **);

struct Bf16 {
    uint16_t bits;
};

// What a type is computed in: bf16 in f32, everything else in itself.
inline float value(Bf16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
template <class T>
T value(T v) {
    return v;
}
template <class T>
using Value = decltype(value(T()));

// Conversion as the device has it: to nearest even for bf16, and to the nearest that there is for integers, where C++
// leaves what does not fit undefined.
template <class T, class V>
T convert(V v) {
    if constexpr (std::is_same_v<T, Bf16>) {
        const float f = float(v);
        uint32_t bits;
        std::memcpy(&bits, &f, 4);
        return {f != f ? uint16_t(0x7fff) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
    } else if constexpr (std::is_integral_v<T> && std::is_floating_point_v<V>) {
        using Limits = std::numeric_limits<T>;
        if (v != v) return 0;
        if (v <= V(Limits::min())) return Limits::min();
        return v >= V(Limits::max()) ? Limits::max() : T(v);
    } else {
        return T(v);
    }
}

template <class T>
T argument(void *p) {
    T v;
    std::memcpy(&v, p, sizeof(T));
    return v;
}

// How most kernels begin: element count, rank, and a list of the dims followed by each operand's strides (or null, if
// all are contiguous).
struct Strided {
    size_t count, rank;
    const size_t *info;

    explicit Strided(void **a)
        : count(argument<size_t>(a[0])), rank(argument<size_t>(a[1])), info(argument<const size_t *>(a[2])) {}
    Strided(size_t count, void **a) : count(count), rank(argument<size_t>(a[0])), info(argument<const size_t *>(a[1])) {}

    // Where element `i` of an operand lies.
    size_t operator()(size_t i, size_t operand) const {
        if (!info) return i;
        size_t at = 0;
        for (size_t d = rank; d-- > 0; i /= info[d]) at += i % info[d] * info[(1 + operand) * rank + d];
        return at;
    }
};

template <class T>
void copy(void **a) {
    const Strided at(a);
    const T *in = argument<const T *>(a[3]);
    T *out = argument<T *>(a[4]);
    for (size_t i = 0; i < at.count; ++i) out[i] = in[at(i, 0)];
}

template <class T>
void copy2d(void **a) {
    const T *in = argument<const T *>(a[0]);
    T *out = argument<T *>(a[1]);
    const size_t rows = argument<uint32_t>(a[2]), columns = argument<uint32_t>(a[3]);
    const size_t in_stride = argument<uint32_t>(a[4]), out_stride = argument<uint32_t>(a[5]);
    for (size_t r = 0; r < rows; ++r) std::memcpy(out + r * out_stride, in + r * in_stride, columns * sizeof(T));
}

template <class T>
void fill(void **a) {
    std::fill_n(argument<T *>(a[0]), argument<size_t>(a[2]), argument<T>(a[1]));
}

template <class T>
void const_set(void **a) {
    const Strided at(a);
    T *out = argument<T *>(a[4]);
    for (size_t i = 0; i < at.count; ++i) out[at(i, 0)] = argument<T>(a[3]);
}

template <class From, class To>
void cast(void **a) {
    const Strided at(a);
    const From *in = argument<const From *>(a[3]);
    To *out = argument<To *>(a[4]);
    for (size_t i = 0; i < at.count; ++i) out[i] = convert<To>(value(in[at(i, 0)]));
}

template <class T>
void affine(void **a) {
    const Strided at(a);
    const T *in = argument<const T *>(a[3]);
    T *out = argument<T *>(a[4]);
    const auto factor = value(argument<T>(a[5])), summand = value(argument<T>(a[6]));
    for (size_t i = 0; i < at.count; ++i) {
        const auto x = value(in[at(i, 0)]);
        if constexpr (std::is_same_v<T, Bf16>) {
            out[i] = convert<T>(value(convert<T>(x * factor)) + summand);
        } else if constexpr (std::is_floating_point_v<T>) {
            out[i] = std::fma(x, factor, summand);
        } else {
            out[i] = T(x * factor + summand);
        }
    }
}

template <class Op, class T>
void unary(void **a) {
    const Strided at(a);
    const T *in = argument<const T *>(a[3]);
    T *out = argument<T *>(a[4]);
    for (size_t i = 0; i < at.count; ++i) out[i] = convert<T>(Op()(value(in[at(i, 0)])));
}

template <class T>
void power(void **a) {
    const Strided at(a);
    const auto exponent = value(argument<T>(a[3]));
    const T *in = argument<const T *>(a[4]);
    T *out = argument<T *>(a[5]);
    for (size_t i = 0; i < at.count; ++i) out[i] = convert<T>(std::pow(value(in[at(i, 0)]), exponent));
}

template <class Op, class T, class To>
void binary(void **a) {
    const Strided at(a);
    const T *x = argument<const T *>(a[3]), *y = argument<const T *>(a[4]);
    To *out = argument<To *>(a[5]);
    for (size_t i = 0; i < at.count; ++i) out[i] = convert<To>(Op()(value(x[at(i, 0)]), value(y[at(i, 1)])));
}

template <class Condition, class T>
void where(void **a) {
    const Strided at(a);
    const Condition *condition = argument<const Condition *>(a[3]);
    const T *yes = argument<const T *>(a[4]), *no = argument<const T *>(a[5]);
    T *out = argument<T *>(a[6]);
    for (size_t i = 0; i < at.count; ++i) out[i] = condition[at(i, 0)] ? yes[at(i, 1)] : no[at(i, 2)];
}

// Reductions: element count (of the result, for sums of few), elements per result, rank, info, in, out.
template <class T, bool FEW>
void sum(void **a) {
    const size_t count = argument<size_t>(a[0]), each = argument<size_t>(a[1]);
    const Strided at(count, a + 2);
    const T *in = argument<const T *>(a[4]);
    T *out = argument<T *>(a[5]);
    using Sum = std::conditional_t<std::is_floating_point_v<Value<T>>, double, T>;
    for (size_t o = 0; o < (FEW ? count : count / each); ++o) {
        Sum total = 0;
        for (size_t i = 0; i < each; ++i) total = Sum(total + value(in[at(o * each + i, 0)]));
        out[o] = convert<T>(total);
    }
}

template <class Better, class T, bool INDEX>
void extremum(void **a) {
    const size_t count = argument<size_t>(a[0]), each = argument<size_t>(a[1]);
    const Strided at(count, a + 2);
    const T *in = argument<const T *>(a[4]);
    for (size_t o = 0; o < count / each; ++o) {
        size_t best = 0;
        for (size_t i = 1; i < each; ++i)
            if (Better()(value(in[at(o * each + i, 0)]), value(in[at(o * each + best, 0)]))) best = i;
        if constexpr (INDEX) {
            argument<uint32_t *>(a[5])[o] = uint32_t(best);
        } else {
            argument<T *>(a[5])[o] = in[at(o * each + best, 0)];
        }
    }
}

#define ADW_OPERATION(NAME, ARGUMENTS, ...) \
    struct NAME {                           \
        template <class T>                  \
        auto operator() ARGUMENTS const {   \
            return __VA_ARGS__;             \
        }                                   \
    };
ADW_OPERATION(Negative, (T x), -x)
ADW_OPERATION(Reciprocal, (T x), T(1) / x)
ADW_OPERATION(Exponential, (T x), std::exp(x))
ADW_OPERATION(Logarithm, (T x), std::log(x))
ADW_OPERATION(Square, (T x), x *x)
ADW_OPERATION(Root, (T x), std::sqrt(x))
ADW_OPERATION(Magnitude, (T x), std::abs(x))
ADW_OPERATION(Floor, (T x), std::floor(x))
ADW_OPERATION(Ceiling, (T x), std::ceil(x))
ADW_OPERATION(Round, (T x), std::round(x))
ADW_OPERATION(Tanh, (T x), std::tanh(x))
ADW_OPERATION(Sigmoid, (T x), T(1) / (T(1) + std::exp(-x)))
// Not-a-number stays what it is, in either argument.
ADW_OPERATION(Rectified, (T x), x != x || x > T(0) ? x : T(0))
ADW_OPERATION(Add, (T x, T y), x + y)
ADW_OPERATION(Subtract, (T x, T y), x - y)
ADW_OPERATION(Multiply, (T x, T y), x *y)
ADW_OPERATION(Divide, (T x, T y), x / y)
ADW_OPERATION(Minimum, (T x, T y), x != x || x < y ? x : y)
ADW_OPERATION(Maximum, (T x, T y), x != x || x > y ? x : y)
ADW_OPERATION(Equal, (T x, T y), uint8_t(x == y))
ADW_OPERATION(Unequal, (T x, T y), uint8_t(x != y))
ADW_OPERATION(Less, (T x, T y), uint8_t(x < y))
ADW_OPERATION(AtMost, (T x, T y), uint8_t(x <= y))
ADW_OPERATION(Greater, (T x, T y), uint8_t(x > y))
ADW_OPERATION(AtLeast, (T x, T y), uint8_t(x >= y))
#undef ADW_OPERATION

using Kernels = std::map<std::string, Kernel>;

template <class T>
void add_casts(Kernels &all, const std::string &from) {
    all["cast_" + from + "_f32"] = cast<T, float>;
    all["cast_" + from + "_f64"] = cast<T, double>;
    all["cast_" + from + "_bf16"] = cast<T, Bf16>;
    all["cast_" + from + "_u8"] = cast<T, uint8_t>;
    all["cast_" + from + "_u32"] = cast<T, uint32_t>;
    all["cast_" + from + "_i64"] = cast<T, int64_t>;
}

template <class T>
void add_type(Kernels &all, const std::string &type) {
    all["ucopy_" + type] = copy<T>;
    all["copy2d_" + type] = copy2d<T>;
    all["fill_" + type] = fill<T>;
    all["const_set_" + type] = const_set<T>;
    all["affine_" + type] = affine<T>;
    all["badd_" + type] = binary<Add, T, T>;
    all["bsub_" + type] = binary<Subtract, T, T>;
    all["bmul_" + type] = binary<Multiply, T, T>;
    all["bminimum_" + type] = binary<Minimum, T, T>;
    all["bmaximum_" + type] = binary<Maximum, T, T>;
    all["eq_" + type] = binary<Equal, T, uint8_t>;
    all["ne_" + type] = binary<Unequal, T, uint8_t>;
    all["lt_" + type] = binary<Less, T, uint8_t>;
    all["le_" + type] = binary<AtMost, T, uint8_t>;
    all["gt_" + type] = binary<Greater, T, uint8_t>;
    all["ge_" + type] = binary<AtLeast, T, uint8_t>;
    all["where_u8_" + type] = where<uint8_t, T>;
    all["where_u32_" + type] = where<uint32_t, T>;
    all["where_i64_" + type] = where<int64_t, T>;
    all["fast_sum_" + type] = sum<T, false>;
    all["fast_sum_small_" + type] = sum<T, true>;
    all["fast_min_" + type] = extremum<Less, T, false>;
    all["fast_max_" + type] = extremum<Greater, T, false>;
    all["fast_argmin_" + type] = extremum<Less, T, true>;
    all["fast_argmax_" + type] = extremum<Greater, T, true>;
    add_casts<T>(all, type);
    if constexpr (std::is_floating_point_v<Value<T>>) {
        all["bdiv_" + type] = binary<Divide, T, T>;
        all["upowf_" + type] = power<T>;
        all["uneg_" + type] = unary<Negative, T>;
        all["urecip_" + type] = unary<Reciprocal, T>;
        all["uexp_" + type] = unary<Exponential, T>;
        all["ulog_" + type] = unary<Logarithm, T>;
        all["usqr_" + type] = unary<Square, T>;
        all["usqrt_" + type] = unary<Root, T>;
        all["uabs_" + type] = unary<Magnitude, T>;
        all["ufloor_" + type] = unary<Floor, T>;
        all["uceil_" + type] = unary<Ceiling, T>;
        all["uround_" + type] = unary<Round, T>;
        all["utanh_" + type] = unary<Tanh, T>;
        all["usigmoid_" + type] = unary<Sigmoid, T>;
        all["urelu_" + type] = unary<Rectified, T>;
    }
}

// The kernel of that name, or null.
inline Kernel kernel(const std::string &name) {
    static const Kernels all = [] {
        Kernels k;
        add_type<float>(k, "f32");
        add_type<double>(k, "f64");
        add_type<Bf16>(k, "bf16");
        add_type<uint8_t>(k, "u8");
        add_type<uint32_t>(k, "u32");
        add_type<int64_t>(k, "i64");
        return k;
    }();
    const auto found = all.find(name);
    return found == all.end() ? nullptr : found->second;
}

}  // namespace candle
