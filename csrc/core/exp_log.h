// Exponential and logarithms for sums of exponentials, in fp32 as plain arithmetic, so that C++ compilers make vectors of them.
//
// exp of x <= 0 as 2^n e^r with |r| <= ln(2) / 2, n from an addition that rounds to an integer; log of x >= 1 as
// k ln(2) + 2 artanh(s), s = (f - 1) / (f + 1), x = 2^k f. Measured against fp64: exp within 1 ulp, log and log1p within 2. Results
// below the smallest normal number are 0. NaN stays NaN. On the device these are the functions of CUDA.
#pragma once
#include "scalar_math.h"
#include "storage.h"

namespace samk {

#if defined(__CUDA_ARCH__)

// 2 ulp plus one per unit of -x: what a term of a sum may have, because it is smaller by e^x than the largest.
SAMK_HD float exp_term(float x) { return ::__expf(x); }
SAMK_HD float exp_of(float x) { return ::expf(x); }
SAMK_HD float log_of(float x) { return ::logf(x); }
SAMK_HD float log1p_of(float x) { return ::log1pf(x); }
SAMK_HD float expm1_of(float x) { return ::expm1f(x); }

#else

// e^x = scale (1 + tail)
SAMK_HD void exp_parts(float x, float& scale, float& tail) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the last bit of a sum with it is 1
  const float shifted = fused(x, 1.44269504f, kRound), n = shifted - kRound;
  const float r = fused(n, 2.12194442e-4f, fused(n, -0.693359375f, x));
  float p = 0x1.6a21acp-10f;
  p = fused(p, r, 0x1.123b6ap-7f);
  p = fused(p, r, 0x1.5558fap-5f);
  p = fused(p, r, 0x1.555490p-3f);
  p = fused(p, r, 0x1.fffffcp-2f);
  tail = fused(p * r, r, r);
  scale = bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
}

SAMK_HD float exp_of(float x) {
  float scale, tail;
  exp_parts(x, scale, tail);
  return x < -87.0f ? 0.0f : scale * (1.0f + tail);
}

SAMK_HD float expm1_of(float x) {
  float scale, tail;
  exp_parts(x, scale, tail);
  return x < -87.0f ? -1.0f : fused(scale, tail, scale - 1.0f);
}

SAMK_HD float log_of(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), k = (bits - 0x3f3504f3u) >> 23;  // f in [sqrt(1/2), sqrt(2)); x >= 1: k >= 0
  const float f = bit_cast<float>(bits - (k << 23)), n = float(int32_t(k)), s = (f - 1.0f) / (f + 1.0f), z = s * s;
  float p = 2.0f / 9;
  p = fused(p, z, 2.0f / 7);
  p = fused(p, z, 2.0f / 5);
  p = fused(p, z, 2.0f / 3);
  const float log_f = fused(s * z, p, s + s);
  return fused(n, 0.693359375f, fused(n, -2.12194442e-4f, log_f)) + (x - x);
}

SAMK_HD float log1p_of(float x) {
  const float sum = 1.0f + x;
  return log_of(sum) + (x - (sum - 1.0f)) / sum;  // the second term is what the addition rounded away
}

SAMK_HD float exp_term(float x) { return exp_of(x); }

#endif

SAMK_HD double exp_of(double x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = fused(x, 1.4426950408889634, kRound), n = shifted - kRound;
  const double r = fused(n, -1.9082149292705877e-10, fused(n, -0.69314718036912382, x));
  double p = 1.0 / 6227020800.0;  // 1 / 13!
  p = fused(p, r, 1.0 / 479001600.0);
  p = fused(p, r, 1.0 / 39916800.0);
  p = fused(p, r, 1.0 / 3628800.0);
  p = fused(p, r, 1.0 / 362880.0);
  p = fused(p, r, 1.0 / 40320.0);
  p = fused(p, r, 1.0 / 5040.0);
  p = fused(p, r, 1.0 / 720.0);
  p = fused(p, r, 1.0 / 120.0);
  p = fused(p, r, 1.0 / 24.0);
  p = fused(p, r, 1.0 / 6.0);
  p = fused(p, r, 0.5);
  p = fused(p * r, r, r) + 1.0;
  const double scale = bit_cast<double>((bit_cast<uint64_t>(shifted) << 52) + 0x3ff0000000000000u);
  return x < -708.0 ? 0.0 : p * scale;
}
SAMK_HD double exp_term(double x) { return exp_of(x); }
SAMK_HD double log_of(double x) { return ::log(x); }
SAMK_HD double log1p_of(double x) { return ::log1p(x); }
SAMK_HD double expm1_of(double x) { return ::expm1(x); }

// e^(a - b) with the rounding of the difference put back: else it would cost one ulp per unit of b - a.
template <class T>
SAMK_HD T exp_of_difference(T a, T b) {
  const T d = a - b, back = d - a, lost = (a - (d - back)) - (b + back), e = exp_of(d);
  return is_finite(d) ? fused(e, lost, e) : e;
}

}  // namespace samk
