// Exact greedy facility location: the medoids of one group of rows, by eager gains over pruned tiles.
//
// With b_i the cost of row i to its best medoid, the gain of e is sum_i max(0, b_i - cost(i, e)). A pick lowers some
// b_i from `old` to `now`, and so each gain by clamp(old - cost(i, e), 0, old - now): over all picks about five such
// rows per row of the group. Rows lie in tiles of neighbours. Rounding is monotone, so the distance to a tile's
// bounding box, added up in the same order, is never above the computed distance to one of its rows: a tile is skipped
// without any slack.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "facility_location_lattice.hpp"

namespace poisonkit::facility {

constexpr int kTile = 32;   // rows of a tile
constexpr int kBatch = 64;  // rows whose sums of costs fit 32 bits, and which have a bit each in a word
constexpr int kBoxes = 8;   // bounding boxes compared together

// What an instruction set brings: costs between rows (of consecutive features) and the 32 rows of a tile (of which a
// feature's 32 values are consecutive).
class Scalar {
 public:
  // Adds to row_sums[count] and column_sums[32] the costs between `count` rows, one after the other, and a tile.
  static void add_costs(const Lattice& lattice, const float* rows, int count, int64_t dim, const float* tile,
                        int64_t* row_sums, int64_t* column_sums) {
    int32_t costs[kTile];
    for (int r = 0; r < count; ++r) {
      cost_row(lattice, rows + r * dim, dim, tile, costs);
      for (int e = 0; e < kTile; ++e) {
        row_sums[r] += costs[e];
        column_sums[e] += costs[e];
      }
    }
  }

  // Adds to sums[32] what `count` <= kBatch rows give each row of the tile: clamp(old - cost, 0, most).
  static void add_clamped(const Lattice& lattice, const float* const* rows, const int32_t* old, const int32_t* most,
                          int count, int64_t dim, const float* tile, int64_t* sums) {
    int32_t costs[kTile];
    const int32_t* at = costs;
    for (int r = 0; r < count; ++r) {
      cost_row(lattice, rows[r], dim, tile, costs);
      add_clamped(&at, 0, old + r, most + r, 1, sums);
    }
  }

  // The same where the costs are at hand, those of row r from costs[r] + start on.
  static void add_clamped(const int32_t* const* costs, int64_t start, const int32_t* old, const int32_t* most,
                          int count, int64_t* sums) {
    for (int r = 0; r < count; ++r) {
      for (int e = 0; e < kTile; ++e) {
        sums[e] += std::min(std::max(old[r] - costs[r][start + e], 0), most[r]);
      }
    }
  }

  static void cost_row(const Lattice& lattice, const float* row, int64_t dim, const float* tile, int32_t* costs) {
    float squared[kTile] = {};
    add_squares(row, dim, tile, squared);
    for (int e = 0; e < kTile; ++e) costs[e] = lattice.cost(squared[e]);
  }

  // Writes costs[r * stride + e] between 32 rows, one after the other, and a tile.
  static void cost_block(const Lattice& lattice, const float* rows, int64_t dim, const float* tile, int32_t* costs,
                         int64_t stride) {
    for (int r = 0; r < kTile; ++r) cost_row(lattice, rows + r * dim, dim, tile, costs + r * stride);
  }

  // Bit b tells whether the row can have a cost below limits[b] to anything in box b. Of each feature, boxes holds
  // the lower ends of the eight boxes and then the upper ends.
  static uint32_t reached(const Lattice& lattice, const float* row, int64_t dim, const float* boxes,
                          const int32_t* limits) {
    float squared[kBoxes] = {};
    for (int64_t f = 0; f < dim; ++f, boxes += 2 * kBoxes) {
      for (int b = 0; b < kBoxes; ++b) {
        const float gap = std::max(std::max(boxes[b] - row[f], row[f] - boxes[kBoxes + b]), 0.0f);
        squared[b] += gap * gap;
      }
    }
    uint32_t bits = 0;
    for (int b = 0; b < kBoxes; ++b) bits |= uint32_t{lattice.cost(squared[b]) - lattice.slack < limits[b]} << b;
    return bits;
  }

