#include <cuda_runtime_api.h>

#include <stdexcept>

#include "core/device.hpp"

namespace poisonkit {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

}  // namespace

std::vector<std::pair<std::string, int>> devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count));
  std::vector<std::pair<std::string, int>> found;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device));
    found.emplace_back(properties.name, 10 * properties.major + properties.minor);
  }
  return found;
}

std::vector<int> compiled_archs() {
  std::vector<int> archs;
  for (const int arch : {__CUDA_ARCH_LIST__}) archs.push_back(arch / 10);
  return archs;
}

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version));
  return version;
}

}  // namespace poisonkit
