// Norm of the ascent direction, then stash = w, w += s c(w)^2 d, and the optional moving average of q.
//
// Reads g (w too where a group is adaptive, q where present), then reads w and g and writes w and stash: 20 bytes per element in
// fp32. Deterministic. The plain direction is compiled apart: it is SAM, and an absent q must not cost a read.
#include "chunk_loop.h"
#include "lanes.h"
#include "stream.h"

namespace samk {
namespace {

template <class T>
struct Slices {  // one chunk
  T *w, *stash, *q;
  const T* g;
  int64_t n;
};

enum Sum : int { kDirection, kGradient, kAscendSums };

template <class T>
SAMK_INLINE void norm_chunk(const Slices<T>& x, const Ascent<T>& ascent, bool counted, double* row) {
  Lanes<T, kAscendSums> lanes;
  const T *w = x.w, *g = or_else(x.g, static_cast<const T*>(x.w)), *q = or_else<T>(ascent.direction[1] != T(0) ? x.q : nullptr, g);
  if (ascent.adaptive || ascent.direction[0] == T(0) || ascent.direction[1] != T(0))
    lanes.add(x.n, [=](int64_t i, T* out) __attribute__((always_inline)) {
      const T cd = ascent.weighted(w[i], g[i], q[i]);
      out[kDirection] = cd * cd;
      out[kGradient] = g[i] * g[i];
    });
  else {  // |d|^2 = direction[0]^2 |g|^2
    Lanes<T, 1> plain;
    plain.add(x.n, [=](int64_t i, T* out) __attribute__((always_inline)) { out[0] = g[i] * g[i]; });
    row[kGradient] = plain.total(0);
    row[kDirection] = counted ? double(ascent.direction[0]) * double(ascent.direction[0]) * row[kGradient] : 0;
    return;
  }
  row[kDirection] = counted ? lanes.total(kDirection) : 0;
  row[kGradient] = x.g ? lanes.total(kGradient) : 0;
}

template <class T>
SAMK_INLINE void perturb_chunk(const Slices<T>& x, const Ascent<T>& ascent, bool stream) {
  const T *g = or_else(x.g, static_cast<const T*>(x.q)), *q = or_else<T>(ascent.direction[1] != T(0) ? x.q : nullptr, g);
  const Ascent<T> a = ascent;
  for (int64_t begin = 0; begin < x.n; begin += kBlock) {
    const int64_t n = begin + kBlock < x.n ? kBlock : x.n - begin;
    T* __restrict w = x.w + begin;
    copy(x.stash + begin, w, n * int64_t(sizeof(T)), stream);
    if (a.scale == T(0)) continue;
    for (int64_t i = 0; i < n; ++i) w[i] = a.perturbed(w[i], g[begin + i], q[begin + i]);
  }
  if (stream) stream_end();
}

template <class T>
SAMK_INLINE void average_chunk(T* __restrict q, const T* __restrict g, int64_t n, T keep, T add, bool first) {
  for (int64_t i = 0; i < n; ++i) q[i] = moving_average(q[i], g[i], keep, add, first);
}

#define SAMK_ASCEND_CLONES(T)                                                                                                   \
  SAMK_CLONES void norm_of(const Slices<T>& x, const Ascent<T>& a, bool counted, double* row) { norm_chunk(x, a, counted, row); } \
  SAMK_CLONES void perturb_of(const Slices<T>& x, const Ascent<T>& a, bool stream) { perturb_chunk(x, a, stream); }                                  \
  SAMK_CLONES void average_of(T* q, const T* g, int64_t n, T keep, T add, bool first) { average_chunk(q, g, n, keep, add, first); }
SAMK_ASCEND_CLONES(float)
SAMK_ASCEND_CLONES(double)

template <class T>
void ascend(const AscendArgs& args, ParallelFor parallel_for) {
  const TensorTable& table = args.table;
  T& sq_norm = *static_cast<T*>(args.sq_norm);
  T direction[2];
  for (int i = 0; i < 2; ++i) direction[i] = args.direction_device ? static_cast<const T*>(args.direction_device)[i] : T(args.direction[i]);
  const auto hyper = [&](int32_t group) { return args.hyper + group * kAscendHypers; };
  const auto rho = [&](int32_t group) { return args.rho ? static_cast<const T*>(args.rho)[group] : T(hyper(group)[kRho]); };
  const auto slices = [&](const Chunk& c) {
    const auto at = [&](Operand operand) { return chunk_data<T>(table, c, operand); };
    return Slices<T>{at(kW), at(kStash), at(kQ), at(kG), c.end - c.begin};
  };

  if (!args.given) {
    double total[kAscendSums] = {};
    reduce_chunks(table, parallel_for, total, [&](const Chunk& chunk, double* row) {
      const int32_t group = table.group[chunk.tensor];
      norm_of(slices(chunk), make_ascent(hyper(group), T(0), direction), rho(group) != T(0), row);
    });
    sq_norm = T(total[kDirection]);
    if (args.gram && table.has(kG)) static_cast<T*>(args.gram)[kGG] = T(total[kGradient]);
  }
  const bool stream = streams(table, sizeof(T));
  const bool average = args.update_q && is_finite(sq_norm), first = args.q_steps && *args.q_steps == 0;
  for_each_chunk(table, parallel_for, [&](int64_t, const Chunk& chunk) {
    const int32_t group = table.group[chunk.tensor];
    const Slices<T> x = slices(chunk);
    perturb_of(x, make_ascent(hyper(group), ascent_scale(rho(group), sq_norm, args.normalize, T(args.eps)), direction), stream);
    if (average) average_of(x.q, x.g, x.n, T(args.ema[0]), T(args.ema[1]), first);
  });
  if (average && args.q_steps) *args.q_steps += 1;
}

}  // namespace

void cpu_ascend(const AscendArgs& args, ParallelFor parallel_for) {
  args.dtype == kFloat32 ? ascend<float>(args, parallel_for) : ascend<double>(args, parallel_for);
}

}  // namespace samk
