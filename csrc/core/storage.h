// The types that tensors are stored in, and the type that is computed in. Conversions round to nearest even, as torch's do.
#pragma once
#include <cstdint>
#include <cstring>

#include "tensor_table.h"

namespace samk {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulator<T>::type;

template <class To, class From>
SAMK_HD To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

SAMK_HD float widen(float x) { return x; }
SAMK_HD double widen(double x) { return x; }
SAMK_HD float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
SAMK_HD void narrow(float x, float& to) { to = x; }
SAMK_HD void narrow(double x, double& to) { to = x; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // the same in one instruction each; a NaN stays one, with other bits
SAMK_HD float widen(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
SAMK_HD void narrow(float x, BFloat16& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
SAMK_HD void narrow(float x, Float16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#else
SAMK_HD float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  const uint32_t subnormal = bit_cast<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f), normal = (magnitude << 13) + (112u << 23);
  const uint32_t value = magnitude < 0x400u ? subnormal : magnitude < 0x7c00u ? normal : 0x7f800000u | magnitude << 13;
  return bit_cast<float>(sign | value);
}
SAMK_HD void narrow(float x, BFloat16& to) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  to.bits = uint16_t(x != x ? 0x7fc0u : rounded);
}
SAMK_HD void narrow(float x, Float16& to) {
  const uint32_t u = bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds to 2^-24
  const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  const uint32_t value = magnitude < 0x38800000u ? subnormal : magnitude < 0x477ff000u ? normal : 0x7c00u;  // 65520 and more: infinity
  to.bits = uint16_t(sign | (x != x ? 0x7e00u : value));
}
#endif

SAMK_HD int64_t bytes_of(DType dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

}  // namespace samk
