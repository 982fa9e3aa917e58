// The loops of the cross-entropy over one block of logits, in the accumulation type; kMode is a LossMode.
#pragma once
#include "lanes.h"
#include "losses.h"

namespace samk {

// What has been added up of one long row, lane by lane.
template <class A, int kMode>
struct RowSums {
  static constexpr int kTerms = kMode == kWeighted ? 3 : 2;  // mass, squares, weighted mass
  Lanes<A, kTerms> terms;
  Lanes<A, 1> spread;
  A m = A(-INFINITY);
};

// Rows side by side: what is known of each, and all logits of short ones, turned: z[class][row].
template <class A, int kMode>
struct LossTile {
  int64_t y[kTileRows] = {}, classes = 0;
  A sum[kLossSums][kTileRows] = {}, m[kTileRows] = {}, z_y[kTileRows] = {}, w_y[kTileRows] = {};
  A loss[kTileRows], norm[kTileRows], top[kTileRows], log_sum[kTileRows], mass[kTileRows];
  alignas(64) A z[kNarrow * kTileRows];
};

// One row, or kTileRows of them side by side, of the gradient c e^(z - top - log_sum) - share w.
template <class A>
struct GradientRow {
  const A *z, *w;  // w may be null: all 1
  A* out;
  int64_t n;
  A top, log_sum, c, share;
};
template <class A>
struct GradientTile {
  A top[kTileRows] = {}, log_sum[kTileRows] = {}, c[kTileRows] = {}, share[kTileRows] = {};
  alignas(64) A z[kNarrow * kTileRows];  // replaced by the gradient
};

// add_terms: n is a multiple of the lanes; logits of -inf add nothing. add_tile takes the targets out and puts them back.
#define SAMK_FOR_MODE(A, kMode)                                                              \
  void add_terms(const A* z, const A* w, int64_t n, RowSums<A, kMode>& row);                 \
  void add_spread(const A* z, const A* w, int64_t n, A origin, RowSums<A, kMode>& row);      \
  void add_tile(LossTile<A, kMode>& tile, const A* w);                                       \
  void finish_tile(LossTile<A, kMode>& tile, A smoothing);
#define SAMK_FOR_ACCUMULATOR(A)                        \
  SAMK_FOR_MODE(A, kPlain)                             \
  SAMK_FOR_MODE(A, kSmoothed)                          \
  SAMK_FOR_MODE(A, kWeighted)                          \
  void gradient_row(const GradientRow<A>& row);        \
  void gradient_tile(GradientTile<A>& tile, const A* w, int64_t classes);
SAMK_FOR_ACCUMULATOR(float)
SAMK_FOR_ACCUMULATOR(double)
#undef SAMK_FOR_ACCUMULATOR
#undef SAMK_FOR_MODE

}  // namespace samk
