// Every path of the clipped ReLU and its gradients against the same formulas on doubles: bits that are equal, and sums
// that differ by rounding at most and between paths not at all.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/clipped_relu.hpp"
#include "core/cpu.hpp"

using namespace poisonkit;
using namespace poisonkit::clip;

namespace {

template <class Float>
constexpr int kFraction = __builtin_ctzll(Float::kInfinity);  // bits of the fraction, and of the exponent
template <class Float>
constexpr int kExponent = 8 * sizeof(typename Float::Bits) - 1 - kFraction<Float>;
template <class Float>
constexpr uint64_t kBias = (uint64_t{1} << (kExponent<Float> - 1)) - 1;

// The number that IEEE bits stand for, by its definition.
template <class Float>
double exact(typename Float::Bits bits) {
  const uint64_t magnitude = bits & std::numeric_limits<typename Float::Bits>::max();
  const int exponent = static_cast<int>(magnitude >> kFraction<Float>);
  const uint64_t fraction = magnitude & ((uint64_t{1} << kFraction<Float>)-1);
  const double sign = bits < 0 ? -1 : 1;
  if (exponent == (1 << kExponent<Float>)-1) return fraction ? NAN : sign * INFINITY;
  const double significand = std::ldexp(static_cast<double>(fraction), -kFraction<Float>) + (exponent != 0);
  return sign * std::ldexp(significand, std::max(exponent, 1) - static_cast<int>(kBias<Float>));
}

template <class Float>
struct Case {
  using Bits = typename Float::Bits;
  int64_t outer, channels, inner;
  std::unique_ptr<Bits[]> x, grad, bound;  // to the last element, so that a sanitizer sees any further access

