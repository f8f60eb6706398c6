// Facility location on a GPU: all groups in one launch, each by a team of blocks that stays with it for all its picks.
//
// Candidates are dealt out to the threads of a team, a thread keeps the gains of its own, and the rows that a pick
// moved come by in batches through shared memory. Two meetings of the team a pick: one to agree on the best candidate,
// one to gather the moved rows. Whatever another block wrote is read past the first cache, by Block::fresh.
//
// The code is a template of what it runs on, so that tests can run it, thread by thread, without a GPU.
#pragma once

#include <cstdint>

#include "facility_location_lattice.hpp"

namespace poisonkit::facility {

constexpr int kMostThreads = 256;  // of a block
constexpr int kDeviceRows = 8;     // rows of a batch
constexpr int kStretch = 64;       // features of a batch in shared memory at a time
constexpr int64_t kWideRow = 32;   // above, distances are kept where there is room for them

struct Candidate {
  int64_t gain, row;

  // Larger gain first, of equal ones the smaller row.
  POISONKIT_BOTH bool beats(const Candidate& other) const {
    return gain > other.gain || (gain == other.gain && row < other.row);
  }
};

// What the blocks of a group share. Starts as zeros.
struct Meeting {
  unsigned arrived;
  unsigned moved[2];           // rows that a pick moved; picks take turns
  unsigned reach;              // the bits of a float, ordered like the float as it is not negative
  unsigned long long largest;  // likewise of a double
};

struct Moved {
  int64_t row;
  int32_t old, most;
};

struct Shared {
  float rows[kStretch * kDeviceRows];
  Moved moved[kDeviceRows];
  Candidate candidates[kMostThreads];
  double largest[kMostThreads];
};

// All pointers are to the device. The first five arrays have an element a group; offsets has one more.
struct DeviceJob {
  const int64_t *offsets, *places, *k, *draws, *seeds;
  const float* x;
  int64_t rows, dim, stride, groups;
  Similarity similarity;
  double scale;
  int64_t *medoids, *sizes, *nearest;  // sizes start as zeros
  double* gains;
  int team;  // blocks of a team
  // room to work in
  Meeting* meetings;      // [groups]
  Candidate* candidates;  // [blocks]
  float* columns;         // [rows * dim], a group's at offset * dim, feature by feature
  int64_t* scores;        // [rows], of each candidate the gain
  int32_t* best;          // [rows], of each row the cost to its best medoid
  Moved* moved;           // [rows]
  int64_t* left;          // [rows], where candidates are drawn
  int32_t* costs;         // [teams, largest group, largest group] where they are kept, or null
  int64_t kept;           // elements of a team's
};

// Block gives: kThreads, a power of two; thread, index, blocks; shared(); sync(); pause() in a loop that waits;
// fence(); fresh(pointer); and the atomic add(pointer, value), which returns what was there, and raise(pointer, value)
// to a maximum.
template <class Block>
class Team {
 public:
  POISONKIT_BOTH Team(const DeviceJob& job, Block& block, int64_t group)
      : job_(job),
        block_(block),
        group_(group),
        start_(job.offsets[group]),
        n_(job.offsets[group + 1] - start_),
        first_(block.index % job.team * int64_t{Block::kThreads}),
        step_(job.team * int64_t{Block::kThreads}),
        meeting_(job.meetings + group),
        columns_(job.columns + start_ * job.dim),
        costs_(job.costs == nullptr ? nullptr : job.costs + block.index / job.team * job.kept),
        lattice_(Similarity::l2, Scaling(0), 0, 1, 1) {}

  POISONKIT_BOTH void run() {
    const int64_t k = job_.k[group_], place = job_.places[group_];
    if (n_ == 0 || k == 0) {
      for (int64_t e = first_ + block_.thread; e < n_; e += step_) job_.nearest[start_ + e] = -1;
      return;
    }
    prepare();
    for (int64_t t = 0; t < k; ++t) {
      const Candidate picked = job_.draws[group_] == 0 ? best() : best_drawn(t);
      unsigned* moved = meeting_->moved + t % 2;
      relax(picked.row, place + t, t == 0, moved);
      meet();
      if (leads()) {
        job_.medoids[place + t] = start_ + picked.row;
        job_.gains[place + t] = static_cast<double>(picked.gain) * lattice_.unit;
        meeting_->moved[(t + 1) % 2] = 0;
        if (job_.draws[group_] != 0) take_out(picked.row, t);
      }
      if (t + 1 < k) {
        update(block_.fresh(moved), [&](int64_t r) { return block_.fresh(job_.moved + start_ + r); }, t == 0, false);
        for (int64_t e = first_ + block_.thread; e < n_; e += step_) {
          if (e == picked.row) job_.scores[start_ + e] = kTaken;
        }
      }
    }
    for (int64_t e = first_ + block_.thread; e < n_; e += step_) {
      block_.add(job_.sizes + job_.nearest[start_ + e], int64_t{1});
    }
  }

