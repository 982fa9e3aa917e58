// Sums in parallel accumulators: a fixed order that any vector width can follow, so all compiled versions agree bit for bit.
// Few sums take more lanes each: one 512-bit accumulator alone would wait for its own additions, not for memory.
#pragma once
#include <cstdint>

namespace samk {

template <class T, int kSums>
struct Lanes {
  static constexpr int kLanes = kSums == 1 ? 64 : kSums == 2 ? 32 : 16;
  T sum[kSums][kLanes] = {};

  // term(i, out) writes the kSums terms of element i; n elements are added.
  template <class Term>
  inline __attribute__((always_inline)) void add(int64_t n, const Term& term) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        T out[kSums];
        term(i + lane, out);
        for (int k = 0; k < kSums; ++k) sum[k][lane] += out[k];
      }
    }
    for (; i < n; ++i) {
      T out[kSums];
      term(i, out);
      for (int k = 0; k < kSums; ++k) sum[k][0] += out[k];
    }
  }
  // Pairwise, so that fp64 sums keep their last bits.
  inline __attribute__((always_inline)) double total(int k) const {
    double tree[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) tree[lane] = double(sum[k][lane]);
    for (int width = kLanes / 2; width > 0; width /= 2)
      for (int lane = 0; lane < width; ++lane) tree[lane] += tree[lane + width];
    return tree[0];
  }
};

// sum += x_i^2, in ascend_block.cpp
void sum_squares(const float* x, int64_t n, Lanes<float, 1>& sum);
void sum_squares(const double* x, int64_t n, Lanes<double, 1>& sum);

}  // namespace samk
