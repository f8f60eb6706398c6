// An election among models, and the cells (partitions, or buckets of Finite Aggregation) by which an attacker reaches
// them. One input at a time; a column is a class's place in the class order, so that ties go to the smaller column.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace poisonkit::election {

// The models stand in `groups` equal groups. Within its group, cell h feeds the models (h + s) mod size for every shift
// s: one shift of 0 for disjoint partitions, d shifts for Finite Aggregation, several groups for several hash
// functions.
struct Cells {
  int64_t models, groups;
  std::vector<int64_t> shifts;  // distinct, in [0, size)

  int64_t size() const { return models / groups; }
  int64_t degree() const { return static_cast<int64_t>(shifts.size()); }
};

// What hitting each cell gains: the sum of a value over the models it feeds, with a histogram of these powers, so that
// the strongest cells are found without sorting.
class Powers {
 public:
  // Values of models are at most `highest`.
  Powers(const Cells& cells, int64_t highest)
      : cells_(cells),
        levels_(highest * cells.degree() + 1),
        power_(cells.models),
        count_(cells.groups * levels_),
        level_(cells.groups),
        left_(cells.groups) {}

  void set(const uint16_t* values) {
    const int64_t size = cells_.size();
    std::fill(power_.begin(), power_.end(), 0);
    std::fill(count_.begin(), count_.end(), 0);
    for (int64_t g = 0; g < cells_.groups; ++g) {
      uint16_t* const power = power_.data() + g * size;
      for (const int64_t shift : cells_.shifts) {
        add(values + g * size + shift, power, size - shift);
        add(values + g * size, power + size - shift, shift);
      }
      int32_t* const count = count_.data() + g * levels_;
      for (int64_t h = 0; h < size; ++h) ++count[power[h]];
    }
  }

  // One less, or one more, from one model.
  void lower(int64_t model) {
    for_each_cell_of(model, [](uint16_t& power, int32_t* count) {
      --count[power];
      ++count[--power];
    });
  }
  void raise(int64_t model) {
    for_each_cell_of(model, [](uint16_t& power, int32_t* count) {
      --count[power];
      ++count[++power];
    });
  }

  // The most r for which the r strongest cells of each group have together at most `gap`; -1 where even none have more.
  int64_t most(int64_t gap) {
    if (gap < 0) return -1;
    std::fill(level_.begin(), level_.end(), levels_);
    std::fill(left_.begin(), left_.end(), 0);
    for (int64_t hits = 0;;) {
      int64_t step = 0, run = cells_.size();
      for (int64_t g = 0; g < cells_.groups; ++g) {
        while (left_[g] == 0 && level_[g] > 0) left_[g] = count_[g * levels_ + --level_[g]];
        step += level_[g];
        if (level_[g] > 0) run = std::min(run, left_[g]);
      }
      if (step == 0) return cells_.size();
      if (step * run > gap) return hits + gap / step;
      gap -= step * run;
      hits += run;
      for (int64_t g = 0; g < cells_.groups; ++g) left_[g] -= level_[g] > 0 ? run : 0;
    }
  }

  // The fewest r for which they have at least `gap`; one more than there are cells in a group where none have.
  int64_t fewest(int64_t gap) { return gap <= 0 ? 0 : most(gap - 1) + 1; }

  // What the `hits` strongest cells of each group have together.
  int64_t sum(int64_t hits) const {
    int64_t total = 0;
    for (int64_t g = 0; g < cells_.groups; ++g) {
      int64_t left = hits;
      for (int64_t level = levels_ - 1; level > 0 && left > 0; --level) {
        const int64_t taken = std::min<int64_t>(left, count_[g * levels_ + level]);
        total += taken * level;
        left -= taken;
      }
    }
    return total;
  }

 private:
  static void add(const uint16_t* from, uint16_t* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(to[i] + from[i]);
  }

  template <class Change>
  void for_each_cell_of(int64_t model, const Change& change) {
    const int64_t size = cells_.size(), group = model / size, place = model - group * size;
    uint16_t* const power = power_.data() + group * size;
    int32_t* const count = count_.data() + group * levels_;
    for (const int64_t shift : cells_.shifts) change(power[place - shift + (place < shift ? size : 0)], count);
  }

  const Cells& cells_;
  int64_t levels_;
  std::vector<uint16_t> power_;  // of each cell
  std::vector<int32_t> count_;   // [groups, levels]
  std::vector<int64_t> level_, left_;
};

