// What a backend provides for the step: three functions over plain structs. Scalars that live in tensors are read through pointers, so that
// on CUDA they never visit the host; `Acc` is float, or double for double tensors. Optional pointers may be null. `dtype` is that of
// w, stash, h and g; q and the state are in Acc.
#pragma once
#include "bases.h"
#include "scalar_math.h"
#include "storage.h"
#include "tensor_table.h"

namespace samk {

struct InnerProductsArgs {  // operands kG, kH, kQ, and kW where the products are weighted by (|w| + eta)^2
  TensorTable table;
  DType dtype;
  double eta;
  void* gram;  // Acc[kGram], written
};

enum Phase : int {
  kAll,     // norm, then update
  kNorm,    // norm only: sq_norm and gram are written, nothing else; there is no stash
  kUpdate,  // sq_norm is an input, nothing is reduced
};

struct AscendArgs {  // operands kW, kStash, and kG, kQ where present
  TensorTable table;
  DType dtype;
  const double* hyper;         // [groups][kAscendHypers]
  double direction[2];         // factors of g and q
  double ema[2];               // q <- ema[0] q + ema[1] g, where update_q
  double eps;
  bool normalize, update_q;
  Phase phase;
  const void* rho;             // Acc[groups], overrides hyper[kRho]
  const void* direction_device;  // Acc[2], overrides direction
  void* sq_norm;               // Acc[1]
  void* gram;                  // Acc[kGram], entry kGG written with |g|^2 over all tensors
  float* q_steps;              // [1] updates of q so far: the first one copies g
  const int64_t* noise;        // (seed, offset) of random signs in the place of g, or null (philox.h)
  uint32_t noise_stream;
};

struct DescendArgs {  // operands kW, and kStash, kH, kG, kQ, kM, kV, kVMax where present
  TensorTable table;
  DType dtype;
  Base base;
  const double* hyper;         // [groups][columns of the base, bases.h]
  const double* coefficients;  // [kOutputs][kInputs][kBasis]
  double max_norm;             // infinity: no clipping
  bool write_q, match_norm, decay_at_perturbed;
  int needed, given;           // masks of Gram entries: read by the coefficients; already in `gram`
  const void* lr;              // Acc[groups], overrides hyper[kLr]
  void* gram;                  // Acc[kGram]; reduced entries are written, kQQ where write_q
  const void* sq_norm;         // Acc[1] of the ascent: not finite skips the step
  const float* found_inf;      // [1]: not zero skips the step
  const float* loss_scale;     // [2]: what g and h were multiplied by
  float* steps;                // [count] base updates of each tensor so far

  // Gram entries that this launch has to reduce itself.
  SAMK_HD int reduced() const { return needed & ~given; }
};

}  // namespace samk
