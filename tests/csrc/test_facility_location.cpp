// Every path of facility location, the GPU's included, against a greedy that looks at all pairs for every pick.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "core/cpu.hpp"
#include "core/facility_location.hpp"
#include "core/facility_location_avx2.hpp"
#include "core/facility_location_device.hpp"
#include "emulated_block.hpp"

using namespace poisonkit;
using namespace poisonkit::facility;

namespace {

struct Case {
  std::string what;
  std::vector<float> x;
  int64_t dim;
  std::vector<int64_t> offsets, k;
  Similarity similarity;
  double scale;
  int64_t draws;

  int64_t groups() const { return static_cast<int64_t>(k.size()); }
  int64_t rows(int64_t g) const { return offsets[g + 1] - offsets[g]; }
};

struct Result {
  std::vector<int64_t> rows, sizes, nearest;
  std::vector<double> gains;

  Result(const Case& c, int64_t fill) : nearest(c.offsets.back(), fill) {
    int64_t places = 0;
    for (const int64_t k : c.k) places += k;
    rows.assign(places, fill);
    sizes.assign(places, fill);
    gains.assign(places, static_cast<double>(fill));
  }

  bool operator==(const Result& other) const {
    return rows == other.rows && sizes == other.sizes && nearest == other.nearest && gains == other.gains;
  }
};

std::vector<Case> cases() {
  std::mt19937_64 random(0);
  std::normal_distribution<float> normal;
  std::vector<Case> all;
  const auto add = [&](std::vector<int64_t> sizes, std::vector<int64_t> k, int64_t dim, const std::string& values,
                       Similarity similarity, double scale, int64_t draws) {
    Case c{"dim " + std::to_string(dim) + ", " + values + " values, similarity " +
               std::to_string(static_cast<int>(similarity)) + ", groups of",
           {},
           dim,
           {0},
           k,
           similarity,
           scale,
           draws};
    for (const int64_t size : sizes) {
      c.offsets.push_back(c.offsets.back() + size);
      c.what += " " + std::to_string(size);
    }
    for (int64_t i = 0; i < c.offsets.back() * dim; ++i) {
      const float value = normal(random);
      c.x.push_back(values == "whole"   ? std::round(value)
                    : values == "equal" ? 1.5f
                    : values == "large" ? value * 1e35f * (i % dim + 1)
                    : values == "tiny"  ? value * 1e-40f
                                        : value);
    }
    all.push_back(c);
  };
  for (const Similarity similarity : {Similarity::l2, Similarity::exp_l2, Similarity::sq_l2}) {
    for (const int64_t dim : {1, 3, 33, 70}) {
      for (const std::string values : {"normal", "whole", "large"}) {
        add({0, 1, 31, 66}, {0, 1, 31, 20}, dim, values, similarity, 0.7, 0);
      }
    }
    add({300, 5}, {40, 0}, 2, "normal", similarity, 3, 0);
    add({290}, {30}, 4, "whole", similarity, 1e-3, 5);
    add({35}, {35}, 3, "equal", similarity, 1, 0);
    add({40}, {20}, 3, "tiny", similarity, 1e30, 0);
  }
  return all;
}

// The lattice comes from the header; every cost, gain and tie is found anew for each pick.
Result naive(const Case& c) {
  Result result(c, -1);
  int64_t place = 0;
  for (int64_t g = 0; g < c.groups(); ++g) {
    const int64_t n = c.rows(g), start = c.offsets[g];
    if (n == 0 || c.k[g] == 0) continue;
    const float* first = c.x.data() + start * c.dim;
    double largest = 0;
    for (int64_t i = 0; i < n * c.dim; ++i) {
      largest = std::max(largest, std::fabs(static_cast<double>(first[i]) - first[i % c.dim]));
    }
    const Scaling scaling(largest);
    const auto squared = [&](int64_t i, int64_t e) {
      float sum = 0;
      for (int64_t f = 0; f < c.dim; ++f) {
        const float difference = scaling(first[i * c.dim + f], first[f]) - scaling(first[e * c.dim + f], first[f]);
        const float square = difference * difference;
        sum = sum + square;
      }
      return sum;
    };
    float reach = 0;
    for (int64_t i = 0; i < n; ++i) reach = std::max(reach, squared(i, 0));
    const Lattice lattice(c.similarity, scaling, reach, c.dim, c.scale);
    std::vector<int64_t> best(n, kLargest), left(n);
    std::iota(left.begin(), left.end(), int64_t{0});
    std::vector<int32_t> costs(n * n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t e = 0; e < n; ++e) costs[i * n + e] = lattice.cost(squared(i, e));
    }
    for (int64_t t = 0; t < c.k[g]; ++t, ++place) {
      std::vector<int64_t> candidates = left;
      if (c.draws > 0) {
        candidates.clear();
        for (int64_t j = 0; j < c.draws; ++j) candidates.push_back(left[drawn_place(g + 3, t, j, left.size())]);
      }
      int64_t most = -1, picked = -1;
      for (const int64_t e : candidates) {
        int64_t gain = 0;
        for (int64_t i = 0; i < n; ++i) gain += std::max<int64_t>(0, best[i] - costs[i * n + e]);
        if (gain > most || (gain == most && e < picked)) most = gain, picked = e;
      }
      auto at = std::find(left.begin(), left.end(), picked);
      *at = left.back();
      left.pop_back();
      result.rows[place] = start + picked;
      result.gains[place] = static_cast<double>(most) * lattice.unit;
      result.sizes[place] = 0;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t cost = costs[i * n + picked];
        if (t == 0 || cost < best[i]) result.nearest[start + i] = place, best[i] = cost;
      }
    }
    for (int64_t i = 0; i < n; ++i) ++result.sizes[result.nearest[start + i]];
  }
  return result;
}

