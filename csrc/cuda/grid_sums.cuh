// Deterministic sums over the grid: threads -> block -> row of partial sums in the workspace -> every block that asks, always in one
// order.
#pragma once
#include "payload.cuh"

namespace samk {

// The sum over the threads of a block, in every thread. Double: a few operations per block, and the grid-wide sum stays exact to fp32.
__device__ inline double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  __syncthreads();  // the readers of the previous sum are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += warps[warp];
  return sum;
}

__device__ __forceinline__ double* partial_row(char* workspace, int row) {
  return reinterpret_cast<double*>(workspace + kTicketBytes) + int64_t(row) * kMaxBlocks;
}

__device__ inline void put_partial(char* workspace, int row, double value) {
  const double sum = block_sum(value);
  if (threadIdx.x == 0) partial_row(workspace, row)[blockIdx.x] = sum;
}

// After a grid barrier, or in the last block. Read past L1, which other SMs do not keep up to date.
__device__ inline double sum_partials(char* workspace, int row) {
  double sum = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) sum += __ldcg(partial_row(workspace, row) + b);
  return block_sum(sum);
}

// True in the block that comes last; everything the other blocks wrote is visible to it and everything they read has been read.
// The counter wraps to zero by itself, which leaves it ready for the next launch.
__device__ inline bool last_block(char* workspace) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(reinterpret_cast<unsigned*>(workspace), gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace samk
