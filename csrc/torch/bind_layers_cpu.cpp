// The ops over single layers as torch ops: tensors -> csrc/core/layers.h. backends/native/layers.py makes the outputs, zeroed where a
// kernel has nothing to add to them.
#include "checks.h"
#include "cpu/layers.h"
#include "parallel_for.h"

namespace {

using namespace samk;

DType dtype_of(const Tensor& x) {
  const ScalarType known[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
  for (int i = 0; i < 4; ++i)
    if (x.scalar_type() == known[i]) return DType(i);
  STD_TORCH_CHECK(false, "expected fp32, fp64, bf16 or fp16");
}

// Address of `numel` contiguous elements of `type` on the CPU.
template <class T = void>
T* data(const Tensor& x, int64_t numel, ScalarType type, const char* name) {
  STD_TORCH_CHECK(x.numel() == numel && x.scalar_type() == type && x.is_contiguous() && x.is_cpu(), name, " must hold ", numel,
                  " contiguous elements of its dtype");
  return static_cast<T*>(x.data_ptr());
}

ScalarType accumulator(DType dtype) { return dtype == kFloat64 ? ScalarType::Double : ScalarType::Float; }

void normalization_grads(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, int64_t samples, bool coupled, Tensor dx,
                         Tensor rows) {
  STD_TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions, not 4");
  NormalizationArgs args{};
  args.dtype = dtype_of(x);
  args.entries = x.size(0), args.groups = x.size(1), args.channels = x.size(2), args.positions = x.size(3);
  args.samples = samples;
  args.coupled = coupled;
  const bool whole = samples > 0 ? args.entries % samples == 0 : samples == 0 && args.entries == 0;
  STD_TORCH_CHECK(whole, args.entries, " entries of ", samples, " samples");
  const ScalarType type = x.scalar_type(), wide = accumulator(args.dtype);
  const int64_t statistics = args.entries * args.groups, affine = args.groups * args.channels;
  args.x = data(x, x.numel(), type, "x");
  args.grad = data(grad, x.numel(), type, "grad");
  args.mean = mean.numel() ? data(mean, statistics, wide, "mean") : nullptr;
  args.rstd = data(rstd, statistics, wide, "rstd");
  args.weight = data(weight, affine, wide, "weight");
  args.dx = data(dx, x.numel(), type, "dx");
  args.rows = data(rows, samples * 2 * affine, wide, "rows");
  cpu_normalization_grads(args, parallel_for);
}

void embedding_grad_norms(Tensor ids, Tensor g, int64_t padding, Tensor norms) {
  STD_TORCH_CHECK(g.dim() == 3, "g has ", g.dim(), " dimensions, not 3");
  EmbeddingArgs args{};
  args.dtype = dtype_of(g);
  args.samples = g.size(0), args.length = g.size(1), args.features = g.size(2);
  args.padding = padding;
  args.ids = data<const int64_t>(ids, args.samples * args.length, ScalarType::Long, "ids");
  args.g = data(g, g.numel(), g.scalar_type(), "g");
  args.norms = data(norms, args.samples, accumulator(args.dtype), "norms");
  cpu_embedding_grad_norms(args, parallel_for);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sam_kernels_native, CPU, m) {
  m.impl("normalization_grads", TORCH_BOX(&normalization_grads));
  m.impl("embedding_grad_norms", TORCH_BOX(&embedding_grad_norms));
}