 private:
  static void add_squares(const float* row, int64_t dim, const float* tile, float* squared) {
    for (int64_t f = 0; f < dim; ++f, tile += kTile) {
      for (int e = 0; e < kTile; ++e) {
        const float difference = row[f] - tile[e];
        squared[e] += difference * difference;
      }
    }
  }
};

struct Group {
  const float* x;  // rows of dim features, each stride after the last
  int64_t rows, dim, stride;
  int64_t k;
  int64_t draws;  // candidates of a pick, drawn with replacement from those left; 0 for all of them
  uint64_t seed;
};

// Each in selection order, but for `nearest`, which has the place of each row's nearest medoid.
struct Medoids {
  int64_t *rows, *sizes, *nearest;
  double* gains;
  int64_t first_row, first_place;  // what rows and places count from
};

// Distances between wide rows cost more than keeping them: up to kMatrix bytes of them per group at work.
constexpr int64_t kWide = 32;
constexpr int64_t kMatrix = int64_t{1} << 27;

template <class Kernel>
class Greedy {
 public:
  Greedy(const Group& group, Similarity similarity, double scale)
      : group_(group),
        tiles_((group.rows + kTile - 1) / kTile),
        blocks_((tiles_ + kBoxes - 1) / kBoxes),
        keeps_costs_(group.dim > kWide && tiles_ * tiles_ * kTile * kTile * 4 <= kMatrix),
        lattice_(place(similarity, scale)) {}

  void run(const Medoids& out) {
    if (group_.k == 0) {
      std::fill_n(out.nearest, group_.rows, int64_t{-1});
      return;
    }
    start();
    std::vector<int64_t> changed;
    for (int64_t t = 0; t < group_.k; ++t) {
      const int64_t picked = group_.draws == 0 ? best() : best_drawn(t);
      out.rows[t] = out.first_row + index_[picked];
      out.gains[t] = static_cast<double>(gains_[picked]) * lattice_.unit;
      gains_[picked] = kTaken;
      relax(picked, static_cast<int32_t>(t), &changed);
      if (t + 1 == group_.k) break;
      if (t == 0) {
        // from scratch, with what pruning saves
        for (int64_t s = 0; s < tiles_ * kTile; ++s) gains_[s] = index_[s] < 0 || s == picked ? kTaken : 0;
        old_ = now_;
        std::fill(stale_.begin(), stale_.end(), true);
        update(changed, [](int32_t old, int32_t) { return old; }, +1);
      } else {
        stale_[picked / kTile] = true;
        update(changed, [](int32_t old, int32_t now) { return old - now; }, -1);
      }
    }
    std::fill_n(out.sizes, group_.k, int64_t{0});
    for (int64_t s = 0; s < tiles_ * kTile; ++s) {
      if (index_[s] < 0) continue;
      out.nearest[index_[s]] = out.first_place + nearest_[s];
      ++out.sizes[nearest_[s]];
    }
  }

