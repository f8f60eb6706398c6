// The C++ core on drawn shapes and hostile numbers: ragged groups, rows of every width, extreme floats, votes for no
// class. Buffers end with their last element, so that a sanitizer sees any access beyond; every path must give the bits
// of the scalar one, and the results must be possible ones.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "core/calibrated_mean.hpp"
#include "core/calibrated_mean_avx2.hpp"
#include "core/clipped_relu.hpp"
#include "core/cpu.hpp"
#include "core/facility_location.hpp"
#include "core/facility_location_avx2.hpp"
#include "core/run_off_radius.hpp"
#include "core/vote_radius.hpp"
#include "core/weighted_sum_hash.hpp"
#include "core/weighted_sum_hash_avx2.hpp"
#include "core/weighted_sum_hash_vnni.hpp"

using namespace poisonkit;

namespace {

std::mt19937_64 source;

int64_t draw(int64_t below) { return static_cast<int64_t>(source() % static_cast<uint64_t>(below)); }
int64_t skewed(int64_t most) { return draw(draw(most + 1) + 1); }  // small ones more often

template <class T>
std::unique_ptr<T[]> exactly(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]());
}

float extreme(bool finite) {
  constexpr float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float all[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, most, -most, most / 2, least, -least, 1e-30f, 3e19f, inf, NAN};
  return all[draw(finite ? 12 : 14)];
}

std::unique_ptr<float[]> floats(int64_t size, bool finite) {
  std::unique_ptr<float[]> x = exactly<float>(size);
  const int64_t kind = draw(3);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < size; ++i) {
    x[i] = kind == 0 ? normal(source) : kind == 1 ? static_cast<float>(draw(3)) : draw(4) ? 1.5f : extreme(finite);
  }
  return x;
}

struct Chosen {
  std::vector<int64_t> rows, sizes, nearest;
  std::vector<double> gains;
  bool operator==(const Chosen& o) const {
    return rows == o.rows && sizes == o.sizes && nearest == o.nearest && gains == o.gains;
  }
};

bool facility_location() {
  const int64_t groups = skewed(6), dim = 1 + skewed(70), stride = dim + draw(2) * draw(4);
  std::vector<int64_t> offsets{0}, k;
  for (int64_t g = 0; g < groups; ++g) {
    offsets.push_back(offsets.back() + skewed(90));
    k.push_back(draw(offsets[g + 1] - offsets[g] + 1));
  }
  const int64_t rows = offsets.back(), places = std::accumulate(k.begin(), k.end(), int64_t{0});
  const std::unique_ptr<float[]> x = floats(std::max<int64_t>(0, (rows - 1) * stride + dim), true);
  const auto similarity = static_cast<facility::Similarity>(draw(3));
  const double scale = std::exp(static_cast<double>(draw(80) - 40)), draws = static_cast<double>(draw(3) * skewed(9));
  const auto choose = [&](auto kernel) {
    Chosen found{std::vector<int64_t>(places), std::vector<int64_t>(places), std::vector<int64_t>(rows),
                 std::vector<double>(places)};
    int64_t place = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = offsets[g], count = offsets[g + 1] - first;
      if (count == 0) continue;
      facility::Greedy<decltype(kernel)>(
          {x.get() + first * stride, count, dim, stride, k[g], static_cast<int64_t>(draws), 7}, similarity, scale)
          .run({found.rows.data() + place, found.sizes.data() + place, found.nearest.data() + first,
                found.gains.data() + place, first, place});
      place += k[g];
    }
    return found;
  };
  const Chosen found = choose(facility::Scalar{});
  bool good = true;
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) good = found == choose(facility::Avx2{});
#endif
  int64_t place = 0;
  for (int64_t g = 0; g < groups; place += k[g++]) {
    const int64_t first = offsets[g], end = offsets[g + 1];
    std::set<int64_t> distinct(found.rows.begin() + place, found.rows.begin() + place + k[g]);
    good = good && static_cast<int64_t>(distinct.size()) == k[g];
    good = good && (k[g] == 0 || (*distinct.begin() >= first && *distinct.rbegin() < end));
    const auto sizes = found.sizes.begin() + place;
    good = good && std::accumulate(sizes, sizes + k[g], int64_t{0}) == (k[g] ? end - first : 0);
    for (int64_t i = first; i < end; ++i) {
      const int64_t nearest = found.nearest[i];
      good = good && (k[g] == 0 ? nearest == -1 : nearest >= place && nearest < place + k[g]);
    }
    for (int64_t t = 0; t < k[g]; ++t) good = good && found.gains[place + t] >= 0;
  }
  return good;
}

