// The loop over one chunk: vector path, tail, scalar path, once for all kernels.
//
// A kernel says which operands it may touch at compile time and which it does touch at run time: an absent operand costs a uniform
// branch, not another kernel. All loads of an iteration stand before its first store, because the compiler must assume that a
// store aliases the loads behind it and would leave one vector in flight instead of several.
//
// Operands have two widths: T, and Acc<T> for those that live from step to step. A thread takes as many elements at a time as fill
// 16 bytes of the widest operand of the loop: beside fp32 states, 4 halves by an 8-byte access. Eight would need two accesses for
// each state, of which neighbouring threads leave every other 16 bytes to the second: half-used sectors, and no more bytes in flight
// for the same registers. What is loaded waits as it was stored, two halves in a register, and is widened when its turn comes.
#pragma once
#include <type_traits>

#include "core/bases.h"
#include "core/storage.h"
#include "payload.cuh"

namespace samk {

SAMK_HD constexpr int bit(int k) { return 1 << k; }

// N elements as one access, in 32-bit words: two halves share a register until they are widened.
template <class E, int N>
struct alignas(sizeof(E) * N) Vector {
  using Word = std::conditional_t<sizeof(E) * N % 4 == 0, uint32_t, uint16_t>;
  Word word[sizeof(E) * N / sizeof(Word)];
};
template <class E, int N>
struct Lanes {
  E lane[N];
};

template <class T>
SAMK_HD constexpr int bytes_of_operand(int k) {
  return k < kQ ? sizeof(T) : sizeof(Acc<T>);
}

// Bytes of the widest operand in `mask`, and of one element of all of them.
template <class T>
SAMK_HD constexpr int widest(int mask) {
  return mask >> kQ != 0 ? sizeof(Acc<T>) : sizeof(T);
}
template <class T>
SAMK_HD constexpr int bytes_of_element(int mask) {
  int bytes = 0;
  for (int k = 0; k < kOperands; ++k) bytes += (mask >> k & 1) * bytes_of_operand<T>(k);
  return bytes;
}

// This thread's place in the operands of one chunk. It moves along with the loop: addresses that are sums of a base and an index
// take twice the registers.
template <class T>
struct Cursor {
  uintptr_t at[kOperands];
  int left;  // elements from here to the end of the chunk

  __device__ __forceinline__ void move(int elements) {
    left -= elements;
#pragma unroll
    for (int k = 0; k < kOperands; ++k) at[k] += int64_t(elements) * bytes_of_operand<T>(k);
  }
};

template <class T, int N>
struct Fetched {  // N elements of every operand, as they are stored
  Vector<T, N> narrow[kQ];
  Vector<Acc<T>, N> wide[kOperands - kQ];
};

// `i` elements from an address that came from a table, so that the compiler cannot know that it is global; generic accesses are slower.
template <class E, int N>
__device__ __forceinline__ Vector<E, N>* global(uintptr_t at, int i) {
  E* address = reinterpret_cast<E*>(at) + i;
  __builtin_assume(__isGlobal(address));
  return reinterpret_cast<Vector<E, N>*>(address);
}

template <class E, int N>
__device__ __forceinline__ void fetch(Vector<E, N>& to, uintptr_t at, int i, bool wanted) {
  to = {};
  if (wanted) to = *global<E, N>(at, i);
}

template <int kMask, class T, int N>
__device__ __forceinline__ void load(Fetched<T, N>& to, const Cursor<T>& from, int i, int reads) {
#pragma unroll
  for (int k = 0; k < kOperands; ++k)
    if ((kMask >> k & 1) != 0) {
      if (k < kQ)
        fetch(to.narrow[k], from.at[k], i, (reads >> k & 1) != 0);
      else
        fetch(to.wide[k - kQ], from.at[k], i, (reads >> k & 1) != 0);
    }
}

// The stash is w bit by bit, as it was loaded: widening and rounding again would rewrite a NaN.
template <int kMask, class T, int N>
__device__ __forceinline__ void store(const Acc<T> (&x)[N][kOperands], const Fetched<T, N>& loaded, const Cursor<T>& to, int i, int writes) {
#pragma unroll
  for (int k = 0; k < kOperands; ++k)
    if ((kMask >> k & 1) != 0 && (writes >> k & 1) != 0) {
      Lanes<T, N> narrowed = bit_cast<Lanes<T, N>>(loaded.narrow[kW]);
      Lanes<Acc<T>, N> wide;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (k != kStash) narrow(x[j][k], narrowed.lane[j]);
        wide.lane[j] = x[j][k];
      }
      if (k < kQ)
        *global<T, N>(to.at[k], i) = bit_cast<Vector<T, N>>(narrowed);
      else
        *global<Acc<T>, N>(to.at[k], i) = bit_cast<Vector<Acc<T>, N>>(wide);
    }
}

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
        if ((kReads >> k & 1) != 0)
          x[j][k] = k < kQ ? widen(bit_cast<Lanes<T, N>>(loaded[u].narrow[k]).lane[j])
                           : bit_cast<Lanes<Acc<T>, N>>(loaded[u].wide[k - kQ]).lane[j];
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
// the body left in x. `reads` and `writes` select at run time from kReads and kWrites. As many vectors are in flight as fit
// kRegisters registers of the thread.
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
