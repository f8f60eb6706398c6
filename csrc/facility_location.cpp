// The CPU kernels of ops.facility_location: choice of instruction set, a thread to a group, and the Python function.
#include "core/facility_location.hpp"

#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <vector>

#include "core/cpu.hpp"
#include "core/facility_location_avx2.hpp"
#include "module.hpp"

namespace poisonkit::facility {
namespace {

struct Job {
  std::vector<Group> groups;
  std::vector<Medoids> results;
  Similarity similarity;
  double scale;
};

template <class Kernel>
void run(const Job& job, int threads) {
  const int64_t groups = static_cast<int64_t>(job.groups.size());
  std::exception_ptr failure;  // out of memory: an exception must not leave a parallel region
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (groups > 1)
  for (int64_t g = 0; g < groups; ++g) {
    try {
      Greedy<Kernel>(job.groups[g], job.similarity, job.scale).run(job.results[g]);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// offsets: B + 1 of them; k, draws and seeds: B each.
void facility_location(uintptr_t x, int64_t dim, int64_t stride, const std::vector<int64_t>& offsets,
                       const std::vector<int64_t>& k, const std::vector<int64_t>& draws,
                       const std::vector<int64_t>& seeds, const std::string& similarity, double scale,
                       uintptr_t medoids, uintptr_t sizes, uintptr_t nearest, uintptr_t gains, const std::string& isa,
                       int threads) {
  Job job{{}, {}, similarity_of(similarity), scale};
  int64_t place = 0;
  for (size_t g = 0; g < k.size(); ++g) {
    const int64_t first = offsets[g], rows = offsets[g + 1] - first;
    if (rows == 0) continue;
    job.groups.push_back({reinterpret_cast<const float*>(x) + first * stride, rows, dim, stride, k[g], draws[g],
                          static_cast<uint64_t>(seeds[g])});
    job.results.push_back({reinterpret_cast<int64_t*>(medoids) + place, reinterpret_cast<int64_t*>(sizes) + place,
                           reinterpret_cast<int64_t*>(nearest) + first, reinterpret_cast<double*>(gains) + place, first,
                           place});
    place += k[g];
  }
  const Isa chosen = isa.empty() ? usable_isas().back() : usable_isa(isa);
  const pybind11::gil_scoped_release release;
#if defined(POISONKIT_HAS_AVX2)
  if (chosen != Isa::scalar) return run<Avx2>(job, threads);  // which every later set includes
#endif
  run<Scalar>(job, threads);
}

const Registration registration([](pybind11::module_& module) {
  namespace py = pybind11;
  module.def("facility_location", &facility_location, py::arg("x"), py::arg("dim"), py::arg("stride"),
             py::arg("offsets"), py::arg("k"), py::arg("draws"), py::arg("seeds"), py::arg("similarity"),
             py::arg("scale"), py::arg("medoids"), py::arg("sizes"), py::arg("nearest"), py::arg("gains"),
             py::arg("isa"), py::arg("threads"));
});

}  // namespace
}  // namespace poisonkit::facility
