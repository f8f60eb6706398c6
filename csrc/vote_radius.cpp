// The CPU kernel of ops.vote_radius: threads, and the Python function.
#include "core/vote_radius.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "module.hpp"

namespace poisonkit::election {
namespace {

// 0; 1 for a vote that is no class; 2 for a model that names a class twice.
int vote_radius(uintptr_t data, int64_t bytes, int64_t models, int64_t inputs, int64_t each, int64_t model_stride,
                int64_t input_stride, int64_t place_stride, uintptr_t order, int64_t classes, uintptr_t label,
                const std::vector<int64_t>& shifts, int64_t groups, uintptr_t kept, uintptr_t radius, int threads) {
  const pybind11::gil_scoped_release release;
  const Votes votes{
      reinterpret_cast<const void*>(data), bytes, models, inputs, each, model_stride, input_stride, place_stride};
  const Cells cells{models, groups, shifts};
  constexpr int64_t kTask = 256;
  const int64_t tasks = (inputs + kTask - 1) / kTask;
  std::atomic<int> problem{0};
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    VoteRadius kernel(votes, cells, reinterpret_cast<const int64_t*>(order), classes);
    const Problem found =
        kernel.run(task * kTask, std::min(inputs, (task + 1) * kTask), reinterpret_cast<const int64_t*>(label),
                   reinterpret_cast<int64_t*>(kept), reinterpret_cast<int64_t*>(radius));
    if (found != Problem::none) problem = static_cast<int>(found);
  }
  return problem;
}

const Registration registration([](pybind11::module_& module) {
  namespace py = pybind11;
  module.def("vote_radius", &vote_radius, py::arg("data"), py::arg("bytes"), py::arg("models"), py::arg("inputs"),
             py::arg("each"), py::arg("model_stride"), py::arg("input_stride"), py::arg("place_stride"),
             py::arg("order"), py::arg("classes"), py::arg("label"), py::arg("shifts"), py::arg("groups"),
             py::arg("kept"), py::arg("radius"), py::arg("threads"));
});

}  // namespace
}  // namespace poisonkit::election
