// The loop over one chunk (vector path, tail, scalar path) and the deterministic sums over a grid, once for all kernels.
//
// A kernel says which operands it may touch at compile time and which it does touch at run time: an absent operand costs a uniform
// branch, not another kernel. All loads of an iteration stand before its first store, because the compiler must assume that a
// store aliases the loads behind it and would leave one vector in flight instead of several.
#pragma once
#include "core/scalar_math.h"
#include "payload.cuh"

namespace samk {

SAMK_HD constexpr int bit(int k) { return 1 << k; }

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T lane[N];
};

template <class T>
struct Slices {  // the operands of one chunk; those that are absent are never touched
  T* at[kOperands];
  int size;
  bool aligned;  // every operand in use starts on 16 bytes

  __device__ __forceinline__ Slices(const TensorTable& table, const Chunk& chunk, int used) : size(int(chunk.end - chunk.begin)) {
    uintptr_t bits = 0;
#pragma unroll
    for (int k = 0; k < kOperands; ++k) {
      at[k] = (used >> k & 1) != 0 ? table.data<T>(Operand(k), chunk.tensor) + chunk.begin : nullptr;
      bits |= reinterpret_cast<uintptr_t>(at[k]);
    }
    aligned = bits % 16 == 0;
  }
};

template <class P>
__device__ __forceinline__ P* global(P* address) {  // it came from a table, so the compiler cannot know; generic accesses are slower
  __builtin_assume(__isGlobal(address));
  return address;
}

template <int kMask, class T, int N>
__device__ __forceinline__ void load(T (&x)[N][kOperands], const Slices<T>& from, int i, int reads) {
#pragma unroll
  for (int k = 0; k < kOperands; ++k)
    if ((kMask >> k & 1) != 0) {
      Vector<T, N> vector{};
      if ((reads >> k & 1) != 0) vector = *global(reinterpret_cast<const Vector<T, N>*>(from.at[k] + i));
#pragma unroll
      for (int j = 0; j < N; ++j) x[j][k] = vector.lane[j];
    }
}

template <int kMask, class T, int N>
__device__ __forceinline__ void store(const T (&x)[N][kOperands], const Slices<T>& to, int i, int writes) {
#pragma unroll
  for (int k = 0; k < kOperands; ++k)
    if ((kMask >> k & 1) != 0 && (writes >> k & 1) != 0) {
      Vector<T, N> vector;
#pragma unroll
      for (int j = 0; j < N; ++j) vector.lane[j] = x[j][k];
      *global(reinterpret_cast<Vector<T, N>*>(to.at[k] + i)) = vector;
    }
}

// `kUnroll` vectors of N elements, a block's width apart, the first at element i.
template <int kReads, int kWrites, int kUnroll, int N, class T, class Body>
__device__ __forceinline__ void step(const Slices<T>& chunk, int i, int reads, int writes, Body& body) {
  T x[kUnroll][N][kOperands];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) load<kReads>(x[u], chunk, i + u * kThreads * N, reads);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
    for (int j = 0; j < N; ++j) body(x[u][j]);
    store<kWrites>(x[u], chunk, i + u * kThreads * N, writes);
  }
}

template <int kReads, int kWrites, int kUnroll, int N, class T, class Body>
__device__ __forceinline__ void walk_by(const Slices<T>& chunk, int reads, int writes, Body& body) {
  int i = int(threadIdx.x) * N;
#pragma unroll 1
  for (; i + (kUnroll - 1) * kThreads * N + N <= chunk.size; i += kUnroll * kThreads * N)
    step<kReads, kWrites, kUnroll, N>(chunk, i, reads, writes, body);
#pragma unroll 1
  for (; i + N <= chunk.size; i += kThreads * N) step<kReads, kWrites, 1, N>(chunk, i, reads, writes, body);
}

// Calls body(x) for every element of the chunk, x[k] being its value in operand k (0 where k is not read); then stores what the
// body left in x. `reads` and `writes` select at run time from kReads and kWrites.
template <int kReads, int kWrites, int kUnroll, class T, class Body>
__device__ __forceinline__ void walk(const TensorTable& table, const Chunk& where, int reads, int writes, Body body) {
  constexpr int kLanes = 16 / sizeof(T);
  const Slices<T> chunk(table, where, reads | writes);
  if (!chunk.aligned) return walk_by<kReads, kWrites, kUnroll, 1>(chunk, reads, writes, body);
  walk_by<kReads, kWrites, kUnroll, kLanes>(chunk, reads, writes, body);
  const int tail = chunk.size / kLanes * kLanes + int(threadIdx.x);
  if (tail < chunk.size) step<kReads, kWrites, 1, 1>(chunk, tail, reads, writes, body);
}

// ---- sums over the grid: threads -> block -> row of partial sums in the workspace -> every block that asks, always in one order

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