template <class Kernel>
bool calibrates() {
  bool good = true;
  const int64_t most = 1 + skewed(70), dim = skewed(140);
  calibration::Calibrator<Kernel> calibrator(most, most, dim);
  for (int64_t group = 0; group < 3; ++group) {
    const int64_t rows = 1 + draw(most), stride = dim + draw(4), drop = draw(rows);
    const std::unique_ptr<float[]> r = floats((rows - 1) * stride + dim, false), start = floats(dim, true);
    const std::unique_ptr<float[]> mean = exactly<float>(dim), scores = exactly<float>(rows);
    const std::unique_ptr<uint8_t[]> dropped = exactly<uint8_t>(rows);
    const double tolerance = draw(2) * 1e-3;
    calibrator({r.get(), stride, rows, dim, drop, draw(2) != 0}, {start.get(), skewed(9), tolerance}, mean.get(),
               dropped.get(), scores.get());
    good = good && std::count(dropped.get(), dropped.get() + rows, 1) == drop;
  }
  return good;
}

bool calibrated_mean() {
  bool good = calibrates<calibration::Scalar>();
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) good = calibrates<calibration::Avx2>() && good;
#endif
  return good;
}

bool weighted_sum_hash() {
  const int64_t rows = skewed(20), dim = skewed(draw(8) ? 300 : 70000), stride = dim + draw(3);
  const int vectors = 1 + static_cast<int>(draw(2));
  const int64_t size = rows ? (rows - 1) * stride + dim : 0;
  const std::unique_ptr<uint8_t[]> x = exactly<uint8_t>(size);
  const std::unique_ptr<int64_t[]> weights = exactly<int64_t>(vectors * dim);
  for (int64_t i = 0; i < size; ++i) x[i] = draw(2) ? 255 : static_cast<uint8_t>(source());
  const int64_t edges[] = {0, 1, hash::kPrime - 1, hash::kPrime - 21, int64_t{1} << 47};
  for (int64_t i = 0; i < vectors * dim; ++i) weights[i] = draw(2) ? draw(hash::kPrime) : edges[draw(5)];
  std::vector<int64_t> want;
  for (int64_t row = 0; row < rows; ++row) {
    for (int v = 0; v < vectors; ++v) {
      __int128 total = 0;
      for (int64_t i = 0; i < dim; ++i) total += static_cast<__int128>(weights[v * dim + i]) * x[row * stride + i];
      want.push_back(static_cast<int64_t>(total % hash::kPrime));
    }
  }
  const auto same = [&](auto kernel) {
    const std::unique_ptr<int64_t[]> out = exactly<int64_t>(rows * vectors);
    kernel.hash(x.get(), stride, rows, out.get(), vectors);
    return std::equal(want.begin(), want.end(), out.get());
  };
  bool good = same(hash::Scalar(weights.get(), dim, vectors));
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) good = good && same(hash::Avx2(weights.get(), dim, vectors));
#endif
#if defined(POISONKIT_HAS_AVX512_VNNI)
  if (usable(Isa::avx512_vnni)) good = good && same(hash::Avx512Vnni(weights.get(), dim, vectors));
#endif
  return good;
}

// Votes of any bytes: those that name no class, or one twice, are told from the others, and never followed.
template <class Vote>
bool elections() {
  using namespace election;
  const int64_t groups = 1 + skewed(3), size = 1 + skewed(20), classes = 2 + skewed(draw(4) ? 12 : 300);
  const int64_t inputs = skewed(40), each = 1 + skewed(std::min<int64_t>(3, classes - 2)), models = groups * size;
  Cells cells{models, groups, {}};
  for (int64_t shift = 0; shift < size; ++shift) cells.shifts.push_back(shift);
  std::shuffle(cells.shifts.begin(), cells.shifts.end(), source);
  cells.shifts.resize(1 + skewed(size - 1));
  std::vector<int64_t> order(classes);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::shuffle(order.begin(), order.end(), source);
  const int64_t hostile = draw(2);
  const std::unique_ptr<Vote[]> top = exactly<Vote>(models * inputs * each);
  bool classes_only = true, distinct = true;
  for (int64_t entry = 0; entry < models * inputs; ++entry) {
    std::set<Vote> seen;
    for (int64_t j = 0; j < each; ++j) {
      Vote vote = static_cast<Vote>(draw(std::min<int64_t>(classes, std::numeric_limits<Vote>::max())));
      while (!hostile && seen.count(vote)) vote = static_cast<Vote>((vote + 1) % std::min<int64_t>(classes, 250));
      if (hostile && draw(200) == 0) vote = static_cast<Vote>(source());
      top[entry * each + j] = vote;
      const auto wide = static_cast<int64_t>(vote);
      classes_only = classes_only && wide >= 0 && wide < classes;
      distinct = distinct && seen.insert(vote).second;
    }
  }
  const Votes votes{top.get(), static_cast<int64_t>(sizeof(Vote)), models, inputs, each, inputs * each, each, 1};
  const std::unique_ptr<int64_t[]> kept = exactly<int64_t>(inputs), radius = exactly<int64_t>(inputs);
  VoteRadius kernel(votes, cells, order.data(), classes);
  const Problem found = kernel.run(0, inputs, nullptr, kept.get(), radius.get());
  if ((found == Problem::none) != (classes_only && distinct)) return false;
  if (found != Problem::none) return true;
  const auto possible = [&](int64_t most) {
    for (int64_t i = 0; i < inputs; ++i) {
      if (kept[i] < 0 || kept[i] >= classes || radius[i] < -1 || radius[i] > most) return false;
    }
    return true;
  };
  if (!possible(size)) return false;
  if (groups > 1 || each > 1) return true;
  const int64_t bytes = (classes + 7) / 8;
  const std::unique_ptr<uint8_t[]> bits = exactly<uint8_t>(models * inputs * 2 * bytes);
  for (int64_t b = 0; b < models * inputs * 2 * bytes; ++b) bits[b] = static_cast<uint8_t>(source());
  const Preferences preferences{bits.get(), inputs * 2 * bytes, 2 * bytes, bytes};
  RunOffRadius run_off(votes, preferences, cells, order.data(), classes);
  return run_off.run(0, inputs, kept.get(), radius.get()) == Problem::none && possible(size);
}

