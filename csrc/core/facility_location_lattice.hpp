// The integer costs of facility location, for every processor and for the GPU alike.
//
// A group's rows are moved to its first one and scaled by a power of two, so that the largest coordinate is in
// [1/2, 1); squared distances add up feature by feature, rounded after every operation and never fused (the build
// forbids the compilers to fuse by themselves); and a cost is at most 2^24. Sums of costs are then the same in any
// order, so that every path, number of threads and device makes the same picks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#define POISONKIT_BOTH __host__ __device__
#else
#define POISONKIT_BOTH
#endif

namespace poisonkit::facility {

constexpr int32_t kLargest = 1 << 24;                                // of the costs
constexpr int64_t kTaken = std::numeric_limits<int64_t>::min() / 2;  // the gain of what cannot be picked

enum class Similarity { l2, exp_l2, sq_l2 };

inline Similarity similarity_of(const std::string& name) {
  if (name == "l2") return Similarity::l2;
  if (name == "exp_l2") return Similarity::exp_l2;
  if (name == "sq_l2") return Similarity::sq_l2;
  throw std::invalid_argument("similarity must be l2, exp_l2 or sq_l2, got " + name);
}

// What moves a coordinate onto the group's lattice. Below 2^-40 of the largest nothing is kept: it could not change a
// cost, and its square would be a slow subnormal number.
struct Scaling {
  int exponent = 0;
  double factor = 1;

  POISONKIT_BOTH explicit Scaling(double largest) {
    frexp(largest, &exponent);
    factor = ldexp(1.0, -exponent);
  }

  POISONKIT_BOTH float operator()(float value, float first) const {
    constexpr double kRound = 1.5 * (1 << 12);
    return static_cast<float>((static_cast<double>(value) - first) * factor + kRound - kRound);
  }
};

// log(2)^j / j!, highest first: 2^r for |r| <= 1/2, finer than the lattice
#define POISONKIT_EXP2_TERMS \
  {1.5252734e-5f, 1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}

// The cost of a squared distance, and a cost's unit.
struct Lattice {
  Similarity similarity;
  float factor = 0;
  int32_t slack = 0;  // the cost falls by less than this where the distance grows
  double unit = 0;

  // reach: the largest squared distance from the first row.
  POISONKIT_BOTH Lattice(Similarity chosen, Scaling scaling, float reach, int64_t dim, double scale)
      : similarity(chosen) {
    // No two rows are further apart than twice the reach; what rounding adds is within the last factor.
    int level = 0;
    frexp(4.0 * reach * (1.0 + ldexp(static_cast<double>(dim + 16), -22)), &level);
    level = (level + 1) / 2;  // every distance is at most 2^level
    if (similarity == Similarity::l2) {
      factor = static_cast<float>(ldexp(1.0, 24 - level));
      unit = ldexp(1.0, scaling.exponent + level - 24);
    } else if (similarity == Similarity::sq_l2) {
      factor = static_cast<float>(ldexp(1.0, 24 - 2 * level));
      unit = ldexp(1.0, 2 * (scaling.exponent + level) - 24);
    } else {
      const double steepness = -1.4426950408889634 * ldexp(1.0, scaling.exponent) / scale;  // by the base two
      factor = static_cast<float>(steepness < -3e38 ? -3e38 : steepness);
      unit = ldexp(1.0, -24);
      slack = 4;
    }
  }

  POISONKIT_BOTH int32_t cost(float squared) const {
    if (similarity == Similarity::sq_l2) return static_cast<int32_t>(squared * factor + 0.5f);
    const float scaled = sqrtf(squared) * factor;
    if (similarity == Similarity::l2) return static_cast<int32_t>(scaled + 0.5f);
    const float y = scaled < -64.0f ? -64.0f : scaled;
    const float whole = floorf(y + 0.5f), rest = y - whole;
    constexpr float kTerms[] = POISONKIT_EXP2_TERMS;
    float power = kTerms[0];
    for (int j = 1; j < 8; ++j) power = power * rest + kTerms[j];
    const int32_t bits = (static_cast<int32_t>(whole) + 24 + 127) << 23;
    float two_to_whole = 0;
    memcpy(&two_to_whole, &bits, sizeof(bits));
    return kLargest - static_cast<int32_t>(power * two_to_whole + 0.5f);
  }
};

POISONKIT_BOTH inline uint64_t mixed(uint64_t z) {  // splitmix64 (Steele, Lea, Flood 2014)
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

// Which of `left` candidates a draw of a pick takes.
POISONKIT_BOTH inline int64_t drawn_place(uint64_t seed, int64_t pick, int64_t draw, int64_t left) {
  constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;
  const uint64_t word = mixed(mixed(pick * kGamma + seed) + (draw + 1) * kGamma);
  return static_cast<int64_t>(word >> 1) % left;
}

}  // namespace poisonkit::facility
