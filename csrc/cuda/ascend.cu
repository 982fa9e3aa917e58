// ascend_: along gradients or along random signs. The signs are compiled apart: a thread that draws none keeps no place for them.
#include "ascend.cuh"

namespace samk {

extern template int ascend_with<true>(const AscendArgs&, int64_t, const Place&);  // ascend_noise.cu

int cuda_ascend(const AscendArgs& args, int64_t groups, void* workspace, int64_t workspace_bytes, int device, void* stream) {
  const Place place{workspace, workspace_bytes, device, stream};
  return args.noise != nullptr ? ascend_with<true>(args, groups, place) : ascend_with<false>(args, groups, place);
}

}  // namespace samk
