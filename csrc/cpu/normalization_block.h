// One block of one (entry, group) of a normalization layer, in the accumulation type.
#pragma once
#include "chunk_loop.h"

namespace samk {

// What dx is made of beside weight and gradient: dx = scale g + (x - mean) pull + shift, scale = weight rstd.
template <class A>
struct Statistics {
  A mean, rstd, pull, shift;
  bool coupled;  // else pull and shift are not looked at
};

// Channels that lie side by side, one position each.
template <class A>
struct ChannelBlock {
  const A *x, *g, *weight;
  int64_t channels;
};

// Channels of `length` positions each, one after the other.
template <class A>
struct PositionBlock {
  const A *x, *g;
  int64_t channels, length;
};

template <class A>
struct WeightedSums {
  A gx, g;  // of weight g (x - mean), of weight g
};

// sum_channels: scale[c] += g xhat, shift[c] += g, and the weighted sums; sum_positions: gx[c] += sum g (x - mean), gs[c] += sum g.
#define SAMK_FOR_ACCUMULATOR(A)                                                                                  \
  WeightedSums<A> sum_channels(const ChannelBlock<A>& b, const Statistics<A>& s, A* scale, A* shift);            \
  void grad_channels(const ChannelBlock<A>& b, const Statistics<A>& s, A* dx);                                   \
  void sum_positions(const PositionBlock<A>& b, A mean, A* gx, A* gs);                                           \
  void grad_positions(const PositionBlock<A>& b, const A* weight, const Statistics<A>& s, A* dx);
SAMK_FOR_ACCUMULATOR(float)
SAMK_FOR_ACCUMULATOR(double)
#undef SAMK_FOR_ACCUMULATOR

}  // namespace samk
