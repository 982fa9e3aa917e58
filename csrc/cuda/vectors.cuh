// What one thread loads and stores of the operands of a chunk at a time: vectors, as they are stored, and where they are.
//
// Operands have two widths: T, and Acc<T> for those that live from step to step.
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
__device__ __forceinline__ void store(const Acc<T> (&x)[N][kOperands], const Fetched<T, N>& loaded, const Cursor<T>& to, int i,
                                      int writes) {
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

}  // namespace samk
