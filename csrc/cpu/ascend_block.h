// One block of the norm, the perturbation and the moving average, in the accumulation type.
#pragma once
#include "chunk_loop.h"
#include "core/philox.h"
#include "lanes.h"

namespace samk {

enum AscendSum : int { kDirection, kGradient, kAscendSums };

template <class A>
struct AscendBlock {
  int64_t n;
  const A *w, *g, *q;  // one that the direction does not depend on is another one: loops need no null checks
};

template <class A>
struct Average {  // q <- keep q + add g
  bool on, first;
  A keep, add;
};

#define SAMK_FOR_ACCUMULATOR(A)                                                                  \
  void sum_direction(const AscendBlock<A>& x, const Ascent<A>& a, Lanes<A, kAscendSums>& sum);   \
  void perturb_block(const AscendBlock<A>& x, const Ascent<A>& a, A* out);                       \
  void average_block(A* q, const A* g, int64_t n, const Average<A>& a);                          \
  void draw_signs(const SignSource& from, int64_t begin, int64_t n, A* to);
SAMK_FOR_ACCUMULATOR(float)
SAMK_FOR_ACCUMULATOR(double)
#undef SAMK_FOR_ACCUMULATOR

}  // namespace samk
