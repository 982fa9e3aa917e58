// The loops of a draw over a block of at most kBlock samples, each compiled for several vector widths.
#pragma once
#include "core/draw.h"
#include "stage.h"

namespace samk {

template <class A>
struct WeightFacts {
  typename WeightBits<A>::Int largest = 0;  // bits of the largest usable weight, 0 where there is none
  bool refused = false;                     // a weight is negative or not finite
};

struct DrawOdds {  // expected counts k q / total, or 1 where q > certain
  double k, total;
  int64_t certain;
};

#define SAMK_FOR_WEIGHTS(A)                                                                      \
  void survey_block(const A* weights, int64_t n, WeightFacts<A>& facts);                         \
  int64_t integers_block(const A* weights, int64_t n, const FixedPoint<A>& fixed, int64_t* q);   \
  void inclusion_block(const int32_t* counts, const int64_t* q, int64_t n, const DrawOdds& odds, A* out);
SAMK_FOR_WEIGHTS(float)
SAMK_FOR_WEIGHTS(double)
#undef SAMK_FOR_WEIGHTS

// Numbers `begin` (even) to begin + n; `to` has room for one more.
void random_block(const DrawSource& source, int64_t begin, int64_t n, uint64_t* to);
// below[i]: points below sums[i].
void below_block(const DrawGrid& grid, const int64_t* sums, int64_t n, int32_t* below);
// The bits of arrival times; they take the place of the random numbers that they are made of.
void arrival_block(uint64_t* numbers, const int64_t* q, int64_t n);
// x <- 1 / (1 - e^-x)
void race_inclusion_block(double* x, int64_t n);

}  // namespace samk
