// From an Args struct on the host to one launch on a stream: packs the payload, sizes the grid, hands back the error.
#pragma once
#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "payload.cuh"

namespace samk {

// Writes a payload that the kernel arguments cannot hold; launch.cu.
cudaError_t write_table(char* table, const std::vector<int64_t>& words, cudaStream_t stream);

// Held from the first launch that writes the table to the one that reads it: another host thread on the same stream, and so on the same
// workspace, would put its table between them.
std::unique_lock<std::mutex> table_lock(int device);

// visit(T{}) for the type that is stored; hands back its error.
template <class Visit>
int by_dtype(DType dtype, Visit visit) {
  switch (dtype) {
    case kFloat32: return visit(float{});
    case kBFloat16: return visit(BFloat16{});
    case kFloat16: return visit(Float16{});
    default: return cudaErrorInvalidValue;
  }
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
cudaError_t launch(const Args& args, int64_t hypers, bool cooperative, const Place& place) {
  Launch<Args> payload;
  static_assert(sizeof(payload) <= kArgumentBytes, "kernel arguments are limited to 32 KB");
  payload.args = args;
  payload.workspace = static_cast<char*>(place.workspace);
  payload.table = nullptr;

  Measure measure;
  each_array(payload.args, hypers, measure);
  const bool fits = measure.bytes <= int64_t(sizeof(payload.packed));
  const int64_t needed = kTicketBytes + kPartialBytes + (fits ? 0 : (measure.bytes + 7) / 8 * 8);
  if (place.workspace == nullptr || place.workspace_bytes < needed) return cudaErrorInvalidValue;

  const DeviceGuard guard(place.device);
  if (guard.status != cudaSuccess) return guard.status;
  const auto stream = static_cast<cudaStream_t>(place.stream);
  int blocks = 0;
  cudaError_t status = resident_blocks<kKernel>(place.device, &blocks);
  std::unique_lock<std::mutex> lock;
  if (fits) {
    Pack pack{payload.packed};
    each_array(payload.args, hypers, pack);
  } else {
    std::vector<int64_t> words((measure.bytes + 7) / 8);
    Pack pack{reinterpret_cast<char*>(words.data())};
    each_array(payload.args, hypers, pack);
    char* table = payload.workspace + kTicketBytes + kPartialBytes;
    payload.table = table;
    lock = table_lock(place.device);
    if (status == cudaSuccess) status = write_table(table, words, stream);
  }
  if (status != cudaSuccess) return status;
  const dim3 grid(std::max(1, std::min(blocks, args.table.chunks())));
  void* argument[] = {&payload};
  return cooperative ? cudaLaunchCooperativeKernel(kKernel, grid, dim3(kThreads), argument, 0, stream)
                     : cudaLaunchKernel(kKernel, grid, dim3(kThreads), argument, 0, stream);
}

}  // namespace samk