// Who voted for which column; every model names `each` columns.
class Ballot {
 public:
  Ballot(int64_t models, int64_t each, int64_t columns)
      : models_(models), each_(each), count_(columns), last_(columns), before_(models * each) {}

  // Take the votes [models, each] of the next input. False where a model names a column twice.
  bool cast(const uint16_t* votes) {
    for (const int64_t column : voted_) count_[column] = 0;
    voted_.clear();
    bool distinct = true;
    for (int64_t entry = 0; entry < models_ * each_; ++entry) {
      const int64_t column = votes[entry];
      if (count_[column]++ == 0) {
        voted_.push_back(static_cast<uint16_t>(column));
        before_[entry] = -1;
      } else {
        distinct &= each_ == 1 || last_[column] / each_ != entry / each_;
        before_[entry] = last_[column];
      }
      last_[column] = static_cast<int32_t>(entry);
    }
    return distinct;
  }

  int64_t columns() const { return static_cast<int64_t>(count_.size()); }
  int64_t count(int64_t column) const { return count_[column]; }
  const std::vector<uint16_t>& voted() const { return voted_; }

  // Calls use(model) for every model that named the column.
  template <class Use>
  void voters(int64_t column, const Use& use) const {
    if (count_[column] == 0) return;
    for (int64_t entry = last_[column]; entry >= 0; entry = before_[entry]) use(each_ == 1 ? entry : entry / each_);
  }

  // The voted columns other than `mine`, and of those without votes the `spare` smallest: no other without votes is a
  // better rival, since all have the same powers and ties go to the smaller column.
  void rivals(int64_t mine, int64_t spare, std::vector<int64_t>& found) const {
    found.clear();
    for (const int64_t column : voted_) {
      if (column != mine) found.push_back(column);
    }
    for (int64_t column = 0; spare > 0 && column < columns(); ++column) {
      if (column == mine || count_[column] > 0) continue;
      found.push_back(column);
      --spare;
    }
  }

  // The column with the most votes, other than `excluded`.
  int64_t most_voted(int64_t excluded = -1) const {
    int64_t best = -1;
    for (const int64_t column : voted_) {
      if (column != excluded && (best < 0 || beats(column, best))) best = column;
    }
    return best >= 0 ? best : excluded == 0 ? 1 : 0;
  }

  bool beats(int64_t a, int64_t b) const { return count_[a] > count_[b] || (count_[a] == count_[b] && a < b); }

 private:
  int64_t models_, each_;
  std::vector<int32_t> count_;          // of each column
  std::vector<int32_t> last_, before_;  // of each voted column, its last entry; of each entry, the one before it
  std::vector<uint16_t> voted_;
};

// The votes of a batch as the caller has them: class ids of 1, 2 or 8 bytes, at [model, input, place].
struct Votes {
  const void* data;
  int64_t bytes, models, inputs, each;
  int64_t model_stride, input_stride, place_stride;  // in elements

  // Columns of the inputs [start, stop) as [input, model, place]. False where an id is no class.
  bool load(int64_t start, int64_t stop, const std::vector<uint16_t>& column_of, uint16_t* out) const {
    switch (bytes) {
      case 1:
        return load<uint8_t>(start, stop, column_of, out);
      case 2:
        return load<uint16_t>(start, stop, column_of, out);
      default:
        return load<uint64_t>(start, stop, column_of, out);
    }
  }

 private:
  template <class Id>
  bool load(int64_t start, int64_t stop, const std::vector<uint16_t>& column_of, uint16_t* out) const {
    const Id* const ids = static_cast<const Id*>(data);
    const uint64_t classes = column_of.size();
    bool valid = true;
    for (int64_t i = 0; i < models; ++i) {
      for (int64_t j = 0; j < each; ++j) {
        const Id* const row = ids + i * model_stride + j * place_stride;
        uint16_t* const to = out + i * each + j;
        for (int64_t x = start; x < stop; ++x) {
          const uint64_t id = row[x * input_stride];  // a negative id is a very large one
          valid &= id < classes;
          to[(x - start) * models * each] = column_of[id < classes ? id : 0];
        }
      }
    }
    return valid;
  }
};

inline std::vector<uint16_t> columns_of(const int64_t* order, int64_t classes) {
  std::vector<uint16_t> columns(classes);
  for (int64_t column = 0; column < classes; ++column) columns[order[column]] = static_cast<uint16_t>(column);
  return columns;
}

enum class Problem { none, no_class, repeated };

}  // namespace poisonkit::election
