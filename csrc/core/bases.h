// The updates of the base optimizers. Each is a struct of the group's options with one interface, so that a kernel is written once:
//
//   kHypers           columns of the hyperparameter table, in the order of sam_kernels/ops/bases.py; the first is lr
//   kStates           the state operands that it may use
//   make(hyper, lr, steps)   options of one group; `steps`: updates of the tensor so far, 0: no state yet, its memory may hold anything
//   states()          the state operands that this group writes, and reads unless `first`
//   counts()          whether an update advances the tensor's step count
//   decays()          whether `at` matters
//   update(w, at, u, s)      the new weight; w: the clean one, at: where weight decay reads it; s: the state, updated
//   direct(w, d)      w - lr d, the term beside the update
#pragma once
#include "scalar_math.h"

namespace samk {

enum Base : int { kNone, kSgd, kAdam, kLion, kBases };
constexpr int kLr = 0;

template <class T>
struct State {
  T m, v, v_max;
};

SAMK_HD constexpr int operand_bit(int operand) { return 1 << operand; }

template <class T>
struct Sgd {
  enum Hyper : int { kLr_, kMomentum, kDampening, kWeightDecay, kNesterov, kMaximize, kHypers };
  static constexpr int kStates = operand_bit(kM);

  T lr, momentum, damped, weight_decay;  // damped = 1 - dampening
  bool nesterov, maximize, first;

  static SAMK_HD Sgd make(const double* h, T lr, float steps) {
    return {lr, T(h[kMomentum]), T(1.0 - h[kDampening]), T(h[kWeightDecay]), h[kNesterov] != 0, h[kMaximize] != 0, steps == 0.0f};
  }
  SAMK_HD int states() const { return momentum != T(0) ? kStates : 0; }
  SAMK_HD bool counts() const { return momentum != T(0); }
  SAMK_HD bool decays() const { return weight_decay != T(0); }

  SAMK_HD T update(T w, T at, T u, State<T>& s) const {
    u = maximize ? -u : u;
    u = weight_decay != T(0) ? fused(weight_decay, at, u) : u;
    const T buffer = first ? u : fused(damped, u, momentum * s.m);
    const T stepped = nesterov ? fused(momentum, buffer, u) : buffer;
    s.m = momentum != T(0) ? buffer : s.m;
    return fused(-lr, momentum != T(0) ? stepped : u, w);
  }
  SAMK_HD T direct(T w, T d) const { return fused(-lr, maximize ? -d : d, w); }
};

// 1 - beta^steps without cancellation
SAMK_HD double bias_correction(double beta, double steps) { return -::expm1(steps * ::log(beta)); }

// Adam, AdamW (decoupled), AMSGrad (v_max, from initial_v on); the corrections of the bias may be left out, eps may be 0.
template <class T>
struct Adam {
  enum Hyper : int { kLr_, kBeta1, kBeta2, kEps, kWeightDecay, kDecoupled, kAmsgrad, kCorrected, kInitialV, kMaximize, kHypers };
  static constexpr int kStates = operand_bit(kM) | operand_bit(kV) | operand_bit(kVMax);

  T lr, step_size, add_m, beta2, add_v, root_v, eps, weight_decay, initial_v;  // add = 1 - beta, root_v: sqrt of the correction of v
  bool decoupled, amsgrad, maximize, first;

  static SAMK_HD Adam make(const double* h, T lr, float steps) {
    const bool corrected = h[kCorrected] != 0;
    const double step = double(steps) + 1;
    const double of_m = corrected ? bias_correction(h[kBeta1], step) : 1, of_v = corrected ? bias_correction(h[kBeta2], step) : 1;
    return {lr, lr / T(of_m), T(1 - h[kBeta1]), T(h[kBeta2]), T(1 - h[kBeta2]), T(::sqrt(of_v)), T(h[kEps]), T(h[kWeightDecay]),
            T(h[kInitialV]), h[kDecoupled] != 0, h[kAmsgrad] != 0, h[kMaximize] != 0, steps == 0.0f};
  }
  SAMK_HD int states() const { return operand_bit(kM) | operand_bit(kV) | (amsgrad ? operand_bit(kVMax) : 0); }
  SAMK_HD bool counts() const { return true; }
  SAMK_HD bool decays() const { return weight_decay != T(0); }

  SAMK_HD T update(T w, T at, T u, State<T>& s) const {
    u = maximize ? -u : u;
    u = weight_decay != T(0) && !decoupled ? fused(weight_decay, at, u) : u;
    w = weight_decay != T(0) && decoupled ? fused(-lr * weight_decay, at, w) : w;
    s.m = first ? add_m * u : fused(add_m, u, (T(1) - add_m) * s.m);
    s.v = first ? add_v * u * u : fused(add_v * u, u, beta2 * s.v);
    const T before = first ? initial_v : s.v_max;
    s.v_max = s.v > before || s.v != s.v ? s.v : before;  // a NaN stays one, as in torch.maximum
    const T denominator = root(amsgrad ? s.v_max : s.v) / root_v + eps;
    return fused(-step_size, denominator == T(0) ? T(0) : s.m / denominator, w);
  }
  SAMK_HD T direct(T w, T d) const { return fused(-lr, maximize ? -d : d, w); }
};

// Lion (arXiv 2302.06675); the decay of weights is decoupled
template <class T>
struct Lion {
  enum Hyper : int { kLr_, kBeta1, kBeta2, kWeightDecay, kMaximize, kHypers };
  static constexpr int kStates = operand_bit(kM);

  T lr, beta1, add1, beta2, add2, weight_decay;  // add = 1 - beta
  bool maximize, first;

  static SAMK_HD Lion make(const double* h, T lr, float steps) {
    return {lr, T(h[kBeta1]), T(1 - h[kBeta1]), T(h[kBeta2]), T(1 - h[kBeta2]), T(h[kWeightDecay]), h[kMaximize] != 0, steps == 0.0f};
  }
  SAMK_HD int states() const { return kStates; }
  SAMK_HD bool counts() const { return true; }
  SAMK_HD bool decays() const { return weight_decay != T(0); }

  SAMK_HD T update(T w, T at, T u, State<T>& s) const {
    u = maximize ? -u : u;
    w = weight_decay != T(0) ? fused(-lr * weight_decay, at, w) : w;
    const T m = first ? T(0) : s.m, c = fused(add1, u, beta1 * m);
    s.m = fused(add2, u, beta2 * m);
    return fused(-lr, c > T(0) ? T(1) : c < T(0) ? T(-1) : c, w);  // the sign; NaN stays NaN
  }
  SAMK_HD T direct(T w, T d) const { return fused(-lr, maximize ? -d : d, w); }
};

// Columns of the table of a base.
constexpr int hypers_of(Base base) {
  return base == kSgd ? Sgd<float>::kHypers : base == kAdam ? Adam<float>::kHypers : base == kLion ? Lion<float>::kHypers : 0;
}

}  // namespace samk