 private:
  POISONKIT_BOTH bool leads() const { return block_.index % job_.team == 0 && block_.thread == 0; }

  // All threads of the team wait for one another, and see what was written before.
  POISONKIT_BOTH void meet() {
    block_.sync();
    if (job_.team == 1) return;
    if (block_.thread == 0) {
      ++meetings_;
      block_.fence();
      block_.add(&meeting_->arrived, 1u);
      while (block_.fresh(&meeting_->arrived) < meetings_ * job_.team) block_.pause();
      block_.fence();
    }
    block_.sync();
  }

  // The lattice, the columns, and gains against kLargest.
  POISONKIT_BOTH void prepare() {
    const float* x = job_.x + start_ * job_.stride;
    double largest = 0;
    for (int64_t i = first_ + block_.thread; i < n_ * job_.dim; i += step_) {
      const double moved = fabs(static_cast<double>(x[i / job_.dim * job_.stride + i % job_.dim]) - x[i % job_.dim]);
      largest = largest < moved ? moved : largest;
    }
    unsigned long long bits = 0;
    largest = largest_of_block(largest);
    memcpy(&bits, &largest, sizeof(bits));
    if (block_.thread == 0) block_.raise(&meeting_->largest, bits);
    meet();
    bits = block_.fresh(&meeting_->largest);
    memcpy(&largest, &bits, sizeof(bits));
    const Scaling scaling(largest);

    float reach = 0;
    for (int64_t e = first_ + block_.thread; e < n_; e += step_) {
      float squared = 0;
      for (int64_t f = 0; f < job_.dim; ++f) {
        const float moved = scaling(x[e * job_.stride + f], x[f]);
        columns_[f * n_ + e] = moved;
        squared += moved * moved;
      }
      reach = reach < squared ? squared : reach;
      job_.best[start_ + e] = kLargest + 1;
      if (job_.draws[group_] != 0) job_.left[start_ + e] = e;
    }
    reach = static_cast<float>(largest_of_block(reach));
    unsigned reach_bits = 0;
    memcpy(&reach_bits, &reach, sizeof(reach_bits));
    if (block_.thread == 0) block_.raise(&meeting_->reach, reach_bits);
    meet();
    reach_bits = block_.fresh(&meeting_->reach);
    memcpy(&reach, &reach_bits, sizeof(reach_bits));
    lattice_ = Lattice(job_.similarity, scaling, reach, job_.dim, job_.scale);
    update(n_, [](int64_t r) { return Moved{r, kLargest, kLargest}; }, true, true);
  }

  POISONKIT_BOTH double largest_of_block(double value) {
    double* values = block_.shared().largest;
    values[block_.thread] = value;
    for (int half = Block::kThreads / 2; half > 0; half /= 2) {
      block_.sync();
      if (block_.thread < half && values[block_.thread] < values[block_.thread + half]) {
        values[block_.thread] = values[block_.thread + half];
      }
    }
    block_.sync();
    value = values[0];
    block_.sync();
    return value;
  }

  POISONKIT_BOTH Candidate best_of_block(Candidate mine) {
    Candidate* found = block_.shared().candidates;
    found[block_.thread] = mine;
    for (int half = Block::kThreads / 2; half > 0; half /= 2) {
      block_.sync();
      if (block_.thread < half && found[block_.thread + half].beats(found[block_.thread])) {
        found[block_.thread] = found[block_.thread + half];
      }
    }
    block_.sync();
    mine = found[0];
    block_.sync();
    return mine;
  }

  POISONKIT_BOTH Candidate best() {
    Candidate mine{kTaken, n_};
    for (int64_t e = first_ + block_.thread; e < n_; e += step_) {
      const Candidate other{job_.scores[start_ + e], e};
      if (other.beats(mine)) mine = other;
    }
    mine = best_of_block(mine);
    if (job_.team == 1) return mine;
    Candidate* of_blocks = job_.candidates + block_.index / job_.team * job_.team;
    if (block_.thread == 0) of_blocks[block_.index % job_.team] = mine;
    meet();
    mine = Candidate{kTaken, n_};
    for (int b = block_.thread; b < job_.team; b += Block::kThreads) {
      const Candidate other = block_.fresh(of_blocks + b);
      if (other.beats(mine)) mine = other;
    }
    return best_of_block(mine);
  }

  POISONKIT_BOTH Candidate best_drawn(int64_t pick) {
    meet();  // after which all gains are there
    Candidate mine{kTaken, n_};
    for (int64_t draw = block_.thread; draw < job_.draws[group_]; draw += Block::kThreads) {
      const int64_t place = drawn_place(static_cast<uint64_t>(job_.seeds[group_]), pick, draw, n_ - pick);
      const int64_t row = block_.fresh(job_.left + start_ + place);
      const Candidate other{block_.fresh(job_.scores + start_ + row), row};
      if (other.beats(mine)) mine = other;
    }
    return best_of_block(mine);
  }

