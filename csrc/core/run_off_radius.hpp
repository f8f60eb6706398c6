// The winner of a run-off election and how many hits cannot change it: see ops.run_off_radius.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "election.hpp"

namespace poisonkit::election {

// Whether a model puts each finalist above each class: bit c % 8 of byte c / 8 at [model, input, finalist].
struct Preferences {
  const uint8_t* data;
  int64_t model_stride, input_stride, finalist_stride;  // in bytes

  const uint8_t* row(int64_t model, int64_t input, int64_t finalist) const {
    return data + model * model_stride + input * input_stride + finalist * finalist_stride;
  }
};

inline int bit(const uint8_t* row, int64_t index) { return row[index / 8] >> (index % 8) & 1; }

// The winner y loses by leaving the final, when two classes a and b come before it, or to a class c that comes before
// the other finalist s and beats y in the final. Each way is ruled out by the hits it needs; base powers, which know
// of no rival's voters, and the best way found so far spare most of them.
class RunOffRadius {
 public:
  RunOffRadius(const Votes& first, const Preferences& preferences, const Cells& cells, const int64_t* order,
               int64_t classes)
      : first_(first),
        preferences_(preferences),
        order_(order),
        degree_(cells.degree()),
        column_of_(columns_of(order, classes)),
        ballot_(first.models, 1, classes),
        winner_(cells, 2),
        second_(cells, 2),
        pair_(cells, 3),
        final_(cells, 2),
        values_(first.models),
        block_(kBlock * first.models),
        bytes_((classes + 7) / 8),
        sums_(kBlock * bytes_),
        above_(kBlock * bytes_ * 8) {
    for (int byte = 0; byte < 256; ++byte) {
      for (int i = 0; i < 8; ++i) spread_[byte] |= uint64_t(byte >> i & 1) << (8 * i);
    }
  }

  Problem run(int64_t start, int64_t stop, int64_t* prediction, int64_t* radius) {
    for (; start < stop; start += kBlock) {
      const int64_t end = std::min(stop, start + kBlock);
      if (!first_.load(start, end, column_of_, block_.data())) return Problem::no_class;
      std::array<Final, kBlock> finals;
      for (int64_t x = start; x < end; ++x) {
        ballot_.cast(votes(x - start));
        finals[x - start] = hold(x);
      }
      count_above(start, end, finals);
      for (int64_t x = start; x < end; ++x) {
        ballot_.cast(votes(x - start));
        prediction[x] = order_[finals[x - start].winner];
        radius[x] = of(x, finals[x - start], above_.data() + (x - start) * bytes_ * 8);
      }
    }
    return Problem::none;
  }

 private:
  static constexpr int64_t kBlock = 16;

  struct Final {
    int64_t winner, other, place;  // columns, and which of the two finalists the winner is
  };

  const uint16_t* votes(int64_t i) const { return block_.data() + i * first_.models; }

  Final hold(int64_t x) const {
    const int64_t one = ballot_.most_voted(), two = ballot_.most_voted(one);
    int64_t for_one = 0;
    for (int64_t i = 0; i < first_.models; ++i) for_one += bit(preferences_.row(i, x, 0), order_[two]);
    const int64_t lead = 2 * for_one - first_.models;
    return lead > 0 || (lead == 0 && one < two) ? Final{one, two, 0} : Final{two, one, 1};
  }

  // How many models put the winner above each class. Eight counters of a byte share a word, emptied before they fill.
  void count_above(int64_t start, int64_t end, const std::array<Final, kBlock>& finals) {
    std::fill(above_.begin(), above_.end(), 0);
    for (int64_t i = 0; i < first_.models;) {
      const int64_t stop = std::min(first_.models, i + 255);
      std::fill(sums_.begin(), sums_.end(), 0);
      for (; i < stop; ++i) {
        for (int64_t x = start; x < end; ++x) {
          const uint8_t* const row = preferences_.row(i, x, finals[x - start].place);
          uint64_t* const sums = sums_.data() + (x - start) * bytes_;
          for (int64_t b = 0; b < bytes_; ++b) sums[b] += spread_[row[b]];
        }
      }
      for (size_t j = 0; j < above_.size(); ++j) above_[j] += sums_[j / 8] >> (8 * (j % 8)) & 255;
    }
  }

