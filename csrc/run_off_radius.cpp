// The CPU kernel of ops.run_off_radius: threads, and the Python function.
#include "core/run_off_radius.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "module.hpp"

namespace poisonkit::election {
namespace {

// 0; 1 for a vote that is no class.
int run_off_radius(uintptr_t first, int64_t bytes, int64_t models, int64_t inputs, int64_t model_stride,
                   int64_t input_stride, uintptr_t above, int64_t above_model_stride, int64_t above_input_stride,
                   int64_t above_finalist_stride, uintptr_t order, int64_t classes, const std::vector<int64_t>& shifts,
                   uintptr_t prediction, uintptr_t radius, int threads) {
  const pybind11::gil_scoped_release release;
  const Votes votes{reinterpret_cast<const void*>(first), bytes, models, inputs, 1, model_stride, input_stride, 0};
  const Preferences preferences{reinterpret_cast<const uint8_t*>(above), above_model_stride, above_input_stride,
                                above_finalist_stride};
  const Cells cells{models, 1, shifts};
  constexpr int64_t kTask = 64;
  const int64_t tasks = (inputs + kTask - 1) / kTask;
  std::atomic<int> problem{0};
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    RunOffRadius kernel(votes, preferences, cells, reinterpret_cast<const int64_t*>(order), classes);
    const Problem found = kernel.run(task * kTask, std::min(inputs, (task + 1) * kTask),
                                     reinterpret_cast<int64_t*>(prediction), reinterpret_cast<int64_t*>(radius));
    if (found != Problem::none) problem = static_cast<int>(found);
  }
  return problem;
}

const Registration registration([](pybind11::module_& module) {
  namespace py = pybind11;
  module.def("run_off_radius", &run_off_radius, py::arg("first"), py::arg("bytes"), py::arg("models"),
             py::arg("inputs"), py::arg("model_stride"), py::arg("input_stride"), py::arg("above"),
             py::arg("above_model_stride"), py::arg("above_input_stride"), py::arg("above_finalist_stride"),
             py::arg("order"), py::arg("classes"), py::arg("shifts"), py::arg("prediction"), py::arg("radius"),
             py::arg("threads"));
});

}  // namespace
}  // namespace poisonkit::election