 private:
  // Tiles, rows in their order, bounding boxes, and the lattice. What fills the last tile has index -1.
  Lattice place(Similarity similarity, double scale) {
    const int64_t slots = tiles_ * kTile, dim = group_.dim;
    index_.resize(slots, -1);
    std::iota(index_.begin(), index_.begin() + group_.rows, int64_t{0});
    if (!keeps_costs_) split(0, group_.rows);

    double largest = 0;
    for (int64_t i = 0; i < group_.rows; ++i) {
      for (int64_t f = 0; f < dim; ++f) {
        largest = std::max(largest, std::fabs(static_cast<double>(row(i)[f]) - group_.x[f]));
      }
    }
    const Scaling scaling(largest);
    rows_.resize(slots * dim);
    columns_.resize(slots * dim);
    float reach = 0;
    for (int64_t s = 0; s < slots; ++s) {
      const float* source = row(index_[s] < 0 ? index_[group_.rows - 1] : index_[s]);
      float squared = 0;
      for (int64_t f = 0; f < dim; ++f) {
        const float moved = scaling(source[f], group_.x[f]);
        rows_[s * dim + f] = columns_[(s / kTile * dim + f) * kTile + s % kTile] = moved;
        squared += moved * moved;
      }
      reach = std::max(reach, squared);
    }
    if (!keeps_costs_) {
      boxes_.resize(blocks_ * dim * 2 * kBoxes);
      for (int64_t t = 0; t < tiles_; ++t) {
        for (int64_t f = 0; f < dim; ++f) {
          const float* values = columns(t) + f * kTile;
          float* ends = boxes_.data() + (t / kBoxes * dim + f) * 2 * kBoxes + t % kBoxes;
          ends[0] = *std::min_element(values, values + kTile);
          ends[kBoxes] = *std::max_element(values, values + kTile);
        }
      }
    }
    return Lattice(similarity, scaling, reach, dim, scale);
  }

  // Halves index_[begin, end) by the feature that varies most until a tile is left; all tiles but the last are full.
  void split(int64_t begin, int64_t end) {
    if (end - begin <= kTile) {
      std::sort(index_.begin() + begin, index_.begin() + end);  // the first of a tile's best is then the smallest
      return;
    }
    int64_t widest = 0;
    double most = -1;
    for (int64_t f = 0; f < group_.dim; ++f) {
      double sum = 0, squares = 0;
      for (int64_t i = begin; i < end; ++i) {
        const double moved = static_cast<double>(row(index_[i])[f]) - group_.x[f];
        sum += moved;
        squares += moved * moved;
      }
      const double spread = squares - sum * sum / static_cast<double>(end - begin);
      if (spread > most) most = spread, widest = f;
    }
    const int64_t middle = begin + ((end - begin + kTile - 1) / kTile / 2) * kTile;
    std::nth_element(index_.begin() + begin, index_.begin() + middle, index_.begin() + end,
                     [&](int64_t a, int64_t b) { return row(a)[widest] < row(b)[widest]; });
    split(begin, middle);
    split(middle, end);
  }

  // No medoid yet: every row costs kLargest.
  void start() {
    const int64_t slots = tiles_ * kTile;
    now_.assign(slots, -1);
    nearest_.assign(slots, 0);
    gains_.assign(slots, kTaken);
    limits_.assign(blocks_ * kBoxes, std::numeric_limits<int32_t>::min());  // where a block has no tile
    reached_.assign(blocks_ * kBoxes, 0);
    best_.assign(tiles_, 0);
    stale_.assign(tiles_, true);
    for (int64_t s = 0; s < group_.rows; ++s) now_[s] = kLargest + 1, gains_[s] = group_.rows * int64_t{kLargest};
    std::fill_n(limits_.begin(), tiles_, kLargest + 1);
    if (keeps_costs_) {
      keep_costs();
    } else {
      for (int64_t t = 0; t < tiles_; ++t) subtract_costs(t);
    }
    if (group_.draws > 0) {
      left_.resize(group_.rows);
      slot_.resize(group_.rows);
      std::iota(left_.begin(), left_.end(), int64_t{0});
      for (int64_t s = 0; s < group_.rows; ++s) slot_[index_[s]] = s;
    }
  }

  // Takes the costs between tile t and itself and the tiles before, which are full, from the gains of both.
  void subtract_costs(int64_t t) {
    const int count = static_cast<int>(std::min<int64_t>(kTile, group_.rows - t * kTile));
    int64_t row_sums[kTile] = {};
    for (int64_t u = 0; u < t; ++u) {
      int64_t column_sums[kTile] = {};
      Kernel::add_costs(lattice_, moved(t * kTile), count, group_.dim, columns(u), row_sums, column_sums);
      for (int e = 0; e < kTile; ++e) gains_[u * kTile + e] -= column_sums[e];
    }
    for (int r = 0; r < count; ++r) {
      int32_t costs[kTile];
      Kernel::cost_row(lattice_, moved(t * kTile + r), group_.dim, columns(t), costs);
      gains_[t * kTile + r] -= std::accumulate(costs, costs + count, row_sums[r]);
    }
  }

