// What the ops over single layers get: plain structs, raw pointers. `Acc` is float, or double for double tensors; all tensors are
// contiguous. A layer of the caller is described by sizes alone: see sam_kernels/ops/normalization_grads.py.
#pragma once
#include "storage.h"

namespace samk {

struct NormalizationArgs {
  DType dtype;         // of grad, x and dx
  const void *grad, *x;  // [entries][groups][channels][positions]
  const void* mean;    // Acc[entries][groups], or null: x is not centred
  const void* rstd;    // Acc[entries][groups]
  const void* weight;  // Acc[groups][channels]
  void* dx;            // like x
  void* rows;          // Acc[samples][2][groups][channels]: gradients of scale and shift
  int64_t entries, groups, channels, positions, samples;  // samples divides entries
  bool coupled;        // whether the statistics depend on x
};

struct EmbeddingArgs {
  DType dtype;         // of g
  const int64_t* ids;  // [samples][length]
  const void* g;       // [samples][length][features]
  void* norms;         // Acc[samples]
  int64_t samples, length, features;
  int64_t padding;     // the id that has no gradient, or -1
};

}  // namespace samk
