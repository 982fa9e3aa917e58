// The CPU kernels of the losses and of Gibbs weights as torch ops.
#include "bind_losses.h"
#include "cpu/losses.h"
#include "parallel_for.h"

namespace {

struct Cpu {
  static void run(const samk::CrossEntropyArgs& args, bool backward, int64_t, int64_t) {
    backward ? samk::cpu_cross_entropy_backward(args, samk::parallel_for) : samk::cpu_cross_entropy(args, samk::parallel_for);
  }
  static void run(const samk::GibbsArgs& args, int64_t, int64_t) { samk::cpu_gibbs_weights(args, samk::parallel_for); }
};

}  // namespace

SAMK_BIND_LOSSES(CPU, Cpu)