  void keep_costs() {
    const int64_t slots = tiles_ * kTile;
    costs_.resize(slots * slots);
    for (int64_t t = 0; t < tiles_; ++t) {
      for (int64_t u = 0; u <= t; ++u) {
        int32_t* block = costs_.data() + t * kTile * slots + u * kTile;
        Kernel::cost_block(lattice_, moved(t * kTile), group_.dim, columns(u), block, slots);
        int32_t* mirrored = costs_.data() + u * kTile * slots + t * kTile;
        for (int r = 0; r < kTile && u < t; ++r) {
          for (int e = 0; e < kTile; ++e) mirrored[e * slots + r] = block[r * slots + e];
        }
      }
    }
    for (int64_t s = 0; s < group_.rows; ++s) {
      for (int64_t i = 0; i < group_.rows; ++i) gains_[s] -= costs_[s * slots + i];
    }
  }

  // The slot of the largest gain; of equal ones, that of the first row.
  int64_t best() {
    int64_t found = 0;
    for (int64_t t = 0; t < tiles_; ++t) {
      if (stale_[t]) {
        const int64_t* gains = gains_.data() + t * kTile;
        best_[t] = t * kTile + (std::max_element(gains, gains + kTile) - gains);
        stale_[t] = false;
      }
      found = better(found, best_[t]);
    }
    return found;
  }

  int64_t best_drawn(int64_t pick) {
    const auto draw = [&](int64_t j) { return drawn_place(group_.seed, pick, j, left_.size()); };
    int64_t place = draw(0);
    for (int64_t j = 1; j < group_.draws; ++j) {
      const int64_t other = draw(j);
      if (better(slot_[left_[place]], slot_[left_[other]]) != slot_[left_[place]]) place = other;
    }
    const int64_t found = slot_[left_[place]];
    left_[place] = left_.back();
    left_.pop_back();
    return found;
  }

  int64_t better(int64_t a, int64_t b) const {
    return gains_[b] > gains_[a] || (gains_[b] == gains_[a] && index_[b] < index_[a]) ? b : a;
  }

  // Gives the rows that are nearer to the picked one than to any medoid before to it, and lists them.
  void relax(int64_t picked, int32_t medoid, std::vector<int64_t>* changed) {
    changed->clear();
    old_.resize(now_.size());
    const auto visit = [&](int64_t tile, const int32_t* costs) {
      int32_t limit = -1;
      for (int64_t e = 0, s = tile * kTile; e < kTile; ++e, ++s) {
        if (costs[e] < now_[s]) {
          old_[s] = now_[s];
          now_[s] = costs[e];
          nearest_[s] = medoid;
          changed->push_back(s);
        }
        limit = std::max(limit, now_[s]);
      }
      limits_[tile] = limit;
    };
    if (keeps_costs_) {
      for (int64_t t = 0; t < tiles_; ++t) visit(t, costs(picked) + t * kTile);
      return;
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      const int32_t* limits = limits_.data() + block * kBoxes;
      for (uint32_t bits = Kernel::reached(lattice_, moved(picked), group_.dim, boxes(block), limits); bits != 0;
           bits &= bits - 1) {
        const int64_t tile = block * kBoxes + __builtin_ctz(bits);
        int32_t costs[kTile];
        Kernel::cost_row(lattice_, moved(picked), group_.dim, columns(tile), costs);
        visit(tile, costs);
      }
    }
  }

