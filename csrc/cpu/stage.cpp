// The conversions between half types and fp32, the only loops that see both.
//
// Compilers turn the formulas of core/storage.h into vectors. For fp16 these are a dozen integer operations each way, which would take
// longer than the memory; x86 has had instructions for it since AVX2, but no compiler finds them in the formulas.
#include "stage.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace samk {
namespace {

template <class T>
SAMK_INLINE void widen_all(const T* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}

template <class T>
SAMK_INLINE void narrow_all(const float* __restrict from, T* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(from[i], to[i]);
}

// How many elements were converted by instructions that are made for it: all but the last few, or none.
#if defined(__x86_64__)
const bool has_f16c = (__builtin_cpu_init(), __builtin_cpu_supports("avx2") != 0);  // AVX2 has never come without F16C

__attribute__((target("avx2,f16c"))) int64_t widen_most(const Float16* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  return i;
}

__attribute__((target("avx2,f16c"))) int64_t narrow_most(const float* from, Float16* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i rounded = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), rounded);
  }
  return i;
}
#else
constexpr bool has_f16c = false;
int64_t widen_most(const Float16*, float*, int64_t) { return 0; }
int64_t narrow_most(const float*, Float16*, int64_t) { return 0; }
#endif

}  // namespace

SAMK_CLONES void widen_block(const BFloat16* from, float* to, int64_t n) { widen_all(from, to, n); }
SAMK_CLONES void narrow_block(const float* from, BFloat16* to, int64_t n) { narrow_all(from, to, n); }

void widen_block(const Float16* from, float* to, int64_t n) {
  const int64_t done = has_f16c ? widen_most(from, to, n) : 0;
  widen_all(from + done, to + done, n - done);
}

void narrow_block(const float* from, Float16* to, int64_t n) {
  const int64_t done = has_f16c ? narrow_most(from, to, n) : 0;
  narrow_all(from + done, to + done, n - done);
}

}  // namespace samk
