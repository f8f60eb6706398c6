// The Python module: _core (C++) and _cuda (nvcc) are this file, linked with the functions that registered themselves.
#include "module.hpp"

PYBIND11_MODULE(POISONKIT_MODULE, module) {
  for (const poisonkit::Add add : poisonkit::registered()) add(module);
}
