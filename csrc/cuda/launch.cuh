// From an Args struct on the host to one launch on a stream: packs the payload, sizes the grid, hands back the error.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "payload.cuh"

namespace samk {

struct Fill {
  int64_t* to;
  int64_t words;
  int64_t word[kArgumentBytes / 8 - 2];
};
static __global__ __launch_bounds__(kThreads) void fill_kernel(const __grid_constant__ Fill fill) {
  for (int64_t i = threadIdx.x; i < fill.words; i += kThreads) fill.to[i] = fill.word[i];
}

// The caller's device is current again when this goes out of scope.
struct DeviceGuard {
  explicit DeviceGuard(int wanted) : device(wanted) {
    status = cudaGetDevice(&previous);
    if (status == cudaSuccess && previous != device) status = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (previous >= 0 && previous != device) cudaSetDevice(previous);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  int device, previous = -1;
  cudaError_t status;
};

// Blocks of this kernel that the device holds at once. Asked once per device: the answer never changes and the question costs
// about as much as a launch.
template <auto kKernel>
cudaError_t resident_blocks(int device, int* blocks) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  *blocks = device >= 0 && device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (*blocks > 0) return cudaSuccess;
  int per_sm = 0, sms = 0;
  cudaError_t status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kKernel, kThreads, 0);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  *blocks = std::min(per_sm * sms, kMaxBlocks);
  if (status == cudaSuccess && *blocks == 0) status = cudaErrorInvalidConfiguration;
  if (status == cudaSuccess && device >= 0 && device < kDevices) known[device].store(*blocks, std::memory_order_relaxed);
  return status;
}

struct Place {
  void* workspace;
  int64_t workspace_bytes;
  int device;
  void* stream;
};

// One launch of `kKernel`, with at least one block: a bucket without elements still has scalars to write.
template <auto kKernel, class Args>
cudaError_t launch(const Args& args, int64_t groups, bool cooperative, const Place& place) {
  Launch<Args> payload;
  static_assert(sizeof(payload) <= kArgumentBytes && sizeof(Fill) <= kArgumentBytes, "kernel arguments are limited to 32 KB");
  payload.args = args;
  payload.groups = groups;
  payload.workspace = static_cast<char*>(place.workspace);
  payload.table = nullptr;

  Measure measure;
  each_array(payload.args, groups, measure);
  const bool fits = measure.bytes <= int64_t(sizeof(payload.packed));
  const int64_t needed = kTicketBytes + kPartialBytes + (fits ? 0 : (measure.bytes + 7) / 8 * 8);
  if (args.dtype != kFloat32 || place.workspace == nullptr || place.workspace_bytes < needed) return cudaErrorInvalidValue;

  const DeviceGuard guard(place.device);
  if (guard.status != cudaSuccess) return guard.status;
  const auto stream = static_cast<cudaStream_t>(place.stream);
  if (fits) {
    Pack pack{payload.packed};
    each_array(payload.args, groups, pack);
  } else {
    std::vector<int64_t> words((measure.bytes + 7) / 8);
    Pack pack{reinterpret_cast<char*>(words.data())};
    each_array(payload.args, groups, pack);
    char* table = payload.workspace + kTicketBytes + kPartialBytes;
    payload.table = table;
    Fill fill;
    constexpr int64_t kPiece = sizeof(fill.word) / 8;
    for (int64_t done = 0; done < int64_t(words.size()); done += kPiece) {
      fill.to = reinterpret_cast<int64_t*>(table) + done;
      fill.words = std::min<int64_t>(kPiece, words.size() - done);
      memcpy(fill.word, words.data() + done, fill.words * 8);
      void* argument[] = {&fill};
      const cudaError_t status = cudaLaunchKernel(fill_kernel, dim3(1), dim3(kThreads), argument, 0, stream);
      if (status != cudaSuccess) return status;
    }
  }
  int blocks = 0;
  const cudaError_t status = resident_blocks<kKernel>(place.device, &blocks);
  if (status != cudaSuccess) return status;
  const dim3 grid(std::max(1, std::min(blocks, args.table.chunks())));
  void* argument[] = {&payload};
  return cooperative ? cudaLaunchCooperativeKernel(kKernel, grid, dim3(kThreads), argument, 0, stream)
                     : cudaLaunchKernel(kKernel, grid, dim3(kThreads), argument, 0, stream);
}

}  // namespace samk
