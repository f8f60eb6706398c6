// The CPU kernels of ops.weighted_sum_hash: choice of instruction set, threads, and the Python function.
#include "core/weighted_sum_hash.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/cpu.hpp"
#include "core/weighted_sum_hash_amx.hpp"
#include "core/weighted_sum_hash_avx2.hpp"
#include "core/weighted_sum_hash_vnni.hpp"
#include "module.hpp"

namespace poisonkit::hash {
namespace {

struct Job {
  const uint8_t* x;  // rows of dim bytes, each stride after the last
  int64_t rows, dim, stride;
  const int64_t* weights;  // [vectors, dim]
  int64_t vectors;
  int64_t* hashes;  // [rows, vectors]
};

template <class Kernel>
void run(const Job& job, int threads) {
  // Megabytes a task, so that its start costs nothing, in multiples of any kernel's group of rows.
  const int64_t task = std::max<int64_t>(64, (int64_t{1} << 22) / std::max<int64_t>(job.dim, 1) / 64 * 64);
  const int64_t tasks = (job.rows + task - 1) / task;
  for (int64_t v = 0; v < job.vectors; v += 2) {
    const Kernel kernel(job.weights + v * job.dim, job.dim, static_cast<int>(std::min<int64_t>(2, job.vectors - v)));
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tasks > 1)
    for (int64_t t = 0; t < tasks; ++t) {
      const int64_t row = t * task;
      kernel.hash(job.x + row * job.stride, job.stride, std::min(task, job.rows - row),
                  job.hashes + row * job.vectors + v, job.vectors);
    }
  }
}

void run(const Job& job, Isa isa, int threads) {
  switch (isa) {
    case Isa::scalar:
      return run<Scalar>(job, threads);
#if defined(POISONKIT_HAS_AVX2)
    case Isa::avx2:
      return run<Avx2>(job, threads);
#endif
#if defined(POISONKIT_HAS_AVX512_VNNI)
    case Isa::avx512_vnni:
      return run<Avx512Vnni>(job, threads);
#endif
#if defined(POISONKIT_HAS_AMX)
    case Isa::amx:
      return run<Amx>(job, threads);
#endif
    default:
      throw std::invalid_argument("isa must be compiled in, got " + name(isa));
  }
}

// An empty isa takes the best: plain code for so few rows that splitting the weights would cost more than it saves.
void weighted_sum_hash(uintptr_t x, int64_t rows, int64_t dim, int64_t stride, uintptr_t weights, int64_t vectors,
                       uintptr_t hashes, const std::string& isa, int threads) {
  constexpr int64_t kFewRows = 16;
  const Job job{
      reinterpret_cast<const uint8_t*>(x), rows, dim, stride, reinterpret_cast<const int64_t*>(weights), vectors,
      reinterpret_cast<int64_t*>(hashes)};
  const Isa chosen = !isa.empty() ? usable_isa(isa) : rows < kFewRows ? Isa::scalar : usable_isas().back();
  const pybind11::gil_scoped_release release;
  run(job, chosen, threads);
}

const Registration registration([](pybind11::module_& module) {
  namespace py = pybind11;
  module.def("weighted_sum_hash", &weighted_sum_hash, py::arg("x"), py::arg("rows"), py::arg("dim"), py::arg("stride"),
             py::arg("weights"), py::arg("vectors"), py::arg("hashes"), py::arg("isa"), py::arg("threads"));
});

}  // namespace
}  // namespace poisonkit::hash