  // Puts the last of those left where the picked row was.
  POISONKIT_BOTH void take_out(int64_t row, int64_t pick) {
    int64_t* left = job_.left + start_;
    int64_t place = 0;
    while (block_.fresh(left + place) != row) ++place;
    left[place] = block_.fresh(left + n_ - pick - 1);
  }

  // Gives the rows that are nearer to the picked one than to any medoid before to it, and lists them.
  POISONKIT_BOTH void relax(int64_t picked, int64_t place, bool from_scratch, unsigned* moved) {
    for (int64_t e = first_ + block_.thread; e < n_; e += step_) {
      int32_t cost = 0;
      if (costs_ != nullptr) {
        cost = costs_[picked * n_ + e];
      } else {
        float squared = 0;
        for (int64_t f = 0; f < job_.dim; ++f) {
          const float difference = columns_[f * n_ + picked] - columns_[f * n_ + e];
          squared += difference * difference;
        }
        cost = lattice_.cost(squared);
      }
      const int32_t old = job_.best[start_ + e];
      if (cost >= old) continue;
      job_.best[start_ + e] = cost;
      job_.nearest[start_ + e] = place;
      job_.moved[start_ + block_.add(moved, 1u)] = from_scratch ? Moved{e, cost, cost} : Moved{e, old, old - cost};
    }
  }

  // Takes from every gain, or puts in its place, the sum over `count` rows of clamp(old - cost, 0, most).
  template <class Load>
  POISONKIT_BOTH void update(int64_t count, Load load, bool replace, bool keep) {
    Shared& shared = block_.shared();
    for (int64_t base = first_; base < n_; base += step_) {  // the same for all threads of the block, which meet inside
      const int64_t e = base + block_.thread;
      int64_t sum = 0;
      for (int64_t begin = 0; begin < count; begin += kDeviceRows) {
        block_.sync();
        if (block_.thread < kDeviceRows) {
          const int64_t r = begin + block_.thread;
          shared.moved[block_.thread] = r < count ? load(r) : Moved{0, 0, 0};
        }
        block_.sync();
        int32_t costs[kDeviceRows];
        if (costs_ != nullptr && !keep) {
          for (int r = 0; r < kDeviceRows; ++r) costs[r] = e < n_ ? costs_[shared.moved[r].row * n_ + e] : 0;
        } else {
          compute(e, costs);
        }
        for (int r = 0; r < kDeviceRows; ++r) {
          if (costs_ != nullptr && keep && e < n_ && begin + r < count) costs_[(begin + r) * n_ + e] = costs[r];
          const int32_t less = shared.moved[r].old - costs[r], most = shared.moved[r].most;
          sum += less < 0 ? 0 : less < most ? less : most;
        }
      }
      if (e < n_) job_.scores[start_ + e] = replace ? sum : job_.scores[start_ + e] - sum;
    }
  }

  // The costs between the rows of the batch and row e.
  POISONKIT_BOTH void compute(int64_t e, int32_t* costs) {
    Shared& shared = block_.shared();
    float squared[kDeviceRows] = {};
    for (int64_t begin = 0; begin < job_.dim; begin += kStretch) {
      const int span = static_cast<int>(job_.dim - begin < kStretch ? job_.dim - begin : kStretch);
      block_.sync();
      for (int i = block_.thread; i < span * kDeviceRows; i += Block::kThreads) {
        shared.rows[i] = columns_[(begin + i / kDeviceRows) * n_ + shared.moved[i % kDeviceRows].row];
      }
      block_.sync();
      if (e >= n_) continue;
      for (int f = 0; f < span; ++f) {
        const float mine = columns_[(begin + f) * n_ + e];
        for (int r = 0; r < kDeviceRows; ++r) {
          const float difference = shared.rows[f * kDeviceRows + r] - mine;
          squared[r] += difference * difference;
        }
      }
    }
    for (int r = 0; r < kDeviceRows; ++r) costs[r] = lattice_.cost(squared[r]);
  }

  const DeviceJob& job_;
  Block& block_;
  int64_t group_, start_, n_;
  int64_t first_, step_;  // of the candidates that fall to this block
  Meeting* meeting_;
  unsigned meetings_ = 0;
  float* columns_;
  int32_t* costs_;
  Lattice lattice_;
};

// All groups, by all blocks.
template <class Block>
POISONKIT_BOTH void all_groups(const DeviceJob& job, Block& block) {
  for (int64_t group = block.index / job.team; group < job.groups; group += block.blocks / job.team) {
    block.sync();
    Team<Block>(job, block, group).run();
  }
}

// How much room to work in a launch needs, in bytes, and the launch, on `stream` of the current device. `room` starts
// as zeros; what points into it and the team are filled in. Both throw std::runtime_error with CUDA's own words.
int64_t device_room(const DeviceJob& job, int64_t largest_group);
void launch(DeviceJob job, int64_t largest_group, void* room, void* stream);

}  // namespace poisonkit::facility
