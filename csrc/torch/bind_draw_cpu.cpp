// Draws as a torch op. Schema: sam_kernels/backends/native/draw.py.
#include "bind_losses.h"
#include "cpu/draw.h"
#include "parallel_for.h"

namespace {

using namespace samk;

DrawScheme scheme_of(const std::string& name) {
  if (name == "systematic") return kSystematic;
  if (name == "multinomial") return kMultinomial;
  if (name == "top_k") return kTopK;
  STD_TORCH_CHECK(name == "bernoulli", "unknown scheme ", name);
  return kBernoulli;
}

std::tuple<Tensor, Tensor, Tensor> draw(Tensor weights, int64_t k, std::string scheme, Tensor state) {
  DrawArgs args{};
  args.dtype = dtype_of(weights);
  args.scheme = scheme_of(scheme);
  args.n = weights.numel();
  args.k = k;
  STD_TORCH_CHECK(k >= 0 && k >> 31 == 0 && args.n >> 31 == 0 && (k == 0 || args.n > 0), "k and n must be in [0, 2^31)");
  args.weights = scalar(weights, args.n, weights.scalar_type(), "weights");
  args.state = static_cast<const int64_t*>(scalar(state, 2, ScalarType::Long, "state"));
  Tensor counts = empty_beside(weights, args.n, ScalarType::Int), flag = empty_beside(weights, std::nullopt, ScalarType::Int);
  Tensor inclusion = empty_beside(weights, args.n, accumulator_of(args.dtype));
  args.counts = static_cast<int32_t*>(counts.data_ptr());
  args.inclusion = inclusion.data_ptr();
  args.flag = static_cast<int32_t*>(flag.data_ptr());
  cpu_draw(args, parallel_for);
  return {counts, inclusion, flag};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sam_kernels_native, CPU, m) { m.impl("draw", TORCH_BOX(&draw)); }
