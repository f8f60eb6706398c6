// The hash by vpmaddwd: bytes widened to 16 bits, times three balanced 16-bit digits of each weight. The even bytes of
// a step are masked out and the odd ones shifted down: a widening load would cross the halves of the register.
#pragma once

#include <cstring>

#include "simd.hpp"
#include "weighted_sum_hash.hpp"

#if defined(POISONKIT_HAS_AVX2)

namespace poisonkit::hash {

class Avx2 {
 public:
  Avx2(const int64_t* weights, int64_t dim, int vectors)
      : dim_(dim), vectors_(vectors), table_((dim + kStep - 1) / kStep * 3 * vectors), short_(vectors) {
    int16_t* digits = reinterpret_cast<int16_t*>(table_.data());
    for (int v = 0; v < vectors; ++v) {
      for (int64_t i = 0; i < dim; ++i) {
        const Digits split(weights[v * dim + i], kOffset);
        if (split.short_by_21) short_[v].push_back(i);
        int16_t* out = digits + ((i / kStep * 2 + i % 2) * vectors + v) * 3 * 16 + i % kStep / 2;
        for (int j = 0; j < 3; ++j) out[j * 16] = static_cast<int16_t>((split.bits >> 16 * j) ^ 0x8000);
      }
    }
  }

  void hash(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out, int64_t out_stride) const {
    const int64_t group = fits_l2() ? 8 : kMaxGroup;
    for (int64_t row = 0; row < rows; row += group) {
      const uint8_t* first = x + row * stride;
      const int64_t count = std::min(group, rows - row);
      if (vectors_ == 1) {
        hash_group<4, 1>(first, stride, count, out + row * out_stride, out_stride);
      } else {
        hash_group<2, 2>(first, stride, count, out + row * out_stride, out_stride);
      }
    }
  }

 private:
  static constexpr int64_t kOffset = 0x800080008000;
  static constexpr int64_t kStep = 32;
  static constexpr int64_t kMaxGroup = 16;
  // A 32-bit lane takes 4 bytes of each step: 256 products of at most 255 * 2^15 stay below 2^31.
  static constexpr int64_t kBlock = 2048;

  // What to prefetch: a line every gap bytes from next on, one for each row, and then step bytes further.
  struct Ahead {
    const uint8_t* next;
    int64_t gap, step;
  };

  // Whether the weights, this group of rows and the next one do.
  bool fits_l2() const { return dim_ <= 16384; }

