// torch's thread pool as the ParallelFor of the CPU kernels.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "cpu/chunk_loop.h"

namespace samk {

inline void parallel_for(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= grain) return body(context, 0, count);  // also inside another parallel region
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace samk
