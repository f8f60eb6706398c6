// How many hits per group of cells cannot push a class out of the most-voted ones: see ops.vote_radius.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "election.hpp"

namespace poisonkit::election {

// Against rival c a hit cell gains the sum of 1 + [y in T_i] - [c in T_i] over the models it feeds, and c is ahead once
// the gains exceed n_y - n_c - [c < y]. No rival's cell has more power than it would have without the rival's voters:
// those base powers rule out most rivals, and for the others only the cells of their voters differ.
class VoteRadius {
 public:
  VoteRadius(const Votes& votes, const Cells& cells, const int64_t* order, int64_t classes)
      : votes_(votes),
        order_(order),
        column_of_(columns_of(order, classes)),
        ballot_(votes.models, votes.each, classes),
        powers_(cells, 2),
        values_(votes.models),
        block_(kBlock * votes.models * votes.each) {}

  // The inputs [start, stop). `label` holds the class to keep of every input; null for the most voted.
  Problem run(int64_t start, int64_t stop, const int64_t* label, int64_t* kept, int64_t* radius) {
    for (; start < stop; start += kBlock) {
      const int64_t end = std::min(stop, start + kBlock);
      if (!votes_.load(start, end, column_of_, block_.data())) return Problem::no_class;
      for (int64_t x = start; x < end; ++x) {
        if (!ballot_.cast(block_.data() + (x - start) * votes_.models * votes_.each)) return Problem::repeated;
        const int64_t mine = label ? column_of_[label[x]] : ballot_.most_voted();
        kept[x] = order_[mine];
        radius[x] = of(mine);
      }
    }
    return Problem::none;
  }

 private:
  static constexpr int64_t kBlock = 32;  // inputs at a time: a cache line of uint16 votes

  int64_t gap(int64_t mine, int64_t rival) const {
    return ballot_.count(mine) - ballot_.count(rival) - (rival < mine ? 1 : 0);
  }

  // The each-th smallest, over the rivals, of the most hits that keep a rival behind.
  int64_t of(int64_t mine) {
    std::fill(values_.begin(), values_.end(), 1);
    ballot_.voters(mine, [&](int64_t model) { ++values_[model]; });
    powers_.set(values_.data());

    const size_t wanted = votes_.each;
    ballot_.rivals(mine, votes_.each, rivals_);
    std::nth_element(rivals_.begin(), rivals_.begin() + (wanted - 1), rivals_.end(),
                     [&](int64_t a, int64_t b) { return gap(mine, a) < gap(mine, b); });
    smallest_.clear();
    int64_t hopeless = 0;  // a gap at which no rival is among the smallest
    for (const int64_t rival : rivals_) {
      const int64_t needed = gap(mine, rival);
      if (smallest_.size() == wanted && needed >= hopeless) continue;
      const int64_t hits = most(rival, needed);
      if (smallest_.size() == wanted) {
        if (hits >= smallest_.front()) continue;
        std::pop_heap(smallest_.begin(), smallest_.end());
        smallest_.pop_back();
      }
      smallest_.push_back(hits);
      std::push_heap(smallest_.begin(), smallest_.end());
      if (smallest_.size() == wanted) hopeless = powers_.sum(smallest_.front());
    }
    return smallest_.front();
  }

  int64_t most(int64_t rival, int64_t gap) {
    ballot_.voters(rival, [&](int64_t model) { powers_.lower(model); });
    const int64_t hits = powers_.most(gap);
    ballot_.voters(rival, [&](int64_t model) { powers_.raise(model); });
    return hits;
  }

  const Votes& votes_;
  const int64_t* order_;
  std::vector<uint16_t> column_of_;
  Ballot ballot_;
  Powers powers_;
  std::vector<uint16_t> values_;  // of each model
  std::vector<uint16_t> block_;
  std::vector<int64_t> rivals_;
  std::vector<int64_t> smallest_;  // a heap, the largest in front
};

}  // namespace poisonkit::election
