// One block of a normalization layer, in the accumulation type: a few rows of channels, or channels of many positions.
#pragma once
#include "chunk_loop.h"

namespace samk {

constexpr int kRows = 4;  // rows that share one read and write of the affine gradients

// What dx is made of beside weight and gradient: dx = rstd weight g + (x - mean) pull + shift.
template <class A>
struct Statistics {
  A mean, rstd, pull, shift;
  bool coupled;  // else pull and shift are not looked at
};

// Rows of channels that lie side by side, one position each.
template <class A>
struct RowBlock {
  const A *x[kRows], *g[kRows], *weight;
  A* dx[kRows];
  int64_t channels;
  int rows;
};

// Channels of `length` positions each, one after the other.
template <class A>
struct PositionBlock {
  const A *x, *g;
  int64_t channels, length;
};

template <class A>
struct PairSum {
  A gx, g;  // of g (x - mean), of g
};

// sum_rows: scale[c] += sum_r g xhat, shift[c] += sum_r g, and adds to the sums of each row, weighted; sum_positions: adds to those of
// each channel.
#define SAMK_FOR_ACCUMULATOR(A)                                                                              \
  void sum_rows(const RowBlock<A>& b, const Statistics<A>* s, A* scale, A* shift, PairSum<A>* sums);         \
  void grad_rows(const RowBlock<A>& b, const Statistics<A>* s);                                              \
  void sum_positions(const PositionBlock<A>& b, A mean, PairSum<A>* sums);                                   \
  void grad_positions(const PositionBlock<A>& b, const A* weight, const Statistics<A>& s, A* dx);
SAMK_FOR_ACCUMULATOR(float)
SAMK_FOR_ACCUMULATOR(double)
#undef SAMK_FOR_ACCUMULATOR

}  // namespace samk