  int64_t size() const { return outer * channels * inner; }
};

template <class Float>
std::vector<Case<Float>> cases() {
  using Bits = typename Float::Bits;
  constexpr Bits inf = Float::kInfinity, sign = std::numeric_limits<Bits>::min();
  constexpr Bits one = static_cast<Bits>(kBias<Float> << kFraction<Float>), fraction = (inf & -inf) - 1;
  constexpr Bits edges[] = {0,       1,       fraction, fraction + 1, one,
                            one + 1, inf - 1, inf,      inf + 1,      std::numeric_limits<Bits>::max()};
  std::mt19937_64 random(0);
  std::vector<Case<Float>> all;
  const int64_t shapes[][3] = {{1, 1, 1},    {1, 1, 2},     {3, 5, 7},     {2, 3, 255}, {2, 3, 256},
                               {2, 2, 257},  {2, 1, 70000}, {1, 300, 1},   {7, 3, 1},   {500, 130, 1},
                               {86, 257, 1}, {70001, 1, 1}, {3, 70000, 1}, {4, 64, 64}};
  for (const auto& [outer, channels, inner] : shapes) {
    for (const bool special : {false, true}) {
      Case<Float> c{outer, channels, inner, nullptr, nullptr, nullptr};
      const auto number = [&](bool edge) {  // from 1 to 2, or any edge, of either sign
        const Bits bits = edge ? edges[random() % std::size(edges)] : static_cast<Bits>(one + (random() & fraction));
        return static_cast<Bits>(random() & 1 ? bits | sign : bits);
      };
      c.x.reset(new Bits[c.size()]);
      c.grad.reset(new Bits[c.size()]);
      c.bound.reset(new Bits[channels]);
      for (int64_t i = 0; i < c.size(); ++i) c.x[i] = number(special), c.grad[i] = number(false);
      for (int64_t i = 0; i < channels; ++i) c.bound[i] = number(special);
      all.push_back(std::move(c));
    }
  }
  return all;
}

template <class Work>
void run(const Work& work, Isa isa) {
  const int64_t half = work.pieces.count / 2;  // as if two threads took their share
  switch (isa) {
    case Isa::scalar:
      return Scalar::run(work, half, work.pieces.count), Scalar::run(work, 0, half);
    case Isa::avx2:
#if defined(POISONKIT_HAS_AVX2)
      Avx2::run(work, half, work.pieces.count), Avx2::run(work, 0, half);
#endif
      return;
    default:
#if defined(POISONKIT_HAS_AVX512_VNNI)
      Avx512::run(work, half, work.pieces.count), Avx512::run(work, 0, half);
#endif
      return;
  }
}

template <class Bits>
bool same(const Bits* a, const Bits* b, int64_t size) {
  return std::memcmp(a, b, size * sizeof(Bits)) == 0;
}

template <class Float>
bool agrees(const Case<Float>& c, Isa isa) {
  using Bits = typename Float::Bits;
  using Sum = typename Float::Sum;
  const Pieces pieces(c.outer, c.channels, c.inner);
  const auto tensor = [&] { return std::unique_ptr<Bits[]>(new Bits[c.size()]); };
  const std::unique_ptr<Bits[]> y = tensor(), dx = tensor(), lone_dx = tensor();
  run(Forward<Float>(pieces, c.bound.get(), c.x.get(), y.get()), isa);
  std::vector<Sum> sums(pieces.sums()), lone_sums(pieces.sums()), plain_sums(pieces.sums());
  const Bits *bound = c.bound.get(), *grad = c.grad.get();
  run(Backward<Float, true, true>(pieces, bound, grad, y.get(), dx.get(), sums.data()), isa);
  run(Backward<Float, true, true>(pieces, bound, grad, y.get(), lone_dx.get(), plain_sums.data()), Isa::scalar);
  run(Backward<Float, true, false>(pieces, bound, grad, y.get(), lone_dx.get(), nullptr), isa);
  run(Backward<Float, false, true>(pieces, bound, grad, y.get(), nullptr, lone_sums.data()), isa);
  if (!same(dx.get(), lone_dx.get(), c.size()) || !same(sums.data(), lone_sums.data(), pieces.sums()) ||
      !same(sums.data(), plain_sums.data(), pieces.sums())) {
    return std::printf("%s: paths differ\n", name(isa).c_str()), false;
  }

  std::vector<double> want_bound(c.channels), magnitude(c.channels);
  for (int64_t i = 0; i < c.size(); ++i) {
    const int64_t channel = i / c.inner % c.channels;
    const double x = exact<Float>(c.x[i]), z = exact<Float>(c.bound[channel]), g = exact<Float>(c.grad[i]);
    const double r = std::isnan(x) ? x : std::fmax(x, 0);
    const double want = std::isnan(r) ? r : r < z ? r : z;
    const double got = exact<Float>(y[i]), want_dx = x > 0 && r < z ? g : 0;
    if (r >= z) want_bound[channel] += g, magnitude[channel] += std::fabs(g);
    if ((std::isnan(want) ? !std::isnan(got) : got != want) || exact<Float>(dx[i]) != want_dx) {
      return std::printf("%s: x %g, z %g, grad %g: got %g and %g\n", name(isa).c_str(), x, z, g, got,
                         exact<Float>(dx[i])),
             false;
    }
  }
  std::vector<Sum> got_bound(c.channels);
  add_sums(sums, c.channels, got_bound.data());
  for (int64_t i = 0; i < c.channels; ++i) {
    const double rounding = 1e-5 * magnitude[i];
    if (!(std::fabs(got_bound[i] - want_bound[i]) <= rounding)) {
      return std::printf("%s: bound %ld: got %g, want %g\n", name(isa).c_str(), static_cast<long>(i),
                         static_cast<double>(got_bound[i]), want_bound[i]),
             false;
    }
  }
  return true;
}

template <class Float>
void count(Isa isa, int& agreed, int& all) {
  for (const Case<Float>& c : cases<Float>()) agreed += agrees(c, isa), ++all;
}

template <class Float>
bool converts_all_of_16_bits() {
  for (int32_t bits = std::numeric_limits<int16_t>::min(); bits <= std::numeric_limits<int16_t>::max(); ++bits) {
    const double want = exact<Float>(static_cast<int16_t>(bits)), got = Float::value(static_cast<int16_t>(bits));
    if (std::isnan(want) ? !std::isnan(got) : got != want || std::signbit(got) != std::signbit(want)) return false;
  }
  return true;
}

}  // namespace

int main() {
  bool good = converts_all_of_16_bits<Float16>() && converts_all_of_16_bits<BFloat16>();
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512_vnni}) {
    const std::vector<Isa> usable = usable_isas();
    if (std::find(usable.begin(), usable.end(), isa) == usable.end()) continue;
    int agreed = 0, all = 0;
    count<Float32>(isa, agreed, all);
    count<BFloat16>(isa, agreed, all);
    count<Float16>(isa, agreed, all);
    count<Float64>(isa, agreed, all);
    std::printf("%s: %d of %d\n", name(isa).c_str(), agreed, all);
    good = good && agreed == all;
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
