// Both certificates of elections against their definitions: every rival and pair, with sorted powers and no pruning.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "core/run_off_radius.hpp"
#include "core/vote_radius.hpp"

using namespace poisonkit::election;

namespace {

std::mt19937_64 source(0);

int64_t draw(int64_t below) { return static_cast<int64_t>(source() % below); }

std::vector<int64_t> shuffled(int64_t n) {
  std::vector<int64_t> all(n);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), source);
  return all;
}

// The least hits of every group whose gains reach `gap`; one more than there are cells where none do.
int64_t fewest(const Cells& cells, int64_t gap, const std::function<int64_t(int64_t)>& value) {
  const int64_t size = cells.size();
  std::vector<int64_t> gains(size, 0);
  for (int64_t g = 0; g < cells.groups; ++g) {
    std::vector<int64_t> power(size, 0);
    for (int64_t h = 0; h < size; ++h) {
      for (const int64_t shift : cells.shifts) power[h] += value(g * size + (h + shift) % size);
    }
    std::sort(power.rbegin(), power.rend());
    for (int64_t r = 0, sum = 0; r < size; ++r) gains[r] += sum += power[r];
  }
  if (gap <= 0) return 0;
  return 1 + std::count_if(gains.begin(), gains.end(), [&](int64_t gained) { return gained < gap; });
}

struct Case {
  Cells cells;
  int64_t inputs, each, classes;
  std::vector<int64_t> order;
  std::unique_ptr<uint16_t[]> top;  // [models, inputs, each], to the last byte: a sanitizer sees any further read

  Votes votes() const { return {top.get(), 2, cells.models, inputs, each, inputs * each, each, 1}; }
  uint16_t vote(int64_t i, int64_t x, int64_t j = 0) const { return top[(i * inputs + x) * each + j]; }
  int64_t place(int64_t c) const { return std::find(order.begin(), order.end(), c) - order.begin(); }

  int64_t named(int64_t i, int64_t x, int64_t c) const {
    for (int64_t j = 0; j < each; ++j) {
      if (vote(i, x, j) == c) return 1;
    }
    return 0;
  }
  int64_t count(int64_t x, int64_t c) const {
    int64_t total = 0;
    for (int64_t i = 0; i < cells.models; ++i) total += named(i, x, c);
    return total;
  }
  int64_t most_voted(int64_t x, int64_t except = -1) const {
    int64_t best = -1;
    for (const int64_t c : order) {
      if (c != except && (best < 0 || count(x, c) > count(x, best))) best = c;
    }
    return best;
  }
};

Case random_case(int64_t groups, int64_t most_each) {
  const int64_t size = 1 + draw(12), classes = 2 + draw(12);
  Case c{{size * groups, groups, {}}, 1 + draw(40), 1 + draw(std::min(most_each, classes - 1)), classes, {}, nullptr};
  c.cells.shifts = shuffled(size);
  c.cells.shifts.resize(1 + draw(std::min<int64_t>(size, 4)));
  c.order = shuffled(classes);
  c.top.reset(new uint16_t[c.cells.models * c.inputs * c.each]);
  const int64_t liked = 1 + draw(classes);
  for (int64_t entry = 0; entry < c.cells.models * c.inputs; ++entry) {
    std::vector<int64_t> ids = shuffled(classes);
    if (draw(2)) std::stable_partition(ids.begin(), ids.end(), [&](int64_t id) { return id < liked; });
    std::copy_n(ids.begin(), c.each, c.top.get() + entry * c.each);
  }
  return c;
}

