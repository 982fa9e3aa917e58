// The kernel of descend_, once for every base and dtype; descend.cu says what it does.
#pragma once
#include <cooperative_groups.h>

#include "gram.cuh"
#include "launch.cuh"

namespace samk {

// Launches the kernel with the update U; descend_<base>.cu compile one each.
template <template <class> class U>
int descend_with(const DescendArgs& args, int64_t groups, const Place& place);

namespace {

constexpr int kKeptRow = kGram;  // not a Gram row: a slow block may still read those when a fast one writes this

// Reduces the missing Gram entries, then multiplies out the coefficients. Only block 0 writes `gram`, and only entries that nobody
// reads from it.
template <class T>
__device__ __forceinline__ void resolve_factors(const DescendArgs& args, char* workspace, Factors<Acc<T>>* factors) {
  using A = Acc<T>;
  const int reduced = args.reduced();
  A* out = static_cast<A*>(args.gram);
  A gram[kGram];
  __shared__ double coefficients[kCoefficients];  // fetched side by side; one thread alone would wait for them in turn
  if (threadIdx.x < kCoefficients) coefficients[threadIdx.x] = args.coefficients[threadIdx.x];
  __syncthreads();
  if (reduced != 0) {
    put_gram_partials<T>(args.table, workspace, reduced, false, A(0));
    cooperative_groups::this_grid().sync();
  }
#pragma unroll
  for (int k = 0; k < kGram; ++k) {
    gram[k] = A(0);
    if ((reduced >> k & 1) != 0) {
      gram[k] = A(sum_partials(workspace, k));
      if (blockIdx.x == 0 && threadIdx.x == 0) out[k] = gram[k];
    } else if ((args.needed >> k & 1) != 0) {
      gram[k] = out[k];
    }
  }
  if (threadIdx.x == 0) {
    const bool bad_norm = args.sq_norm != nullptr && !is_finite(*static_cast<const A*>(args.sq_norm));
    const bool skip = bad_norm || (args.found_inf != nullptr && *args.found_inf != 0.0f);
    *factors = resolve(coefficients, gram, args.needed, args.match_norm, A(args.max_norm), args.loss_scale, skip);
  }
  __syncthreads();
}

template <class A>
__device__ __forceinline__ int lists_read(const Factors<A>& factors, DescendOutput output) {
  const A(&c)[kInputs] = factors.of[output];
  return (c[kInH] != A(0) ? bit(kH) : 0) | (c[kInG] != A(0) ? bit(kG) : 0) | (c[kInQ] != A(0) ? bit(kQ) : 0);
}

// The options of a tensor's update, shared by the block. One thread makes them, because Adam's take logarithms in fp64, and only where
// group or step count differ from those of the block's previous chunk: almost never.
template <class Update, class A>
struct Options {
  Update update;
  int group;
  float steps;

  __device__ __forceinline__ void make(const DescendArgs& args, int tensor) {
    const int row = args.table.group[tensor];
    const float count = args.steps != nullptr ? args.steps[tensor] : 1.0f;
    if (row == group && count == steps) return;
    __syncthreads();  // everybody has seen the previous ones
    if (threadIdx.x == 0) {
      const double* hyper = args.hyper + row * Update::kHypers;
      update = Update::make(hyper, args.lr != nullptr ? static_cast<const A*>(args.lr)[row] : A(hyper[kLr]), count);
      group = row;
      steps = count;
    }
    __syncthreads();
  }
};

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

template <class T, template <class> class U>
__global__ __launch_bounds__(kThreads, kBlocks<U<Acc<T>>>) void descend_kernel(const __grid_constant__ Launch<DescendArgs> launch) {
  using A = Acc<T>;
  using Update = U<A>;
  const DescendArgs args = device_args(launch);
  const TensorTable& table = args.table;
  __shared__ Factors<A> shared_factors;
  __shared__ Options<Update, A> options;
  if (threadIdx.x == 0) options.group = -1;
  resolve_factors<T>(args, launch.workspace, &shared_factors);
  const Factors<A> factors = shared_factors;

  const bool updates = args.base != kNone && !factors.skip, keeps = args.write_q && !factors.skip, stashed = table.has(kStash);
  const int combined = (updates ? lists_read(factors, kU) | lists_read(factors, kDirect) : 0) | (keeps ? lists_read(factors, kKept) : 0);
  const int have = present(table), lists = combined & have;
  const int chunks = table.chunks(), blocks = gridDim.x, block = blockIdx.x;
  A kept_sum = 0;
  for (int c = block + (chunks - 1 - block) / blocks * blocks; c >= 0 && c < chunks; c -= blocks) {
    const Chunk chunk = find_chunk(table, c);
    int reads = lists, writes = keeps ? have & bit(kQ) : 0;
    if (updates) {
      options.make(args, chunk.tensor);
      const int states = options.update.states() & have, at = args.decay_at_perturbed && options.update.decays() ? bit(kW) : 0;
      reads |= bit(stashed ? kStash : kW) | at | (options.update.first ? 0 : states);
      writes |= bit(kW) | states;
    } else if (stashed) {
      restore<T>(table, chunk);
    }
    if (writes == 0) continue;
    const Update update = options.update;
    constexpr int kInFlight = (kBlocks<Update> == 2 ? 64 : 48) - (sizeof(T) < sizeof(A) ? 16 : 0);
    constexpr int kLists = bit(kH) | bit(kG) | bit(kQ), kStates = Update::kStates;
    walk<bit(kW) | bit(kStash) | kLists | kStates, bit(kW) | bit(kQ) | kStates, kInFlight, T>(table, chunk, reads, writes, [&](A(&x)[kOperands]) {
      if (updates) {
        const A clean = stashed ? x[kStash] : x[kW], at = args.decay_at_perturbed ? x[kW] : clean;
        const A u = factors.combine(kU, x[kH], x[kG], x[kQ]), direct = factors.combine(kDirect, x[kH], x[kG], x[kQ]);
        State<A> state{x[kM], x[kV], x[kVMax]};
        x[kW] = update.direct(update.update(clean, at, u, state), direct);
        x[kM] = state.m;
        x[kV] = state.v;
        x[kVMax] = state.v_max;
      }
      if (keeps) {
        x[kQ] = factors.combine(kKept, x[kH], x[kG], x[kQ]);
        kept_sum += x[kQ] * x[kQ];
      }
    });
  }

  const bool counts = updates && args.steps != nullptr;
  if (!counts && !keeps) return;
  if (keeps) put_partial(launch.workspace, kKeptRow, kept_sum);
  if (!last_block(launch.workspace)) return;
  const double kept = keeps ? sum_partials(launch.workspace, kKeptRow) : 0;
  if (keeps && threadIdx.x == 0) static_cast<A*>(args.gram)[kQQ] = A(kept);
  if (counts)
    for (int t = threadIdx.x; t < table.count; t += kThreads)
      if (Update::make(args.hyper + table.group[t] * Update::kHypers, A(0), 1.0f).counts()) args.steps[t] += 1.0f;
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
