// The CUDA kernels of the losses and of Gibbs weights as torch ops.
#include "bind_losses.h"
#include "cuda/entry_points.h"
#include "cuda/losses.h"

namespace {

struct Cuda {
  static void check(int error) { STD_TORCH_CHECK(error == 0, "CUDA error: ", samk::cuda_error_string(error)); }
  static void* pointer(int64_t stream) { return reinterpret_cast<void*>(stream); }

  static void run(const samk::CrossEntropyArgs& args, bool backward, int64_t device, int64_t stream) {
    check(backward ? samk::cuda_cross_entropy_backward(args, int(device), pointer(stream))
                   : samk::cuda_cross_entropy(args, int(device), pointer(stream)));
  }
  static void run(const samk::GibbsArgs& args, int64_t device, int64_t stream) {
    check(samk::cuda_gibbs_weights(args, int(device), pointer(stream)));
  }
};

}  // namespace

SAMK_BIND_LOSSES(CUDA, Cuda)
