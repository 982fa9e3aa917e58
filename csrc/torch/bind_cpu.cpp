// The CPU kernels as torch ops, on torch's own thread pool.
#include "bind.h"
#include "parallel_for.h"

namespace {

using samk::parallel_for;

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
