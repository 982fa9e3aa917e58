// The loops of draw_block.h. Integers, and fp64 operations that no vector width orders differently: equal bits in all versions.
#include "draw_block.h"

namespace samk {
namespace {

template <class A>
SAMK_INLINE void survey(const A* weights, int64_t n, WeightFacts<A>& facts) {
  using Int = typename WeightBits<A>::Int;
  using Unsigned = std::make_unsigned_t<Int>;
  constexpr Unsigned kMagnitude = Unsigned(~Unsigned(0)) >> 1;
  Int largest = facts.largest;
  Unsigned refused = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Int bits = bit_cast<Int>(weights[i]), usable = bits & -Int(FixedPoint<A>::usable(bits));
    largest = usable > largest ? usable : largest;
    refused |= Unsigned(usable == 0) & Unsigned((Unsigned(bits) & kMagnitude) >= Unsigned(WeightBits<A>::kNormal));
  }
  facts.largest = largest;
  facts.refused = facts.refused || refused != 0;
}

template <class A>
SAMK_INLINE int64_t integers(const A* weights, int64_t n, const FixedPoint<A>& by, int64_t* __restrict q) {
  const FixedPoint<A> fixed = by;
  int64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += q[i] = fixed(weights[i]);
  return sum;
}

template <class A>
SAMK_INLINE void inclusion(const int32_t* counts, const int64_t* q, int64_t n, const DrawOdds& by, A* __restrict out) {
  const DrawOdds odds = by;
  for (int64_t i = 0; i < n; ++i) {
    const double expected = q[i] > odds.certain ? 1.0 : odds.k * double(q[i]) / odds.total, weight = double(counts[i]) / expected;
    out[i] = counts[i] > 0 ? A(weight) : A(0);
  }
}

}  // namespace

#define SAMK_WEIGHT_CLONES(A)                                                                                                      \
  SAMK_CLONES void survey_block(const A* weights, int64_t n, WeightFacts<A>& facts) { survey(weights, n, facts); }                 \
  SAMK_CLONES int64_t integers_block(const A* w, int64_t n, const FixedPoint<A>& by, int64_t* q) { return integers(w, n, by, q); } \
  SAMK_CLONES void inclusion_block(const int32_t* counts, const int64_t* q, int64_t n, const DrawOdds& by, A* out) {               \
    inclusion(counts, q, n, by, out);                                                                                              \
  }
SAMK_WEIGHT_CLONES(float)
SAMK_WEIGHT_CLONES(double)

SAMK_CLONES void random_block(const DrawSource& from, int64_t begin, int64_t n, uint64_t* __restrict to) {
  const DrawSource source = from;
  for (int64_t i = 0; i < (n + 1) / 2; ++i) source.pair(begin / 2 + i, to[2 * i], to[2 * i + 1]);
}

// In fp64, whose error of less than 2^-19 for 2^31 points matters only beside an integer: there, exactly.
SAMK_CLONES void below_block(const DrawGrid& grid, const int64_t* sums, int64_t n, int32_t* __restrict below) {
  constexpr double kRound = 6755399441055744.0, kDoubt = 0x1p-18;  // 1.5 * 2^52: the last bit of a sum with it is 1
  const double slope = double(grid.k) / double(grid.total), origin = double(grid.start) / double(grid.total);
  int32_t doubtful = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = double(sums[i]) * slope - origin, nearest = (x + kRound) - kRound, over = x - nearest;
    below[i] = int32_t(nearest + (over > 0.0 ? 1.0 : 0.0));
    doubtful |= over < kDoubt && over > -kDoubt;
  }
  for (int64_t i = 0; i < n && doubtful; ++i) below[i] = int32_t(grid.below(sums[i]));
}

SAMK_CLONES void arrival_block(uint64_t* numbers, const int64_t* q, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double time = exponential(numbers[i]) / double(q[i]);
    numbers[i] = bit_cast<uint64_t>(q[i] > 0 ? time : double(INFINITY));
  }
}

SAMK_CLONES void race_inclusion_block(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 1.0 / arrived(x[i]);
}

}  // namespace samk
