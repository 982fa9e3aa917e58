// Cross-entropy of one sample and the norm of its gradient with respect to the logits z, for C++ and CUDA alike.
//
//   t_v = (1 - eps) w_y [v = y] + (eps / C) w_v,   S = sum_v t_v,   loss = sum_v t_v (lse - z_v),   delta_v = S p_v - t_v
//
// Everything comes from sums over v != y relative to the largest of those logits, m: D = sum e^(z_v - m), Q = sum e^(2 (z_v - m)).
// Without smoothing |delta|^2 = S^2 (D^2 + Q) / (D + e^(z_y - m))^2 and loss = S log1p(D e^(m - z_y)): no cancellation and no
// underflow, so both keep their digits however sure of its target a sample is, down to e^-87. Textbook forms lose all at 1e-7.
#pragma once
#include "exp_log.h"

namespace samk {

enum LossMode : int { kPlain, kSmoothed, kWeighted };  // no smoothing; smoothing; smoothing and class weights

// Sums of a row. Those beyond the first two belong to smoothing; kSpread, kWeights and kSquaredWeights include the target.
enum LossSum : int { kMass, kSquares, kSpread, kWeightedMass, kWeights, kSquaredWeights, kLossSums };
constexpr int kRowStatistics = 3;  // saved for backward: the largest logit, log of the sum of e^(z_v) relative to it, S

struct CrossEntropyArgs {
  DType dtype;            // of logits and their gradient
  const void* logits;     // [rows][classes], `stride` elements from row to row
  const int64_t* target;  // [rows]
  const void* weight;     // Acc[classes], or null: all 1
  int64_t rows, classes, stride, ignore_index;
  double smoothing;
  const void* grad;       // Acc[rows], backward only
  void *loss, *norm;      // Acc[rows], forward only
  void* statistics;       // Acc[rows][kRowStatistics], written by forward
  void* out;              // [rows][classes], backward only: the gradient of the logits

  SAMK_HD LossMode mode() const { return smoothing == 0 ? kPlain : weight == nullptr ? kSmoothed : kWeighted; }
  SAMK_HD bool ignored(int64_t row) const { return target[row] == ignore_index; }
  SAMK_HD bool valid(int64_t row) const { return target[row] >= 0 && target[row] < classes; }
};

// What the spread is relative to: any number that is the same for the row would do, a near one keeps digits.
template <class T>
SAMK_HD T spread_origin(T z_y) {
  return is_finite(z_y) ? z_y : T(0);
}

// What exponents are relative to; a row of which everything is masked has m = -inf and no terms.
template <class T>
SAMK_HD T exponent_origin(T m) {
  return m == T(-INFINITY) ? T(0) : m;
}

template <class T>
struct SampleLoss {
  T loss, norm, top, log_sum, mass;
};

// From the sums of a row, its m, and logit and weight of its target.
template <int kMode, class T>
SAMK_HD SampleLoss<T> finish_loss(const T* sum, T m, T z_y, T w_y, T smoothing, T classes) {
  const T top = m > z_y ? m : z_y;
  const bool leads = z_y == top;  // the target has the largest logit
  const T unit = exp_of_difference(m, top), e_y = exp_of_difference(z_y, top);
  const T others = sum[kMass] * unit, all = others + e_y;
  const T log_sum = leads ? log1p_of(others) : log_of(all);
  const T nll = leads ? log_sum : log_sum + (top - z_y);
  SampleLoss<T> out{w_y * nll, T(0), top, log_sum, w_y};
  const T scale = unit / all;
  if (kMode == kPlain) {
    out.norm = root(fused(sum[kMass], sum[kMass], sum[kSquares])) * scale * (w_y < T(0) ? -w_y : w_y);
  } else {
    const T a = smoothing / classes, weights = kMode == kWeighted ? sum[kWeights] : classes;
    const T squares = kMode == kWeighted ? sum[kSquaredWeights] : classes;
    const T mass = kMode == kWeighted ? sum[kWeightedMass] : sum[kMass];
    const T kept = (T(1) - smoothing) * w_y, spread = add_term(weights, nll, sum[kSpread]);
    out.mass = fused(a, weights, kept);
    out.loss = fused(kept, nll, a * spread);
    const T u = out.mass * scale, of_target = u * sum[kMass] - a * (weights - w_y);
    const T square = u * u * sum[kSquares] - T(2) * u * a * mass + a * a * (squares - w_y * w_y) + of_target * of_target;
    out.norm = root(square < T(0) ? T(0) : square);
  }
  const T poison = top - top;  // NaN where a logit is NaN or +inf, or all are -inf
  out.loss += poison;
  out.norm += poison;
  return out;
}

// A row whose target is ignored, or out of range where that cannot be reported.
template <class T>
SAMK_HD SampleLoss<T> no_loss(bool ignored) {
  const T value = ignored ? T(0) : T(NAN);
  return {value, value, T(0), T(0), value};
}

// delta of the target's own logit: -S (1 - p_y) + (what smoothing gives to the others), where 1 - p_y keeps its digits.
template <class T>
SAMK_HD T target_gradient(T z_y, T w_y, const T* statistics, T smoothing, T classes) {
  const T log_p = (z_y - statistics[0]) - statistics[1], mass = statistics[2];
  const T kept = smoothing == T(0) ? mass : fused(smoothing / classes, w_y, (T(1) - smoothing) * w_y);
  return fused(mass, expm1_of(log_p), mass - kept);
}

}  // namespace samk
