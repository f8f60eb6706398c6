// The hash by vpdpbusd: bytes times six balanced 8-bit digits of each weight, four products to a 32-bit lane.
#pragma once

#include <algorithm>

#include "simd.hpp"
#include "weighted_sum_hash.hpp"

#if defined(POISONKIT_HAS_AVX512_VNNI)

#define POISONKIT_VNNI POISONKIT_TARGET("avx512f,avx512bw,avx512vnni")

namespace poisonkit::hash {

class Avx512Vnni {
 public:
  Avx512Vnni(const int64_t* weights, int64_t dim, int vectors)
      : dim_(dim), vectors_(vectors), table_((dim + kStep - 1) / kStep * vectors * 6), short_(vectors) {
    for (int v = 0; v < vectors; ++v) {
      for (int64_t i = 0; i < dim; ++i) {
        const Digits split(weights[v * dim + i], kOffset);
        if (split.short_by_21) short_[v].push_back(i);
        Line* out = &table_[(i / kStep * vectors + v) * 6];
        for (int j = 0; j < 6; ++j) out[j].bytes[i % kStep] = static_cast<uint8_t>((split.bits >> 8 * j) ^ 0x80);
      }
    }
  }

  void hash(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out, int64_t out_stride) const {
    for (int64_t row = 0; row < rows; row += kGroup) {
      const uint8_t* first = x + row * stride;
      const int64_t count = std::min(kGroup, rows - row);
      if (vectors_ == 1) {
        hash_group<4, 1>(first, stride, count, out + row * out_stride, out_stride);
      } else {
        hash_group<2, 2>(first, stride, count, out + row * out_stride, out_stride);
      }
    }
  }

 private:
  static constexpr int64_t kOffset = 0x808080808080;
  static constexpr int64_t kStep = 64;
  static constexpr int64_t kBlock = 2048;  // columns whose digits, 24 KB for two vectors, stay in the L1 cache...
  static constexpr int64_t kGroup = 16;    // ...while these rows go past them

  // A 32-bit lane takes a sixteenth of the columns. Up to 2^20 of them, 2^16 products of at most 255 * 2^7 stay below
  // 2^31, so the lanes are carried from block to block and widened once, at the end.
  static_assert((kMaxDim / 16) * 255 * 128 < (int64_t{1} << 31));

  // R rows by V vectors by 6 digits make 24 accumulators of the 32 registers.
  template <int R, int V>
  POISONKIT_VNNI void hash_group(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out,
                                 int64_t out_stride) const {
    __m512i lanes[kGroup][V][6] = {};
    for (int64_t start = 0; start < dim_; start += kBlock) {
      const int64_t columns = std::min(kBlock, dim_ - start);
      const Line* digits = table_.data() + start / kStep * V * 6;
      int64_t row = 0;
      for (; row + R <= rows; row += R) add_block<R, V>(x + row * stride + start, stride, columns, digits, &lanes[row]);
      for (; row < rows; ++row) add_block<1, V>(x + row * stride + start, stride, columns, digits, &lanes[row]);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int v = 0; v < V; ++v) {
        __int128 total = missing(short_[v], x + row * stride);
        for (int j = 0; j < 6; ++j) {
          alignas(64) int32_t sums[16];
          _mm512_store_si512(sums, lanes[row][v][j]);
          int64_t sum = 0;
          for (const int32_t lane : sums) sum += lane;
          total += static_cast<__int128>(sum) * (int64_t{1} << 8 * j);
        }
        out[row * out_stride + v] = reduce(total);
      }
    }
  }

  // Adds to lanes the digit sums of R rows over at most kBlock columns.
  template <int R, int V>
  POISONKIT_VNNI static void add_block(const uint8_t* x, int64_t stride, int64_t columns, const Line* digits,
                                       __m512i (*lanes)[V][6]) {
    __m512i sums[R][V][6];
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int v = 0; v < V; ++v) {
        POISONKIT_UNROLL
        for (int j = 0; j < 6; ++j) sums[r][v][j] = lanes[r][v][j];
      }
    }
    int64_t k = 0;
    for (; k + kStep <= columns; k += kStep) {
      for (int r = 0; r < R; ++r) {  // the rows that come next
        _mm_prefetch(reinterpret_cast<const char*>(x + k + (R + r) * stride), _MM_HINT_T0);
      }
      add_step<R, V>(x + k, stride, ~__mmask64{0}, digits + k / kStep * V * 6, sums);
    }
    if (k < columns) {
      add_step<R, V>(x + k, stride, ~__mmask64{0} >> (kStep - (columns - k)), digits + k / kStep * V * 6, sums);
    }
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int v = 0; v < V; ++v) {
        POISONKIT_UNROLL
        for (int j = 0; j < 6; ++j) lanes[r][v][j] = sums[r][v][j];
      }
    }
  }

  template <int R, int V>
  POISONKIT_VNNI static inline void add_step(const uint8_t* x, int64_t stride, __mmask64 columns, const Line* digits,
                                             __m512i (*sums)[V][6]) {
    __m512i bytes[R];
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) bytes[r] = _mm512_maskz_loadu_epi8(columns, x + r * stride);
    POISONKIT_UNROLL
    for (int v = 0; v < V; ++v) {
      POISONKIT_UNROLL
      for (int j = 0; j < 6; ++j) {
        __m512i weight = _mm512_load_si512(digits + v * 6 + j);
        POISONKIT_IN_REGISTER(weight);
        POISONKIT_UNROLL
        for (int r = 0; r < R; ++r) {
          sums[r][v][j] = _mm512_dpbusd_epi32(sums[r][v][j], bytes[r], weight);
          POISONKIT_IN_REGISTER(sums[r][v][j]);
        }
      }
    }
  }

  int64_t dim_;
  int vectors_;
  std::vector<Line> table_;  // [step][vector][digit][64] of int8
  std::vector<Shortfall> short_;
};

}  // namespace poisonkit::hash

#endif
