// Gibbs weights of samples from their gradient norms, p_i = e^(lam s_i) / sum_j e^(lam s_j), for C++ and CUDA alike.
#pragma once
#include "exp_log.h"

namespace samk {

struct GibbsArgs {
  DType dtype;             // of norms
  const void* norms;       // [count]
  const void* lam_device;  // Acc[1], overrides lam
  void *weights, *ess, *log_partition;  // Acc[count], Acc[1], Acc[1]
  int32_t* flag;           // [1]: 0 all norms are finite, 1 some are not, 2 none is
  int64_t count;
  double lam;
  bool relative;           // s is the norm divided by the mean of the finite norms
};

// The exponents of a call: lam (s_i - max s), or 0 for all where the weights are to be uniform.
template <class T>
struct Gibbs {
  T scale, largest;  // scale: lam, divided by the mean of the norms where relative
  T dropped;         // weight of a norm that is not finite: 0, or 1 where none is

  // `finite` norms add up to `sum`. A lam of the device that is negative or not finite makes all weights NaN.
  static SAMK_HD Gibbs make(T lam, double finite, double sum, T largest, bool relative) {
    const bool none = finite == 0, usable = lam >= T(0) && is_finite(lam);
    const T mean = relative && !none ? T(sum / finite) : T(1), scale = lam / mean;
    const bool flat = none || !(mean > T(0));
    return {!usable ? T(NAN) : flat ? T(0) : is_finite(scale) ? scale : T(3e38), none ? T(0) : largest, none ? T(1) : T(0)};
  }
  // The weight of a norm, not yet divided by their sum; that of the largest one is 1.
  SAMK_HD T term(T norm) const {
    const bool finite = is_finite(norm);
    const T e = exp_of(((finite ? norm : largest) - largest) * scale);
    return finite ? e : dropped * e;
  }
  SAMK_HD T log_partition(T sum) const { return log_of(sum) + scale * largest; }
};

}  // namespace samk
