// cross_entropy_sample: loss and gradient norm of every row of logits; formulas in core/cross_entropy.h.
//
// Bytes: every logit once, 4 in fp32, 2 in bf16 and fp16; five numbers written per row. Launch: a warp for a row of up to 1024 logits, a
// block of 256 threads for a longer one. Deterministic: a thread adds its own logits in order, warps and blocks combine as a tree.
// Each thread has a largest logit of its own, so that the loop neither shuffles nor waits; sums are rescaled where they meet.
#include "rows.cuh"

namespace samk {
namespace {

template <class A, int kMode>
struct RowSums {
  A m = A(-INFINITY), sum[kLossSums] = {};

  __device__ __forceinline__ void rescale(A larger) {
    const A factor = exp_of(m - exponent_origin(larger));  // 0 where all was masked so far
    sum[kMass] *= factor;
    sum[kSquares] *= factor * factor;
    if (kMode == kWeighted) sum[kWeightedMass] *= factor;
    m = larger;
  }

  // `own`: place of the target among the values, if it is there
  template <int M>
  __device__ __forceinline__ void add(const A (&z)[M], const A* w, int64_t own, A origin_y) {
    A larger = m;
#pragma unroll
    for (int j = 0; j < M; ++j) larger = z[j] > larger && j != own ? z[j] : larger;
    if (larger > m) rescale(larger);
    const A origin = exponent_origin(m);
#pragma unroll
    for (int j = 0; j < M; ++j) {
      const A e = j != own ? exp_term(z[j] - origin) : A(0), w_v = kMode == kWeighted ? w[j] : A(1);
      sum[kMass] += e;
      sum[kSquares] = fused(e, e, sum[kSquares]);
      if (kMode != kPlain) sum[kSpread] = fused(w_v, origin_y - z[j], sum[kSpread]);
      if (kMode != kWeighted) continue;
      sum[kWeightedMass] = fused(w_v, e, sum[kWeightedMass]);
      sum[kWeights] += w_v;
      sum[kSquaredWeights] = fused(w_v, w_v, sum[kSquaredWeights]);
    }
  }

  __device__ __forceinline__ void merge(RowSums other) {
    const A larger = other.m > m ? other.m : m;
    rescale(larger);
    other.rescale(larger);
#pragma unroll
    for (int k = 0; k < kLossSums; ++k) sum[k] += other.sum[k];
  }

  __device__ __forceinline__ RowSums from_lane(int distance) const {
    RowSums other;
    other.m = __shfl_down_sync(0xffffffffu, m, distance);
#pragma unroll
    for (int k = 0; k < kLossSums; ++k)
      if (k <= kSquares || (k == kSpread && kMode != kPlain) || kMode == kWeighted)
        other.sum[k] = __shfl_down_sync(0xffffffffu, sum[k], distance);
    return other;
  }
};

// The sums of all threads of the group, in its first one.
template <int kGroup, class A, int kMode>
__device__ __forceinline__ void gather(RowSums<A, kMode>& sums) {
#pragma unroll 1
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sums.merge(sums.from_lane(distance));
  if constexpr (kGroup > kWarp) {
    __shared__ A warps[kGroup / kWarp][kLossSums + 1];
    A* mine = warps[threadIdx.x / kWarp];
    __syncthreads();  // the previous row has been read
    if (threadIdx.x % kWarp == 0) {
      mine[kLossSums] = sums.m;
      for (int k = 0; k < kLossSums; ++k) mine[k] = sums.sum[k];
    }
    __syncthreads();
    for (int warp = 1; warp < kGroup / kWarp && threadIdx.x == 0; ++warp) {
      RowSums<A, kMode> other;
      other.m = warps[warp][kLossSums];
      for (int k = 0; k < kLossSums; ++k) other.sum[k] = warps[warp][k];
      sums.merge(other);
    }
  }
}

template <class T, int kGroup, int kMode>
__global__ __launch_bounds__(kThreads, kMode == kWeighted ? 3 : 4) void cross_entropy_kernel(const __grid_constant__ CrossEntropyArgs args) {
  using A = Acc<T>;
  const A* weight = static_cast<const A*>(args.weight);
  for_each_row<kGroup>(args.rows, [&](int64_t row, int lane) {
    const bool counts = args.valid(row) && !args.ignored(row);
    SampleLoss<A> out = no_loss<A>(args.ignored(row));
    if (counts) {
      const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
      const int64_t y = args.target[row];
      const A z_y = widen(logits[y]), origin_y = spread_origin(z_y);
      RowSums<A, kMode> sums;
      walk_row<kGroup, 16 / Span<T>::N>(logits, Span<T>(logits, logits, args.classes), args.classes, lane,
                                        [&](int64_t v, const auto& z) { sums.add(z, weight + v, y - v, origin_y); });
      gather<kGroup>(sums);
      const A w_y = weight != nullptr ? weight[y] : A(1);
      if (lane == 0) out = finish_loss<kMode>(sums.sum, sums.m, z_y, w_y, A(args.smoothing), A(args.classes));
    }
    if (lane != 0) return;
    static_cast<A*>(args.loss)[row] = out.loss;
    static_cast<A*>(args.norm)[row] = out.norm;
    A* statistics = static_cast<A*>(args.statistics) + row * kRowStatistics;
    statistics[0] = out.top;
    statistics[1] = out.log_sum;
    statistics[2] = out.mass;
  });
}

template <class T, int kMode>
int run(const CrossEntropyArgs& args, int device, void* stream) {
  return args.classes <= kWarpRow ? launch_rows<cross_entropy_kernel<T, kWarp, kMode>>(args, kWarp, device, stream)
                                  : launch_rows<cross_entropy_kernel<T, kThreads, kMode>>(args, kThreads, device, stream);
}

}  // namespace

int cuda_cross_entropy(const CrossEntropyArgs& args, int device, void* stream) {
  return by_dtype(args.dtype, [&](auto stored) {
    using T = decltype(stored);
    if (args.mode() == kPlain) return run<T, kPlain>(args, device, stream);
    return args.mode() == kSmoothed ? run<T, kSmoothed>(args, device, stream) : run<T, kWeighted>(args, device, stream);
  });
}

}  // namespace samk
