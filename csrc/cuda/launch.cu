// Writes a payload that exceeds the kernel arguments to the workspace, piece by piece, in launches on the caller's stream.
#include "launch.cuh"

namespace samk {
namespace {

struct Fill {
  int64_t* to;
  int64_t words;
  int64_t word[kArgumentBytes / 8 - 2];
};
static_assert(sizeof(Fill) <= kArgumentBytes, "kernel arguments are limited to 32 KB");

__global__ __launch_bounds__(kThreads) void fill_kernel(const __grid_constant__ Fill fill) {
  for (int64_t i = threadIdx.x; i < fill.words; i += kThreads) fill.to[i] = fill.word[i];
}

}  // namespace

cudaError_t write_table(char* table, const std::vector<int64_t>& words, cudaStream_t stream) {
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
  return cudaSuccess;
}

std::unique_lock<std::mutex> table_lock(int device) {
  constexpr int kLocks = 64;
  static std::mutex locks[kLocks];
  return std::unique_lock<std::mutex>(locks[unsigned(device) % kLocks]);
}

const char* cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace samk
