// ascend_: the norm of the direction, the perturbation along it and the stash that undoes it, in one launch.
//
//   d = +-(direction[0] g + direction[1] q),  c = |w| + eta or 1,  sq_norm = sum |c d|^2 over the groups with rho != 0
//   s = rho / (sqrt(sq_norm) + eps);  stash = w;  w += s c^2 d;  q <- ema of (q, g), unless sq_norm is not finite
//
// Bytes: g for the norm (w too where adaptive, q where given), then w and g read, w and stash written: 20 per element in fp32, 10 in
// bf16 and fp16. With noise, random signs in the place of g (signs.cuh): 12 and 6, and the norm of a plain direction reads nothing.
// Launch: cooperative, all blocks resident, for norm and update in one; ordinary for either alone, by the same kernel: then the block
// that comes last adds up the norm. Deterministic: a block always has the same chunks, partial sums are added in the same order.
// The update walks a block's chunks in reverse, because the last gradients of the norm are still in L2 when it starts.
#pragma once
#include <cooperative_groups.h>

#include "gram.cuh"
#include "launch.cuh"
#include "signs.cuh"

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

template <class T, bool kNoise>
__device__ __forceinline__ void put_norm_partials(const Launch<AscendArgs>& launch, const Acc<T> (&direction)[2], bool wants_gram) {
  using A = Acc<T>;
  A direction_sum = 0, gradient_sum = 0;
  for (int c = blockIdx.x, chunks = device_args(launch).table.chunks(); c < chunks; c += gridDim.x) {
    const AscendArgs args = device_args(launch);
    const TensorTable& table = args.table;
    const int lists = present(table) & (directed(direction) | (wants_gram ? bit(kG) : 0));
    const Chunk chunk = find_chunk(table, c);
    const int group = table.group[chunk.tensor];
    const bool counted = rho_of<A>(args, group) != A(0);
    if (!counted && !wants_gram) continue;
    const Ascent<A> ascent = make_ascent(args.hyper + group * kAscendHypers, A(0), direction);
    const int reads = lists | (ascent.adaptive ? bit(kW) : 0);
    if (kNoise && reads == 0) {  // |z| is 1
      if (threadIdx.x == 0) direction_sum += direction[0] * direction[0] * A(chunk.end - chunk.begin);
      continue;
    }
    const Signs<kNoise> signs(args, chunk);
    constexpr int kInFlight = kNoise ? 16 : sizeof(T) < sizeof(A) ? 24 : 32, kFirst = kNoise ? 0 : bit(kG);
    const auto add = [&](A(&x)[kOperands], int left, int j) {
      signs.put(x[kG], left, j);
      const A cd = ascent.weighted(x[kW], x[kG], x[kQ]);
      direction_sum += counted ? cd * cd : A(0);
      gradient_sum += x[kG] * x[kG];
    };
    if ((reads & bit(kQ)) != 0)
      walk<bit(kW) | kFirst | bit(kQ), 0, kInFlight, T>(table, chunk, reads, 0, add);
    else  // halves alone: twice as wide accesses
      walk<bit(kW) | kFirst, 0, kInFlight, T>(table, chunk, reads, 0, add);
  }
  put_partial(launch.workspace, kDirectionRow, direction_sum);
  if (wants_gram) put_partial(launch.workspace, kGradientRow, gradient_sum);
}

