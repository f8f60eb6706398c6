// Every path of the hash against 128-bit integers: the paths of this machine, or with emulated intrinsics all of them.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/cpu.hpp"
#include "core/read_bytes.hpp"
#include "core/weighted_sum_hash.hpp"
#include "core/weighted_sum_hash_amx.hpp"
#include "core/weighted_sum_hash_avx2.hpp"
#include "core/weighted_sum_hash_vnni.hpp"

using namespace poisonkit;
using namespace poisonkit::hash;

namespace {

constexpr int64_t kOffsets[] = {0, 0x808080808080, 0x800080008000};

// Residues at the edges of the digits: for each offset, the 21 that have none, and their neighbours.
std::vector<int64_t> edge_weights() {
  std::vector<int64_t> edges{0, 1, (int64_t{1} << 47) - 1, int64_t{1} << 47, kPrime - 2, kPrime - 1};
  for (const int64_t offset : kOffsets) {
    for (int64_t i = -2; i < 23; ++i) edges.push_back(((int64_t{1} << 48) - offset + i) % kPrime);
  }
  return edges;
}

int64_t expected(const uint8_t* row, const int64_t* weights, int64_t dim) {
  unsigned __int128 sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<unsigned __int128>(row[i]) * static_cast<uint64_t>(weights[i]);
  return static_cast<int64_t>(sum % kPrime);
}

struct Case {
  std::string what;
  int64_t rows, dim, stride;
  int vectors;
  std::unique_ptr<uint8_t[]> x;  // to the last byte of the last row, so that a sanitizer sees any further read
  std::vector<int64_t> weights;

  int64_t size() const { return rows == 0 ? 0 : (rows - 1) * stride + dim; }
};

std::vector<Case> cases() {
  std::mt19937_64 random(0);
  const std::vector<int64_t> edges = edge_weights();
  std::vector<Case> all;
  const auto add = [&](int64_t rows, int64_t dim, int vectors, int64_t gap, const std::string& bytes,
                       const std::string& weights) {
    Case c{std::to_string(rows) + " x " + std::to_string(dim) + ", " + bytes + " bytes, " + weights + " weights",
           rows,
           dim,
           dim + gap,
           vectors,
           nullptr,
           std::vector<int64_t>(vectors * dim)};
    c.x.reset(new uint8_t[c.size()]);
    for (int64_t i = 0; i < c.size(); ++i) {
      c.x[i] = bytes == "255" ? 255 : bytes == "0/255" ? 255 * (i & 1) : static_cast<uint8_t>(random());
    }
    for (size_t i = 0; i < c.weights.size(); ++i) {
      c.weights[i] = weights == "p-1"    ? kPrime - 1
                     : weights == "edge" ? edges[i % edges.size()]
                                         : static_cast<int64_t>(random() % kPrime);
    }
    all.push_back(std::move(c));
  };
  for (const int64_t dim : {0, 1, 15, 16, 17, 63, 64, 65, 768}) {
    for (const int64_t rows : {0, 1, 2, 3, 4, 5, 15, 16, 17, 33}) {
      for (const int vectors : {1, 2}) {
        add(rows, dim, vectors, 0, "random", "random");
        add(rows, dim, vectors, 13, "255", "edge");
      }
    }
  }
  for (const int64_t dim : {2047, 2049, 3072, 12288, 20000, 65535, 65537, 66051, 66117}) {
    for (const int64_t rows : {1, 5}) {
      add(rows, dim, 2, 1, "random", "random");
      add(rows, dim, 2, 0, "0/255", "edge");
    }
    add(17, dim, 1, 3, "255", "p-1");
  }
  add(1, kMaxDim, 2, 0, "255", "edge");
  add(2, kMaxDim, 1, 0, "255", "p-1");
  // weights whose digits are all the smallest or the largest: the lanes at their limit
  for (const int64_t offset : kOffsets) {
    for (const int64_t weight : {kPrime - offset, (int64_t{1} << 48) - 1 - offset}) {
      add(1, kMaxDim, 1, 0, "255", "random");
      std::fill(all.back().weights.begin(), all.back().weights.end(), weight % kPrime);
      all.back().what += " replaced by " + std::to_string(weight % kPrime);
    }
  }
  return all;
}

template <class Kernel>
bool agrees(const Case& c, Isa isa) {
  const Kernel kernel(c.weights.data(), c.dim, c.vectors);
  const int64_t out_stride = c.vectors + 1;
  std::vector<int64_t> out(c.rows * out_stride, -1);
  kernel.hash(c.x.get(), c.stride, c.rows, out.data(), out_stride);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int v = 0; v <= c.vectors; ++v) {
      const int64_t want =
          v == c.vectors ? -1 : expected(c.x.get() + row * c.stride, c.weights.data() + v * c.dim, c.dim);
      const int64_t got = out[row * out_stride + v];
      if (got == want) continue;
      std::printf("%s, %s: row %ld, vector %d: got %ld, want %ld\n", name(isa).c_str(), c.what.c_str(),
                  static_cast<long>(row), v, static_cast<long>(got), static_cast<long>(want));
      return false;
    }
  }
  return true;
}

bool agrees(const Case& c, Isa isa) {
  switch (isa) {
#if defined(POISONKIT_HAS_AVX2)
    case Isa::avx2:
      return agrees<Avx2>(c, isa);
#endif
#if defined(POISONKIT_HAS_AVX512_VNNI)
    case Isa::avx512_vnni:
      return agrees<Avx512Vnni>(c, isa);
#endif
#if defined(POISONKIT_HAS_AMX)
    case Isa::amx:
      return agrees<Amx>(c, isa);
#endif
    default:
      return agrees<Scalar>(c, isa);
  }
}

bool residues_are_reduced() {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100000; ++i) {
    const __int128 wide = static_cast<__int128>(random() >> random() % 64) << random() % 20;
    const __int128 total = random() & 1 ? -wide : wide;
    if (reduce(total) != static_cast<int64_t>((total % kPrime + kPrime) % kPrime)) return false;
  }
  return true;
}

bool digits_miss_21_residues() {
  for (const int64_t offset : kOffsets) {
    int missed = 0;
    for (int64_t i = -2; i < 23; ++i) {
      missed += Digits(((int64_t{1} << 48) - offset + i) % kPrime, offset).short_by_21;
    }
    if (missed != 21) return false;
  }
  return true;
}

bool reading_reads_all() {
  for (const int64_t size : {0, 1, 7, 8, 255, 256, 257, 1031}) {
    const std::unique_ptr<uint8_t[]> data(new uint8_t[size]());
    for (int64_t i = 0; i < size; ++i) {
      data[i] = 1;
      if (read_bytes(data.get(), size) != uint64_t{1} << 8 * (i % 8)) return false;
      data[i] = 0;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool good = residues_are_reduced() && digits_miss_21_residues() && reading_reads_all();
  const std::vector<Case> all = cases();
  for (const Isa isa : usable_isas()) {
    int agreed = 0;
    for (const Case& c : all) agreed += agrees(c, isa);
    std::printf("%s: %d of %d\n", name(isa).c_str(), agreed, static_cast<int>(all.size()));
    good = good && agreed == static_cast<int>(all.size());
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
