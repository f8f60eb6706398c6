// The weighted-sum hash h_w(x) = sum_i w_i x_i mod p, p = 2^48 + 21, of byte rows (Wang and Feizi 2023, Def. 4.1).
//
// The vector kernels split each weight into 48 bits of small digits, sum every digit with the bytes in 32-bit lanes,
// and put the digit sums together in 128 bits at the end. All of it is exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace poisonkit::hash {

constexpr int64_t kPrime = (int64_t{1} << 48) + 21;
constexpr int64_t kMaxDim = int64_t{1} << 20;

// total mod p for |total| < 2^90: 2^48 = -21 (mod p), so no division.
inline int64_t reduce(__int128 total) {
  const int64_t high = static_cast<int64_t>(total >> 48);
  const int64_t low = static_cast<int64_t>(total) & ((int64_t{1} << 48) - 1);
  const int64_t residue = low - 21 * high;
  const int64_t lifted = residue < 0 ? residue + kPrime : residue;
  return lifted >= kPrime ? lifted - kPrime : lifted;
}

// The digits of w are those of a representative in [-offset, 2^48 - offset): the 48 bits of (w + offset) mod p, less
// the offset. With the offset 0x80...80 a digit is a byte less 128, that is, a balanced digit. 21 residues have no
// such representative; for them `bits` are those of w - 21 and the caller adds 21 x_i.
struct Digits {
  uint64_t bits;
  bool short_by_21;

  Digits(int64_t weight, int64_t offset) {
    int64_t shifted = weight + offset;
    if (shifted >= kPrime) shifted -= kPrime;
    short_by_21 = shifted >= int64_t{1} << 48;
    bits = static_cast<uint64_t>(short_by_21 ? shifted - 21 : shifted);
  }
};

// Cache-line-aligned storage for the digits, in the order a kernel reads them.
struct alignas(64) Line {
  uint8_t bytes[64];
};

// Where a weight vector has digits that are short by 21: nowhere, for all but one in 10^13 of random weights.
using Shortfall = std::vector<int64_t>;

inline __int128 missing(const Shortfall& positions, const uint8_t* row) {
  __int128 total = 0;
  for (const int64_t i : positions) total += 21 * row[i];
  return total;
}

// GCC would put the 64-bit products together from SSE2's 32-bit ones, which is slower than the scalar multiplier.
#if defined(__GNUC__) && !defined(__clang__)
#define POISONKIT_SCALAR_LOOP __attribute__((optimize("no-tree-vectorize", "unroll-loops")))
#else
#define POISONKIT_SCALAR_LOOP
#endif

// A kernel is made from one or two weight vectors and then hashes any rows of that width:
// hash(x, stride, rows, out, out_stride) writes their hashes of each row side by side.
class Scalar {
 public:
  Scalar(const int64_t* weights, int64_t dim, int vectors) : weights_(weights), dim_(dim), vectors_(vectors) {}

  void hash(const uint8_t* x, int64_t stride, int64_t rows, int64_t* out, int64_t out_stride) const {
    for (int64_t row = 0; row < rows; ++row) {
      if (vectors_ == 1) {
        hash_row<1>(x + row * stride, out + row * out_stride);
      } else {
        hash_row<2>(x + row * stride, out + row * out_stride);
      }
    }
  }

 private:
  template <int V>
  POISONKIT_SCALAR_LOOP void hash_row(const uint8_t* row, int64_t* out) const {
    __int128 totals[V] = {};
    for (int64_t start = 0; start < dim_; start += 256) {  // 256 products of 8 and 48.1 bits fit 64
      const int64_t end = std::min(dim_, start + 256);
      uint64_t sums[V] = {};
      for (int64_t i = start; i < end; ++i) {
        for (int v = 0; v < V; ++v) sums[v] += row[i] * static_cast<uint64_t>(weights_[v * dim_ + i]);
      }
      for (int v = 0; v < V; ++v) totals[v] += sums[v];
    }
    for (int v = 0; v < V; ++v) out[v] = reduce(totals[v]);
  }

  const int64_t* weights_;
  int64_t dim_;
  int vectors_;
};

}  // namespace poisonkit::hash
