// Every formula of the project, once, for C++ and CUDA alike: the CPU tests exercise the arithmetic that the GPU runs.
//
// Both compilers are told not to contract a*b+c; the fused multiply-adds stand where torch's CPU kernels have them, so that a step
// with rho = 0 is torch.optim.SGD bit for bit. T is the accumulation type: float, or double for double tensors.
// The updates of the base optimizers are in bases.h.
#pragma once
#include <cmath>

#include "tensor_table.h"

namespace samk {

SAMK_HD float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
SAMK_HD double fused(double a, double b, double c) { return ::fma(a, b, c); }
SAMK_HD float root(float x) { return ::sqrtf(x); }
SAMK_HD double root(double x) { return ::sqrt(x); }

template <class T>
SAMK_HD bool is_finite(T x) {
  return x - x == T(0);
}

template <class T>
SAMK_HD T ratio(T x, T y) {
  return y > T(0) ? x / y : T(0);
}

// ---- Gram entries of g, h, q, in the order of sam_kernels/ops/coefficients.py

enum GramEntry : int { kGG, kGH, kHH, kGQ, kHQ, kQQ, kGram };

template <class T>
SAMK_HD void gram_terms(T g, T h, T q, T* term) {
  term[kGG] = g * g;
  term[kGH] = g * h;
  term[kHH] = h * h;
  term[kGQ] = g * q;
  term[kHQ] = h * q;
  term[kQQ] = q * q;
}

// value + c x, where a zero c keeps whatever x holds out of it
template <class T>
SAMK_HD T add_term(T c, T x, T value) {
  return c != T(0) ? fused(c, x, value) : value;
}

template <class T>
SAMK_HD T adaptive_scale(T w, T eta) {
  return (w < T(0) ? -w : w) + eta;
}

// ---- ascent: w += s c(w)^2 d, with d = +-(alpha g + beta q) and c(w) = |w| + eta or 1

enum AscendHyper : int { kRho, kEta, kAdaptive, kAscendMaximize, kAscendHypers };

template <class T>
struct Ascent {
  T scale, eta, direction[2];  // direction: factors of g and q, sign of `maximize` included
  bool adaptive;

  // c(w) d
  SAMK_HD T weighted(T w, T g, T q) const {
    const T d = add_term(direction[1], q, add_term(direction[0], g, T(0)));
    return adaptive ? adaptive_scale(w, eta) * d : d;
  }
  SAMK_HD T perturbed(T w, T g, T q) const {
    const T cd = weighted(w, g, q);
    return fused(scale, adaptive ? adaptive_scale(w, eta) * cd : cd, w);
  }
};

// q <- ema[0] q + ema[1] g; the first time q <- g
template <class T>
SAMK_HD T moving_average(T q, T g, T keep, T add, bool first) {
  return first ? g : fused(add, g, keep * q);
}

// rho / |d|, or rho; zero (perturb nothing) where the norm is zero or not finite.
template <class T>
SAMK_HD T ascent_scale(T rho, T sq_norm, bool normalize, T eps) {
  if (!(sq_norm > T(0)) || !is_finite(sq_norm)) return T(0);
  return normalize ? rho / (root(sq_norm) + eps) : rho;
}

template <class T>
SAMK_HD Ascent<T> make_ascent(const double* hyper, T scale, const T (&direction)[2]) {
  const T sign = hyper[kAscendMaximize] != 0 ? T(-1) : T(1);
  return {scale, T(hyper[kEta]), {sign * direction[0], sign * direction[1]}, hyper[kAdaptive] != 0};
}

// ---- descent: u = C[u] (h, g, q), and the same for the direct term and the kept vector

enum DescendOutput : int { kU, kDirect, kKept, kOutputs };
enum DescendInput : int { kInH, kInG, kInQ, kInputs };
constexpr int kBasis = 5;
constexpr int kCoefficients = kOutputs * kInputs * kBasis;

template <class T>
struct Factors {
  T of[kOutputs][kInputs];
  bool skip;  // a norm or found_inf forbids the step: restore, and write nothing else

  SAMK_HD T combine(DescendOutput output, T h, T g, T q) const {
    const T(&c)[kInputs] = of[output];
    return add_term(c[kInQ], q, add_term(c[kInG], g, add_term(c[kInH], h, T(0))));
  }
};

template <class T>
SAMK_HD T entry(const T* gram, int i, int j) {  // i, j index (h, g, q)
  constexpr int index[kInputs][kInputs] = {{kHH, kGH, kHQ}, {kGH, kGG, kGQ}, {kHQ, kGQ, kQQ}};
  return gram[index[i][j]];
}

// `needed`: mask of the Gram entries that the coefficients read; a non-finite one skips the step. `loss_scale`: what (g, h) and
// with them `raw` were multiplied by, or null; norms, limits and outputs are those of the true gradients.
template <class T>
SAMK_HD Factors<T> resolve(const double* coefficients, const T* raw, int needed, bool match_norm, T max_norm, const float* loss_scale,
                           bool skip) {
  Factors<T> factors;
  for (int k = 0; k < kGram; ++k) skip = skip || ((needed >> k & 1) != 0 && !is_finite(raw[k]));
  const T unit_g = loss_scale ? T(1) / T(loss_scale[0]) : T(1), unit_h = loss_scale ? T(1) / T(loss_scale[1]) : T(1);
  T gram[kGram];
  gram_terms(unit_g, unit_h, T(1), gram);
  for (int k = 0; k < kGram; ++k) gram[k] = (needed >> k & 1) != 0 ? raw[k] * gram[k] : T(0);
  T basis[kBasis] = {T(1), T(0), T(0), T(0), T(0)};
  if (needed != 0 && !skip) {
    basis[1] = ratio(root(gram[kGG]), root(gram[kHH]));
    basis[2] = ratio(gram[kGH], gram[kHH]);
    basis[3] = ratio(gram[kGH], gram[kGG]);
    basis[4] = ratio(root(gram[kGG]), root(gram[kQQ]));
  }
  for (int o = 0; o < kOutputs; ++o)
    for (int i = 0; i < kInputs; ++i) {
      T sum = T(0);
      for (int k = 0; k < kBasis; ++k) {
        const T c = T(coefficients[(o * kInputs + i) * kBasis + k]);
        sum += c != T(0) ? c * basis[k] : T(0);
      }
      factors.of[o][i] = sum;
    }
  if ((match_norm || is_finite(max_norm)) && !skip) {
    T square = T(0);
    for (int i = 0; i < kInputs; ++i)
      for (int j = 0; j < kInputs; ++j) {
        const T c = factors.of[kU][i] * factors.of[kU][j];
        square += c != T(0) ? c * entry(gram, i, j) : T(0);
      }
    const T norm = square > T(0) ? root(square) : T(0);
    T scale = match_norm ? ratio(root(gram[kGG]), norm) : T(1);
    const T clip = max_norm / (scale * norm + T(1e-6));
    if (clip < T(1)) scale *= clip;
    for (int i = 0; i < kInputs; ++i) factors.of[kU][i] *= scale;
  }
  for (int o = 0; o < kOutputs; ++o) {
    factors.of[o][kInH] *= unit_h;
    factors.of[o][kInG] *= unit_g;
  }
  factors.skip = skip;
  return factors;
}

}  // namespace samk
