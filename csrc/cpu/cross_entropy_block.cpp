// The loops of the cross-entropy over one block. Exponentials are plain arithmetic (core/exp_log.h), so all of them are vectors.
#include "cross_entropy_block.h"

namespace samk {
namespace {

// The larger of m and z[0 .. n), n a multiple of the lanes; NaN is left to the sums.
template <class A>
SAMK_INLINE A largest(const A* z, int64_t n, A m) {
  constexpr int kLanes = 32;
  A lane[kLanes];
  for (A& x : lane) x = m;
  for (int64_t i = 0; i < n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lane[k] = z[i + k] > lane[k] ? z[i + k] : lane[k];
  for (A x : lane) m = x > m ? x : m;
  return m;
}

template <class A, int kMode>
SAMK_INLINE void terms_of(const A* z, const A* w, int64_t n, RowSums<A, kMode>& row) {
  constexpr int kTerms = RowSums<A, kMode>::kTerms;
  const A m = largest(z, n, row.m), origin = exponent_origin(m);
  Lanes<A, kTerms> terms = row.terms;  // in registers
  if (m > row.m) {
    const A factor = row.m == A(-INFINITY) ? A(0) : exp_of(row.m - m);
    for (int k = 0; k < kTerms; ++k)
      for (A& sum : terms.sum[k]) sum *= k == kSquares ? factor * factor : factor;
  }
  terms.add(n, [=](int64_t i, A* out) __attribute__((always_inline)) {
    const A e = exp_term(z[i] - origin);
    out[0] = e;
    out[1] = e * e;
    if constexpr (kTerms == 3) out[2] = w[i] * e;
  });
  row.m = m;
  row.terms = terms;
}

template <class A, int kMode>
SAMK_INLINE void spread_of(const A* z, const A* w, int64_t n, A origin, RowSums<A, kMode>& row) {
  Lanes<A, 1> spread = row.spread;
  spread.add(n, [=](int64_t i, A* out)
                    __attribute__((always_inline)) { out[0] = kMode == kWeighted ? w[i] * (origin - z[i]) : origin - z[i]; });
  row.spread = spread;
}

template <class A, int kMode>
SAMK_INLINE void sums_of(LossTile<A, kMode>& tile, const A* w) {
  constexpr int n = kTileRows;
  const int64_t classes = tile.classes;
  A m[n], origin[n], mass[n] = {}, squares[n] = {}, weighted[n] = {}, spread[n] = {};
  for (int r = 0; r < n; ++r) {
    tile.z_y[r] = tile.z[tile.y[r] * n + r];
    m[r] = A(-INFINITY);
    origin[r] = spread_origin(tile.z_y[r]);
  }
  for (int64_t v = 0; v < classes && kMode != kPlain; ++v)
    for (int r = 0; r < n; ++r) spread[r] += (kMode == kWeighted ? w[v] : A(1)) * (origin[r] - tile.z[v * n + r]);
  for (int r = 0; r < n; ++r) tile.z[tile.y[r] * n + r] = A(-INFINITY);
  for (int64_t v = 0; v < classes; ++v)
    for (int r = 0; r < n; ++r) m[r] = tile.z[v * n + r] > m[r] ? tile.z[v * n + r] : m[r];
  for (int r = 0; r < n; ++r) origin[r] = exponent_origin(m[r]);
  for (int64_t v = 0; v < classes; ++v)
    for (int r = 0; r < n; ++r) {
      const A e = exp_term(tile.z[v * n + r] - origin[r]);
      mass[r] += e;
      squares[r] += e * e;
      if constexpr (kMode == kWeighted) weighted[r] += w[v] * e;
    }
  for (int r = 0; r < n; ++r) {
    tile.m[r] = m[r];
    tile.sum[kMass][r] = mass[r];
    tile.sum[kSquares][r] = squares[r];
    tile.sum[kSpread][r] = spread[r];
    tile.sum[kWeightedMass][r] = weighted[r];
  }
}

template <class A, int kMode>
SAMK_INLINE void finish_all(LossTile<A, kMode>& tile, A smoothing) {
  const A classes = A(tile.classes);
  for (int r = 0; r < kTileRows; ++r) {
    A sum[kLossSums];
    for (int k = 0; k < kLossSums; ++k) sum[k] = tile.sum[k][r];
    const SampleLoss<A> row = finish_loss<kMode>(sum, tile.m[r], tile.z_y[r], tile.w_y[r], smoothing, classes);
    tile.loss[r] = row.loss;
    tile.norm[r] = row.norm;
    tile.top[r] = row.top;
    tile.log_sum[r] = row.log_sum;
    tile.mass[r] = row.mass;
  }
}

template <class A>
SAMK_INLINE A gradient(A z, A w, A top, A log_sum, A c, A share) {
  return fused(c, exp_term((z - top) - log_sum), -share * w);
}

template <class A>
SAMK_INLINE void gradient_of(const GradientRow<A>& row) {
  const A *z = row.z, *w = row.w, top = row.top, log_sum = row.log_sum, c = row.c, share = row.share;
  A* __restrict out = row.out;
  if (w)
    for (int64_t i = 0; i < row.n; ++i) out[i] = gradient(z[i], w[i], top, log_sum, c, share);
  else
    for (int64_t i = 0; i < row.n; ++i) out[i] = gradient(z[i], A(1), top, log_sum, c, share);
}

template <class A>
SAMK_INLINE void gradient_of(GradientTile<A>& tile, const A* w, int64_t classes) {
  for (int64_t v = 0; v < classes; ++v) {
    const A w_v = w ? w[v] : A(1);
    A* z = tile.z + v * kTileRows;
    for (int r = 0; r < kTileRows; ++r) z[r] = gradient(z[r], w_v, tile.top[r], tile.log_sum[r], tile.c[r], tile.share[r]);
  }
}

}  // namespace

#define SAMK_LOSS_CLONES(A, kMode)                                                                                        \
  SAMK_CLONES void add_terms(const A* z, const A* w, int64_t n, RowSums<A, kMode>& row) { terms_of(z, w, n, row); }       \
  SAMK_CLONES void add_spread(const A* z, const A* w, int64_t n, A o, RowSums<A, kMode>& row) { spread_of(z, w, n, o, row); } \
  SAMK_CLONES void add_tile(LossTile<A, kMode>& tile, const A* w) { sums_of(tile, w); }                                   \
  SAMK_CLONES void finish_tile(LossTile<A, kMode>& tile, A smoothing) { finish_all(tile, smoothing); }
#define SAMK_CROSS_ENTROPY_CLONES(A)                                                                                      \
  SAMK_LOSS_CLONES(A, kPlain)                                                                                             \
  SAMK_LOSS_CLONES(A, kSmoothed)                                                                                          \
  SAMK_LOSS_CLONES(A, kWeighted)                                                                                          \
  SAMK_CLONES void gradient_row(const GradientRow<A>& row) { gradient_of(row); }                                          \
  SAMK_CLONES void gradient_tile(GradientTile<A>& tile, const A* w, int64_t classes) { gradient_of(tile, w, classes); }
SAMK_CROSS_ENTROPY_CLONES(float)
SAMK_CROSS_ENTROPY_CLONES(double)

}  // namespace samk
