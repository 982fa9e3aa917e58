// The three native ops, once for both devices: arguments -> structs -> Backend. A Backend has
//   static constexpr int32_t chunk;
//   static void run(const Args&, int64_t groups, const Tensor& workspace, int64_t device, int64_t stream);   for each Args struct
// The schemas are defined in Python (sam_kernels/backends/native/); only implementations are attached here. That the lists which the
// options need are there is checked in sam_kernels/ops/guards.py, for all backends.
#pragma once
#include "checks.h"

namespace samk {

constexpr ScalarType kFlag = ScalarType::Float;  // counters, flags and loss scales

template <class Backend>
void inner_products(Tensor words, double eta, Tensor gram, Tensor workspace, int64_t device, int64_t stream) {
  const Table table(words, Backend::chunk);
  InnerProductsArgs args{};
  args.table = table.view();
  args.dtype = table.dtype();
  args.eta = eta;
  args.gram = scalar(gram, kGram, table.accumulator(), "gram");
  Backend::run(args, 0, workspace, device, stream);
}

inline Phase phase_of(const std::string& name) {
  STD_TORCH_CHECK(name == "all" || name == "norm" || name == "update", "unknown phase ", name);
  return name == "all" ? kAll : name == "norm" ? kNorm : kUpdate;
}

template <class Backend>
void ascend(Tensor words, Tensor sq_norm, std::optional<Tensor> gram, std::optional<Tensor> q_steps, std::optional<Tensor> rho,
            std::optional<Tensor> direction_device, Tensor hyper, std::vector<double> direction, std::vector<double> ema, double eps,
            bool normalize, std::string phase, std::optional<Tensor> noise, int64_t noise_stream, Tensor workspace, int64_t device,
            int64_t stream) {
  const Table table(words, Backend::chunk);
  const int64_t groups = table.check_hyper(hyper, kAscendHypers);
  AscendArgs args{};
  args.phase = phase_of(phase);
  STD_TORCH_CHECK(direction.size() == 2 && (ema.empty() || ema.size() == 2), "direction and ema hold two factors each");
  args.table = table.view();
  args.dtype = table.dtype();
  args.hyper = elements<double>(hyper, ScalarType::Double, "hyper");
  for (int i = 0; i < 2; ++i) args.direction[i] = direction[i];
  for (size_t i = 0; i < ema.size(); ++i) args.ema[i] = ema[i];
  args.eps = eps;
  args.normalize = normalize;
  args.update_q = !ema.empty();
  args.rho = scalar(rho, groups, table.accumulator(), "rho");
  args.direction_device = scalar(direction_device, 2, table.accumulator(), "direction");
  args.sq_norm = scalar(sq_norm, 1, table.accumulator(), "sq_norm");
  args.gram = scalar(gram, kGram, table.accumulator(), "gram");
  args.q_steps = static_cast<float*>(scalar(q_steps, 1, kFlag, "q_steps"));
  args.noise = static_cast<const int64_t*>(scalar(noise, 2, ScalarType::Long, "noise"));
  args.noise_stream = uint32_t(noise_stream);
  Backend::run(args, groups, workspace, device, stream);
}

inline Base base_of(const std::string& name) {
  const char* const names[kBases] = {"none", "sgd", "adam", "lion"};
  for (int base = 0; base < kBases; ++base)
    if (name == names[base]) return Base(base);
  STD_TORCH_CHECK(false, "unknown base ", name);
}

template <class Backend>
void descend(Tensor words, std::optional<Tensor> steps, std::optional<Tensor> gram, std::optional<Tensor> sq_norm,
             std::optional<Tensor> found_inf, std::optional<Tensor> loss_scale, std::optional<Tensor> lr, Tensor hyper, std::string base,
             Tensor coefficients, bool write_q, bool match_norm, double max_norm, bool decay_at_perturbed, int64_t needed, int64_t given,
             Tensor workspace, int64_t device, int64_t stream) {
  const Table table(words, Backend::chunk);
  DescendArgs args{};
  args.base = base_of(base);
  const int64_t groups = table.check_hyper(hyper, hypers_of(args.base));
  STD_TORCH_CHECK(coefficients.numel() == kCoefficients, "expected ", kCoefficients, " coefficients, got ", coefficients.numel());
  args.table = table.view();
  args.dtype = table.dtype();
  args.hyper = elements<double>(hyper, ScalarType::Double, "hyper");
  args.coefficients = elements<double>(coefficients, ScalarType::Double, "coefficients");
  args.max_norm = max_norm;
  args.write_q = write_q;
  args.match_norm = match_norm;
  args.decay_at_perturbed = decay_at_perturbed;
  args.needed = int(needed);
  args.given = int(given);
  args.lr = scalar(lr, groups, table.accumulator(), "lr");
  args.gram = scalar(gram, kGram, table.accumulator(), "gram");
  args.sq_norm = scalar(sq_norm, 1, table.accumulator(), "sq_norm");
  args.found_inf = static_cast<const float*>(scalar(found_inf, 1, kFlag, "found_inf"));
  args.loss_scale = static_cast<const float*>(scalar(loss_scale, 2, kFlag, "loss_scale"));
  args.steps = static_cast<float*>(scalar(steps, table.count(), kFlag, "steps"));
  Backend::run(args, groups, workspace, device, stream);
}

}  // namespace samk

#define SAMK_BIND(KEY, Backend)                                        \
  STABLE_TORCH_LIBRARY_IMPL(sam_kernels_native, KEY, m) {              \
    m.impl("inner_products", TORCH_BOX(&samk::inner_products<Backend>)); \
    m.impl("ascend_", TORCH_BOX(&samk::ascend<Backend>));              \
    m.impl("descend_", TORCH_BOX(&samk::descend<Backend>));            \
  }