  // R rows by V vectors by 3 digits make 12 accumulators: with R rows of bytes, their mask and a product, 16 registers.
  template <int R, int V>
  POISONKIT_TARGET("avx2")
  void hash_group(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out, int64_t out_stride) const {
    __m256i sums[kMaxGroup][V][3] = {};
    // The next group of rows, strictly in the order of memory, which the hardware prefetchers take up; or, where the L2
    // cache would lose it again, the rows that come next.
    Ahead ahead = fits_l2() ? Ahead{x + rows * stride, 64, 64 * R} : Ahead{x, stride, 64};
    for (int64_t start = 0; start < dim_; start += kBlock) {
      const int64_t columns = std::min(kBlock, dim_ - start);
      const int16_t* digits = reinterpret_cast<const int16_t*>(table_.data()) + start * 3 * V;
      int64_t row = 0;
      for (; row + R <= rows; row += R) {
        if (!fits_l2()) ahead.next = x + (row + R) * stride + start;
        add_block<R, V>(x + row * stride + start, stride, columns, digits, &sums[row], ahead);
      }
      for (; row < rows; ++row) add_block<1, V>(x + row * stride + start, stride, columns, digits, &sums[row], ahead);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int v = 0; v < V; ++v) {
        __int128 total = missing(short_[v], x + row * stride);
        for (int j = 0; j < 3; ++j) {
          alignas(32) int64_t lanes[4];
          _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums[row][v][j]);
          total += static_cast<__int128>(lanes[0] + lanes[1] + lanes[2] + lanes[3]) * (int64_t{1} << 16 * j);
        }
        out[row * out_stride + v] = reduce(total);
      }
    }
  }

  // Adds to sums the digit sums of R rows over at most kBlock columns.
  template <int R, int V>
  POISONKIT_TARGET("avx2")
  static void add_block(const uint8_t* x, int64_t stride, int64_t columns, const int16_t* digits, __m256i (*sums)[V][3],
                        Ahead& ahead) {
    const int64_t whole = columns / kStep * kStep;
    add_steps<R, V>(x, stride, whole, digits, sums, ahead);
    if (whole < columns) {
      uint8_t tail[R][kStep] = {};
      for (int r = 0; r < R; ++r) std::memcpy(tail[r], x + r * stride + whole, columns - whole);
      add_steps<R, V>(tail[0], kStep, kStep, digits + whole * 3 * V, sums, ahead);
    }
  }

  template <int R, int V>
  POISONKIT_TARGET("avx2")
  static void add_steps(const uint8_t* x, int64_t stride, int64_t columns, const int16_t* digits, __m256i (*sums)[V][3],
                        Ahead& ahead) {
    __m256i lanes[R][V][3];
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int v = 0; v < V; ++v) {
        POISONKIT_UNROLL
        for (int j = 0; j < 3; ++j) lanes[r][v][j] = _mm256_setzero_si256();
      }
    }
    int64_t k = 0;
    for (; k + 2 * kStep <= columns; k += 2 * kStep) {
      for (int r = 0; r < R; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead.next + r * ahead.gap), _MM_HINT_T0);
      }
      ahead.next += ahead.step;
      POISONKIT_UNROLL
      for (int u = 0; u < 2; ++u) add_step<R, V>(x + k + u * kStep, stride, digits + (k + u * kStep) * 3 * V, lanes);
    }
    for (; k < columns; k += kStep) add_step<R, V>(x + k, stride, digits + k * 3 * V, lanes);
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int v = 0; v < V; ++v) {
        POISONKIT_UNROLL
        for (int j = 0; j < 3; ++j) {
          const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes[r][v][j]));
          const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes[r][v][j], 1));
          sums[r][v][j] = _mm256_add_epi64(sums[r][v][j], _mm256_add_epi64(low, high));
        }
      }
    }
  }

  template <int R, int V>
  POISONKIT_TARGET("avx2")
  static POISONKIT_INLINE
      void add_step(const uint8_t* x, int64_t stride, const int16_t* digits, __m256i (*lanes)[V][3]) {
    POISONKIT_UNROLL
    for (int parity = 0; parity < 2; ++parity) {
      __m256i bytes[R];
      POISONKIT_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + r * stride));
        bytes[r] = parity == 0 ? _mm256_and_si256(both, _mm256_set1_epi16(0xFF)) : _mm256_srli_epi16(both, 8);
        POISONKIT_IN_REGISTER(bytes[r]);
      }
      POISONKIT_UNROLL
      for (int v = 0; v < V; ++v) {
        POISONKIT_UNROLL
        for (int j = 0; j < 3; ++j) {
          // Not held in a register: as an operand in memory it takes no place of its own among the instructions.
          const auto* weight = reinterpret_cast<const __m256i*>(digits + ((parity * V + v) * 3 + j) * 16);
          POISONKIT_UNROLL
          for (int r = 0; r < R; ++r) {
            const __m256i products = _mm256_madd_epi16(bytes[r], _mm256_load_si256(weight));
            lanes[r][v][j] = _mm256_add_epi32(lanes[r][v][j], products);
            POISONKIT_IN_REGISTER(lanes[r][v][j]);
          }
        }
      }
    }
  }

  int64_t dim_;
  int vectors_;
  std::vector<Line> table_;  // [step][even or odd byte][vector][digit][16] of int16
  std::vector<Shortfall> short_;
};

}  // namespace poisonkit::hash

#endif
