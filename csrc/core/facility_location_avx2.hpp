// Facility location with eight costs to a register.
#pragma once

#include "facility_location.hpp"
#include "simd.hpp"

#if defined(POISONKIT_HAS_AVX2)

namespace poisonkit::facility {

class Avx2 {
 public:
  POISONKIT_TARGET("avx2")
  static void add_costs(const Lattice& lattice, const float* rows, int count, int64_t dim, const float* tile,
                        int64_t* row_sums, int64_t* column_sums) {
    switch (lattice.similarity) {
      case Similarity::l2:
        return add_costs<Similarity::l2>(lattice, rows, count, dim, tile, row_sums, column_sums);
      case Similarity::exp_l2:
        return add_costs<Similarity::exp_l2>(lattice, rows, count, dim, tile, row_sums, column_sums);
      case Similarity::sq_l2:
        return add_costs<Similarity::sq_l2>(lattice, rows, count, dim, tile, row_sums, column_sums);
    }
  }

  POISONKIT_TARGET("avx2")
  static void add_clamped(const Lattice& lattice, const float* const* rows, const int32_t* old, const int32_t* most,
                          int count, int64_t dim, const float* tile, int64_t* sums) {
    switch (lattice.similarity) {
      case Similarity::l2:
        return add_clamped<Similarity::l2>(lattice, rows, old, most, count, dim, tile, sums);
      case Similarity::exp_l2:
        return add_clamped<Similarity::exp_l2>(lattice, rows, old, most, count, dim, tile, sums);
      case Similarity::sq_l2:
        return add_clamped<Similarity::sq_l2>(lattice, rows, old, most, count, dim, tile, sums);
    }
  }

