// The CUDA kernels as torch ops. Device and stream come from Python; nothing here or below asks torch for them, so this library
// loads beside CPU-only torch.
#include "bind.h"
#include "cuda/entry_points.h"

namespace {

struct Cuda {
  static constexpr int32_t chunk = samk::kCudaChunk;
  using Tensor = samk::Tensor;

  static void check(int error) { STD_TORCH_CHECK(error == 0, "CUDA error: ", samk::cuda_error_string(error)); }
  static void* pointer(int64_t stream) { return reinterpret_cast<void*>(stream); }

  static void run(const samk::InnerProductsArgs& args, int64_t, const Tensor& workspace, int64_t device, int64_t stream) {
    check(samk::cuda_inner_products(args, workspace.data_ptr(), workspace.numel(), int(device), pointer(stream)));
  }
  static void run(const samk::AscendArgs& args, int64_t groups, const Tensor& workspace, int64_t device, int64_t stream) {
    check(samk::cuda_ascend(args, groups, workspace.data_ptr(), workspace.numel(), int(device), pointer(stream)));
  }
  static void run(const samk::DescendArgs& args, int64_t groups, const Tensor& workspace, int64_t device, int64_t stream) {
    check(samk::cuda_descend(args, groups, workspace.data_ptr(), workspace.numel(), int(device), pointer(stream)));
  }
};

}  // namespace

SAMK_BIND(CUDA, Cuda)
