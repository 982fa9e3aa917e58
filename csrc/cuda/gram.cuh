// The Gram reduction that inner_products and descend_ share: the partial sums of the chosen entries over this block's chunks.
#pragma once
#include "chunk_loop.cuh"
#include "grid_sums.cuh"

namespace samk {

SAMK_HD int present(const TensorTable& table) {
  int mask = 0;
  for (int k = 0; k < kOperands; ++k) mask |= table.has(Operand(k)) ? bit(k) : 0;
  return mask;
}

// Operands that the Gram entries in `mask` multiply.
SAMK_HD constexpr int gram_reads(int mask) {
  return ((mask & (bit(kGG) | bit(kGH) | bit(kGQ))) != 0 ? bit(kG) : 0) | ((mask & (bit(kGH) | bit(kHH) | bit(kHQ))) != 0 ? bit(kH) : 0) |
         ((mask & (bit(kGQ) | bit(kHQ) | bit(kQQ))) != 0 ? bit(kQ) : 0);
}

// Puts the block's partial sum of entry k of `mask` into row k; with `weighted` the lists are scaled by |w| + eta. A single list of
// the width of g is the norm of every step and has a loop of its own, which does a sixth of the arithmetic.
template <class T>
__device__ __forceinline__ void put_gram_partials(const TensorTable& table, char* workspace, int mask, bool weighted, Acc<T> eta) {
  using A = Acc<T>;
  const int involved = gram_reads(mask), lists = involved & present(table), weights = weighted ? bit(kW) : 0;
  const bool single = (involved & (involved - 1)) == 0 && (involved != bit(kQ) || sizeof(A) == sizeof(T));
  TensorTable alone = table;  // the single list stands at kG
  alone.slot[kG] = lists == bit(kG) ? table.slot[kG] : lists == bit(kH) ? table.slot[kH] : table.slot[kQ];
  A sum[kGram] = {};
  for (int c = blockIdx.x; lists != 0 && c < table.chunks(); c += gridDim.x) {
    const Chunk chunk = find_chunk(table, c);
    if (single)
      walk<bit(kG) | bit(kW), 0, 32, T>(alone, chunk, bit(kG) | weights, 0, [&](const A(&x)[kOperands]) {
        const A value = weighted ? adaptive_scale(x[kW], eta) * x[kG] : x[kG];
        sum[kGG] += value * value;
      });
    else
      walk<bit(kG) | bit(kH) | bit(kQ) | bit(kW), 0, 32, T>(table, chunk, lists | weights, 0, [&](const A(&x)[kOperands]) {
        const A scale = weighted ? adaptive_scale(x[kW], eta) : A(1);
        A term[kGram];
        gram_terms(scale * x[kG], scale * x[kH], scale * x[kQ], term);
#pragma unroll
        for (int k = 0; k < kGram; ++k) sum[k] += term[k];
      });
  }
#pragma unroll
  for (int k = 0; k < kGram; ++k)
    if ((mask >> k & 1) != 0) put_partial(workspace, k, single ? sum[kGG] : sum[k]);
}

}  // namespace samk
