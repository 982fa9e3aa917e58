// The loops of normalization_grads over one block. Sums run in kLanes parallel accumulators that end in a tree: a fixed order that any
// vector width can follow. x is centred before it is multiplied: with a large mean, sum g x - mean sum g would cancel.
#include "normalization_block.h"

namespace samk {
namespace {

constexpr int kLanes = 32;

template <class A>
SAMK_INLINE A tree(A (&lanes)[kLanes]) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

// body(begin, lanes) for whole blocks of kLanes elements and for what is left; lanes is a constant in the first call.
template <class Body>
SAMK_INLINE void in_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, int(n - i));
}

template <class A>
SAMK_INLINE WeightedSums<A> channel_sums(const ChannelBlock<A>& b, const Statistics<A>& s, A* __restrict scale, A* __restrict shift) {
  const A *x = b.x, *g = b.g, *weight = b.weight, mean = s.mean, rstd = s.rstd;
  A sum_gx[kLanes] = {}, sum_g[kLanes] = {};
  in_lanes(b.channels, [&](int64_t i, int lanes) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int lane = 0; lane < lanes; ++lane) {
      const A grad = g[i + lane], gx = grad * (x[i + lane] - mean), w = weight[i + lane];
      scale[i + lane] += gx * rstd;
      shift[i + lane] += grad;
      sum_gx[lane] += w * gx;
      sum_g[lane] += w * grad;
    }
  });
  return {tree(sum_gx), tree(sum_g)};
}

template <class A>
SAMK_INLINE void channel_grads(const ChannelBlock<A>& b, const Statistics<A>& s, A* __restrict dx) {
  const A *x = b.x, *g = b.g, *weight = b.weight;
  if (s.coupled)
    for (int64_t i = 0; i < b.channels; ++i) dx[i] = weight[i] * s.rstd * g[i] + ((x[i] - s.mean) * s.pull + s.shift);
  else
    for (int64_t i = 0; i < b.channels; ++i) dx[i] = weight[i] * s.rstd * g[i];
}

template <class A>
SAMK_INLINE void position_sums(const PositionBlock<A>& b, A mean, A* gx, A* gs) {
  for (int64_t c = 0; c < b.channels; ++c) {
    const A *x = b.x + c * b.length, *g = b.g + c * b.length;
    A sum_gx[kLanes] = {}, sum_g[kLanes] = {};
    in_lanes(b.length, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      for (int lane = 0; lane < lanes; ++lane) {
        sum_gx[lane] += g[i + lane] * (x[i + lane] - mean);
        sum_g[lane] += g[i + lane];
      }
    });
    gx[c] += tree(sum_gx);
    gs[c] += tree(sum_g);
  }
}

template <class A>
SAMK_INLINE void position_grads(const PositionBlock<A>& b, const A* weight, const Statistics<A>& s, A* __restrict dx) {
  for (int64_t c = 0; c < b.channels; ++c) {
    const A *x = b.x + c * b.length, *g = b.g + c * b.length, scale = weight[c] * s.rstd;
    A* __restrict out = dx + c * b.length;
    if (s.coupled)
      for (int64_t i = 0; i < b.length; ++i) out[i] = scale * g[i] + ((x[i] - s.mean) * s.pull + s.shift);
    else
      for (int64_t i = 0; i < b.length; ++i) out[i] = scale * g[i];
  }
}

}  // namespace

#define SAMK_NORMALIZATION_CLONES(A)                                                                                                       \
  SAMK_CLONES WeightedSums<A> sum_channels(const ChannelBlock<A>& b, const Statistics<A>& s, A* scale, A* shift) {                         \
    return channel_sums(b, s, scale, shift);                                                                                               \
  }                                                                                                                                        \
  SAMK_CLONES void grad_channels(const ChannelBlock<A>& b, const Statistics<A>& s, A* dx) { channel_grads(b, s, dx); }                     \
  SAMK_CLONES void sum_positions(const PositionBlock<A>& b, A mean, A* gx, A* gs) { position_sums(b, mean, gx, gs); }                      \
  SAMK_CLONES void grad_positions(const PositionBlock<A>& b, const A* weight, const Statistics<A>& s, A* dx) {                             \
    position_grads(b, weight, s, dx);                                                                                                      \
  }
SAMK_NORMALIZATION_CLONES(float)
SAMK_NORMALIZATION_CLONES(double)

}  // namespace samk
