// The loops of ascend_ over one block.
#include "ascend_block.h"

namespace samk {
namespace {

template <class A>
SAMK_INLINE void squares(const A* x, int64_t n, Lanes<A, 1>& sum) {
  Lanes<A, 1> lanes = sum;  // in registers
  lanes.add(n, [=](int64_t i, A* out) __attribute__((always_inline)) { out[0] = x[i] * x[i]; });
  sum = lanes;
}

template <class A>
SAMK_INLINE void direction(const AscendBlock<A>& x, const Ascent<A>& ascent, Lanes<A, kAscendSums>& sum) {
  Lanes<A, kAscendSums> lanes = sum;
  const A *w = x.w, *g = x.g, *q = x.q;
  const Ascent<A> a = ascent;
  lanes.add(x.n, [=](int64_t i, A* out) __attribute__((always_inline)) {
    const A cd = a.weighted(w[i], g[i], q[i]);
    out[kDirection] = cd * cd;
    out[kGradient] = g[i] * g[i];
  });
  sum = lanes;
}

template <class A>
SAMK_INLINE void perturb(const AscendBlock<A>& x, const Ascent<A>& ascent, A* out) {
  const A *w = x.w, *g = x.g, *q = x.q;
  const Ascent<A> a = ascent;
#pragma GCC ivdep  // `out` may be w
  for (int64_t i = 0; i < x.n; ++i) out[i] = a.perturbed(w[i], g[i], q[i]);
}

template <class A>
SAMK_INLINE void average(A* __restrict q, const A* __restrict g, int64_t n, const Average<A>& by) {
  const Average<A> a = by;
  for (int64_t i = 0; i < n; ++i) q[i] = moving_average(q[i], g[i], a.keep, a.add, a.first);
}

// Whole blocks of signs, from element `begin` of the tensor on, which is the first of a block; `to` has room up to a multiple of 128.
template <class A>
SAMK_INLINE void signs(const SignSource& from, int64_t begin, int64_t n, A* __restrict to) {
  for (int64_t i = 0; i < n; i += kSignsPerBlock) {
    const PhiloxBlock block = from.block((begin + i) / kSignsPerBlock);
    for (int word = 0; word < 4; ++word)
      for (int k = 0; k < 32; ++k) to[i + word * 32 + k] = sign_of<A>(block.word[word], k);
  }
}

}  // namespace

#define SAMK_ASCEND_CLONES(A)                                                                                                       \
  SAMK_CLONES void sum_squares(const A* x, int64_t n, Lanes<A, 1>& sum) { squares(x, n, sum); }                                     \
  SAMK_CLONES void sum_direction(const AscendBlock<A>& x, const Ascent<A>& a, Lanes<A, kAscendSums>& sum) { direction(x, a, sum); } \
  SAMK_CLONES void perturb_block(const AscendBlock<A>& x, const Ascent<A>& a, A* out) { perturb(x, a, out); }                       \
  SAMK_CLONES void average_block(A* q, const A* g, int64_t n, const Average<A>& a) { average(q, g, n, a); }                         \
  SAMK_CLONES void draw_signs(const SignSource& from, int64_t begin, int64_t n, A* to) { signs(from, begin, n, to); }
SAMK_ASCEND_CLONES(float)
SAMK_ASCEND_CLONES(double)

}  // namespace samk
