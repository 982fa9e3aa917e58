// The loops of normalization_grads over one block. x is centred before it is multiplied: with a large mean, sum g x - mean sum g would
// cancel.
#include "normalization_block.h"

#include "vectors.h"

namespace samk {
namespace {

template <class A>
struct PairSums {
  Vector<A> gx = {}, g = {};

  SAMK_INLINE void add_to(PairSum<A>& sum) const {
    sum.gx += tree<A>(gx);
    sum.g += tree<A>(g);
  }
};

template <int kCount, class A>
SAMK_INLINE void row_sums(const A* const* x, const A* const* g, const RowBlock<A>& b, const Statistics<A>* s, A* scale, A* shift,
                          PairSum<A>* sums) {
  using V = Vector<A>;
  PairSums<A> lanes[kCount];
  int64_t i = 0;
  for (; i + kVector <= b.channels; i += kVector) {
    V w, to_scale, to_shift;
    load(w, b.weight + i), load(to_scale, scale + i), load(to_shift, shift + i);
    for (int r = 0; r < kCount; ++r) {
      V values, grads;
      load(values, x[r] + i), load(grads, g[r] + i);
      const V gx = grads * (values - s[r].mean);
      to_scale += gx * s[r].rstd;
      to_shift += grads;
      lanes[r].gx += w * gx;
      lanes[r].g += w * grads;
    }
    std::memcpy(scale + i, &to_scale, sizeof(V));
    std::memcpy(shift + i, &to_shift, sizeof(V));
  }
  for (int r = 0; r < kCount; ++r) lanes[r].add_to(sums[r]);
  for (; i < b.channels; ++i)
    for (int r = 0; r < kCount; ++r) {
      const A grad = g[r][i], gx = grad * (x[r][i] - s[r].mean);
      scale[i] += gx * s[r].rstd;
      shift[i] += grad;
      sums[r].gx += b.weight[i] * gx;
      sums[r].g += b.weight[i] * grad;
    }
}

template <class A>
SAMK_INLINE void all_row_sums(const RowBlock<A>& b, const Statistics<A>* s, A* scale, A* shift, PairSum<A>* sums) {
  if (b.rows == kRows) return row_sums<kRows>(b.x, b.g, b, s, scale, shift, sums);
  for (int r = 0; r < b.rows; ++r) row_sums<1>(b.x + r, b.g + r, b, s + r, scale, shift, sums + r);
}

template <bool kCoupled, class A>
SAMK_INLINE void row_grads(const RowBlock<A>& b, const Statistics<A>* s) {
  using V = Vector<A>;
  for (int r = 0; r < b.rows; ++r) {
    const A *x = b.x[r], *g = b.g[r], *weight = b.weight, mean = s[r].mean, rstd = s[r].rstd, pull = s[r].pull, shift = s[r].shift;
    int64_t i = 0;
    for (; i + kVector <= b.channels; i += kVector) {
      V values, grads, w;
      load(values, x + i), load(grads, g + i), load(w, weight + i);
      const V dx = kCoupled ? w * rstd * grads + ((values - mean) * pull + shift) : w * rstd * grads;
      std::memcpy(b.dx[r] + i, &dx, sizeof(V));
    }
    for (; i < b.channels; ++i) b.dx[r][i] = weight[i] * rstd * g[i] + (kCoupled ? (x[i] - mean) * pull + shift : A(0));
  }
}

template <class A>
SAMK_INLINE void position_sums(const PositionBlock<A>& b, A mean, PairSum<A>* sums) {
  using V = Vector<A>;
  for (int64_t c = 0; c < b.channels; ++c) {
    const A *x = b.x + c * b.length, *g = b.g + c * b.length;
    int64_t i = 0;
    if (b.length >= kVector) {
      PairSums<A> lanes;
      V values, grads;
      for (; i + kVector <= b.length; i += kVector) {
        load(values, x + i), load(grads, g + i);
        lanes.gx += grads * (values - mean);
        lanes.g += grads;
      }
      load(values, x + b.length - kVector), load_last(grads, g + b.length, b.length - i);
      lanes.gx += grads * (values - mean);
      lanes.g += grads;
      lanes.add_to(sums[c]);
      continue;
    }
    for (; i < b.length; ++i) sums[c].gx += g[i] * (x[i] - mean), sums[c].g += g[i];
  }
}

template <class A>
SAMK_INLINE void position_grads(const PositionBlock<A>& b, const A* weight, const Statistics<A>& s, A* dx) {
  for (int64_t c = 0; c < b.channels; ++c) {
    const A *x = b.x + c * b.length, *g = b.g + c * b.length, scale = weight[c] * s.rstd, mean = s.mean, pull = s.pull, shift = s.shift;
    A* __restrict out = dx + c * b.length;
    if (s.coupled)
      for (int64_t i = 0; i < b.length; ++i) out[i] = scale * g[i] + ((x[i] - mean) * pull + shift);
    else
      for (int64_t i = 0; i < b.length; ++i) out[i] = scale * g[i];
  }
}

}  // namespace

#define SAMK_NORMALIZATION_CLONES(A)                                                                                    \
  SAMK_CLONES void sum_rows(const RowBlock<A>& b, const Statistics<A>* s, A* scale, A* shift, PairSum<A>* sums) {       \
    all_row_sums(b, s, scale, shift, sums);                                                                             \
  }                                                                                                                     \
  SAMK_CLONES void grad_rows(const RowBlock<A>& b, const Statistics<A>* s) {                                            \
    s[0].coupled ? row_grads<true>(b, s) : row_grads<false>(b, s);                                                      \
  }                                                                                                                     \
  SAMK_CLONES void sum_positions(const PositionBlock<A>& b, A mean, PairSum<A>* sums) { position_sums(b, mean, sums); } \
  SAMK_CLONES void grad_positions(const PositionBlock<A>& b, const A* weight, const Statistics<A>& s, A* dx) {          \
    position_grads(b, weight, s, dx);                                                                                   \
  }
SAMK_NORMALIZATION_CLONES(float)
SAMK_NORMALIZATION_CLONES(double)

}  // namespace samk
