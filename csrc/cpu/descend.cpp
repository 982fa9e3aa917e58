// Restore and base update in one pass: w0 = stash, u = combination of (h, g, q), w = base(w0, u) - lr direct, q <- kept vector.
//
// SGD with momentum reads stash, h and the buffer and writes w and the buffer: 20 bytes per element in fp32; 4 more for each
// norm, for g, and for q read or written. Deterministic. u = h alone is compiled apart, so that SAM pays for nothing else.
#include <cstring>

#include "chunk_loop.h"
#include "lanes.h"

namespace samk {
namespace {

template <class T>
struct Slices {  // one chunk
  T *w, *q, *m;
  const T *stash, *h, *g;
  int64_t n;
};

template <class T>
struct Options {
  Factors<T> factors;
  Sgd<T> sgd;
  bool first, decay_at_perturbed, write_q;
};

template <bool kCombined, bool kMomentum_, class T>
SAMK_INLINE void sgd_chunk(const Slices<T>& x, const Options<T>& options) {
  const T *any = x.h ? x.h : x.g ? x.g : x.q;
  const T *h = or_else(x.h, any), *g = or_else(x.g, any), *q = or_else(static_cast<const T*>(x.q), any);
  const T* stash = or_else(x.stash, static_cast<const T*>(x.w));
  T *w = x.w, *m = x.m;
  const T* at = options.decay_at_perturbed ? x.w : stash;
  const Factors<T> c = options.factors;
  const Sgd<T> sgd = options.sgd;
  const bool first = options.first;
#pragma GCC ivdep
  for (int64_t i = 0; i < x.n; ++i) {
    const T u = kCombined ? c.combine(kU, h[i], g[i], q[i]) : c.of[kU][kInH] * h[i];
    T buffer = kMomentum_ ? m[i] : T(0);
    T updated = sgd.update(stash[i], at[i], u, buffer, first);
    if (kCombined) updated = sgd.direct(updated, c.combine(kDirect, h[i], g[i], q[i]));
    w[i] = updated;
    if (kMomentum_) m[i] = buffer;
  }
}

template <class T>
SAMK_INLINE double keep_chunk(const Slices<T>& x, const Factors<T>& factors) {
  const T *any = x.h ? x.h : x.g ? x.g : x.q;
  const T *h = or_else(x.h, any), *g = or_else(x.g, any);
  T* q = x.q;
  const Factors<T> c = factors;
  Lanes<T, 1> lanes;
  lanes.add(x.n, [=](int64_t i, T* out) __attribute__((always_inline)) {
    const T kept = c.combine(kKept, h[i], g[i], q[i]);
    q[i] = kept;
    out[0] = kept * kept;
  });
  return lanes.total(0);
}

template <class T>
SAMK_INLINE void sgd_any(const Slices<T>& x, const Options<T>& options) {
  const bool combined = x.g || x.q || !x.h;
  if (x.m)
    combined ? sgd_chunk<true, true>(x, options) : sgd_chunk<false, true>(x, options);
  else
    combined ? sgd_chunk<true, false>(x, options) : sgd_chunk<false, false>(x, options);
}

#define SAMK_DESCEND_CLONES(T)                                                             \
  SAMK_CLONES void sgd_of(const Slices<T>& x, const Options<T>& options) { sgd_any(x, options); } \
  SAMK_CLONES double keep_of(const Slices<T>& x, const Factors<T>& factors) { return keep_chunk(x, factors); }
SAMK_DESCEND_CLONES(float)
SAMK_DESCEND_CLONES(double)

template <class T>
void restore(const Slices<T>& x) {
  if (x.stash) std::memcpy(x.w, x.stash, size_t(x.n) * sizeof(T));
}

// Reduces the Gram entries that are missing, then multiplies out the coefficients.
template <class T>
Factors<T> factors_of(const DescendArgs& args, ParallelFor parallel_for) {
  constexpr int lists_of[kGram] = {1, 3, 2, 5, 6, 4};
  T* gram = static_cast<T*>(args.gram);
  int lists = 0;
  for (int k = 0; k < kGram; ++k) lists |= args.reduced() >> k & 1 ? lists_of[k] : 0;
  if (lists) {
    double total[kGram];
    reduce_gram<T>(args.table, lists, false, T(0), parallel_for, total);
    for (int k = 0; k < kGram; ++k)
      if (args.reduced() >> k & 1) gram[k] = T(total[k]);
  }
  const bool bad_norm = args.sq_norm && !is_finite(*static_cast<const T*>(args.sq_norm));
  const bool skip = bad_norm || (args.found_inf && *args.found_inf != 0);
  return resolve(args.coefficients, gram, args.needed, args.match_norm, T(args.max_norm), skip);
}

template <class T>
void descend(const DescendArgs& args, ParallelFor parallel_for) {
  const TensorTable& table = args.table;
  const Factors<T> factors = factors_of<T>(args, parallel_for);
  double kept_norm[1] = {};
  reduce_chunks(table, parallel_for, kept_norm, [&](const Chunk& c, double* row) {
    const auto at = [&](Operand operand) {
      T* data = table.data<T>(operand, c.tensor);
      return data ? data + c.begin : nullptr;
    };
    const Slices<T> x{at(kW), at(kQ), at(kState), at(kStash), at(kH), at(kG), c.end - c.begin};
    if (args.base == kNone || factors.skip)
      restore(x);
    else {
      const int32_t group = table.group[c.tensor];
      const double* hyper = args.hyper + group * kSgdHypers;
      const T lr = args.lr ? static_cast<const T*>(args.lr)[group] : T(hyper[kLr]);
      sgd_of(x, {factors, make_sgd(hyper, lr), args.steps && args.steps[c.tensor] == 0, args.decay_at_perturbed, args.write_q});
    }
    if (args.write_q && !factors.skip) row[0] = keep_of(x, factors);
  });
  if (factors.skip) return;
  if (args.write_q) static_cast<T*>(args.gram)[kQQ] = T(kept_norm[0]);
  if (args.steps && args.base == kSgd)
    for (int32_t t = 0; t < table.count; ++t) args.steps[t] += args.hyper[table.group[t] * kSgdHypers + kMomentum] != 0;
}

}  // namespace

void cpu_descend(const DescendArgs& args, ParallelFor parallel_for) {
  args.dtype == kFloat32 ? descend<float>(args, parallel_for) : descend<double>(args, parallel_for);
}

}  // namespace samk
