// The native ops over rows of logits and over norms, once for both devices: arguments -> structs -> Backend. A Backend has
//   static void run(const CrossEntropyArgs&, bool backward, int64_t device, int64_t stream);  and run(const GibbsArgs&, device, stream)
// Schemas: sam_kernels/backends/native/losses.py.
#pragma once
#include "checks.h"
#include "core/cross_entropy.h"
#include "core/gibbs_weights.h"

namespace samk {

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::Double: return kFloat64;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    default: STD_TORCH_CHECK(false, "expected a floating-point tensor");
  }
}

inline ScalarType accumulator_of(DType dtype) { return dtype == kFloat64 ? ScalarType::Double : ScalarType::Float; }

inline CrossEntropyArgs cross_entropy_args(const Tensor& logits, const Tensor& target, double smoothing, int64_t ignore_index,
                                           const std::optional<Tensor>& weight, const Tensor& statistics) {
  CrossEntropyArgs args{};
  STD_TORCH_CHECK(logits.dim() == 2 && (logits.size(1) <= 1 || logits.stride(1) == 1), "logits must be rows of adjacent elements");
  args.dtype = dtype_of(logits);
  args.rows = logits.size(0);
  args.classes = logits.size(1);
  args.stride = logits.stride(0);
  args.logits = logits.data_ptr();
  args.target = static_cast<const int64_t*>(scalar(target, args.rows, ScalarType::Long, "target"));
  args.weight = scalar(weight, args.classes, accumulator_of(args.dtype), "weight");
  args.ignore_index = ignore_index;
  args.smoothing = smoothing;
  args.statistics = scalar(statistics, args.rows * kRowStatistics, accumulator_of(args.dtype), "log_norm");
  return args;
}

template <class Backend>
void cross_entropy(Tensor logits, Tensor target, double smoothing, int64_t ignore_index, std::optional<Tensor> weight, Tensor loss,
                   Tensor norm, Tensor statistics, Tensor, int64_t device, int64_t stream) {
  CrossEntropyArgs args = cross_entropy_args(logits, target, smoothing, ignore_index, weight, statistics);
  args.loss = scalar(loss, args.rows, accumulator_of(args.dtype), "loss");
  args.norm = scalar(norm, args.rows, accumulator_of(args.dtype), "norm");
  if (args.rows > 0 && args.classes > 0) Backend::run(args, false, device, stream);
}

template <class Backend>
void cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor statistics, double smoothing, int64_t ignore_index,
                            std::optional<Tensor> weight, Tensor out, Tensor, int64_t device, int64_t stream) {
  CrossEntropyArgs args = cross_entropy_args(logits, target, smoothing, ignore_index, weight, statistics);
  args.grad = scalar(grad, args.rows, accumulator_of(args.dtype), "grad");
  args.out = scalar(out, args.rows * args.classes, logits.scalar_type(), "out");
  if (args.rows > 0 && args.classes > 0) Backend::run(args, true, device, stream);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> gibbs_weights(Tensor norms, double lam, std::optional<Tensor> lam_device, bool relative,
                                                         int64_t device, int64_t stream) {
  GibbsArgs args{};
  args.dtype = dtype_of(norms);
  args.count = norms.numel();
  args.norms = scalar(norms, args.count, norms.scalar_type(), "norms");
  args.lam = lam;
  args.lam_device = scalar(lam_device, 1, accumulator_of(args.dtype), "lam");
  args.relative = relative;
  const ScalarType type = accumulator_of(args.dtype);
  Tensor weights = empty_beside(norms, args.count, type), flag = empty_beside(norms, std::nullopt, ScalarType::Int);
  Tensor ess = empty_beside(norms, std::nullopt, type), log_partition = empty_beside(norms, std::nullopt, type);
  args.weights = weights.data_ptr();
  args.ess = ess.data_ptr();
  args.log_partition = log_partition.data_ptr();
  args.flag = static_cast<int32_t*>(flag.data_ptr());
  Backend::run(args, device, stream);
  return {weights, ess, log_partition, flag};
}

}  // namespace samk

#define SAMK_BIND_LOSSES(KEY, Backend)                                                     \
  STABLE_TORCH_LIBRARY_IMPL(sam_kernels_native, KEY, m) {                                  \
    m.impl("cross_entropy_sample", TORCH_BOX(&samk::cross_entropy<Backend>));              \
    m.impl("cross_entropy_sample_backward", TORCH_BOX(&samk::cross_entropy_backward<Backend>)); \
    m.impl("gibbs_weights", TORCH_BOX(&samk::gibbs_weights<Backend>));                     \
  }
