// What the CUDA backend exports for rows of logits and for norms; rules as in entry_points.h, but no workspace is needed.
#pragma once
#include "core/cross_entropy.h"
#include "core/gibbs_weights.h"

namespace samk {

int cuda_cross_entropy(const CrossEntropyArgs& args, int device, void* stream);
int cuda_cross_entropy_backward(const CrossEntropyArgs& args, int device, void* stream);
int cuda_gibbs_weights(const GibbsArgs& args, int device, void* stream);

}  // namespace samk
