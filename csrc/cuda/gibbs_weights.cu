// gibbs_weights: p_i = e^(lam (s_i - max s)) / sum_j e^(lam (s_j - max s)); formulas in core/gibbs_weights.h.
//
// Bytes: the norms three times, from L2 after the first, and one weight each. Launch: one block of 1024 threads: a batch has hundreds of
// norms, and a second launch would cost more than it reads. Deterministic: every thread adds its own norms in order, then a tree.
// The exponentials are computed twice rather than written and read.
#include "cuda/losses.h"
#include "launch.cuh"

namespace samk {
namespace {

constexpr int kGibbsThreads = 1024;

struct Add {
  __device__ double operator()(double a, double b) const { return a + b; }
};
struct Larger {
  __device__ double operator()(double a, double b) const { return b > a ? b : a; }
};

// Over all threads of the block, in every one of them.
template <class Combine>
__device__ double combined(double value, Combine combine) {
  __shared__ double warps[kGibbsThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  __syncthreads();  // the readers of the previous one are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = warps[threadIdx.x % 32];
  for (int distance = 16; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

template <class T>
__global__ __launch_bounds__(kGibbsThreads) void gibbs_weights_kernel(const __grid_constant__ GibbsArgs args) {
  using A = Acc<T>;
  const T* norms = static_cast<const T*>(args.norms);
  A* weights = static_cast<A*>(args.weights);
  A largest = A(-INFINITY);
  double finite = 0, sum = 0;
  for (int64_t i = threadIdx.x; i < args.count; i += kGibbsThreads) {
    const A s = widen(norms[i]);
    if (!is_finite(s)) continue;
    largest = s > largest ? s : largest;
    finite += 1;
    sum += s;
  }
  finite = combined(finite, Add());
  sum = combined(sum, Add());
  const A lam = args.lam_device != nullptr ? *static_cast<const A*>(args.lam_device) : A(args.lam);
  const Gibbs<A> gibbs = Gibbs<A>::make(lam, finite, sum, A(combined(largest, Larger())), args.relative);

  double mass = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < args.count; i += kGibbsThreads) {
    const A e = gibbs.term(widen(norms[i]));
    mass += e;
    squares += double(e) * e;
  }
  mass = combined(mass, Add());
  squares = combined(squares, Add());
  const A factor = A(1 / mass);
  for (int64_t i = threadIdx.x; i < args.count; i += kGibbsThreads) weights[i] = gibbs.term(widen(norms[i])) * factor;
  if (threadIdx.x != 0) return;
  *static_cast<A*>(args.ess) = args.count > 0 ? A(mass * mass / squares) : A(0);
  *static_cast<A*>(args.log_partition) = args.count > 0 ? gibbs.log_partition(A(mass)) : A(0);
  *args.flag = finite == double(args.count) ? 0 : finite > 0 ? 1 : 2;
}

}  // namespace

int cuda_gibbs_weights(const GibbsArgs& args, int device, void* stream) {
  return by_dtype(args.dtype, [&](auto stored) -> int {
    const DeviceGuard guard(device);
    if (guard.status != cudaSuccess) return guard.status;
    void* argument[] = {const_cast<GibbsArgs*>(&args)};
    return cudaLaunchKernel(gibbs_weights_kernel<decltype(stored)>, dim3(1), dim3(kGibbsThreads), argument, 0,
                            static_cast<cudaStream_t>(stream));
  });
}

}  // namespace samk
