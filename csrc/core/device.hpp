// What the CUDA part of this build is, and the devices it finds. Each throws std::runtime_error with CUDA's own words.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace poisonkit {

std::vector<std::pair<std::string, int>> devices();  // name and compute capability, 90 for 9.0
std::vector<int> compiled_archs();
int runtime_version();

}  // namespace poisonkit
