// How a source file puts its functions into the Python module: one static Registration per file.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace poisonkit {

using Add = void (*)(pybind11::module_&);

inline std::vector<Add>& registered() {
  static std::vector<Add> adds;  // a function's static: alive before any Registration, whatever the link order
  return adds;
}

struct Registration {
  explicit Registration(Add add) { registered().push_back(add); }
};

}  // namespace poisonkit
