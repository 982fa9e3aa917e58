// Restore and base update in one pass: w0 = stash, u = combination of (h, g, q), w = base(w0, u) - lr direct, q <- kept vector.
//
// SGD with momentum reads stash, h and the buffer and writes w and the buffer: 20 bytes per element in fp32; 4 more for each
// norm, for g, and for q read or written. Deterministic. A combination of several lists is built block by block in L1, one plain
// loop per list, which any compiler vectorises; u = c h alone goes straight into the update.
#include "chunk_loop.h"
#include "lanes.h"
#include "stream.h"

namespace samk {
namespace {

template <class T>
struct Slices {  // one chunk, or a block of it
  T *w, *q, *m;
  const T *stash, *h, *g;
  int64_t n;

  Slices block(int64_t begin, int64_t size) const {
    const auto at = [=](auto* data) { return data ? data + begin : nullptr; };
    return {at(w), at(q), at(m), at(stash), at(h), at(g), size};
  }
};

template <class T>
struct Options {
  Factors<T> factors;
  Sgd<T> sgd;
  bool first, decay_at_perturbed, stream;
};

template <class T>
SAMK_INLINE void combine(const Factors<T>& factors, DescendOutput output, const Slices<T>& x, T* __restrict out) {
  const T* const inputs[kInputs] = {x.h, x.g, x.q};
  for (int64_t i = 0; i < x.n; ++i) out[i] = T(0);
  for (int k = 0; k < kInputs; ++k) {
    const T c = factors.of[output][k], *in = inputs[k];
    if (c != T(0) && in)
      for (int64_t i = 0; i < x.n; ++i) out[i] = add_term(c, in[i], out[i]);
  }
}

template <class T>
SAMK_INLINE void sgd_block(const Slices<T>& x, const Options<T>& options, T factor, const T* u) {
  const T* stash = x.stash ? x.stash : x.w;
  const T* at = options.decay_at_perturbed ? x.w : stash;
  T updated[kBlock];
  T *w = options.stream ? updated : x.w, *m = x.m;
  const Sgd<T> sgd = options.sgd;
  T none = T(0);
  if (m)
#pragma GCC ivdep
    for (int64_t i = 0; i < x.n; ++i) w[i] = sgd.update(stash[i], at[i], factor * u[i], m[i], options.first);
  else
#pragma GCC ivdep
    for (int64_t i = 0; i < x.n; ++i) w[i] = sgd.update(stash[i], at[i], factor * u[i], none, options.first);
  if (options.stream) stream_copy(x.w, updated, x.n * int64_t(sizeof(T)));
}

template <class T>
SAMK_INLINE void sgd_chunk(const Slices<T>& chunk, Options<T> options) {
  const T(&c)[kOutputs][kInputs] = options.factors.of;
  const bool direct = c[kDirect][kInH] != T(0) || c[kDirect][kInG] != T(0) || c[kDirect][kInQ] != T(0);
  const bool plain = chunk.h && !chunk.g && !chunk.q && !direct && c[kU][kInH] != T(0);
  options.stream = options.stream && !direct && !options.decay_at_perturbed;  // where w is read too, it is in cache already
  T u[kBlock];
  for (int64_t begin = 0; begin < chunk.n; begin += kBlock) {
    const Slices<T> x = chunk.block(begin, begin + kBlock < chunk.n ? kBlock : chunk.n - begin);
    if (!plain) combine(options.factors, kU, x, u);
    sgd_block(x, options, plain ? c[kU][kInH] : T(1), plain ? x.h : u);
    if (!direct) continue;
    combine(options.factors, kDirect, x, u);
    for (int64_t i = 0; i < x.n; ++i) x.w[i] = options.sgd.direct(x.w[i], u[i]);
  }
  if (options.stream) stream_end();
}

// Writes the kept vector and returns its squared norm.
template <class T>
SAMK_INLINE double keep_chunk(const Slices<T>& chunk, const Factors<T>& factors) {
  double total = 0;
  T kept[kBlock];
  for (int64_t begin = 0; begin < chunk.n; begin += kBlock) {
    const Slices<T> x = chunk.block(begin, begin + kBlock < chunk.n ? kBlock : chunk.n - begin);
    combine(factors, kKept, x, kept);
    Lanes<T, 1> lanes;
    lanes.add(x.n, [&](int64_t i, T* out) __attribute__((always_inline)) { out[0] = kept[i] * kept[i]; });
    for (int64_t i = 0; i < x.n; ++i) x.q[i] = kept[i];
    total += lanes.total(0);
  }
  return total;
}

#define SAMK_DESCEND_CLONES(T)                                                             \
  SAMK_CLONES void sgd_of(const Slices<T>& x, const Options<T>& options) { sgd_chunk(x, options); } \
  SAMK_CLONES double keep_of(const Slices<T>& x, const Factors<T>& factors) { return keep_chunk(x, factors); }
SAMK_DESCEND_CLONES(float)
SAMK_DESCEND_CLONES(double)

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
  const bool stream = streams(table, sizeof(T));
  double kept_norm[1] = {};
  reduce_chunks(table, parallel_for, kept_norm, [&](const Chunk& c, double* row) {
    const auto at = [&](Operand operand) { return chunk_data<T>(table, c, operand); };
    const Slices<T> x{at(kW), at(kQ), at(kState), at(kStash), at(kH), at(kG), c.end - c.begin};
    if (args.base == kNone || factors.skip) {
      if (x.stash) copy(x.w, x.stash, x.n * int64_t(sizeof(T)), stream);
      if (stream) stream_end();
    } else {
      const int32_t group = table.group[c.tensor];
      const double* hyper = args.hyper + group * kSgdHypers;
      const T lr = args.lr ? static_cast<const T*>(args.lr)[group] : T(hyper[kLr]);
      sgd_of(x, {factors, make_sgd(hyper, lr), args.steps && args.steps[c.tensor] == 0, args.decay_at_perturbed, stream && x.stash});
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
