// The CPU kernels of ops.clipped_relu and its backward: choice of instruction set, threads, and the Python functions.
#include "core/clipped_relu.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cpu.hpp"
#include "module.hpp"

namespace poisonkit::clip {
namespace {

template <class Path, class Work>
void share(const Work& work, int threads) {
  const Pieces& pieces = work.pieces;
  const int64_t task = std::max<int64_t>(1, Pieces::kPiece / pieces.length);
  const int64_t tasks = (pieces.count + task - 1) / task;
#pragma omp parallel for num_threads(threads) if (tasks > 1)
  for (int64_t t = 0; t < tasks; ++t) Path::run(work, t * task, std::min((t + 1) * task, pieces.count));
}

// AMX says nothing about these loops, but whoever has it has AVX-512.
template <class Work>
void run(const Work& work, Isa isa, int threads) {
#if defined(POISONKIT_HAS_AVX512_VNNI)
  if (isa >= Isa::avx512_vnni && usable(Isa::avx512_vnni)) return share<Avx512>(work, threads);
#endif
#if defined(POISONKIT_HAS_AVX2)
  if (isa >= Isa::avx2) return share<Avx2>(work, threads);
#endif
  share<Scalar>(work, threads);
}

template <class Bits>
Bits* at(uintptr_t address) {
  return reinterpret_cast<Bits*>(address);
}

template <class Float, bool kX, bool kBound>
void backward(const Pieces& pieces, uintptr_t grad, uintptr_t y, uintptr_t bound, uintptr_t dx, uintptr_t dbound,
              Isa isa, int threads) {
  using Bits = typename Float::Bits;
  using Sum = typename Float::Sum;
  std::vector<Sum> sums(kBound ? pieces.sums() : 0);
  const Backward<Float, kX, kBound> work(pieces, at<const Bits>(bound), at<const Bits>(grad), at<const Bits>(y),
                                         at<Bits>(dx), sums.data());
  run(work, isa, threads);
  if (kBound) add_sums(sums, pieces.channels, at<Sum>(dbound));
}

template <class Run>
void with_float(const std::string& dtype, Run run) {
  if (dtype == "float32") return run(Float32{});
  if (dtype == "bfloat16") return run(BFloat16{});
  if (dtype == "float16") return run(Float16{});
  if (dtype == "float64") return run(Float64{});
  throw std::invalid_argument("dtype must be a floating-point type of 16, 32 or 64 bits, got " + dtype);
}

Isa choose(const std::string& isa) { return isa.empty() ? usable_isas().back() : usable_isa(isa); }

// Tensors are [outer, channels, inner], none of them 0, in memory without gaps; they and the bound [channels] have the
// named dtype.
void clipped_relu(uintptr_t x, uintptr_t bound, uintptr_t y, int64_t outer, int64_t channels, int64_t inner,
                  const std::string& dtype, const std::string& isa, int threads) {
  const Isa chosen = choose(isa);
  const pybind11::gil_scoped_release release;
  with_float(dtype, [&](auto kind) {
    using Float = decltype(kind);
    using Bits = typename Float::Bits;
    const Forward<Float> work({outer, channels, inner}, at<const Bits>(bound), at<const Bits>(x), at<Bits>(y));
    run(work, chosen, threads);
  });
}

// dx and dbound may be 0, not wanted. dbound [channels] is float32, or float64 where the tensors are.
void clipped_relu_backward(uintptr_t grad, uintptr_t y, uintptr_t bound, uintptr_t dx, uintptr_t dbound, int64_t outer,
                           int64_t channels, int64_t inner, const std::string& dtype, const std::string& isa,
                           int threads) {
  const Isa chosen = choose(isa);
  const pybind11::gil_scoped_release release;
  with_float(dtype, [&](auto kind) {
    using Float = decltype(kind);
    const Pieces pieces(outer, channels, inner);
    const auto chosen_backward = dx != 0 && dbound != 0 ? &backward<Float, true, true>
                                 : dx != 0              ? &backward<Float, true, false>
                                                        : &backward<Float, false, true>;
    chosen_backward(pieces, grad, y, bound, dx, dbound, chosen, threads);
  });
}

const Registration registration([](pybind11::module_& module) {
  namespace py = pybind11;
  module.def("clipped_relu", &clipped_relu, py::arg("x"), py::arg("bound"), py::arg("y"), py::arg("outer"),
             py::arg("channels"), py::arg("inner"), py::arg("dtype"), py::arg("isa"), py::arg("threads"));
  module.def("clipped_relu_backward", &clipped_relu_backward, py::arg("grad"), py::arg("y"), py::arg("bound"),
             py::arg("dx"), py::arg("dbound"), py::arg("outer"), py::arg("channels"), py::arg("inner"),
             py::arg("dtype"), py::arg("isa"), py::arg("threads"));
});

}  // namespace
}  // namespace poisonkit::clip
