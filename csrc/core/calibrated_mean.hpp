// The calibrated mean of a group of rows (RDM-DC, Algorithms 4 and 5): centre, find the top direction of the covariance
// by power iteration, drop the rows that lie farthest along it, and take the mean of the rest.
//
// The covariance X'X of the centred rows X is never formed. Matrix-free, one pass over X gives both w = X v and X'w,
// the next v. In Gram space G = X X' is formed once, and w <- G w / |X'w| with |X'w|^2 = w'G w is the same iteration,
// seen from the scores |w|.
//
// Arithmetic: means are summed in double, after sums of at most four rows in float32. All else is float32: a row's
// product with v depends on that row and v alone, so equal rows have equal scores; sums over rows go in their order;
// norms are taken in double. X is a copy: centring as rows are read costs more, and not centring cancels, as means of
// features are large. It is scaled by a power of two, so that squares of very large or small numbers stay in range.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace poisonkit::calibration {

constexpr int64_t kStep = 16;  // X has whole steps of columns, and of rows where its Gram matrix is taken
constexpr int64_t kRows = 4;   // and otherwise at least so many rows, all of them padded with zeros

inline int64_t up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// Zeros in whole steps, on a cache line.
class Floats {
 public:
  explicit Floats(int64_t size) : lines_(up(size, kStep) / kStep) {}
  float* data() { return lines_.empty() ? nullptr : lines_.front().floats; }
  float& operator[](int64_t i) { return data()[i]; }

 private:
  struct alignas(64) Line {
    float floats[kStep] = {};
  };
  std::vector<Line> lines_;
};

// A kernel is five functions. The last three take X, `rows` rows of `dim` floats in the steps above.
struct Scalar {
  static int64_t scratch(int64_t, int64_t) { return 0; }  // floats that gram() works in

  // Adds rows of any length to sums, and returns the largest magnitude in them.
  static float add(const float* const* rows, int64_t count, int64_t dim, double* sums) {
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < dim; ++c) {
        sums[c] += rows[i][c];
        largest = std::max(largest, std::abs(rows[i][c]));
      }
    }
    return largest;
  }

  // x = scale (row - mean), of any length
  static void centre(const float* row, int64_t dim, const float* mean, float scale, float* x) {
    for (int64_t c = 0; c < dim; ++c) x[c] = scale * (row[c] - mean[c]);
  }

  // out = X v
  static void dots(const float* x, int64_t rows, int64_t dim, const float* v, float* out) {
    for (int64_t i = 0; i < rows; ++i) out[i] = dot(x + i * dim, dim, v);
  }

  // The same, and sum += X' out
  static void dots_and_sum(const float* x, int64_t rows, int64_t dim, const float* v, float* out, float* sum) {
    for (int64_t i = 0; i < rows; ++i, x += dim) {
      out[i] = dot(x, dim, v);
      for (int64_t c = 0; c < dim; ++c) sum[c] += out[i] * x[c];
    }
  }

  // g = X X'
  static void gram(const float* x, int64_t rows, int64_t dim, float* g, float*) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j <= i; ++j) g[i * rows + j] = g[j * rows + i] = dot(x + i * dim, dim, x + j * dim);
    }
  }

 private:
  static float dot(const float* row, int64_t dim, const float* v) {
    float lanes[8] = {};
    for (int64_t c = 0; c < dim; c += 8) {
      for (int j = 0; j < 8; ++j) lanes[j] += row[c + j] * v[c + j];
    }
    float sum = 0;
    for (const float lane : lanes) sum += lane;
    return sum;
  }
};

struct Group {
  const float* r;  // rows of dim floats, each stride after the last
  int64_t stride, rows, dim, drop;
  bool gram;  // iterate in Gram space
};

struct Iteration {
  const float* start;  // [dim], the first direction
  int64_t count;
  double tolerance;  // stop when the unit vector of scores changes by no more; 0 never stops
};

// What one thread needs for groups of up to `rows` rows, allocated once, outside of any parallel region.
template <class Kernel>
class Calibrator {
 public:
  Calibrator(int64_t rows, int64_t gram_rows, int64_t dim)
      : pointers_(rows),
        order_(rows),
        sums_(dim),
        mean_(dim),
        v_(dim),
        sum_(dim),
        w_(rows),
        next_(rows),
        x_(up(rows, kStep) * up(dim, kStep)),
        g_(up(gram_rows, kStep) * up(gram_rows, kStep)),
        scratch_(Kernel::scratch(up(gram_rows, kStep), up(dim, kStep))) {}

  // Writes mean [dim], dropped [rows] of 0 and 1, scores [rows]. A group with a row that is not finite gets NaN.
  void operator()(const Group& group, const Iteration& iteration, float* mean, uint8_t* dropped, float* scores) {
    const float scale = centre(group);
    aim(iteration.start, std::sqrt(product(iteration.start, iteration.start, group.dim)), group.dim);
    if (group.gram) {
      in_gram_space(group.rows, up(group.dim, kStep), iteration);
    } else {
      matrix_free(group.rows, up(group.dim, kStep), iteration);
    }

    bool finite = true;
    for (int64_t i = 0; i < group.rows; ++i) {
      scores[i] = std::abs(w_[i]) / scale;
      finite = finite && std::isfinite(scores[i]);
    }
    if (!finite) std::fill(scores, scores + group.rows, std::numeric_limits<float>::quiet_NaN());
    select(scores, group.rows, group.drop, dropped);
    int64_t kept = 0;
    for (int64_t i = 0; i < group.rows; ++i) {
      if (!dropped[i]) pointers_[kept++] = group.r + i * group.stride;
    }
    average(kept, group.dim, mean);
    if (!finite) std::fill(mean, mean + group.dim, std::numeric_limits<float>::quiet_NaN());
  }

