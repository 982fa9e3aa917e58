// One block of a combination, of a base update and of the kept vector's norm, in the accumulation type.
#pragma once
#include "chunk_loop.h"
#include "lanes.h"

namespace samk {

template <class A>
struct UpdateBlock {
  int64_t n;
  A factor;         // the update sees factor * u
  const A *clean, *at, *u;
  const A* direct;  // the term beside the update, or null
  A* out;           // may be `clean` or `at`
  A *m, *v, *v_max; // not looked at where the group does not use it
};

#define SAMK_FOR_ACCUMULATOR(A)                                    \
  void add_block(A c, const A* in, A* out, int64_t n); /* out += c in */ \
  void update_block(const UpdateBlock<A>& x, const Sgd<A>& base);  \
  void update_block(const UpdateBlock<A>& x, const Adam<A>& base); \
  void update_block(const UpdateBlock<A>& x, const Lion<A>& base);
SAMK_FOR_ACCUMULATOR(float)
SAMK_FOR_ACCUMULATOR(double)
#undef SAMK_FOR_ACCUMULATOR

}  // namespace samk
