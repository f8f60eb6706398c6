// The GPU kernel of ops.facility_location: what a block is on CUDA, how many share a group, and the launch.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "core/facility_location_device.hpp"

namespace poisonkit::facility {
namespace {

constexpr int64_t kCostsRoom = int64_t{4} << 30;  // at most, where distances are kept

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

struct CudaBlock {
  static constexpr int kThreads = kMostThreads;
  int thread, index, blocks;

  __device__ CudaBlock() : thread(threadIdx.x), index(blockIdx.x), blocks(gridDim.x) {}

  __device__ Shared& shared() {
    __shared__ Shared room;
    return room;
  }
  __device__ void sync() { __syncthreads(); }
  __device__ void fence() { __threadfence(); }
  __device__ void pause() { __nanosleep(20); }

  __device__ unsigned add(unsigned* at, unsigned value) { return atomicAdd(at, value); }
  __device__ void add(int64_t* at, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
  }
  __device__ void raise(unsigned* at, unsigned value) { atomicMax(at, value); }
  __device__ void raise(unsigned long long* at, unsigned long long value) { atomicMax(at, value); }

  // Volatile, so that it is read from where all blocks write, and each time anew.
  __device__ unsigned fresh(const unsigned* at) { return *const_cast<const volatile unsigned*>(at); }
  __device__ unsigned long long fresh(const unsigned long long* at) {
    return *const_cast<const volatile unsigned long long*>(at);
  }
  __device__ int64_t fresh(const int64_t* at) { return *const_cast<const volatile int64_t*>(at); }
  __device__ Candidate fresh(const Candidate* at) { return {fresh(&at->gain), fresh(&at->row)}; }
  __device__ Moved fresh(const Moved* at) {
    return {fresh(&at->row), *const_cast<const volatile int32_t*>(&at->old),
            *const_cast<const volatile int32_t*>(&at->most)};
  }
};

__global__ void __launch_bounds__(CudaBlock::kThreads, 2) facility_location(const DeviceJob job) {
  CudaBlock block;
  all_groups(job, block);
}

struct Plan {
  int team, teams;
  int64_t kept;  // elements of a team's kept costs, or 0

  // Teams wait for their blocks, so all must be on the device at once. A team has no more threads than rows.
  Plan(const DeviceJob& job, int64_t largest_group) {
    int device = 0, processors = 0, resident = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, facility_location, CudaBlock::kThreads, 0));
    const int64_t blocks = int64_t{processors} * resident;
    const int64_t useful = (largest_group + CudaBlock::kThreads - 1) / CudaBlock::kThreads;
    team = static_cast<int>(std::max<int64_t>(1, std::min(blocks / job.groups, useful)));
    teams = static_cast<int>(std::min(job.groups, blocks / team));
    kept = job.dim > kWideRow ? largest_group * largest_group : 0;
    if (kept * teams * 4 > kCostsRoom) {  // fewer teams would leave processors idle, but not more than half of them
      const int64_t fitting = kCostsRoom / (kept * 4);
      if (2 * fitting < teams)
        kept = 0;
      else
        teams = static_cast<int>(fitting);
    }
  }
};

// Deals out the room and tells its size.
int64_t lay_out(DeviceJob* job, const Plan& plan, char* room) {
  int64_t size = 0;
  const auto take = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(room + size);
    size += (count * static_cast<int64_t>(sizeof(*array)) + 255) / 256 * 256;
  };
  take(job->meetings, job->groups);
  take(job->candidates, int64_t{plan.team} * plan.teams);
  take(job->columns, job->rows * job->dim);
  take(job->scores, job->rows);
  take(job->best, job->rows);
  take(job->moved, job->rows);
  take(job->left, job->rows);
  take(job->costs, plan.kept * plan.teams);
  if (plan.kept == 0) job->costs = nullptr;
  job->kept = plan.kept;
  job->team = plan.team;
  return size;
}

}  // namespace

int64_t device_room(const DeviceJob& job, int64_t largest_group) {
  DeviceJob laid_out = job;
  return lay_out(&laid_out, Plan(job, largest_group), nullptr);
}

void launch(DeviceJob job, int64_t largest_group, void* room, void* stream) {
  const Plan plan(job, largest_group);
  lay_out(&job, plan, static_cast<char*>(room));
  check(cudaMemsetAsync(job.meetings, 0, job.groups * sizeof(Meeting), static_cast<cudaStream_t>(stream)));
  void* arguments[] = {&job};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(facility_location), dim3(plan.team * plan.teams),
                                    dim3(CudaBlock::kThreads), arguments, 0, static_cast<cudaStream_t>(stream)));
}

}  // namespace poisonkit::facility
