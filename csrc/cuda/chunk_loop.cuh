// The loop over one chunk: vector path, tail, scalar path, once for all kernels.
//
// A kernel says which operands it may touch at compile time and which it does touch at run time: an absent operand costs a uniform
// branch, not another kernel. All loads of an iteration stand before its first store, because the compiler must assume that a
// store aliases the loads behind it and would leave one vector in flight instead of several.
//
// A thread takes as many elements at a time as fill 16 bytes of the widest operand of the loop: beside fp32 states, 4 halves by an
// 8-byte access. Eight would need two accesses for each state, of which neighbouring threads leave every other 16 bytes to the
// second: half-used sectors, and no more bytes in flight for the same registers. What is loaded waits as it was stored, two halves in
// a register, and is widened when its turn comes.
#pragma once
#include "vectors.cuh"

namespace samk {

// `kUnroll` vectors of N elements, a block's width apart, the first one at the cursor.
template <int kReads, int kWrites, int kUnroll, int N, class T, class Body>
__device__ __forceinline__ void step(const Cursor<T>& chunk, int reads, int writes, Body& body) {
  Fetched<T, N> loaded[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) load<kReads>(loaded[u], chunk, u * kThreads * N, reads);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    Acc<T> x[N][kOperands];
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
      for (int k = 0; k < kOperands; ++k)
        x[j][k] = (kReads >> k & 1) == 0 ? Acc<T>(0)
                  : k < kQ               ? widen(bit_cast<Lanes<T, N>>(loaded[u].narrow[k]).lane[j])
                                         : bit_cast<Lanes<Acc<T>, N>>(loaded[u].wide[k - kQ]).lane[j];
      if constexpr (std::is_invocable_v<Body&, Acc<T>(&)[kOperands], int, int>)
        body(x[j], chunk.left - u * kThreads * N, j);
      else
        body(x[j]);
    }
    store<kWrites>(x, loaded[u], chunk, u * kThreads * N, writes);
  }
}

template <int kReads, int kWrites, int kUnroll, int N, class T, class Body>
__device__ __forceinline__ void walk_by(Cursor<T>& chunk, int reads, int writes, Body& body) {
  chunk.move(int(threadIdx.x) * N);
#pragma unroll 1
  for (; chunk.left >= (kUnroll - 1) * kThreads * N + N; chunk.move(kUnroll * kThreads * N))
    step<kReads, kWrites, kUnroll, N>(chunk, reads, writes, body);
#pragma unroll 1
  for (; chunk.left >= N; chunk.move(kThreads * N)) step<kReads, kWrites, 1, N>(chunk, reads, writes, body);
}

// Calls body(x) for every element of the chunk, x[k] being its value in operand k (0 where k is not read), widened; then stores what
// the body left in x. A body with more arguments is told how many elements of the chunk are left from the first one of this vector on,
// which the loop keeps anyway, and which one in the vector this is. `reads` and `writes` select at run time from kReads and kWrites. As
// many vectors are in flight as fit kRegisters registers of the thread.
template <int kReads, int kWrites, int kRegisters, class T, class Body>
__device__ __forceinline__ void walk(const TensorTable& table, const Chunk& where, int reads, int writes, Body body) {
  constexpr int kLanes = 16 / widest<T>(kReads | kWrites), kPerVector = kLanes * bytes_of_element<T>(kReads) / 4;
  constexpr int kUnroll = kRegisters < kPerVector ? 1 : kRegisters / kPerVector;
  Cursor<T> chunk{{}, int(where.end - where.begin)};
  uintptr_t off = 0;  // of the alignment that vectors need
#pragma unroll
  for (int k = 0; k < kOperands; ++k)
    if (((kReads | kWrites) >> k & 1) != 0 && ((reads | writes) >> k & 1) != 0) {
      chunk.at[k] = reinterpret_cast<uintptr_t>(table.data<char>(Operand(k), where.tensor) + where.begin * bytes_of_operand<T>(k));
      off |= chunk.at[k] % (kLanes * bytes_of_operand<T>(k));
    }
  if (off != 0) return walk_by<kReads, kWrites, kUnroll, 1>(chunk, reads, writes, body);
  walk_by<kReads, kWrites, kUnroll, kLanes>(chunk, reads, writes, body);
  chunk.move(chunk.left - (chunk.left & (kLanes - 1)) + int(threadIdx.x));  // the tail: at most one element for each thread
  if (chunk.left > 0) step<kReads, kWrites, 1, 1>(chunk, reads, writes, body);
}

}  // namespace samk
