// One row of logits, walked by a warp or by a block in 16-byte accesses, from the first aligned element on.
//
// Rows of 50257 classes begin anywhere: what stands before the first multiple of 16 bytes and behind the last is read one by one.
#pragma once
#include <type_traits>

#include "cuda/losses.h"
#include "launch.cuh"
#include "vectors.cuh"

namespace samk {

constexpr int kWarp = 32;
constexpr int64_t kWarpRow = 1024;  // longer rows get a block of kThreads

template <class T>
struct Span {  // [head, tail) of a row is whole vectors of N, all aligned
  static constexpr int N = 16 / int(sizeof(T));
  int64_t head, tail;

  // `other`: a row that is walked beside it; without vectors where the two are not aligned alike.
  __device__ __forceinline__ Span(const T* row, const T* other, int64_t n) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(row), apart = at - reinterpret_cast<uintptr_t>(other);
    const int64_t before = int64_t(-at % 16) / int64_t(sizeof(T));
    head = apart % 16 != 0 || before > n ? n : before;
    tail = head + (n - head) / N * N;
  }
};

// body(first element, their values) for kCount vectors, kGroup vectors apart; all loads stand before the first use.
template <int kGroup, int kCount, class T, class Body>
__device__ __forceinline__ void visit_vectors(const T* at, int64_t first, const Body& body) {
  constexpr int N = Span<T>::N;
  Vector<T, N> loaded[kCount];
#pragma unroll
  for (int u = 0; u < kCount; ++u) loaded[u] = *reinterpret_cast<const Vector<T, N>*>(at + u * kGroup * N);
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    const auto lanes = bit_cast<Lanes<T, N>>(loaded[u]);
    Acc<T> value[N];
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = widen(lanes.lane[j]);
    body(first + u * kGroup * N, value);
  }
}

// The same for all elements of a row that thread `lane` of kGroup has, kUnroll vectors at a time where there are so many.
template <int kGroup, int kUnroll, class T, class Body>
__device__ __forceinline__ void walk_row(const T* row, const Span<T>& span, int64_t n, int lane, const Body& body) {
  constexpr int N = Span<T>::N;
  const auto one = [&](int64_t v) {
    const Acc<T> value[1] = {widen(row[v])};
    body(v, value);
  };
#pragma unroll 1
  for (int64_t v = lane; v < span.head; v += kGroup) one(v);
  int64_t v = span.head + int64_t(lane) * N;
#pragma unroll 1
  for (; v + (kUnroll - 1) * kGroup * N < span.tail; v += kUnroll * kGroup * N) visit_vectors<kGroup, kUnroll>(row + v, v, body);
  if (kUnroll > 1) {
#pragma unroll 1
    for (; v < span.tail; v += kGroup * N) visit_vectors<kGroup, 1>(row + v, v, body);
  }
#pragma unroll 1
  for (v = span.tail + lane; v < n; v += kGroup) one(v);
}

// The rows of this warp or block, and its thread's place among kGroup.
template <int kGroup, class Body>
__device__ __forceinline__ void for_each_row(int64_t rows, const Body& body) {
  constexpr int kPerBlock = kThreads / kGroup;
  for (int64_t row = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / kGroup; row < rows; row += int64_t(gridDim.x) * kPerBlock)
    body(row, int(threadIdx.x % kGroup));
}

template <int kGroup>
__device__ __forceinline__ void sync_group() {
  kGroup == kWarp ? __syncwarp() : __syncthreads();
}

template <auto kKernel>
int launch_rows(const CrossEntropyArgs& args, int group, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.status != cudaSuccess) return guard.status;
  const int64_t per_block = kThreads / group, blocks = (args.rows + per_block - 1) / per_block;
  void* argument[] = {const_cast<CrossEntropyArgs*>(&args)};
  return cudaLaunchKernel(kKernel, dim3(unsigned(std::min<int64_t>(blocks, 0x7fffffff))), dim3(kThreads), argument, 0,
                          static_cast<cudaStream_t>(stream));
}

}  // namespace samk
