// Sums in kLanes parallel accumulators: a fixed order that any vector width can follow, so all compiled versions agree bit for bit.
#pragma once
#include <cstdint>

namespace samk {

constexpr int kLanes = 16;

template <class T, int kSums>
struct Lanes {
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
  inline __attribute__((always_inline)) double total(int k) const {
    double total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += double(sum[k][lane]);
    return total;
  }
};

}  // namespace samk
