// inner_products: entries of the Gram matrix of up to three lists, each list taken as one vector.
//
//   out = (g.g, g.h, h.h, g.q, h.q, q.q),   x.y = sum_j c_j^2 x_j y_j,   c = 1, or |w| + eta where weights are given
//
// Bytes: every list once, 4 per element in fp32, 2 in bf16 and fp16. Launch: one, ordinary, at most one wave of blocks of 256 threads;
// block b takes the chunks b, b + grid, ... Deterministic: fp32 per thread, then fp64 in a fixed order.
// The block that comes last adds the partial sums up, instead of a grid barrier: nobody else waits for the result.
#include "gram.cuh"
#include "launch.cuh"

namespace samk {
namespace {

template <class T>
__global__ __launch_bounds__(kThreads, 4) void inner_products_kernel(const __grid_constant__ Launch<InnerProductsArgs> launch) {
  const InnerProductsArgs args = device_args(launch);
  const int lists = present(args.table);
  int mask = 0;
  for (int k = 0; k < kGram; ++k) mask |= (gram_reads(bit(k)) & ~lists) == 0 ? bit(k) : 0;
  put_gram_partials<T>(args.table, launch.workspace, mask, args.table.has(kW), Acc<T>(args.eta));
  if (!last_block(launch.workspace)) return;
  for (int k = 0; k < kGram; ++k) {
    const double sum = (mask >> k & 1) != 0 ? sum_partials(launch.workspace, k) : 0;
    if (threadIdx.x == 0) static_cast<Acc<T>*>(args.gram)[k] = Acc<T>(sum);
  }
}

}  // namespace

int cuda_inner_products(const InnerProductsArgs& args, void* workspace, int64_t workspace_bytes, int device, void* stream) {
  return by_dtype(args.dtype, [&](auto stored) {
    return launch<inner_products_kernel<decltype(stored)>>(args, 0, false, {workspace, workspace_bytes, device, stream});
  });
}

}  // namespace samk
