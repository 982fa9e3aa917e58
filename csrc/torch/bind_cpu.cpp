// The CPU kernels as torch ops, on torch's own thread pool.
#include "bind.h"
#include "cpu/chunk_loop.h"

namespace {

void parallel_for(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= grain) return body(context, 0, count);  // also inside another parallel region
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

struct Cpu {
  static constexpr int32_t chunk = samk::kCpuChunk;
  using Tensor = samk::Tensor;
  static void run(const samk::InnerProductsArgs& args, int64_t, const Tensor&, int64_t, int64_t) {
    samk::cpu_inner_products(args, parallel_for);
  }
  static void run(const samk::AscendArgs& args, int64_t, const Tensor&, int64_t, int64_t) { samk::cpu_ascend(args, parallel_for); }
  static void run(const samk::DescendArgs& args, int64_t, const Tensor&, int64_t, int64_t) { samk::cpu_descend(args, parallel_for); }
};

}  // namespace

SAMK_BIND(CPU, Cpu)