bool vote_radius_agrees() {
  const Case c = random_case(1 + draw(3), 4);
  std::vector<int64_t> label, kept(c.inputs), radius(c.inputs);
  for (int64_t x = 0; x < c.inputs; ++x) label.push_back(draw(2) ? draw(c.classes) : c.most_voted(x));
  const Votes votes = c.votes();
  VoteRadius kernel(votes, c.cells, c.order.data(), c.classes);
  if (kernel.run(0, c.inputs, label.data(), kept.data(), radius.data()) != Problem::none) return false;
  for (int64_t x = 0; x < c.inputs; ++x) {
    const int64_t y = label[x];
    std::vector<int64_t> most;
    for (int64_t rival = 0; rival < c.classes; ++rival) {
      if (rival == y) continue;
      const int64_t gap = c.count(x, y) - c.count(x, rival) + (c.place(rival) > c.place(y) ? 1 : 0);
      most.push_back(fewest(c.cells, gap, [&](int64_t i) { return 1 + c.named(i, x, y) - c.named(i, x, rival); }) - 1);
    }
    std::sort(most.begin(), most.end());
    if (kept[x] != y || radius[x] != most[c.each - 1]) return false;
  }
  return true;
}

bool run_off_radius_agrees() {
  const Case c = random_case(1, 1);
  const int64_t n = c.cells.models, bytes = (c.classes + 7) / 8;
  std::unique_ptr<uint8_t[]> bits(new uint8_t[n * c.inputs * 2 * bytes]);
  for (int64_t b = 0; b < n * c.inputs * 2 * bytes; ++b) bits[b] = static_cast<uint8_t>(source());
  const auto above = [&](int64_t i, int64_t x, int64_t finalist, int64_t rival) {
    return int64_t{bit(bits.get() + ((i * c.inputs + x) * 2 + finalist) * bytes, rival)};
  };
  std::vector<int64_t> prediction(c.inputs), radius(c.inputs);
  const Votes first = c.votes();
  const Preferences preferences{bits.get(), c.inputs * 2 * bytes, 2 * bytes, bytes};
  RunOffRadius kernel(first, preferences, c.cells, c.order.data(), c.classes);
  if (kernel.run(0, c.inputs, prediction.data(), radius.data()) != Problem::none) return false;
  for (int64_t x = 0; x < c.inputs; ++x) {
    const int64_t one = c.most_voted(x), two = c.most_voted(x, one);
    int64_t lead = -n;
    for (int64_t i = 0; i < n; ++i) lead += 2 * above(i, x, 0, two);
    const bool wins = lead > 0 || (lead == 0 && c.place(one) < c.place(two));
    const int64_t y = wins ? one : two, s = wins ? two : one, which = wins ? 0 : 1;
    const auto is = [&](int64_t i, int64_t a) { return int64_t{c.vote(i, x) == a}; };
    const auto gap = [&](int64_t a, int64_t b) {
      return c.count(x, a) - c.count(x, b) + (c.place(b) > c.place(a) ? 1 : 0);
    };
    const auto overtakes = [&](int64_t a, int64_t b) {
      return fewest(c.cells, gap(b, a), [&](int64_t i) { return 1 + is(i, b) - is(i, a); });
    };
    int64_t best = n + 1;
    for (int64_t a = 0; a < c.classes; ++a) {
      if (a == y) continue;
      int64_t final_lead = (c.place(a) > c.place(y) ? 1 : 0) - n;
      for (int64_t i = 0; i < n; ++i) final_lead += 2 * above(i, x, which, a);
      const int64_t final = fewest(c.cells, final_lead, [&](int64_t i) { return 2 * above(i, x, which, a); });
      best = std::min(best, std::max(final, a == s ? 0 : overtakes(a, s)));
      for (int64_t b = 0; b < a; ++b) {
        if (b == y) continue;
        const int64_t both =
            fewest(c.cells, gap(y, a) + gap(y, b), [&](int64_t i) { return 1 + 2 * is(i, y) - is(i, a) - is(i, b); });
        best = std::min(best, std::max({overtakes(a, y), overtakes(b, y), both}));
      }
    }
    if (prediction[x] != y || radius[x] != std::max<int64_t>(best - 1, 0)) return false;
  }
  return true;
}

}  // namespace

int main() {
  bool good = true;
  for (const auto& [name, agrees] :
       {std::pair{"vote_radius", vote_radius_agrees}, {"run_off_radius", run_off_radius_agrees}}) {
    constexpr int kCases = 300;
    int passed = 0;
    for (int i = 0; i < kCases; ++i) passed += agrees() ? 1 : 0;
    std::printf("%s: %d of %d\n", name, passed, kCases);
    good &= passed == kCases;
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
