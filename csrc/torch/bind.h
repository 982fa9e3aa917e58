// The three native ops, once for both devices: arguments -> structs -> Backend. A Backend has
//   static constexpr int32_t chunk;
//   static void run(const Args&, int64_t groups, const Tensor& workspace, int64_t device, int64_t stream);   for each Args struct
// The schemas are defined in Python (sam_kernels/backends/native.py); only implementations are attached here.
#pragma once
#include "checks.h"

namespace samk {

template <class Backend>
void inner_products(TensorList g, TensorList h, TensorList q, TensorList weights, double eta, Tensor gram, Tensor workspace,
                    int64_t device, int64_t stream) {
  const Table table({{kG, &g}, {kH, &h}, {kQ, &q}, {kW, &weights}}, nullptr, Backend::chunk);
  InnerProductsArgs args{};
  args.table = table.view();
  args.dtype = table.dtype();
  args.eta = eta;
  args.gram = scalar(gram, kGram, &args.dtype, "gram");
  Backend::run(args, 0, workspace, device, stream);
}

template <class Backend>
void ascend(TensorList params, TensorList grads, TensorList stash, TensorList q, Tensor sq_norm, std::optional<Tensor> gram,
            std::optional<Tensor> q_steps, std::optional<Tensor> rho, std::optional<Tensor> direction_device,
            std::vector<int64_t> group, std::vector<double> hyper, std::vector<double> direction, std::vector<double> ema,
            double eps, bool normalize, bool given, Tensor workspace, int64_t device, int64_t stream) {
  const Table table({{kW, &params}, {kStash, &stash}, {kG, &grads}, {kQ, &q}}, &group, Backend::chunk);
  const int64_t groups = table.check_hyper(hyper, kAscendHypers);
  STD_TORCH_CHECK(direction.size() == 2 && (ema.empty() || ema.size() == 2), "direction and ema hold two factors each");
  STD_TORCH_CHECK(params.empty() || ema.empty() || !(q.empty() || grads.empty()), "ema needs q and grads");
  STD_TORCH_CHECK(params.empty() || !(q.empty() && grads.empty()), "no direction is given");
  STD_TORCH_CHECK(params.empty() || !stash.empty(), "stash is empty");
  AscendArgs args{};
  args.table = table.view();
  args.dtype = params.empty() ? dtype_of(sq_norm) : table.dtype();
  args.hyper = hyper.data();
  for (int i = 0; i < 2; ++i) args.direction[i] = direction[i];
  for (size_t i = 0; i < ema.size(); ++i) args.ema[i] = ema[i];
  args.eps = eps;
  args.normalize = normalize;
  args.update_q = !ema.empty();
  args.given = given;
  args.rho = scalar(rho, groups, &args.dtype, "rho");
  args.direction_device = scalar(direction_device, 2, &args.dtype, "direction");
  args.sq_norm = scalar(sq_norm, 1, &args.dtype, "sq_norm");
  args.gram = scalar(gram, kGram, &args.dtype, "gram");
  args.q_steps = static_cast<float*>(scalar(q_steps, 1, nullptr, "q_steps"));
  Backend::run(args, groups, workspace, device, stream);
}

inline Base base_of(const std::string& name) {
  STD_TORCH_CHECK(name == "none" || name == "sgd", "unknown base ", name);
  return name == "none" ? kNone : kSgd;
}

template <class Backend>
void descend(TensorList params, TensorList stash, TensorList h, TensorList g, TensorList q, TensorList state,
             std::optional<Tensor> steps, std::optional<Tensor> gram, std::optional<Tensor> sq_norm,
             std::optional<Tensor> found_inf, std::optional<Tensor> lr, std::vector<int64_t> group, std::vector<double> hyper,
             std::string base, std::vector<double> coefficients, bool write_q, bool match_norm, double max_norm,
             bool decay_at_perturbed, int64_t needed, int64_t given, Tensor workspace, int64_t device, int64_t stream) {
  const Table table({{kW, &params}, {kStash, &stash}, {kH, &h}, {kG, &g}, {kQ, &q}, {kState, &state}}, &group, Backend::chunk);
  DescendArgs args{};
  args.base = base_of(base);
  const int64_t groups = table.check_hyper(hyper, args.base == kSgd ? kSgdHypers : 0);
  args.table = table.view();
  args.dtype = table.dtype();
  args.hyper = hyper.data();
  args.coefficients = coefficients.data();
  args.max_norm = max_norm;
  args.write_q = write_q;
  args.match_norm = match_norm;
  args.decay_at_perturbed = decay_at_perturbed;
  args.needed = int(needed);
  args.given = int(given);
  args.lr = scalar(lr, groups, &args.dtype, "lr");
  args.gram = scalar(gram, kGram, &args.dtype, "gram");
  args.sq_norm = scalar(sq_norm, 1, &args.dtype, "sq_norm");
  args.found_inf = static_cast<const float*>(scalar(found_inf, 1, nullptr, "found_inf"));
  args.steps = static_cast<float*>(scalar(steps, args.table.count, nullptr, "steps"));
  STD_TORCH_CHECK(coefficients.size() == kCoefficients, "expected ", kCoefficients, " coefficients, got ", coefficients.size());
  STD_TORCH_CHECK(args.gram || !(needed || write_q || match_norm || is_finite(max_norm)), "gram is needed for these coefficients");
  constexpr int involves_g = 1 << kGG | 1 << kGH | 1 << kGQ, involves_h = 1 << kGH | 1 << kHH | 1 << kHQ, involves_q = 1 << kGQ | 1 << kHQ | 1 << kQQ;
  const int reduced = params.empty() ? 0 : args.reduced();
  STD_TORCH_CHECK(!(reduced & involves_g && g.empty()) && !(reduced & involves_h && h.empty()) && !(reduced & involves_q && q.empty()),
                  "a list that a norm needs is empty");
  STD_TORCH_CHECK(!write_q || !q.empty(), "q is written but absent");
  STD_TORCH_CHECK(args.base == kNone || !(h.empty() && g.empty() && q.empty()) || params.empty(), "no gradient list is given");
  Backend::run(args, groups, workspace, device, stream);
}

}  // namespace samk

#define SAMK_BIND(KEY, Backend)                                        \
  STABLE_TORCH_LIBRARY_IMPL(sam_kernels_native, KEY, m) {              \
    m.impl("inner_products", TORCH_BOX(&samk::inner_products<Backend>)); \
    m.impl("ascend_", TORCH_BOX(&samk::ascend<Backend>));              \
    m.impl("descend_", TORCH_BOX(&samk::descend<Backend>));            \
  }
