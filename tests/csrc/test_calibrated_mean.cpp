// Every path of the calibrated mean against the same iteration in double with an explicit covariance.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/calibrated_mean.hpp"
#include "core/calibrated_mean_avx2.hpp"
#include "core/cpu.hpp"

using namespace poisonkit;
using namespace poisonkit::calibration;

namespace {

struct Case {
  std::string what;
  int64_t rows, dim, stride, drop, iterations;
  bool gram;
  std::unique_ptr<float[]> r;  // to the last float of the last row, so that a sanitizer sees any further read
  std::vector<float> start;
};

std::vector<Case> cases() {
  std::mt19937_64 random(0);
  std::normal_distribution<float> normal;
  std::vector<Case> all;
  for (const int64_t rows : {1, 2, 3, 4, 5, 15, 16, 17, 33, 50}) {
    for (const int64_t dim : {0, 1, 7, 8, 9, 16, 31, 33, 127, 129, 300}) {
      for (const int64_t iterations : {1, 6}) {
        for (const bool gram : {false, true}) {
          const int64_t gap = dim % 2 * 3, drop = std::min(rows - 1, rows / 3 + 1);
          Case c{std::to_string(rows) + " x " + std::to_string(dim) + (gram ? ", Gram" : ""),
                 rows,
                 dim,
                 dim + gap,
                 drop,
                 iterations,
                 gram,
                 nullptr,
                 {}};
          c.r.reset(new float[(rows - 1) * c.stride + dim]);
          for (int64_t i = 0; i < (rows - 1) * c.stride + dim; ++i) c.r[i] = normal(random) + 3;
          for (int64_t i = 0; i < rows; i += 4) {
            for (int64_t k = 0; k < dim; ++k) c.r[i * c.stride + k] += 2;  // a direction to converge to
          }
          for (int64_t k = 0; k < dim; ++k) c.start.push_back(normal(random));
          all.push_back(std::move(c));
        }
      }
    }
  }
  return all;
}

// The mean of the rows that are not dropped.
std::vector<double> mean(const Case& c, const uint8_t* dropped) {
  std::vector<double> sum(c.dim);
  int64_t kept = 0;
  for (int64_t i = 0; i < c.rows; ++i) {
    if (dropped && dropped[i]) continue;
    ++kept;
    for (int64_t k = 0; k < c.dim; ++k) sum[k] += c.r[i * c.stride + k];
  }
  for (double& value : sum) value /= static_cast<double>(kept);
  return sum;
}

std::vector<double> scores(const Case& c) {
  const std::vector<double> centre = mean(c, nullptr);
  std::vector<double> covariance(c.dim * c.dim), v(c.start.begin(), c.start.end()), out(c.rows);
  const auto x = [&](int64_t i, int64_t k) { return c.r[i * c.stride + k] - centre[k]; };
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.dim; ++j) {
      for (int64_t k = 0; k < c.dim; ++k) covariance[j * c.dim + k] += x(i, j) * x(i, k);
    }
  }
  for (int64_t t = 0; t < c.iterations && c.rows > 1; ++t) {
    std::vector<double> next(c.dim);
    for (int64_t j = 0; j < c.dim; ++j) {
      next[j] = std::inner_product(v.begin(), v.end(), covariance.begin() + j * c.dim, 0.0);
    }
    const double norm = std::sqrt(std::inner_product(next.begin(), next.end(), next.begin(), 0.0));
    for (int64_t j = 0; j < c.dim; ++j) v[j] = next[j] / norm;
  }
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t k = 0; k < c.dim; ++k) out[i] += x(i, k) * v[k];
    out[i] = std::abs(out[i]);
  }
  return out;
}

bool close(double got, double want, double scale) { return std::abs(got - want) <= 2e-5 * scale; }

template <class Kernel>
bool agrees(const Case& c, Calibrator<Kernel>& calibrator) {
  const Group group{c.r.get(), c.stride, c.rows, c.dim, c.drop, c.gram};
  const std::unique_ptr<float[]> got_mean(new float[c.dim]), got_scores(new float[c.rows]);
  const std::unique_ptr<uint8_t[]> dropped(new uint8_t[c.rows]);
  calibrator(group, {c.start.data(), c.iterations, 0}, got_mean.get(), dropped.get(), got_scores.get());

  const std::vector<double> want_scores = scores(c), want_mean = mean(c, dropped.get());
  const double largest = *std::max_element(want_scores.begin(), want_scores.end());
  bool good = std::count(dropped.get(), dropped.get() + c.rows, 1) == c.drop;
  for (int64_t i = 0; i < c.rows; ++i) {
    good = good && close(got_scores[i], want_scores[i], largest);
    for (int64_t j = 0; j < c.rows; ++j) {  // no row is kept that goes before one that is dropped
      const bool before = got_scores[i] > got_scores[j] || (got_scores[i] == got_scores[j] && i < j);
      good = good && !(before && !dropped[i] && dropped[j]);
    }
  }
  for (int64_t k = 0; k < c.dim; ++k) good = good && close(got_mean[k], want_mean[k], 1);
  if (!good) std::printf("%s, %ld iterations: wrong\n", c.what.c_str(), static_cast<long>(c.iterations));
  return good;
}

template <class Kernel>
bool all_agree(const std::vector<Case>& all, Isa isa) {
  int agreed = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    // One calibrator for two groups, the first of them full of numbers that must not be seen again.
    const int64_t rows = all[i].rows + 9, dim = all[i].dim;
    Calibrator<Kernel> calibrator(rows, rows, dim);
    const std::vector<float> nan(rows * dim, NAN);
    std::vector<float> mean(dim), scores(rows);
    std::vector<uint8_t> dropped(rows);
    calibrator({nan.data(), dim, rows, dim, 1, true}, {all[i].start.data(), 1, 0}, mean.data(), dropped.data(),
               scores.data());
    agreed += agrees(all[i], calibrator) && (dim == 0 || (std::isnan(mean[0]) && std::isnan(scores[0])));
  }
  std::printf("%s: %d of %d\n", name(isa).c_str(), agreed, static_cast<int>(all.size()));
  return agreed == static_cast<int>(all.size());
}

}  // namespace

int main() {
  const std::vector<Case> all = cases();
  bool good = all_agree<Scalar>(all, Isa::scalar);
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) good = all_agree<Avx2>(all, Isa::avx2) && good;
#endif
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