// The norm, in every block where the update follows it.
template <class T, bool kNoise>
__device__ __forceinline__ Acc<T> reduce_norm(const Launch<AscendArgs>& launch, const Acc<T> (&direction)[2]) {
  using A = Acc<T>;
  const AscendArgs& args = launch.args;
  char* workspace = launch.workspace;
  const bool wants_gram = args.gram != nullptr && args.table.has(kG);
  put_norm_partials<T, kNoise>(launch, direction, wants_gram);
  bool writes = blockIdx.x == 0;
  if (args.phase == kNorm) {
    writes = last_block(workspace);
    if (!writes) return A(0);
  } else {
    cooperative_groups::this_grid().sync();
  }
  const A sq_norm = A(sum_partials(workspace, kDirectionRow));
  if (writes) {
    const double gradient = wants_gram ? sum_partials(workspace, kGradientRow) : 0;
    if (threadIdx.x == 0) *static_cast<A*>(args.sq_norm) = sq_norm;
    if (threadIdx.x == 0 && wants_gram) static_cast<A*>(args.gram)[kGG] = A(gradient);
  }
  return sq_norm;
}

template <class T, bool kNoise>
__global__ __launch_bounds__(kThreads, 3) void ascend_kernel(const __grid_constant__ Launch<AscendArgs> launch) {
  using A = Acc<T>;
  const AscendArgs& args = launch.args;  // its scalars; arrays are bound where they are used
  const A* factors = static_cast<const A*>(args.direction_device);
  const A direction[2] = {factors != nullptr ? factors[0] : A(args.direction[0]), factors != nullptr ? factors[1] : A(args.direction[1])};
  const A sq_norm = args.phase == kUpdate ? *static_cast<const A*>(args.sq_norm) : reduce_norm<T, kNoise>(launch, direction);
  if (args.phase == kNorm) return;

  const bool average = !kNoise && args.update_q && is_finite(sq_norm), first = args.q_steps != nullptr && *args.q_steps == 0.0f;
  const int blocks = gridDim.x, block = blockIdx.x;
  for (int c = block + (device_args(launch).table.chunks() - 1 - block) / blocks * blocks; c >= 0; c -= blocks) {
    const AscendArgs bound = device_args(launch);
    const TensorTable& table = bound.table;
    const Chunk chunk = find_chunk(table, c);
    const int group = table.group[chunk.tensor];
    const A scale = ascent_scale(rho_of<A>(bound, group), sq_norm, args.normalize, A(args.eps));
    const Ascent<A> ascent = make_ascent(bound.hyper + group * kAscendHypers, scale, direction);
    const bool moves = scale != A(0);
    const int averaged = average ? bit(kG) | (first ? 0 : bit(kQ)) : 0, have = present(table);
    const int reads = have & (bit(kW) | averaged | (moves ? directed(direction) : 0));
    const int writes = have & (bit(kStash) | (moves ? bit(kW) : 0) | (average ? bit(kQ) : 0));
    const Signs<kNoise> signs(bound, chunk);
    constexpr int kInFlight = kNoise || sizeof(T) < sizeof(A) ? 16 : 24, kFirst = kNoise ? 0 : bit(kG), kMean = kNoise ? 0 : bit(kQ);
    const A keep = A(args.ema[0]), add = A(args.ema[1]);
    const auto perturb = [&](A(&x)[kOperands], int left, int j) {
      signs.put(x[kG], left, j);
      x[kW] = ascent.perturbed(x[kW], x[kG], x[kQ]);
      x[kQ] = moving_average(x[kQ], x[kG], keep, add, first);
    };
    if (((reads | writes) & bit(kQ)) != 0)
      walk<bit(kW) | kFirst | bit(kQ), bit(kW) | bit(kStash) | kMean, kInFlight, T>(table, chunk, reads, writes, perturb);
    else
      walk<bit(kW) | kFirst, bit(kW) | bit(kStash), kInFlight, T>(table, chunk, reads, writes, perturb);
  }
  if (average && args.q_steps != nullptr && last_block(launch.workspace) && threadIdx.x == 0) *args.q_steps += 1.0f;
}

}  // namespace

template <bool kNoise>
int ascend_with(const AscendArgs& args, int64_t groups, const Place& place) {
  return by_dtype(args.dtype, [&](auto stored) {
    return launch<ascend_kernel<decltype(stored), kNoise>>(args, groups * kAscendHypers, args.phase == kAll, place);
  });
}

}  // namespace samk
