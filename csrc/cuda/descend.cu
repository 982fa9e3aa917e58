// descend_: restore the clean weights and take the base optimizer's step from them, in one pass.
//
//   w0 = stash or w;  (u, direct, q') = combinations of (h, g, q);  w = base(w0, u) - lr direct;  q <- q'
//
// Bytes: SGD with momentum reads stash, h and the buffer and writes w and the buffer: 20 per element in fp32, 14 in bf16 and fp16,
// whose buffer is fp32; Adam 28 and 22; more for each list that a norm or a coefficient reads, and for q written. A list whose
// factors come out as 0 is not read.
// Launch: one, blocks of 256 threads, at most one wave of them; cooperative where Gram entries have to be reduced first.
// Deterministic: a block always has the same chunks and sums are added in a fixed order.
// Every block resolves the coefficients for itself, once: cheaper than a launch or a barrier to share 9 numbers.
// The bases are compiled apart, at the same time. `none` runs in the kernel of SGD: a step that is skipped does the same.
#include "launch.cuh"

namespace samk {

template <template <class> class U>
int descend_with(const DescendArgs& args, int64_t groups, const Place& place);

int cuda_descend(const DescendArgs& args, int64_t groups, void* workspace, int64_t workspace_bytes, int device, void* stream) {
  if (args.table.count == 0) return cudaSuccess;
  const Place place{workspace, workspace_bytes, device, stream};
  switch (args.base) {
    case kNone:
    case kSgd: return descend_with<Sgd>(args, groups, place);
    case kAdam: return descend_with<Adam>(args, groups, place);
    case kLion: return descend_with<Lion>(args, groups, place);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace samk
