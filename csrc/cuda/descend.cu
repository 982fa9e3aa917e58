// descend_: restore the clean weights and take the base optimizer's step from them, in one pass.
//
//   w0 = stash or w;  (u, direct, q') = combinations of (h, g, q);  w = base(w0, u) - lr direct;  q <- q'
//
// Bytes: SGD with momentum reads stash, h and the buffer and writes w and the buffer: 20 per element in fp32; 4 more for each list
// that a norm or a coefficient reads, and for q written. A list whose factors come out as 0 is not read.
// Launch: one, blocks of 256 threads, at most one wave of them; cooperative where Gram entries have to be reduced first.
// Deterministic: a block always has the same chunks and sums are added in a fixed order.
// Every block resolves the coefficients for itself, once: cheaper than a launch or a barrier to share 9 numbers.
#include <cooperative_groups.h>

#include "gram.cuh"
#include "launch.cuh"

namespace samk {
namespace {

constexpr int kKeptRow = kGram;  // not a Gram row: a slow block may still read those when a fast one writes this

// Reduces the missing Gram entries, then multiplies out the coefficients. Only block 0 writes `gram`, and only entries that nobody
// reads from it.
template <class T>
__device__ __forceinline__ void resolve_factors(const DescendArgs& args, char* workspace, Factors<T>* factors) {
  const int reduced = args.reduced();
  T* out = static_cast<T*>(args.gram);
  T gram[kGram];
  __shared__ double coefficients[kCoefficients];  // fetched side by side; one thread alone would wait for them in turn
  if (threadIdx.x < kCoefficients) coefficients[threadIdx.x] = args.coefficients[threadIdx.x];
  __syncthreads();
  if (reduced != 0) {
    put_gram_partials<T>(args.table, workspace, reduced, false, T(0));
    cooperative_groups::this_grid().sync();
  }
#pragma unroll
  for (int k = 0; k < kGram; ++k) {
    gram[k] = T(0);
    if ((reduced >> k & 1) != 0) {
      gram[k] = T(sum_partials(workspace, k));
      if (blockIdx.x == 0 && threadIdx.x == 0) out[k] = gram[k];
    } else if ((args.needed >> k & 1) != 0) {
      gram[k] = out[k];
    }
  }
  if (threadIdx.x == 0) {
    const bool bad_norm = args.sq_norm != nullptr && !is_finite(*static_cast<const T*>(args.sq_norm));
    const bool skip = bad_norm || (args.found_inf != nullptr && *args.found_inf != 0.0f);
    *factors = resolve(coefficients, gram, args.needed, args.match_norm, T(args.max_norm), skip);
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ int lists_read(const Factors<T>& factors, DescendOutput output) {
  const T(&c)[kInputs] = factors.of[output];
  return (c[kInH] != T(0) ? bit(kH) : 0) | (c[kInG] != T(0) ? bit(kG) : 0) | (c[kInQ] != T(0) ? bit(kQ) : 0);
}

template <class T, Base kBase>
__global__ __launch_bounds__(kThreads, 3) void descend_kernel(const __grid_constant__ Launch<DescendArgs> launch) {
  const DescendArgs args = device_args(launch);
  const TensorTable& table = args.table;
  __shared__ Factors<T> shared;
  resolve_factors(args, launch.workspace, &shared);
  const Factors<T> factors = shared;

  const bool updates = kBase != kNone && !factors.skip, keeps = args.write_q && !factors.skip, restores = table.has(kStash);
  const int combined = (updates ? lists_read(factors, kU) | lists_read(factors, kDirect) : 0) | (keeps ? lists_read(factors, kKept) : 0);
  const int have = present(table), lists = combined & have;
  const int chunks = table.chunks(), blocks = gridDim.x, block = blockIdx.x;
  T kept_sum = 0;
  for (int c = block + (chunks - 1 - block) / blocks * blocks; c >= 0 && c < chunks; c -= blocks) {
    const Chunk chunk = find_chunk(table, c);
    int reads = lists | (restores ? bit(kStash) : updates ? bit(kW) : 0);
    int writes = (restores || updates ? bit(kW) : 0) | (keeps ? have & bit(kQ) : 0);
    Sgd<T> sgd{};
    bool first = false;
    if (kBase == kSgd && updates) {
      const int group = table.group[chunk.tensor];
      const double* hyper = args.hyper + group * kSgdHypers;
      sgd = make_sgd(hyper, args.lr != nullptr ? static_cast<const T*>(args.lr)[group] : T(hyper[kLr]));
      first = args.steps != nullptr && args.steps[chunk.tensor] == 0.0f;
      const int state = sgd.momentum != T(0) ? have & bit(kState) : 0;
      reads |= state | (args.decay_at_perturbed && sgd.weight_decay != T(0) ? bit(kW) : 0);
      writes |= state;
    }
    constexpr int kLists = bit(kH) | bit(kG) | bit(kQ), kState_ = kBase == kNone ? 0 : bit(kState);
    walk<bit(kW) | bit(kStash) | kLists | kState_, bit(kW) | bit(kQ) | kState_, 2, T>(table, chunk, reads, writes, [&](T(&x)[kOperands]) {
      const T clean = restores ? x[kStash] : x[kW], at = args.decay_at_perturbed ? x[kW] : clean;
      T updated = clean;
      if constexpr (kBase == kSgd)
        if (updates) {
          const T u = factors.combine(kU, x[kH], x[kG], x[kQ]), direct = factors.combine(kDirect, x[kH], x[kG], x[kQ]);
          updated = sgd.direct(sgd.update(clean, at, u, x[kState], first), direct);
        }
      if (keeps) {
        x[kQ] = factors.combine(kKept, x[kH], x[kG], x[kQ]);
        kept_sum += x[kQ] * x[kQ];
      }
      x[kW] = updated;
    });
  }

  const bool counts = updates && kBase == kSgd && args.steps != nullptr;
  if (!counts && !keeps) return;
  if (keeps) put_partial(launch.workspace, kKeptRow, kept_sum);
  if (!last_block(launch.workspace)) return;
  const double kept = keeps ? sum_partials(launch.workspace, kKeptRow) : 0;
  if (keeps && threadIdx.x == 0) static_cast<T*>(args.gram)[kQQ] = T(kept);
  if (counts)
    for (int t = threadIdx.x; t < table.count; t += kThreads)
      if (args.hyper[table.group[t] * kSgdHypers + kMomentum] != 0) args.steps[t] += 1.0f;
}

}  // namespace

int cuda_descend(const DescendArgs& args, int64_t groups, void* workspace, int64_t workspace_bytes, int device, void* stream) {
  if (args.table.count == 0) return cudaSuccess;
  const Place place{workspace, workspace_bytes, device, stream};
  const bool cooperative = args.reduced() != 0;
  return args.base == kSgd ? launch<descend_kernel<float, kSgd>>(args, groups, cooperative, place)
                           : launch<descend_kernel<float, kNone>>(args, groups, cooperative, place);
}

}  // namespace samk