template <class Kernel>
Result on_cpu(const Case& c) {
  Result result(c, -7);
  int64_t place = 0;
  for (int64_t g = 0; g < c.groups(); ++g) {
    const int64_t start = c.offsets[g];
    if (c.rows(g) == 0) continue;
    Greedy<Kernel>({c.x.data() + start * c.dim, c.rows(g), c.dim, c.dim, c.k[g], c.draws, static_cast<uint64_t>(g + 3)},
                   c.similarity, c.scale)
        .run({result.rows.data() + place, result.sizes.data() + place, result.nearest.data() + start,
              result.gains.data() + place, start, place});
    place += c.k[g];
  }
  return result;
}

struct EmulatedBlock {
  static constexpr int kThreads = 16;  // so that a thread has several candidates
  emulated::Fibers* fibers;
  Shared* room;
  int thread, index, blocks;

  Shared& shared() { return *room; }
  void sync() { fibers->sync(); }
  void pause() { fibers->pause(); }
  void fence() {}
  template <class Value>
  Value fresh(const Value* at) {
    return *at;
  }
  template <class Value>
  Value add(Value* at, Value value) {
    *at += value;
    return *at - value;
  }
  template <class Value>
  void raise(Value* at, Value value) {
    *at = std::max(*at, value);
  }
};

Result on_device(const Case& c, int team, int teams, bool keeps_costs) {
  Result result(c, -7);
  std::fill(result.sizes.begin(), result.sizes.end(), 0);
  const int64_t rows = c.offsets.back();
  int64_t largest = 0;
  std::vector<int64_t> places{0}, draws(c.groups(), c.draws), seeds;
  for (int64_t g = 0; g < c.groups(); ++g) {
    places.push_back(places.back() + c.k[g]);
    seeds.push_back(g + 3);
    largest = std::max(largest, c.rows(g));
  }
  std::vector<Meeting> meetings(c.groups());
  std::vector<Candidate> candidates(team * teams);
  std::vector<float> columns(rows * c.dim);
  std::vector<int64_t> scores(rows), left(rows);
  std::vector<int32_t> best(rows), costs(keeps_costs ? teams * largest * largest : 0);
  std::vector<Moved> moved(rows);
  const DeviceJob job{c.offsets.data(),
                      places.data(),
                      c.k.data(),
                      draws.data(),
                      seeds.data(),
                      c.x.data(),
                      rows,
                      c.dim,
                      c.dim,
                      c.groups(),
                      c.similarity,
                      c.scale,
                      result.rows.data(),
                      result.sizes.data(),
                      result.nearest.data(),
                      result.gains.data(),
                      team,
                      meetings.data(),
                      candidates.data(),
                      columns.data(),
                      scores.data(),
                      best.data(),
                      moved.data(),
                      left.data(),
                      keeps_costs ? costs.data() : nullptr,
                      largest * largest};
  std::vector<Shared> shared(team * teams);
  emulated::Fibers* running = nullptr;
  emulated::Fibers fibers(team * teams, EmulatedBlock::kThreads, [&](int thread, int index) {
    EmulatedBlock block{running, &shared[index], thread, index, team * teams};
    all_groups(job, block);
  });
  running = &fibers;
  fibers.run();
  return result;
}

int report(const std::string& path, const Case& c, const Result& got, const Result& want) {
  if (got == want) return 1;
  std::printf("%s differs: %s\n", path.c_str(), c.what.c_str());
  return 0;
}

}  // namespace

int main() {
  const std::vector<Case> all = cases();
  std::vector<Result> expected;
  for (const Case& c : all) expected.push_back(naive(c));
  const int count = static_cast<int>(all.size());
  bool good = true;
  const auto each = [&](const std::string& path, auto run) {
    int agreed = 0;
    for (int i = 0; i < count; ++i) agreed += report(path, all[i], run(all[i]), expected[i]);
    std::printf("%s: %d of %d\n", path.c_str(), agreed, count);
    good = good && agreed == count;
  };
  each("scalar", on_cpu<Scalar>);
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) each("avx2", on_cpu<Avx2>);
#endif
  each("device", [](const Case& c) { return on_device(c, 1, 2, c.dim > kWideRow); });
  each("device_teams", [](const Case& c) { return on_device(c, 2, 2, c.dim == 3); });
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
