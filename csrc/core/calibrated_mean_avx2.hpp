// The calibrated mean's kernel for AVX2 with FMA.
#pragma once

#include "calibrated_mean.hpp"
#include "simd.hpp"

#if defined(POISONKIT_HAS_AVX2)

#define POISONKIT_AVX2_FMA POISONKIT_TARGET("avx2,fma")

namespace poisonkit::calibration {

class Avx2 {
 public:
  static int64_t scratch(int64_t rows, int64_t) { return rows * kDepth; }

  POISONKIT_AVX2_FMA
  static float add(const float* const* rows, int64_t count, int64_t dim, double* sums) {
    __m256 largest = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) largest = _mm256_max_ps(largest, add_rows<4>(rows + i, dim, sums));
    for (; i < count; ++i) largest = _mm256_max_ps(largest, add_rows<1>(rows + i, dim, sums));
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, largest);
    return *std::max_element(lanes, lanes + 8);
  }

  POISONKIT_AVX2_FMA
  static void centre(const float* row, int64_t dim, const float* mean, float scale, float* x) {
    const __m256 factor = _mm256_set1_ps(scale);
    int64_t c = 0;
    for (; c + 8 <= dim; c += 8) {
      const __m256 centred = _mm256_sub_ps(_mm256_loadu_ps(row + c), _mm256_load_ps(mean + c));
      _mm256_store_ps(x + c, _mm256_mul_ps(factor, centred));
    }
    for (; c < dim; ++c) x[c] = scale * (row[c] - mean[c]);
  }

  POISONKIT_AVX2_FMA
  static void dots(const float* x, int64_t rows, int64_t dim, const float* v, float* out) {
    for (int64_t i = 0; i < rows; i += kRows) dots_of_four(x + i * dim, dim, v, out + i);
  }

  POISONKIT_AVX2_FMA
  static void dots_and_sum(const float* x, int64_t rows, int64_t dim, const float* v, float* out, float* sum) {
    for (int64_t i = 0; i < rows; i += kRows) {
      dots_of_four(x + i * dim, dim, v, out + i);
      add_four(x + i * dim, dim, out + i, sum);
    }
  }

  // Blocks of kDepth columns are laid out as panels [depth][16 rows], which the caches hold. Every element sums its
  // columns in the same order wherever it lies.
  POISONKIT_AVX2_FMA
  static void gram(const float* x, int64_t rows, int64_t dim, float* g, float* panels) {
    std::fill(g, g + rows * rows, 0.0F);
    for (int64_t start = 0; start < dim; start += kDepth) {
      const int64_t depth = std::min(kDepth, dim - start);
      for (int64_t row = 0; row < rows; row += 8) {
        transpose(x + row * dim + start, dim, depth, panels + row / kStep * kStep * depth + row % kStep);
      }
      for (int64_t column = 0; column < rows; column += kStep) {
        const float* b = panels + column * depth;
        const int64_t end = column + kStep;
        int64_t row = 0;
        for (; row + 6 <= end; row += 6) tile<6>(panels, row, b, depth, g + row * rows + column, rows);
        for (; row < end; row += 2) tile<2>(panels, row, b, depth, g + row * rows + column, rows);
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < i; ++j) g[i * rows + j] = g[j * rows + i];
    }
  }

 private:
  static constexpr int64_t kDepth = 128;

  // Adds R rows to sums, four or one, and returns the largest magnitudes.
  template <int R>
  POISONKIT_AVX2_FMA static inline __m256 add_rows(const float* const* rows, int64_t dim, double* sums) {
    __m256 largest = _mm256_setzero_ps();
    const __m256 sign = _mm256_set1_ps(-0.0F);
    int64_t c = 0;
    for (; c + 8 <= dim; c += 8) {
      __m256 x[R];
      POISONKIT_UNROLL
      for (int r = 0; r < R; ++r) {
        x[r] = _mm256_loadu_ps(rows[r] + c);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, x[r]));
      }
      const __m256 sum =
          R == 1 ? x[0] : _mm256_add_ps(_mm256_add_ps(x[0], x[1 % R]), _mm256_add_ps(x[2 % R], x[3 % R]));
      const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(sum));
      const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(sum, 1));
      _mm256_storeu_pd(sums + c, _mm256_add_pd(_mm256_loadu_pd(sums + c), low));
      _mm256_storeu_pd(sums + c + 4, _mm256_add_pd(_mm256_loadu_pd(sums + c + 4), high));
    }
    float rest = 0;
    for (; c < dim; ++c) {
      for (int r = 0; r < R; ++r) {
        sums[c] += rows[r][c];
        rest = std::max(rest, std::abs(rows[r][c]));
      }
    }
    return _mm256_max_ps(largest, _mm256_set1_ps(rest));
  }

  POISONKIT_AVX2_FMA
  static inline void dots_of_four(const float* x, int64_t dim, const float* v, float* out) {
    __m256 sums[4][2];
    POISONKIT_UNROLL
    for (int r = 0; r < 4; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int64_t c = 0; c < dim; c += kStep) {
      POISONKIT_UNROLL
      for (int u = 0; u < 2; ++u) {
        const __m256 direction = _mm256_load_ps(v + c + 8 * u);
        POISONKIT_UNROLL
        for (int r = 0; r < 4; ++r) {
          sums[r][u] = _mm256_fmadd_ps(_mm256_load_ps(x + r * dim + c + 8 * u), direction, sums[r][u]);
        }
      }
    }
    for (int r = 0; r < 4; ++r) {
      alignas(32) float lanes[8];
      _mm256_store_ps(lanes, _mm256_add_ps(sums[r][0], sums[r][1]));
      out[r] = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
  }

  // sum += w_0 row_0 + .. + w_3 row_3
  POISONKIT_AVX2_FMA
  static inline void add_four(const float* x, int64_t dim, const float* w, float* sum) {
    __m256 weights[4];
    POISONKIT_UNROLL
    for (int r = 0; r < 4; ++r) weights[r] = _mm256_set1_ps(w[r]);
    for (int64_t c = 0; c < dim; c += kStep) {
      POISONKIT_UNROLL
      for (int u = 0; u < 2; ++u) {
        __m256 total = _mm256_load_ps(sum + c + 8 * u);
        POISONKIT_UNROLL
        for (int r = 0; r < 4; ++r) {
          total = _mm256_fmadd_ps(_mm256_load_ps(x + r * dim + c + 8 * u), weights[r], total);
        }
        _mm256_store_ps(sum + c + 8 * u, total);
      }
    }
  }

  // to[k][0..8) = column k of eight rows
  POISONKIT_AVX2_FMA
  static void transpose(const float* x, int64_t dim, int64_t depth, float* to) {
    for (int64_t k = 0; k < depth; k += 8) {
      __m256 rows[8], pairs[8], quads[8];
      POISONKIT_UNROLL
      for (int r = 0; r < 8; ++r) rows[r] = _mm256_load_ps(x + r * dim + k);
      POISONKIT_UNROLL
      for (int r = 0; r < 8; r += 2) {
        pairs[r] = _mm256_unpacklo_ps(rows[r], rows[r + 1]);
        pairs[r + 1] = _mm256_unpackhi_ps(rows[r], rows[r + 1]);
      }
      POISONKIT_UNROLL
      for (int r = 0; r < 8; r += 4) {
        quads[r] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
        quads[r + 1] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0xEE);
        quads[r + 2] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
        quads[r + 3] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xEE);
      }
      POISONKIT_UNROLL
      for (int r = 0; r < 4; ++r) {
        _mm256_store_ps(to + (k + r) * kStep, _mm256_permute2f128_ps(quads[r], quads[r + 4], 0x20));
        _mm256_store_ps(to + (k + r + 4) * kStep, _mm256_permute2f128_ps(quads[r], quads[r + 4], 0x31));
      }
    }
  }

  // g[R][16] += products of the R rows from `row` on and the panel b. With R = 6: twelve accumulators, two vectors and
  // a broadcast, of sixteen registers.
  template <int R>
  POISONKIT_AVX2_FMA static void tile(const float* panels, int64_t row, const float* b, int64_t depth, float* g,
                                      int64_t width) {
    const float* a[R];
    __m256 sums[R][2];
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      a[r] = panels + (row + r) / kStep * kStep * depth + (row + r) % kStep;
      sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < depth * kStep; k += kStep) {
      __m256 columns[2];
      POISONKIT_UNROLL
      for (int u = 0; u < 2; ++u) {
        columns[u] = _mm256_load_ps(b + k + 8 * u);
        POISONKIT_IN_REGISTER(columns[u]);
      }
      POISONKIT_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256 element = _mm256_broadcast_ss(a[r] + k);
        POISONKIT_UNROLL
        for (int u = 0; u < 2; ++u) sums[r][u] = _mm256_fmadd_ps(element, columns[u], sums[r][u]);
      }
    }
    POISONKIT_UNROLL
    for (int r = 0; r < R; ++r) {
      POISONKIT_UNROLL
      for (int u = 0; u < 2; ++u) {
        float* to = g + r * width + 8 * u;
        _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), sums[r][u]));
      }
    }
  }
};

}  // namespace poisonkit::calibration

#endif
