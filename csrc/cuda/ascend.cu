// ascend_: the norm of the direction, the perturbation along it and the stash that undoes it, in one launch.
//
//   d = +-(direction[0] g + direction[1] q),  c = |w| + eta or 1,  sq_norm = sum |c d|^2 over the groups with rho != 0
//   s = rho / (sqrt(sq_norm) + eps);  stash = w;  w += s c^2 d;  q <- ema of (q, g), unless sq_norm is not finite
//
// Bytes: g for the norm (w too where adaptive, q where given), then w and g read, w and stash written: 20 per element in fp32.
// Launch: cooperative, all blocks resident; ordinary where the norm is given, by the same kernel. Deterministic: a block always has
// the same chunks, every block adds all partial sums in the same order.
// The update walks a block's chunks in reverse, because the last gradients of the norm are still in L2 when it starts.
#include <cooperative_groups.h>

#include "gram.cuh"
#include "launch.cuh"

namespace samk {
namespace {

enum AscendRow : int { kDirectionRow, kGradientRow };

template <class T>
__device__ __forceinline__ T rho_of(const AscendArgs& args, int group) {
  return args.rho != nullptr ? static_cast<const T*>(args.rho)[group] : T(args.hyper[group * kAscendHypers + kRho]);
}

// The lists that the direction depends on; one whose factor is 0 is not read, and counts as 0.
template <class T>
__device__ __forceinline__ int directed(const T (&direction)[2]) {
  return (direction[0] != T(0) ? bit(kG) : 0) | (direction[1] != T(0) ? bit(kQ) : 0);
}

template <class T>
__device__ __forceinline__ T reduce_norm(const AscendArgs& args, const T (&direction)[2], char* workspace) {
  const TensorTable& table = args.table;
  const bool wants_gram = args.gram != nullptr && table.has(kG);
  const int lists = present(table) & (directed(direction) | (wants_gram ? bit(kG) : 0));
  T direction_sum = 0, gradient_sum = 0;
  for (int c = blockIdx.x; c < table.chunks(); c += gridDim.x) {
    const Chunk chunk = find_chunk(table, c);
    const int group = table.group[chunk.tensor];
    const bool counted = rho_of<T>(args, group) != T(0);
    if (!counted && !wants_gram) continue;
    const Ascent<T> ascent = make_ascent(args.hyper + group * kAscendHypers, T(0), direction);
    const int reads = lists | (ascent.adaptive ? bit(kW) : 0);
    walk<bit(kW) | bit(kG) | bit(kQ), 0, 3, T>(table, chunk, reads, 0, [&](const T(&x)[kOperands]) {
      const T cd = ascent.weighted(x[kW], x[kG], x[kQ]);
      direction_sum += counted ? cd * cd : T(0);
      gradient_sum += x[kG] * x[kG];
    });
  }
  put_partial(workspace, kDirectionRow, direction_sum);
  if (wants_gram) put_partial(workspace, kGradientRow, gradient_sum);
  cooperative_groups::this_grid().sync();
  const T sq_norm = T(sum_partials(workspace, kDirectionRow));
  if (blockIdx.x == 0) {
    const double gradient = wants_gram ? sum_partials(workspace, kGradientRow) : 0;
    if (threadIdx.x == 0) *static_cast<T*>(args.sq_norm) = sq_norm;
    if (threadIdx.x == 0 && wants_gram) static_cast<T*>(args.gram)[kGG] = T(gradient);
  }
  return sq_norm;
}

template <class T>
__global__ __launch_bounds__(kThreads, 3) void ascend_kernel(const __grid_constant__ Launch<AscendArgs> launch) {
  const AscendArgs args = device_args(launch);
  const TensorTable& table = args.table;
  const T* factors = static_cast<const T*>(args.direction_device);
  const T direction[2] = {factors != nullptr ? factors[0] : T(args.direction[0]), factors != nullptr ? factors[1] : T(args.direction[1])};
  const T sq_norm = args.given ? *static_cast<const T*>(args.sq_norm) : reduce_norm(args, direction, launch.workspace);

  const bool average = args.update_q && is_finite(sq_norm), first = args.q_steps != nullptr && *args.q_steps == 0.0f;
  const T keep = T(args.ema[0]), add = T(args.ema[1]);
  const int have = present(table), chunks = table.chunks(), blocks = gridDim.x, block = blockIdx.x;
  const int averaged = average ? bit(kG) | (first ? 0 : bit(kQ)) : 0;
  for (int c = block + (chunks - 1 - block) / blocks * blocks; c >= 0 && c < chunks; c -= blocks) {
    const Chunk chunk = find_chunk(table, c);
    const int group = table.group[chunk.tensor];
    const T scale = ascent_scale(rho_of<T>(args, group), sq_norm, args.normalize, T(args.eps));
    const Ascent<T> ascent = make_ascent(args.hyper + group * kAscendHypers, scale, direction);
    const bool moves = scale != T(0);
    const int reads = have & (bit(kW) | averaged | (moves ? directed(direction) : 0));
    const int writes = have & (bit(kStash) | (moves ? bit(kW) : 0) | (average ? bit(kQ) : 0));
    walk<bit(kW) | bit(kG) | bit(kQ), bit(kW) | bit(kStash) | bit(kQ), 2, T>(table, chunk, reads, writes, [&](T(&x)[kOperands]) {
      x[kStash] = x[kW];
      x[kW] = ascent.perturbed(x[kW], x[kG], x[kQ]);
      x[kQ] = moving_average(x[kQ], x[kG], keep, add, first);
    });
  }
  if (average && args.q_steps != nullptr && last_block(launch.workspace) && threadIdx.x == 0) *args.q_steps += 1.0f;
}

}  // namespace

int cuda_ascend(const AscendArgs& args, int64_t groups, void* workspace, int64_t workspace_bytes, int device, void* stream) {
  return launch<ascend_kernel<float>>(args, groups, !args.given, {workspace, workspace_bytes, device, stream});
}

}  // namespace samk
