// The kernel of descend_, once for every base and dtype; descend.cu says what it does.
#pragma once
#include "descend_plan.cuh"
#include "launch.cuh"

namespace samk {

// Launches the kernel with the update U; descend_<base>.cu compile one each.
template <template <class> class U>
int descend_with(const DescendArgs& args, int64_t groups, const Place& place);

namespace {

constexpr int kKeptRow = kGram;  // not a Gram row: a slow block may still read those when a fast one writes this

// w as the stash has it, bit by bit: a stash with the roles exchanged.
template <class T>
__device__ __forceinline__ void restore(const TensorTable& table, const Chunk& chunk) {
  TensorTable exchanged = table;
  exchanged.slot[kW] = table.slot[kStash];
  exchanged.slot[kStash] = table.slot[kW];
  walk<bit(kW), bit(kStash), 16, T>(exchanged, chunk, bit(kW), bit(kStash), [](Acc<T>(&)[kOperands]) {});
}

// Blocks on an SM: three of 80 registers, or two of 128 where there are more states than m.
template <class Update>
constexpr int kBlocks = Update::kStates == bit(kM) ? 3 : 2;

// Update and kept vector of one chunk, with the lists of kLists only; returns what this thread adds to |q'|^2.
template <int kLists, class T, class Update>
__device__ __forceinline__ Acc<T> update_chunk(const DescendArgs& args, const Chunk& chunk, int reads, int writes, Factors<Acc<T>> factors,
                                               const Update update) {
  using A = Acc<T>;
  // Registers for loads in flight; 16 fewer where halves are widened. Two vectors of each list in the plain case.
  constexpr int kInFlight = (kBlocks<Update> == 2 ? 64 : 36) - (sizeof(T) < sizeof(A) ? 16 : 0), kStates = Update::kStates;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)  // factors that are known to be zero take no registers
    for (int i = kInG; i < kInputs; ++i)
      if (kLists == bit(kH)) factors.of[o][i] = A(0);
  A kept_sum = 0;
  walk<bit(kW) | bit(kStash) | kLists | kStates, bit(kW) | (kLists & bit(kQ)) | kStates, kInFlight, T>(
      args.table, chunk, reads, writes, [&](A(&x)[kOperands]) {
        const A h = x[kH], g = x[kG], q = x[kQ];
        const A clean = x[kStash], at = args.decay_at_perturbed ? x[kW] : clean;
        State<A> state{x[kM], x[kV], x[kVMax]};
        x[kW] = update.direct(update.update(clean, at, factors.combine(kU, h, g, q), state), factors.combine(kDirect, h, g, q));
        x[kM] = state.m;
        x[kV] = state.v;
        x[kVMax] = state.v_max;
        if ((kLists & writes & bit(kQ)) != 0) {
          x[kQ] = factors.combine(kKept, h, g, q);
          kept_sum += x[kQ] * x[kQ];
        }
      });
  return kept_sum;
}

template <class T, template <class> class U>
__global__ __launch_bounds__(kThreads, kBlocks<U<Acc<T>>>) void descend_kernel(const __grid_constant__ Launch<DescendArgs> launch) {
  using A = Acc<T>;
  using Update = U<A>;
  __shared__ Plan<A> plan;
  __shared__ Options<Update, A> options;
  if (threadIdx.x == 0) options.group = -1;
  resolve_plan<T>(device_args(launch), launch.workspace, plan);

  const int blocks = gridDim.x, block = blockIdx.x;
  A kept_sum = 0;
  for (int c = block + (device_args(launch).table.chunks() - 1 - block) / blocks * blocks; c >= 0; c -= blocks) {
    DescendArgs args = device_args(launch);
    TensorTable& table = args.table;
    const Chunk chunk = find_chunk(table, c);
    int reads = plan.lists, writes = plan.keeps ? bit(kQ) : 0;
    if (!plan.updates) {
      if (table.has(kStash)) restore<T>(table, chunk);
    } else {
      if (!table.has(kStash)) table.slot[kStash] = table.slot[kW];  // the clean weights are at kStash in any case
      options.make(args, chunk.tensor);
      const int states = options.update.states() & plan.have, at = args.decay_at_perturbed && options.update.decays() ? bit(kW) : 0;
      reads |= bit(kStash) | at | (options.update.first ? 0 : states);
      writes |= bit(kW) | states;
    }
    constexpr int kCombined = bit(kH) | bit(kG) | bit(kQ);
    if (((reads | writes) & kCombined & ~bit(kH)) != 0)
      kept_sum += update_chunk<kCombined, T>(args, chunk, reads, writes, plan.factors, options.update);
    else if (writes != 0)
      update_chunk<bit(kH), T>(args, chunk, reads, writes, plan.factors, options.update);  // u = c h, as in most steps
  }

  const DescendArgs args = device_args(launch);
  const bool keeps = plan.keeps, counts = plan.updates && args.steps != nullptr;
  if (!counts && !keeps) return;
  if (keeps) put_partial(launch.workspace, kKeptRow, kept_sum);
  if (!last_block(launch.workspace)) return;
  const double kept = keeps ? sum_partials(launch.workspace, kKeptRow) : 0;
  if (keeps && threadIdx.x == 0) static_cast<A*>(args.gram)[kQQ] = A(kept);
  if (counts)
    for (int t = threadIdx.x; t < args.table.count; t += kThreads)
      if (Update::make(args.hyper + args.table.group[t] * Update::kHypers, A(0), 1.0f).counts()) args.steps[t] += 1.0f;
}

}  // namespace

template <template <class> class U>
int descend_with(const DescendArgs& args, int64_t groups, const Place& place) {
  const int64_t hypers = args.base == kNone ? 0 : groups * U<float>::kHypers;
  return by_dtype(args.dtype, [&](auto stored) {
    return launch<descend_kernel<decltype(stored), U>>(args, hypers, args.reduced() != 0, place);
  });
}

}  // namespace samk
