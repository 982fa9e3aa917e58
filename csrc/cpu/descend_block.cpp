// The loops of the base updates: one body for every base, compiled for the sets of state that groups of that base use.
//
// Which state is there and the flags of a group are compile-time constants of a loop. The state, so that a loop without momentum or v_max
// neither tests nor touches it; the flags, because compilers know no vector that is chosen by a bool from outside the loop: with them as
// run-time values Adam was eight times slower. Square roots and divisions are vector instructions.
#include "descend_block.h"

namespace samk {
namespace {

template <class A>
SAMK_INLINE void add(A c, const A* __restrict in, A* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = fused(c, in[i], out[i]);
}

// A flag beside `first` and `maximize` that the inner loop tests.
template <class A>
SAMK_INLINE bool& option(Sgd<A>& base) { return base.nesterov; }
template <class A>
SAMK_INLINE bool& option(Adam<A>& base) { return base.decoupled; }
template <class A>
SAMK_INLINE bool& option(Lion<A>& base) { return base.first; }

template <int kStates, bool kOption, bool kFirst, class A, class U>
SAMK_INLINE void update_all(const UpdateBlock<A>& x, const U& base) {
  U update = base;
  option(update) = kOption;
  update.first = kFirst;
  update.maximize = false;  // by the sign of the factor
  if (update.states() != kStates) __builtin_unreachable();
  const A *clean = x.clean, *at = x.at, *u = x.u, factor = base.maximize ? -x.factor : x.factor;
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

template <int kStates, class A, class U>
SAMK_INLINE void update_with(const UpdateBlock<A>& x, U base) {
  if (option(base))
    base.first ? update_all<kStates, true, true>(x, base) : update_all<kStates, true, false>(x, base);
  else
    base.first ? update_all<kStates, false, true>(x, base) : update_all<kStates, false, false>(x, base);
}

template <class A, class U>
SAMK_INLINE void update_any(const UpdateBlock<A>& x, const U& base) {
  constexpr int kLast = (U::kStates & operand_bit(kVMax)) != 0 ? operand_bit(kVMax) : operand_bit(kM);  // the one that may be unused
  (base.states() & kLast) != 0 ? update_with<U::kStates>(x, base) : update_with<U::kStates & ~kLast>(x, base);
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
