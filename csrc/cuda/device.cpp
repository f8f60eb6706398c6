// The Python side of device.cu: nvcc would parse pybind11 once for every architecture.
#include "core/device.hpp"

#include <pybind11/stl.h>

#include "module.hpp"

namespace poisonkit {
namespace {

const Registration registration([](pybind11::module_& module) {
  module.def("devices", &devices);
  module.def("archs", &compiled_archs);
  module.def("runtime_version", &runtime_version);
});

}  // namespace
}  // namespace poisonkit
