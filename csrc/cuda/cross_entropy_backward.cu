// dlogits = grad_i (S p_v - t_v), from the logits and what the forward pass saved; formulas in core/cross_entropy.h.
//
// Bytes: every logit read and written once, 8 in fp32, 4 in bf16 and fp16. Launch: a warp for a row of up to 1024 logits, a block of 256
// threads for a longer one. Deterministic: no sums. The entry of the target is written last, over that of the loop, so that the loop does
// not look for it.
#include "rows.cuh"

namespace samk {
namespace {

template <class T, int M>
__device__ __forceinline__ void put(T* to, const Acc<T> (&value)[M]) {
  Lanes<T, M> narrowed;
#pragma unroll
  for (int j = 0; j < M; ++j) narrow(value[j], narrowed.lane[j]);
  if constexpr (sizeof(narrowed) == 16)
    __stcg(reinterpret_cast<uint4*>(to), bit_cast<uint4>(narrowed));  // an assignment is taken apart into words
  else
    *to = narrowed.lane[0];
}

template <class T, int kGroup, bool kByClass>
__global__ __launch_bounds__(kThreads, kByClass ? 5 : 6) void cross_entropy_backward_kernel(const __grid_constant__ CrossEntropyArgs args) {
  using A = Acc<T>;
  const A smoothing = A(args.smoothing), classes = A(args.classes), *weight = static_cast<const A*>(args.weight);
  for_each_row<kGroup>(args.rows, [&](int64_t row, int lane) {
    const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
    const A* saved = static_cast<const A*>(args.statistics) + row * kRowStatistics;
    T* out = static_cast<T*>(args.out) + row * args.classes;
    const bool counts = args.valid(row) && !args.ignored(row);
    if (!counts) {
      T absent;
      narrow(no_loss<A>(args.ignored(row)).loss, absent);
      for (int64_t v = lane; v < args.classes; v += kGroup) out[v] = absent;
      return;
    }
    const A top = saved[0], log_sum = saved[1], grad = static_cast<const A*>(args.grad)[row];
    const A c = grad * saved[2], share = smoothing != A(0) ? grad * (smoothing / classes) : A(0);
    walk_row<kGroup, 1>(logits, Span<T>(logits, out, args.classes), args.classes, lane, [&](int64_t v, const auto& z) {
      constexpr int M = std::extent<std::remove_reference_t<decltype(z)>>::value;
      A value[M];
#pragma unroll
      for (int j = 0; j < M; ++j) {
        const A smooth = kByClass ? share * weight[v + j] : share;
        value[j] = fused(c, exp_term((z[j] - top) - log_sum), -smooth);
      }
      put(out + v, value);
    });
    sync_group<kGroup>();
    if (lane != 0) return;
    const int64_t y = args.target[row];
    const A value[1] = {grad * target_gradient(A(widen(logits[y])), weight != nullptr ? weight[y] : A(1), saved, smoothing, classes)};
    put(out + y, value);
  });
}

template <class T, bool kByClass>
int run(const CrossEntropyArgs& args, int device, void* stream) {
  return args.classes <= kWarpRow ? launch_rows<cross_entropy_backward_kernel<T, kWarp, kByClass>>(args, kWarp, device, stream)
                                  : launch_rows<cross_entropy_backward_kernel<T, kThreads, kByClass>>(args, kThreads, device, stream);
}

}  // namespace

int cuda_cross_entropy_backward(const CrossEntropyArgs& args, int device, void* stream) {
  return by_dtype(args.dtype, [&](auto stored) {
    using T = decltype(stored);
    return args.mode() == kWeighted ? run<T, true>(args, device, stream) : run<T, false>(args, device, stream);
  });
}

}  // namespace samk
