// y = min(max(x, 0), z_c) with one bound z_c a channel, and its gradients, on the bits of the numbers.
//
// Read as signed integers, non-negative floats keep their order and all negative ones lie below: two integer
// instructions clip float32, bfloat16, float16 and float64 alike, and comparing bits is comparing values. A NaN is a
// magnitude above infinity's.
//
// The loops are plain C++ that compilers turn into vector code; clipped_relu.cpp compiles them per instruction set.
// Every sum has an order that depends on the shape alone, so results are the same bits on every path.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.hpp"

namespace poisonkit::clip {

struct Float32 {
  using Bits = int32_t;
  using Sum = float;
  static constexpr Bits kInfinity = 0x7f800000;
  static POISONKIT_INLINE Sum value(Bits bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

struct Float64 {
  using Bits = int64_t;
  using Sum = double;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
  static POISONKIT_INLINE Sum value(Bits bits) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

struct BFloat16 {
  using Bits = int16_t;
  using Sum = float;
  static constexpr Bits kInfinity = 0x7f80;
  static POISONKIT_INLINE Sum value(Bits bits) { return Float32::value(int32_t{bits} * (1 << 16)); }
};

struct Float16 {
  using Bits = int16_t;
  using Sum = float;
  static constexpr Bits kInfinity = 0x7c00;
  static POISONKIT_INLINE Sum value(Bits bits) {
    // The exponent's bias grows from 15 to 127, and infinity's 31 becomes 255. A subnormal is a multiple of 2^-24; it
    // never passes through a subnormal float32, which some processors take a hundred times as long for.
    const int32_t magnitude = bits & 0x7fff;
    const int32_t normal = (magnitude << 13) + (magnitude < kInfinity ? 112 << 23 : 224 << 23);
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    int32_t subnormal;
    std::memcpy(&subnormal, &small, sizeof(small));
    const int32_t is_normal = -static_cast<int32_t>(magnitude >= 0x400);
    const int32_t absolute = (subnormal & ~is_normal) | (normal & is_normal);  // a ?: would not become vector code
    return Float32::value(absolute | static_cast<int32_t>(static_cast<uint32_t>(bits & 0x8000) << 16));
  }
};

template <class Float>
POISONKIT_INLINE bool is_nan(typename Float::Bits bits) {
  return (bits & std::numeric_limits<typename Float::Bits>::max()) > Float::kInfinity;
}

// The tensor in memory is [outer, channels, inner], none of them 0; inner is 1 where channels come last. It is cut into
// pieces, which threads share: a plane, which has one bound, or rows of channels. Rows are read in runs, with the
// bounds of all channels as often as it takes to make a run worth a vector loop.
struct Pieces {
  static constexpr int64_t kRun = 256;
  static constexpr int64_t kPiece = 1 << 16;  // elements of a piece of rows

  int64_t channels, total, run, length, count;
  bool planes;

  Pieces(int64_t outer, int64_t channels_, int64_t inner)
      : channels(channels_), total(outer * channels_ * inner), planes(inner != 1) {
    run = channels * std::max<int64_t>(1, kRun / channels);
    length = planes ? inner : run * std::max<int64_t>(1, kPiece / run);
    count = (total + length - 1) / length;
  }

  // How many sums the pieces leave: number i belongs to channel i % channels.
  int64_t sums() const { return planes ? count : count * run; }
};

template <class Float>
using Bounds = std::vector<typename Float::Bits>;

// The bounds in the order the pieces read them. `nan` takes the place of NaN, and 0.0 that of -0.0.
template <class Float>
Bounds<Float> bounds(const typename Float::Bits* bound, const Pieces& pieces, typename Float::Bits nan) {
  Bounds<Float> result(pieces.planes ? pieces.channels : pieces.run);
  for (size_t i = 0; i < result.size(); ++i) {
    const auto bits = bound[i % pieces.channels];
    result[i] = is_nan<Float>(bits) ? nan : bits == std::numeric_limits<decltype(nan)>::min() ? 0 : bits;
  }
  return result;
}

template <class Float>
struct Forward {
  using Bits = typename Float::Bits;

  Pieces pieces;
  Bounds<Float> z;
  const Bits* x;
  Bits* y;

  // A negative NaN lies below every number, so it comes out of the minimum.
  Forward(const Pieces& pieces_, const Bits* bound, const Bits* x_, Bits* y_)
      : pieces(pieces_), z(bounds<Float>(bound, pieces_, -1)), x(x_), y(y_) {}

  POISONKIT_INLINE void operator()(int64_t first, int64_t last) const {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece * pieces.length, end = std::min(begin + pieces.length, pieces.total);
      if (pieces.planes) {
        const Bits bound = z[piece % pieces.channels];
        clip(x + begin, end - begin, y + begin, [bound](int64_t) { return bound; });
      } else {
        const Bits* bound = z.data();
        for (int64_t at = begin; at < end; at += pieces.run) {
          clip(x + at, std::min(pieces.run, end - at), y + at, [bound](int64_t i) { return bound[i]; });
        }
      }
    }
  }

  template <class Bound>
  static POISONKIT_INLINE void clip(const Bits* __restrict x, int64_t size, Bits* __restrict y, Bound bound) {
    for (int64_t i = 0; i < size; ++i) {
      const Bits rectified = std::max<Bits>(x[i], 0);
      const Bits clipped = std::min(rectified, bound(i));
      y[i] = is_nan<Float>(x[i]) ? x[i] : clipped;
    }
  }
};

// The gradients from the output: x went through where 0 < y < z, and was clipped where y = z. kX and kBound say which
// of the two are wanted.
template <class Float, bool kX, bool kBound>
struct Backward {
  using Bits = typename Float::Bits;
  using Sum = typename Float::Sum;

  Pieces pieces;
  Bounds<Float> z;
  const Bits* grad;
  const Bits* y;
  Bits* dx;
  Sum* sums;  // pieces.sums() of them, 0 before

  // No output is -0.0, and none lies between 0 and it: in place of NaN, a bound through and at which nothing went.
  Backward(const Pieces& pieces_, const Bits* bound, const Bits* grad_, const Bits* y_, Bits* dx_, Sum* sums_)
      : pieces(pieces_),
        z(bounds<Float>(bound, pieces_, std::numeric_limits<Bits>::min())),
        grad(grad_),
        y(y_),
        dx(dx_),
        sums(sums_) {}

  POISONKIT_INLINE void operator()(int64_t first, int64_t last) const {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece * pieces.length, end = std::min(begin + pieces.length, pieces.total);
      if (pieces.planes) {
        const Sum sum = plane(begin, end, z[piece % pieces.channels]);
        if (kBound) sums[piece] = sum;
      } else {
        for (int64_t at = begin; at < end; at += pieces.run) {
          run(at, std::min(pieces.run, end - at), kBound ? sums + piece * pieces.run : nullptr);
        }
      }
    }
  }

  POISONKIT_INLINE Sum plane(int64_t begin, int64_t end, Bits bound) const {
    const auto same = [bound](int64_t) { return bound; };
    Sum lanes[kChunk] = {};
    int64_t at = begin;
    for (; at + kChunk <= end; at += kChunk) chunk(at, kChunk, lanes, same);
    chunk(at, end - at, lanes, same);
    for (int64_t half = kChunk / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[half + i];
    }
    return lanes[0];
  }

  POISONKIT_INLINE void run(int64_t at, int64_t size, Sum* running) const {
    const Bits* bound = z.data();
    const auto next = [&bound](int64_t i) { return bound[i]; };
    for (; size >= kChunk; size -= kChunk, at += kChunk, bound += kChunk) {
      chunk(at, kChunk, running, next);
      if (kBound) running += kChunk;
    }
    chunk(at, size, running, next);
  }

  // So few that one loop follows the other within the processor's sight, and the loads of both overlap; two loops,
  // because each then is of one width, and becomes vector code.
  static constexpr int64_t kChunk = 32;

  template <class Bound>
  POISONKIT_INLINE void chunk(int64_t at, int64_t size, Sum* running, Bound bound) const {
    if (kX) pass(grad + at, y + at, size, dx + at, bound);
    if (kBound) add(grad + at, y + at, size, running, bound);
  }

  template <class Bound>
  static POISONKIT_INLINE void pass(const Bits* __restrict grad, const Bits* __restrict y, int64_t size,
                                    Bits* __restrict dx, Bound bound) {
    for (int64_t i = 0; i < size; ++i) dx[i] = grad[i] & mask((y[i] > 0) & (y[i] < bound(i)));
  }

  template <class Bound>
  static POISONKIT_INLINE void add(const Bits* __restrict grad, const Bits* __restrict y, int64_t size,
                                   Sum* __restrict running, Bound bound) {
    for (int64_t i = 0; i < size; ++i) running[i] += Float::value(grad[i] & mask(y[i] == bound(i)));
  }

  // All bits or none.
  static POISONKIT_INLINE Bits mask(bool condition) { return static_cast<Bits>(-static_cast<Bits>(condition)); }
};

template <class Sum>
void add_sums(const std::vector<Sum>& sums, int64_t channels, Sum* out) {
  std::vector<double> totals(channels);
  for (size_t start = 0; start < sums.size(); start += channels) {
    for (int64_t c = 0; c < channels; ++c) totals[c] += sums[start + c];
  }
  std::copy(totals.begin(), totals.end(), out);
}

// The same loops, compiled for each instruction set.
struct Scalar {
  template <class Work>
  static void run(const Work& work, int64_t first, int64_t last) {
    work(first, last);
  }
};

#if defined(POISONKIT_HAS_AVX2)
struct Avx2 {
  template <class Work>
  POISONKIT_TARGET("avx2")
  static void run(const Work& work, int64_t first, int64_t last) {
    work(first, last);
  }
};
#endif

#if defined(POISONKIT_HAS_AVX512_VNNI)
struct Avx512 {
  template <class Work>
  POISONKIT_TARGET("avx512f,avx512bw")
  static void run(const Work& work, int64_t first, int64_t last) {
    work(first, last);
  }
};
#endif

}  // namespace poisonkit::clip
