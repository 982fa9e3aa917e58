// Draws of samples in proportion to weights: the formulas of sam_kernels/ops/draw_reference.py, equal to the bit.
//
// Cumulative sums are of integers and exact; fp64 stands where the reference has it, in its order, and nothing is contracted. All is
// branch-free arithmetic on 64-bit lanes, so that compilers make vectors of it; only exact positions take 128-bit products.
#pragma once
#include "philox.h"
#include "storage.h"

namespace samk {

enum DrawScheme : int { kSystematic, kMultinomial, kTopK, kBernoulli };

struct DrawArgs {
  DType dtype;  // of weights
  DrawScheme scheme;
  const void* weights;   // [n]
  const int64_t* state;  // (seed, offset)
  int32_t* counts;       // [n]
  void* inclusion;       // Acc[n]
  int32_t* flag;         // [1]: 0 all weights are usable, 1 some are not, 2 none is
  int64_t n, k;
};

// What a weight is, from its bits: as integers, positive numbers are in their order. Usable are those from the smallest normal number to the
// largest; smaller ones count as 0, whatever the processor does with them.
template <class A>
struct WeightBits;
template <>
struct WeightBits<float> {
  using Int = int32_t;
  static constexpr int kStored = 23;
  static constexpr Int kNormal = 0x00800000, kOne = 0x3f800000, kInfinity = 0x7f800000;
};
template <>
struct WeightBits<double> {
  using Int = int64_t;
  static constexpr int kStored = 52;
  static constexpr Int kNormal = 0x0010000000000000, kOne = 0x3ff0000000000000, kInfinity = 0x7ff0000000000000;
};

// Weights as integers, q = floor(w 2^s), such that the largest has 63 - L bits, n <= 2^L, and all of them add up to less than 2^63.
// Products with powers of two are exact, and 2^s in fp64 is one of two factors, each of which is in its range.
template <class A>
struct FixedPoint {
  using Bits = WeightBits<A>;
  using Int = typename Bits::Int;
  double lift, scale;  // 2^s; fp32 needs no lift
  bool uniform;        // no weight is usable: all count as 1

  static SAMK_HD bool usable(Int bits) { return bits >= Bits::kNormal && bits < Bits::kInfinity; }
  static SAMK_HD double power(int exponent) { return bit_cast<double>(uint64_t(1023 + exponent) << 52); }

  // `largest`: the bits of the largest usable weight, or 0.
  static SAMK_HD FixedPoint make(int64_t n, Int largest) {
    int length = 0;
    while (n > 1 && (n - 1) >> length) ++length;
    const int exponent = int(((largest ? largest : Bits::kOne) >> Bits::kStored) - (Bits::kOne >> Bits::kStored));
    const int s = 62 - length - exponent, half = sizeof(A) == 8 ? s / 2 : 0;
    return {power(half), power(s - half), largest == 0};
  }
  SAMK_HD int64_t operator()(A weight) const {
    const Int raw = bit_cast<Int>(weight);
    const double w = double(bit_cast<A>(uniform ? Bits::kOne : usable(raw) ? raw : Int(0)));
    return int64_t((sizeof(A) == 8 ? w * lift : w) * scale);
  }
};

// ---- random numbers

struct DrawSource {
  uint64_t seed;
  uint32_t offset;

  static SAMK_HD DrawSource make(const int64_t* state) { return {uint64_t(state[0]), uint32_t(state[1])}; }
  // 64-bit numbers 2 block and 2 block + 1
  SAMK_HD void pair(int64_t block, uint64_t& even, uint64_t& odd) const {
    constexpr uint32_t kStream = 0xffffffffu;  // signs of parameters take small numbers there
    const PhiloxBlock words = philox(seed, {{uint32_t(block), 0, kStream, offset}});
    even = uint64_t(words.word[1]) << 32 | words.word[0];
    odd = uint64_t(words.word[3]) << 32 | words.word[2];
  }
};

#if !defined(__CUDACC__)
__extension__ typedef unsigned __int128 Wide;

// floor(R total / 2^64): a position in [0, total)
SAMK_HD int64_t position(uint64_t number, int64_t total) { return int64_t(Wide(number) * Wide(total) >> 64); }

// The points floor((m total + start) / k), m < k, of a systematic draw; start < total.
struct DrawGrid {
  int64_t total, start, k;

  // How many of them are below s, 0 <= s <= total: the m with m total < s k - start.
  SAMK_HD int64_t below(int64_t s) const {
    const Wide reach = Wide(s) * Wide(k);
    return reach <= Wide(start) ? 0 : int64_t((reach - Wide(start) + Wide(total - 1)) / Wide(total));
  }
};
#endif

// ---- a race of exponential arrivals

// -log(u), u = (2 (R >> 12) + 1) / 2^53, as e ln 2 - 2 artanh(s), 2^-e f = u, s = (f - 1) / (f + 1)
SAMK_HD double exponential(uint64_t number) {
  const uint64_t bits = bit_cast<uint64_t>(double(int64_t(2 * (number >> 12) + 1)));
  const uint64_t up = (bits >> 51 & 1) & ((bits >> 50 & 1) | (bits >> 49 & 1));  // f >= 1.625 is halved
  const double f = bit_cast<double>((bits & ((uint64_t(1) << 52) - 1)) | (1023 - up) << 52);
  const double e = double(int32_t(53 + 1023 - (bits >> 52) - up)), s = (f - 1.0) / (f + 1.0), z = s * s;
  double p = 1.0 / 21;
  p = p * z + 1.0 / 19;
  p = p * z + 1.0 / 17;
  p = p * z + 1.0 / 15;
  p = p * z + 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  p = p * z + 1.0;
  return e * 0.6931471805599453 - 2.0 * s * p;
}

// 1 - e^-x for x >= 0 or infinite, as (1 - 2^-n) + 2^-n (1 - e^-r), x = n ln 2 + r
SAMK_HD double arrived(double x) {
  x = x < 700.0 ? x : 700.0;
  const int32_t whole = int32_t(x * 1.4426950408889634 + 0.5);
  const double n = double(whole), r = x - n * 0.69314718036912382 - n * 1.9082149292705877e-10;
  double p = 1.0;
  for (int i = 14; i > 1; --i) p = 1.0 - r / double(i) * p;
  const double scale = bit_cast<double>(uint64_t(1023 - whole) << 52);
  return (1.0 - scale) + scale * (r * p);
}

}  // namespace samk