bool any_election() {
  const int64_t kind = draw(3);
  return kind == 0 ? elections<uint8_t>() : kind == 1 ? elections<uint16_t>() : elections<int64_t>();
}

template <class Float>
bool clips() {
  using namespace clip;
  using Bits = typename Float::Bits;
  const int64_t outer = 1 + skewed(9), channels = 1 + skewed(40), inner = 1 + skewed(300);
  const int64_t size = outer * channels * inner;
  const std::unique_ptr<Bits[]> x = exactly<Bits>(size), grad = exactly<Bits>(size), bound = exactly<Bits>(channels);
  for (int64_t i = 0; i < size; ++i) {
    x[i] = static_cast<Bits>(source());  // any bits: a nan, an infinity, a subnormal
    grad[i] = static_cast<Bits>(source() % static_cast<uint64_t>(Float::kInfinity / 2));
  }
  for (int64_t i = 0; i < channels; ++i) bound[i] = static_cast<Bits>(source());
  const Pieces pieces(outer, channels, inner);
  struct Done {
    std::unique_ptr<Bits[]> y, dx;
    std::vector<typename Float::Sum> sums;
  };
  const auto run = [&](auto kernel) {
    Done done{exactly<Bits>(size), exactly<Bits>(size), std::vector<typename Float::Sum>(pieces.sums())};
    decltype(kernel)::run(Forward<Float>(pieces, bound.get(), x.get(), done.y.get()), 0, pieces.count);
    decltype(kernel)::run(
        Backward<Float, true, true>(pieces, bound.get(), grad.get(), done.y.get(), done.dx.get(), done.sums.data()), 0,
        pieces.count);
    return done;
  };
  bool good = true;
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) {
    const Done one = run(Scalar{}), other = run(Avx2{});
    const auto bytes = static_cast<size_t>(size) * sizeof(Bits);
    good = std::memcmp(one.y.get(), other.y.get(), bytes) == 0 && std::memcmp(one.dx.get(), other.dx.get(), bytes) == 0;
    good = good && std::memcmp(one.sums.data(), other.sums.data(), one.sums.size() * sizeof(one.sums[0])) == 0;
  }
#endif
  return good;
}

bool clipped_relu() {
  const int64_t kind = draw(4);
  return kind == 0   ? clips<clip::Float32>()
         : kind == 1 ? clips<clip::Float64>()
         : kind == 2 ? clips<clip::BFloat16>()
                     : clips<clip::Float16>();
}

}  // namespace

// fuzz_core [COUNT [FIRST]]: the cases of so many seeds; a seed that fails is printed, to be run alone.
int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 200, first = argc > 2 ? std::atoi(argv[2]) : 0;
  const std::pair<const char*, bool (*)()> parts[] = {{"facility_location", facility_location},
                                                      {"calibrated_mean", calibrated_mean},
                                                      {"weighted_sum_hash", weighted_sum_hash},
                                                      {"elections", any_election},
                                                      {"clipped_relu", clipped_relu}};
  bool good = true;
  for (const auto& [name, part] : parts) {
    int passed = 0;
    for (int seed = first; seed < first + count; ++seed) {
      source.seed(seed);
      const bool held = part();
      if (!held) std::printf("%s: seed %d\n", name, seed);
      passed += held;
    }
    std::printf("%s: %d of %d\n", name, passed, count);
    good = good && passed == count;
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
