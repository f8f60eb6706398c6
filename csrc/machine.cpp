// What this build is and where it runs, and the measure of its kernels' limit.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/cpu.hpp"
#include "core/read_bytes.hpp"
#include "module.hpp"

namespace poisonkit {
namespace {

namespace py = pybind11;

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> result;
  for (const Isa isa : isas) result.push_back(name(isa));
  return result;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["isas_compiled"] = names(compiled_isas());
  info["isas_usable"] = names(usable_isas());
  return info;
}

const Registration registration([](py::module_& module) {
  module.def("build_info", &build_info);
  module.def("isas", [] { return names(usable_isas()); });
  module.def(
      "read_bytes",
      [](uintptr_t data, int64_t size) {
        const py::gil_scoped_release release;
        return read_bytes(reinterpret_cast<const uint8_t*>(data), size);
      },
      py::arg("data"), py::arg("size"));
});

}  // namespace
}  // namespace poisonkit
