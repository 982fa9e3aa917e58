// The loops of the base updates: one body for every base, compiled for the sets of state that groups of that base use.
//
// Which state is there is a compile-time mask, so that loops without momentum or v_max neither test nor touch it. The other options of a
// group are the same for all elements: the compiler hoists them or blends, and every loop is a vector loop, square roots and divisions
// included.
#include "descend_block.h"

namespace samk {
namespace {

template <class A>
SAMK_INLINE void add(A c, const A* __restrict in, A* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = fused(c, in[i], out[i]);
}

template <int kStates, class A, class U>
SAMK_INLINE void update_all(const UpdateBlock<A>& x, const U& base) {
  const U update = base;
  const A *clean = x.clean, *at = x.at, *u = x.u, factor = x.factor;
  A *out = x.out, *m = x.m, *v = x.v, *v_max = x.v_max;
  const int64_t n = x.n;
#pragma GCC ivdep  // where lists share memory, they share it element by element
  for (int64_t i = 0; i < n; ++i) {
    State<A> state{};
    if constexpr ((kStates & operand_bit(kM)) != 0) state.m = m[i];
    if constexpr ((kStates & operand_bit(kV)) != 0) state.v = v[i];
    if constexpr ((kStates & operand_bit(kVMax)) != 0) state.v_max = v_max[i];
    out[i] = update.update(clean[i], at[i], factor * u[i], state);
    if constexpr ((kStates & operand_bit(kM)) != 0) m[i] = state.m;
    if constexpr ((kStates & operand_bit(kV)) != 0) v[i] = state.v;
    if constexpr ((kStates & operand_bit(kVMax)) != 0) v_max[i] = state.v_max;
  }
}

template <class A, class U>
SAMK_INLINE void update_any(const UpdateBlock<A>& x, const U& base) {
  constexpr int kLast = (U::kStates & operand_bit(kVMax)) != 0 ? operand_bit(kVMax) : operand_bit(kM);  // the one that may be unused
  if ((base.states() & kLast) != 0)
    update_all<U::kStates>(x, base);
  else
    update_all<U::kStates & ~kLast>(x, base);
  if (!x.direct) return;
  const A* direct = x.direct;
  A* out = x.out;
  for (int64_t i = 0; i < x.n; ++i) out[i] = base.direct(out[i], direct[i]);
}

}  // namespace

#define SAMK_DESCEND_CLONES(A)                                                                                \
  SAMK_CLONES void add_block(A c, const A* in, A* out, int64_t n) { add(c, in, out, n); }                     \
  SAMK_CLONES void update_block(const UpdateBlock<A>& x, const Sgd<A>& base) { update_any(x, base); }         \
  SAMK_CLONES void update_block(const UpdateBlock<A>& x, const Adam<A>& base) { update_any(x, base); }        \
  SAMK_CLONES void update_block(const UpdateBlock<A>& x, const Lion<A>& base) { update_any(x, base); }
SAMK_DESCEND_CLONES(float)
SAMK_DESCEND_CLONES(double)

}  // namespace samk
