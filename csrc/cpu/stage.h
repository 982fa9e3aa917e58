// Operands in the accumulation type, a block at a time.
//
// All arithmetic loops see fp32 or fp64 only. An operand of a half type is widened into a scratch block in L1 before them and rounded
// out of one after them; fp32 and fp64 are read and written where they are. One body serves all types, bit for bit, and only two
// loops per half type depend on what a compiler makes of mixed widths.
#pragma once
#include <type_traits>

#include "chunk_loop.h"
#include "stream.h"

namespace samk {

template <class T>
constexpr bool kStaged = !std::is_same<T, Acc<T>>::value;

template <class T>
constexpr int64_t kStep = kStaged<T> ? kBlock : kCpuChunk;  // elements at a time where only staging asks for blocks

// body(begin, size) for the blocks of [0, n)
template <class Body>
SAMK_INLINE void for_each_block(int64_t n, int64_t step, const Body& body) {
  for (int64_t begin = 0; begin < n; begin += step) body(begin, n - begin < step ? n - begin : step);
}

void widen_block(const BFloat16* from, float* to, int64_t n);
void widen_block(const Float16* from, float* to, int64_t n);
void narrow_block(const float* from, BFloat16* to, int64_t n);
void narrow_block(const float* from, Float16* to, int64_t n);

// Room for one block of a staged operand.
template <class T>
struct Scratch {
  alignas(64) Acc<T> data[kStaged<T> ? kBlock : 1];
};

// The values of x[0 .. n), in place or in `scratch`; null stays null.
template <class T>
SAMK_INLINE const Acc<T>* widened(const T* x, int64_t n, Scratch<T>& scratch) {
  if constexpr (kStaged<T>) {
    if (x) widen_block(x, scratch.data, n);
    return x ? scratch.data : nullptr;
  } else {
    return x;
  }
}

// Where the new values of x are written: in place or in `scratch`, from where narrowed() takes them.
template <class T>
SAMK_INLINE Acc<T>* target(T* x, Scratch<T>& scratch) {
  if constexpr (kStaged<T>)
    return scratch.data;
  else
    return x;
}

// to = from, rounded, round the cache where `stream`; nothing where `from` is `to`.
template <class T>
SAMK_INLINE void narrowed(const Acc<T>* from, T* to, int64_t n, bool stream) {
  if constexpr (kStaged<T>) {
    alignas(64) T rounded[kBlock];
    narrow_block(from, stream ? rounded : to, n);
    if (stream) stream_copy(to, rounded, n * int64_t(sizeof(T)));
  } else if (from != to) {
    copy(to, from, n * int64_t(sizeof(T)), stream);
  }
}

}  // namespace samk