  // Adds sign * clamp(old - cost, 0, most(old, now)) over the changed rows to every gain.
  template <class Most>
  void update(const std::vector<int64_t>& changed, Most most_of, int64_t sign) {
    for (size_t start = 0; start < changed.size(); start += kBatch) {
      const int count = static_cast<int>(std::min<size_t>(kBatch, changed.size() - start));
      int32_t old[kBatch], most[kBatch];
      for (int r = 0; r < count; ++r) {
        const int64_t s = changed[start + r];
        old[r] = old_[s];
        most[r] = most_of(old_[s], now_[s]);
      }
      if (keeps_costs_) {
        add_kept(changed.data() + start, old, most, count, sign);
      } else {
        add_reached(changed.data() + start, old, most, count, sign);
      }
    }
  }

  void add_kept(const int64_t* changed, const int32_t* old, const int32_t* most, int count, int64_t sign) {
    const int32_t* rows[kBatch];
    for (int r = 0; r < count; ++r) rows[r] = costs(changed[r]);
    for (int64_t t = 0; t < tiles_; ++t) {
      int64_t sums[kTile] = {};
      Kernel::add_clamped(rows, t * kTile, old, most, count, sums);
      add(t, sums, sign);
    }
  }

  void add_reached(const int64_t* changed, const int32_t* old, const int32_t* most, int count, int64_t sign) {
    for (int r = 0; r < count; ++r) {
      int32_t limits[kBoxes];
      std::fill_n(limits, kBoxes, old[r]);
      for (int64_t block = 0; block < blocks_; ++block) {
        for (uint32_t bits = Kernel::reached(lattice_, moved(changed[r]), group_.dim, boxes(block), limits); bits != 0;
             bits &= bits - 1) {
          reached_[block * kBoxes + __builtin_ctz(bits)] |= uint64_t{1} << r;
        }
      }
    }
    for (int64_t t = 0; t < tiles_; ++t) {
      const float* rows[kBatch];
      int32_t tile_old[kBatch], tile_most[kBatch];
      int found = 0;
      for (uint64_t bits = reached_[t]; bits != 0; bits &= bits - 1, ++found) {
        const int r = __builtin_ctzll(bits);
        rows[found] = moved(changed[r]);
        tile_old[found] = old[r];
        tile_most[found] = most[r];
      }
      if (found == 0) continue;
      int64_t sums[kTile] = {};
      Kernel::add_clamped(lattice_, rows, tile_old, tile_most, found, group_.dim, columns(t), sums);
      add(t, sums, sign);
    }
    std::fill(reached_.begin(), reached_.end(), 0);
  }

  void add(int64_t tile, const int64_t* sums, int64_t sign) {
    for (int e = 0; e < kTile; ++e) gains_[tile * kTile + e] += sign * sums[e];
    stale_[tile] = true;
  }

  const float* row(int64_t i) const { return group_.x + i * group_.stride; }
  const float* moved(int64_t slot) const { return rows_.data() + slot * group_.dim; }
  const float* columns(int64_t tile) const { return columns_.data() + tile * kTile * group_.dim; }
  const float* boxes(int64_t block) const { return boxes_.data() + block * group_.dim * 2 * kBoxes; }
  const int32_t* costs(int64_t slot) const { return costs_.data() + slot * tiles_ * kTile; }

  Group group_;
  int64_t tiles_, blocks_;
  bool keeps_costs_;
  std::vector<int64_t> index_;         // of each slot, the row
  std::vector<float> rows_, columns_;  // the moved rows by slot, and the same tile by tile with a feature's together
  std::vector<float> boxes_;
  Lattice lattice_;
  std::vector<int32_t> costs_;      // [slot][slot] where they are kept
  std::vector<int32_t> old_, now_;  // of each slot, the cost to its best medoid before the last pick and after it
  std::vector<int32_t> nearest_;
  std::vector<int32_t> limits_;    // of each tile, the largest of now_
  std::vector<uint64_t> reached_;  // of each tile, the rows of a batch that may reach it
  std::vector<int64_t> gains_;
  std::vector<int64_t> best_;         // of each tile, the first slot of its largest gain
  std::vector<char> stale_;           // of each tile, whether that is to be found anew
  std::vector<int64_t> left_, slot_;  // where candidates are drawn: rows not picked yet, and the slot of each row
};

}  // namespace poisonkit::facility
