// The Python side of facility_location.cu.
#include <string>

#include "core/facility_location_device.hpp"
#include "module.hpp"

namespace poisonkit::facility {
namespace {

namespace py = pybind11;

// groups: int64 [5, groups + 1] on the device, rows offsets, places, k, draws and seeds.
DeviceJob job_of(uintptr_t x, int64_t rows, int64_t dim, int64_t stride, uintptr_t groups, int64_t count,
                 const std::string& similarity, double scale) {
  DeviceJob job{};
  const int64_t* of_groups = reinterpret_cast<const int64_t*>(groups);
  job.offsets = of_groups;
  job.places = of_groups + (count + 1);
  job.k = of_groups + 2 * (count + 1);
  job.draws = of_groups + 3 * (count + 1);
  job.seeds = of_groups + 4 * (count + 1);
  job.x = reinterpret_cast<const float*>(x);
  job.rows = rows;
  job.dim = dim;
  job.stride = stride;
  job.groups = count;
  job.similarity = similarity_of(similarity);
  job.scale = scale;
  return job;
}

int64_t room(int64_t rows, int64_t dim, int64_t count, int64_t largest_group) {
  return device_room(job_of(0, rows, dim, dim, 0, count, "l2", 1), largest_group);
}

void facility_location(uintptr_t x, int64_t rows, int64_t dim, int64_t stride, uintptr_t groups, int64_t count,
                       int64_t largest_group, const std::string& similarity, double scale, uintptr_t medoids,
                       uintptr_t sizes, uintptr_t nearest, uintptr_t gains, uintptr_t room, uintptr_t stream) {
  DeviceJob job = job_of(x, rows, dim, stride, groups, count, similarity, scale);
  job.medoids = reinterpret_cast<int64_t*>(medoids);
  job.sizes = reinterpret_cast<int64_t*>(sizes);
  job.nearest = reinterpret_cast<int64_t*>(nearest);
  job.gains = reinterpret_cast<double*>(gains);
  const py::gil_scoped_release release;
  launch(job, largest_group, reinterpret_cast<void*>(room), reinterpret_cast<void*>(stream));
}

const Registration registration([](py::module_& module) {
  module.def("facility_location_room", &room, py::arg("rows"), py::arg("dim"), py::arg("count"),
             py::arg("largest_group"));
  module.def("facility_location", &facility_location, py::arg("x"), py::arg("rows"), py::arg("dim"), py::arg("stride"),
             py::arg("groups"), py::arg("count"), py::arg("largest_group"), py::arg("similarity"), py::arg("scale"),
             py::arg("medoids"), py::arg("sizes"), py::arg("nearest"), py::arg("gains"), py::arg("room"),
             py::arg("stream"));
});

}  // namespace
}  // namespace poisonkit::facility
