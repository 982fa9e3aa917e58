// Sums in parallel accumulators, written as vectors: gcc takes loops over lanes (lanes.h) apart where they stand in a loop over rows or
// channels, and then adds scalars. kVector numbers at a time whatever the machine has, which breaks them up or not: a fixed order.
#pragma once
#include <cstring>

#include "chunk_loop.h"

namespace samk {

constexpr int kVector = 16;

namespace detail {
template <class A, int kCount>
struct VectorOf {
  typedef A type __attribute__((vector_size(kCount * sizeof(A))));
};
}  // namespace detail
template <class A, int kCount = kVector>
using Vector = typename detail::VectorOf<A, kCount>::type;

// Lane k and lane k + half, again and again.
template <class A, int kCount = kVector>
SAMK_INLINE A tree(const Vector<A, kCount>& lanes) {
  if constexpr (kCount > 2) {
    Vector<A, kCount / 2> low, high;
    std::memcpy(&low, &lanes, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + sizeof(low), sizeof(high));
    low += high;
    return tree<A, kCount / 2>(low);
  } else {
    return lanes[0] + lanes[1];
  }
}

template <class V, class A>
SAMK_INLINE void load(V& to, const A* from) {
  std::memcpy(&to, from, sizeof(V));
}

// The last kVector values before `end`, of which all but the last `fresh` are replaced by 0.
template <class V, class A>
SAMK_INLINE void load_last(V& to, const A* end, int64_t fresh) {
  constexpr V lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  load(to, end - kVector);
  to = lane >= A(kVector - fresh) ? to : V{};
}

}  // namespace samk