  // Least hits by which `rival`, `gap` behind, is level: the powers less its voters'.
  int64_t fewest(Powers& powers, int64_t gap, int64_t rival, int64_t ally = -1) {
    const auto lower = [&](int64_t model) { powers.lower(model); };
    const auto raise = [&](int64_t model) { powers.raise(model); };
    ballot_.voters(rival, lower);
    if (ally >= 0) ballot_.voters(ally, lower);
    const int64_t hits = powers.fewest(gap);
    ballot_.voters(rival, raise);
    if (ally >= 0) ballot_.voters(ally, raise);
    return hits;
  }

  // Powers of 1 + weight [v_i = column].
  void favour(Powers& powers, int64_t column, uint16_t weight) {
    std::fill(values_.begin(), values_.end(), 1);
    ballot_.voters(column, [&](int64_t model) { values_[model] = static_cast<uint16_t>(1 + weight); });
    powers.set(values_.data());
  }

  int64_t behind(int64_t rival, int64_t column) const {
    return ballot_.count(column) - ballot_.count(rival) + (rival > column ? 1 : 0);
  }

  int64_t of(int64_t x, const Final& final, const int32_t* above) {
    int64_t best = lose_final(x, final, above);
    best = std::min(best, miss_final(final.winner, best));
    return std::max<int64_t>(best - 1, 0);  // ties of preferences may leave the count of the final below zero
  }

  int64_t lose_final(int64_t x, const Final& final, const int32_t* above) {
    const auto lead = [&](int64_t c) {
      return 2 * int64_t{above[order_[c]]} - first_.models + (c > final.winner ? 1 : 0);
    };
    const auto beaten = [&](int64_t c) {
      for (int64_t i = 0; i < first_.models; ++i) {
        values_[i] = static_cast<uint16_t>(2 * bit(preferences_.row(i, x, final.place), order_[c]));
      }
      final_.set(values_.data());
      return final_.fewest(lead(c));
    };
    int64_t best = lead(final.other) <= 0 ? 0 : beaten(final.other);
    favour(second_, final.other, 1);
    int64_t reach = second_.sum(best - 1);
    for (int64_t c = 0; c < ballot_.columns(); ++c) {
      if (c == final.winner || c == final.other) continue;
      const int64_t gap = behind(c, final.other);
      if (lead(c) > 2 * degree_ * (best - 1) || gap > reach) continue;
      const int64_t hits = std::max(fewest(second_, gap, c), lead(c) <= 0 ? 0 : beaten(c));
      if (hits < best) {
        best = hits;
        reach = second_.sum(best - 1);
      }
    }
    return best;
  }

  int64_t miss_final(int64_t winner, int64_t best) {
    favour(winner_, winner, 1);
    favour(pair_, winner, 2);
    const auto gap = [&](int64_t c) { return behind(c, winner); };
    ballot_.rivals(winner, 2, rivals_);
    std::sort(rivals_.begin(), rivals_.end(), [&](int64_t a, int64_t b) { return gap(a) < gap(b); });
    const int64_t alone = winner_.sum(best - 1);
    while (!rivals_.empty() && gap(rivals_.back()) > alone) rivals_.pop_back();
    hits_.clear();
    for (const int64_t rival : rivals_) hits_.push_back(fewest(winner_, gap(rival), rival));

    int64_t together = pair_.sum(best - 1);
    for (size_t i = 0; i + 1 < rivals_.size(); ++i) {
      for (size_t j = i + 1; j < rivals_.size(); ++j) {
        const int64_t both = gap(rivals_[i]) + gap(rivals_[j]);
        if (both > together) break;
        if (std::max(hits_[i], hits_[j]) >= best) continue;
        const int64_t hits = std::max({hits_[i], hits_[j], fewest(pair_, both, rivals_[i], rivals_[j])});
        if (hits < best) {
          best = hits;
          together = pair_.sum(best - 1);
        }
      }
    }
    return best;
  }

  const Votes& first_;
  const Preferences& preferences_;
  const int64_t* order_;
  int64_t degree_;
  std::vector<uint16_t> column_of_;
  Ballot ballot_;
  Powers winner_, second_, pair_, final_;
  std::vector<uint16_t> values_;  // of each model
  std::vector<uint16_t> block_;
  int64_t bytes_;
  std::vector<uint64_t> sums_;  // [kBlock, bytes]
  std::vector<int32_t> above_;  // [kBlock, 8 bytes]
  std::vector<int64_t> rivals_, hits_;
  std::array<uint64_t, 256> spread_{};  // the bits of a byte, one in each byte of a word
};

}  // namespace poisonkit::election