 private:
  // X = scale (rows - their mean), and zeros below. Returns the scale, a power of two that brings rows to about one.
  float centre(const Group& group) {
    for (int64_t i = 0; i < group.rows; ++i) pointers_[i] = group.r + i * group.stride;
    int exponent = 0;
    std::frexp(average(group.rows, group.dim, mean_.data()), &exponent);
    const float scale = std::ldexp(1.0F, -std::clamp(exponent, -100, 100));
    const int64_t width = up(group.dim, kStep);
    for (int64_t i = 0; i < group.rows; ++i) {
      Kernel::centre(pointers_[i], group.dim, mean_.data(), scale, x_.data() + i * width);
    }
    std::fill(x_.data() + group.rows * width, x_.data() + up(group.rows, kStep) * width, 0.0F);
    return scale;
  }

  // The mean of the first `count` pointers' rows, and the largest magnitude in them.
  float average(int64_t count, int64_t dim, float* mean) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    const float largest = Kernel::add(pointers_.data(), count, dim, sums_.data());
    for (int64_t c = 0; c < dim; ++c) mean[c] = static_cast<float>(sums_[c] / static_cast<double>(count));
    return largest;
  }

  // v = vector / norm
  void aim(const float* vector, double norm, int64_t dim) {
    const float factor = norm > 0 ? static_cast<float>(1 / norm) : 0;
    for (int64_t c = 0; c < dim; ++c) v_[c] = factor * vector[c];
  }

  void matrix_free(int64_t n, int64_t dim, const Iteration& iteration) {
    const int64_t rows = up(n, kRows);
    for (int64_t t = 0; t < iteration.count; ++t) {
      std::fill(sum_.data(), sum_.data() + dim, 0.0F);
      Kernel::dots_and_sum(x_.data(), rows, dim, v_.data(), next_.data(), sum_.data());
      std::swap(w_, next_);
      if (t > 0 && settled(n, iteration.tolerance)) return;
      const double norm = std::sqrt(product(sum_.data(), sum_.data(), dim));
      if (!(norm > 0)) return;  // no variance, and all scores are zero; or not finite
      aim(sum_.data(), norm, dim);
    }
    Kernel::dots(x_.data(), rows, dim, v_.data(), w_.data());
  }

  void in_gram_space(int64_t n, int64_t dim, const Iteration& iteration) {
    const int64_t rows = up(n, kStep);
    Kernel::dots(x_.data(), rows, dim, v_.data(), w_.data());
    Kernel::gram(x_.data(), rows, dim, g_.data(), scratch_.data());
    for (int64_t t = 0; t < iteration.count; ++t) {
      Kernel::dots(g_.data(), rows, rows, w_.data(), next_.data());
      const double norm = std::sqrt(product(w_.data(), next_.data(), n));
      if (!(norm > 0)) return;
      for (int64_t i = 0; i < n; ++i) next_[i] = static_cast<float>(next_[i] / norm);
      std::swap(w_, next_);
      if (settled(n, iteration.tolerance)) return;
    }
  }

  bool settled(int64_t n, double tolerance) {
    if (!(tolerance > 0)) return false;
    const double lengths = std::sqrt(product(w_.data(), w_.data(), n) * product(next_.data(), next_.data(), n));
    const double cosine = product(w_.data(), next_.data(), n) / lengths;
    return std::sqrt(std::max(0.0, 2 - 2 * cosine)) <= tolerance;
  }

  static double product(const float* a, const float* b, int64_t size) {
    double lanes[8] = {};
    int64_t c = 0;
    for (; c + 8 <= size; c += 8) {
      for (int j = 0; j < 8; ++j) lanes[j] += static_cast<double>(a[c + j]) * b[c + j];
    }
    for (; c < size; ++c) lanes[c % 8] += static_cast<double>(a[c]) * b[c];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
  }

  // Marks the `drop` rows of the largest scores, of equal scores the first. Either no score is NaN or all are.
  void select(const float* scores, int64_t rows, int64_t drop, uint8_t* dropped) {
    for (int64_t i = 0; i < rows; ++i) {
      order_[i] = i;
      dropped[i] = 0;
    }
    if (drop > 0) {
      std::nth_element(order_.begin(), order_.begin() + (drop - 1), order_.begin() + rows, [&](int64_t a, int64_t b) {
        return scores[a] > scores[b] || (!(scores[a] < scores[b]) && a < b);
      });
    }
    for (int64_t i = 0; i < drop; ++i) dropped[order_[i]] = 1;
  }

  std::vector<const float*> pointers_;
  std::vector<int64_t> order_;
  std::vector<double> sums_;
  Floats mean_, v_, sum_;  // [dim]
  Floats w_, next_;        // [rows], products of X with the direction
  Floats x_, g_, scratch_;
};

}  // namespace poisonkit::calibration