  POISONKIT_TARGET("avx2")
  static void add_clamped(const int32_t* const* costs, int64_t start, const int32_t* old, const int32_t* most,
                          int count, int64_t* sums) {
    __m256i lanes[kVectors] = {};
    for (int r = 0; r < count; ++r) {
      POISONKIT_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const __m256i cost = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(costs[r] + start + 8 * j));
        lanes[j] = _mm256_add_epi32(lanes[j], clamped(cost, old[r], most[r]));
      }
    }
    add_lanes(lanes, sums);
  }

  POISONKIT_TARGET("avx2")
  static void cost_row(const Lattice& lattice, const float* row, int64_t dim, const float* tile, int32_t* costs) {
    __m256 squared[1][kVectors] = {};
    add_squares<1>(&row, dim, tile, squared);
    store_costs(lattice, squared[0], costs);
  }

  // A stretch of features of the rows and of the tile at a time stays in the first cache.
  POISONKIT_TARGET("avx2")
  static void cost_block(const Lattice& lattice, const float* rows, int64_t dim, const float* tile, int32_t* costs,
                         int64_t stride) {
    constexpr int64_t kStretch = 64;
    __m256 squared[kTile][kVectors] = {};
    for (int64_t f = 0; f < dim; f += kStretch) {
      for (int r = 0; r < kTile; r += 2) {
        const float* pair[2] = {rows + r * dim + f, rows + (r + 1) * dim + f};
        add_squares<2>(pair, std::min(kStretch, dim - f), tile + f * kTile, squared + r);
      }
    }
    for (int r = 0; r < kTile; ++r) store_costs(lattice, squared[r], costs + r * stride);
  }

  POISONKIT_TARGET("avx2")
  static uint32_t reached(const Lattice& lattice, const float* row, int64_t dim, const float* boxes,
                          const int32_t* limits) {
    __m256 squared = _mm256_setzero_ps();
    for (int64_t f = 0; f < dim; ++f, boxes += 2 * kBoxes) {
      const __m256 x = _mm256_set1_ps(row[f]);
      const __m256 below = _mm256_sub_ps(_mm256_loadu_ps(boxes), x);
      const __m256 above = _mm256_sub_ps(x, _mm256_loadu_ps(boxes + kBoxes));
      const __m256 gap = _mm256_max_ps(_mm256_max_ps(below, above), _mm256_setzero_ps());
      squared = _mm256_add_ps(squared, _mm256_mul_ps(gap, gap));
    }
    const __m256i lowest = _mm256_sub_epi32(cost(lattice, squared), _mm256_set1_epi32(lattice.slack));
    const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limits));
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, lowest))));
  }

 private:
  static constexpr int kVectors = kTile / 8;

  template <Similarity S>
  POISONKIT_TARGET("avx2")
  static void add_costs(const Lattice& lattice, const float* rows, int count, int64_t dim, const float* tile,
                        int64_t* row_sums, int64_t* column_sums) {
    __m256i lanes[kVectors] = {};
    int r = 0;
    for (; r + 2 <= count; r += 2) {
      const float* pair[2] = {rows + r * dim, rows + (r + 1) * dim};
      add_costs_of<S, 2>(lattice, pair, dim, tile, row_sums + r, lanes);
    }
    const float* last = rows + r * dim;
    if (r < count) add_costs_of<S, 1>(lattice, &last, dim, tile, row_sums + r, lanes);
    add_lanes(lanes, column_sums);
  }

  template <Similarity S, int R>
  POISONKIT_TARGET("avx2")
  static inline void add_costs_of(const Lattice& lattice, const float* const* rows, int64_t dim, const float* tile,
                                  int64_t* row_sums, __m256i* lanes) {
    __m256 squared[R][kVectors] = {};
    add_squares<R>(rows, dim, tile, squared);
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      __m256i row = _mm256_setzero_si256();
      POISONKIT_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const __m256i costs = cost<S>(lattice, squared[r][j]);
        lanes[j] = _mm256_add_epi32(lanes[j], costs);
        row = _mm256_add_epi32(row, costs);
      }
      // 32 costs are below 2^30: halves, quarters, then single lanes
      __m128i half = _mm_add_epi32(_mm256_castsi256_si128(row), _mm256_extracti128_si256(row, 1));
      half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
      half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1));
      row_sums[r] += _mm_cvtsi128_si32(half);
    }
  }

  template <Similarity S>
  POISONKIT_TARGET("avx2")
  static void add_clamped(const Lattice& lattice, const float* const* rows, const int32_t* old, const int32_t* most,
                          int count, int64_t dim, const float* tile, int64_t* sums) {
    __m256i lanes[kVectors] = {};
    int r = 0;
    for (; r + 2 <= count; r += 2) add_clamped_of<S, 2>(lattice, rows + r, old + r, most + r, dim, tile, lanes);
    if (r < count) add_clamped_of<S, 1>(lattice, rows + r, old + r, most + r, dim, tile, lanes);
    add_lanes(lanes, sums);
  }

  template <Similarity S, int R>
  POISONKIT_TARGET("avx2")
  static inline void add_clamped_of(const Lattice& lattice, const float* const* rows, const int32_t* old,
                                    const int32_t* most, int64_t dim, const float* tile, __m256i* lanes) {
    __m256 squared[R][kVectors] = {};
    add_squares<R>(rows, dim, tile, squared);
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        lanes[j] = _mm256_add_epi32(lanes[j], clamped(cost<S>(lattice, squared[r][j]), old[r], most[r]));
      }
    }
  }

  template <int R>
  POISONKIT_TARGET("avx2")
  static inline void add_squares(const float* const* rows, int64_t dim, const float* tile,
                                 __m256 (*squared)[kVectors]) {
    __m256 sums[R][kVectors];
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int j = 0; j < kVectors; ++j) sums[r][j] = squared[r][j];
    }
    for (int64_t f = 0; f < dim; ++f, tile += kTile) {
      POISONKIT_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256 x = _mm256_set1_ps(rows[r][f]);
        POISONKIT_UNROLL
        for (int j = 0; j < kVectors; ++j) {
          const __m256 difference = _mm256_sub_ps(x, _mm256_loadu_ps(tile + 8 * j));
          sums[r][j] = _mm256_add_ps(sums[r][j], _mm256_mul_ps(difference, difference));
        }
      }
    }
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int j = 0; j < kVectors; ++j) squared[r][j] = sums[r][j];
    }
  }

  POISONKIT_TARGET("avx2")
  static void store_costs(const Lattice& lattice, const __m256* squared, int32_t* costs) {
    for (int j = 0; j < kVectors; ++j) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(costs + 8 * j), cost(lattice, squared[j]));
    }
  }

  POISONKIT_TARGET("avx2")
  static inline __m256i cost(const Lattice& lattice, __m256 squared) {
    if (lattice.similarity == Similarity::l2) return cost<Similarity::l2>(lattice, squared);
    if (lattice.similarity == Similarity::sq_l2) return cost<Similarity::sq_l2>(lattice, squared);
    return cost<Similarity::exp_l2>(lattice, squared);
  }

  template <Similarity S>
  POISONKIT_TARGET("avx2")
  static inline __m256i cost(const Lattice& lattice, __m256 squared) {
    const __m256 half = _mm256_set1_ps(0.5f);
    const __m256 root = S == Similarity::sq_l2 ? squared : _mm256_sqrt_ps(squared);
    const __m256 scaled = _mm256_mul_ps(root, _mm256_set1_ps(lattice.factor));
    if (S != Similarity::exp_l2) return _mm256_cvttps_epi32(_mm256_add_ps(scaled, half));
    const __m256 y = _mm256_max_ps(scaled, _mm256_set1_ps(-64.0f));
    const __m256 whole = _mm256_floor_ps(_mm256_add_ps(y, half)), rest = _mm256_sub_ps(y, whole);
    constexpr float kTerms[] = POISONKIT_EXP2_TERMS;
    __m256 power = _mm256_set1_ps(kTerms[0]);
    POISONKIT_UNROLL
    for (int j = 1; j < 8; ++j) power = _mm256_add_ps(_mm256_mul_ps(power, rest), _mm256_set1_ps(kTerms[j]));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvttps_epi32(whole), _mm256_set1_epi32(24 + 127));
    power = _mm256_mul_ps(power, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    return _mm256_sub_epi32(_mm256_set1_epi32(kLargest), _mm256_cvttps_epi32(_mm256_add_ps(power, half)));
  }

  POISONKIT_TARGET("avx2")
  static inline __m256i clamped(__m256i cost, int32_t old, int32_t most) {
    const __m256i less = _mm256_sub_epi32(_mm256_set1_epi32(old), cost);
    return _mm256_min_epi32(_mm256_max_epi32(less, _mm256_setzero_si256()), _mm256_set1_epi32(most));
  }

  // Adds 32 lanes of 32 bits to 32 sums of 64.
  POISONKIT_TARGET("avx2")
  static inline void add_lanes(const __m256i* lanes, int64_t* sums) {
    POISONKIT_UNROLL
    for (int j = 0; j < 2 * kVectors; ++j) {
      const __m128i four =
          j % 2 == 0 ? _mm256_castsi256_si128(lanes[j / 2]) : _mm256_extracti128_si256(lanes[j / 2], 1);
      __m256i* at = reinterpret_cast<__m256i*>(sums + 4 * j);
      _mm256_storeu_si256(at, _mm256_add_epi64(_mm256_loadu_si256(at), _mm256_cvtepi32_epi64(four)));
    }
  }
};

}  // namespace poisonkit::facility

#endif
