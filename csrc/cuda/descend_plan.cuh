// What a block of descend_ finds out before it walks: which factors, lists and outputs, and the options of the base.
//
// Both are in shared memory, written by one thread: held in registers, they would cost the walk of every thread its vectors in flight.
#pragma once
#include <cooperative_groups.h>

#include "gram.cuh"

namespace samk {

template <class A>
struct Plan {  // what a block has to do
  Factors<A> factors;
  int lists, have;      // those that it reads; those that there are
  bool updates, keeps;  // w, q

  __device__ __forceinline__ int read_for(DescendOutput output) const {
    const A(&c)[kInputs] = factors.of[output];
    return (c[kInH] != A(0) ? bit(kH) : 0) | (c[kInG] != A(0) ? bit(kG) : 0) | (c[kInQ] != A(0) ? bit(kQ) : 0);
  }
};

// Reduces the missing Gram entries, then multiplies out the coefficients. Only block 0 writes `gram`, and only entries that nobody
// reads from it.
template <class T>
__device__ __forceinline__ void resolve_plan(const DescendArgs& args, char* workspace, Plan<Acc<T>>& plan) {
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
    plan.factors = resolve(coefficients, gram, args.needed, args.match_norm, A(args.max_norm), args.loss_scale, skip);
    plan.updates = args.base != kNone && !plan.factors.skip;
    plan.keeps = args.write_q && !plan.factors.skip;
    plan.lists = (plan.updates ? plan.read_for(kU) | plan.read_for(kDirect) : 0) | (plan.keeps ? plan.read_for(kKept) : 0);
    plan.have = present(args.table);
    plan.lists &= plan.have;
  }
  __syncthreads();
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

}  // namespace samk
