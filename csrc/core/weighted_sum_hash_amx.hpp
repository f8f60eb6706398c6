// The hash by tdpbuud: tiles of 16 rows of 64 bytes, times six base-256 digits of each weight.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "simd.hpp"
#include "weighted_sum_hash.hpp"

#if defined(POISONKIT_HAS_AMX)

#define POISONKIT_AMX POISONKIT_TARGET("amx-tile,amx-int8")

namespace poisonkit::hash {

// The memory operand of ldtilecfg: tiles 0, 1 and 2 have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64};
  uint8_t rows[16] = {16, 16, 16};
};
inline constexpr TileConfig kTileConfig{};

class Amx {
 public:
  Amx(const int64_t* weights, int64_t dim, int vectors)
      : dim_(dim), vectors_(vectors), table_((dim + kStep - 1) / kStep * kRows), short_(vectors) {
    for (int v = 0; v < vectors; ++v) {
      for (int64_t i = 0; i < dim; ++i) {
        const Digits split(weights[v * dim + i], 0);
        if (split.short_by_21) short_[v].push_back(i);
        // tdpbuud multiplies four neighbouring bytes of a row with the four of one tile row and column
        uint8_t* out = table_[i / 4].bytes + v * 6 * 4 + i % 4;
        for (int j = 0; j < 6; ++j) out[4 * j] = static_cast<uint8_t>(split.bits >> 8 * j);
      }
    }
  }

  POISONKIT_AMX void hash(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out, int64_t out_stride) const {
    // GCC's tile loads do not say that they read memory: a fence must come after every write they see.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    _tile_loadconfig(&kTileConfig);  // per thread
    for (int64_t row = 0; row < rows; row += kRows) {
      hash_group(x + row * stride, stride, std::min(kRows, rows - row), out + row * out_stride, out_stride);
    }
    _tile_release();  // or every context switch would save the tiles
  }

 private:
  static constexpr int64_t kStep = 64;
  static constexpr int64_t kRows = 16;
  static constexpr int64_t kBlock = 65536;  // 2^16 products of at most 255^2 stay below 2^32
  static_assert(kBlock * 255 * 255 < (int64_t{1} << 32));

  POISONKIT_AMX void hash_group(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out,
                                int64_t out_stride) const {
    uint64_t totals[kRows][12] = {};
    for (int64_t start = 0; start < dim_; start += kBlock) {
      const int64_t end = std::min(dim_, start + kBlock);
      _tile_zero(0);
      for (int64_t k = start; k < end; k += kStep) {
        alignas(64) uint8_t edge[kRows][kStep];
        if (rows == kRows && k + kStep <= end) {
          _tile_loadd(1, x + k, stride);
        } else {
          std::memset(edge, 0, sizeof(edge));
          for (int64_t r = 0; r < rows; ++r) std::memcpy(edge[r], x + r * stride + k, std::min(kStep, end - k));
          std::atomic_signal_fence(std::memory_order_seq_cst);
          _tile_loadd(1, edge, kStep);
          std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        _tile_loadd(2, table_.data() + k / 4, kStep);
        _tile_dpbuud(0, 1, 2);
      }
      alignas(64) uint32_t sums[kRows][16];
      _tile_stored(0, sums, kStep);
      for (int64_t r = 0; r < rows; ++r) {
        for (int c = 0; c < 12; ++c) totals[r][c] += sums[r][c];
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors_; ++v) {
        __int128 total = missing(short_[v], x + r * stride);
        for (int j = 0; j < 6; ++j) total += static_cast<__int128>(totals[r][6 * v + j]) << 8 * j;
        out[r * out_stride + v] = reduce(total);
      }
    }
  }

  int64_t dim_;
  int vectors_;
  std::vector<Line> table_;  // [step][64 / 4][column: vector and digit, 12 of 16][4] of uint8
  std::vector<Shortfall> short_;
};

}  // namespace poisonkit::hash

#endif
