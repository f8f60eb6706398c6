// The CPU kernels of ops.calibrate: choice of instruction set, threads over groups, and the Python function.
#include "core/calibrated_mean.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <string>
#include <vector>

#include "core/calibrated_mean_avx2.hpp"
#include "core/cpu.hpp"
#include "module.hpp"

namespace poisonkit::calibration {
namespace {

struct Job {
  std::vector<Group> groups;
  Iteration iteration;
  float* mean;       // [groups, dim]
  uint8_t* dropped;  // [rows]
  float* scores;     // [rows]
};

int thread() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <class Kernel>
void run(const Job& job, int threads) {
  int64_t rows = 0, gram_rows = 0, dim = 0;
  std::vector<int64_t> first;
  for (const Group& group : job.groups) {
    first.push_back(first.empty() ? 0 : first.back() + (&group - 1)->rows);
    rows = std::max(rows, group.rows);
    gram_rows = std::max(gram_rows, group.gram ? group.rows : 0);
    dim = group.dim;
  }
  const int64_t count = static_cast<int64_t>(job.groups.size());
  threads = static_cast<int>(std::min<int64_t>(threads, count));
  std::vector<Calibrator<Kernel>> calibrators;
  for (int t = 0; t < threads; ++t) calibrators.emplace_back(rows, gram_rows, dim);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t g = 0; g < count; ++g) {
    calibrators[thread()](job.groups[g], job.iteration, job.mean + g * dim, job.dropped + first[g],
                          job.scores + first[g]);
  }
}

// groups: int64 [count, 3] of rows, drop and whether to iterate in Gram space; their rows follow one another in r.
void calibrated_mean(uintptr_t r, int64_t dim, int64_t stride, uintptr_t groups, int64_t count, uintptr_t start,
                     int64_t iterations, double tolerance, uintptr_t mean, uintptr_t dropped, uintptr_t scores,
                     const std::string& isa, int threads) {
  const Isa chosen = isa.empty() ? usable_isas().back() : usable_isa(isa);
  Job job{{},
          {reinterpret_cast<const float*>(start), iterations, tolerance},
          reinterpret_cast<float*>(mean),
          reinterpret_cast<uint8_t*>(dropped),
          reinterpret_cast<float*>(scores)};
  const float* first = reinterpret_cast<const float*>(r);
  const int64_t* group = reinterpret_cast<const int64_t*>(groups);
  for (int64_t g = 0; g < count; ++g, group += 3) {
    job.groups.push_back({first, stride, group[0], dim, group[1], group[2] != 0});
    first += group[0] * stride;
  }
  const pybind11::gil_scoped_release release;
#if defined(POISONKIT_HAS_AVX2)
  if (chosen != Isa::scalar) return run<Avx2>(job, threads);  // which every later set includes
#endif
  run<Scalar>(job, threads);
}

const Registration registration([](pybind11::module_& module) {
  namespace py = pybind11;
  module.def("calibrated_mean", &calibrated_mean, py::arg("r"), py::arg("dim"), py::arg("stride"), py::arg("groups"),
             py::arg("count"), py::arg("start"), py::arg("iterations"), py::arg("tolerance"), py::arg("mean"),
             py::arg("dropped"), py::arg("scores"), py::arg("isa"), py::arg("threads"));
});

}  // namespace
}  // namespace poisonkit::calibration
