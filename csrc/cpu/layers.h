// The CPU kernels over single layers.
#pragma once
#include "chunk_loop.h"
#include "core/layers.h"

namespace samk {

void cpu_normalization_grads(const NormalizationArgs& args, ParallelFor parallel_for);
void cpu_embedding_grad_norms(const EmbeddingArgs& args, ParallelFor parallel_for);

}  // namespace samk
