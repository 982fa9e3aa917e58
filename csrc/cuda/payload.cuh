// From host arguments to one launch: the arrays of an Args struct travel by value in the kernel arguments, so that a launch needs no
// copy, no pinned buffer and no event, and can be captured. Kernel arguments hold 32 KB (CUDA 12.1, sm_70); a longer payload goes to
// a table in the workspace, written by small kernels whose own arguments are its pieces. The main kernel is the same for both.
#pragma once
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/entry_points.h"

namespace samk {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 2048;  // all blocks of a grid are resident, 148 SMs x 8 blocks of 256 threads on the largest GPU so far
constexpr int kPartialRows = kGram + 1;
constexpr int64_t kTicketBytes = 256, kPartialBytes = int64_t(kPartialRows) * kMaxBlocks * sizeof(double);
static_assert(kTicketBytes + kPartialBytes <= 128 * 1024, "the workspace that entry_points.h asks for");
constexpr int64_t kArgumentBytes = 32760;  // the limit is 32764

// ---- one list of the arrays of each Args struct, visited to measure, to pack and to bind; 8-byte elements first keep all
// aligned. `hypers`: entries of the table of hyperparameters.

template <class Visit>
SAMK_HD void each_array(TensorTable& table, Visit& visit) {
  int64_t lists = 0;
  for (int k = 0; k < kOperands; ++k) lists += table.slot[k] >= 0;
  visit(table.address, lists * table.count);
  visit(table.numel, table.count);
  visit(table.group, table.count);
  visit(table.first_chunk, table.count + 1);
}
template <class Visit>
SAMK_HD void each_array(InnerProductsArgs& args, int64_t, Visit& visit) {
  each_array(args.table, visit);
}
template <class Visit>
SAMK_HD void each_array(AscendArgs& args, int64_t hypers, Visit& visit) {
  visit(args.hyper, hypers);
  each_array(args.table, visit);
}
template <class Visit>
SAMK_HD void each_array(DescendArgs& args, int64_t hypers, Visit& visit) {
  visit(args.hyper, hypers);
  visit(args.coefficients, kCoefficients);
  each_array(args.table, visit);
}

struct Measure {
  int64_t bytes = 0;
  template <class E>
  SAMK_HD void operator()(const E*&, int64_t n) {
    bytes += n * int64_t(sizeof(E));
  }
};
struct Pack {  // leaves the distance from `to` where the address was: the device need not count
  char* to;
  int64_t bytes = 0;
  template <class E>
  SAMK_HD void operator()(const E*& array, int64_t n) {
    if (n > 0) memcpy(to + bytes, array, n * sizeof(E));
    array = reinterpret_cast<const E*>(bytes);
    bytes += n * int64_t(sizeof(E));
  }
};
struct Bind {
  const char* from;
  template <class E>
  SAMK_HD void operator()(const E*& array, int64_t) {
    array = reinterpret_cast<const E*>(from + reinterpret_cast<int64_t>(array));
  }
};

// ---- kernel arguments

template <class Args>
struct Header {
  Args args;  // its array pointers are distances until device_args() binds them
  char* workspace;    // [ticket][partial sums][table]
  const char* table;  // the packed arrays in the workspace, or null: they are in `packed`
};
template <class Args>
struct Launch : Header<Args> {
  alignas(8) char packed[kArgumentBytes - sizeof(Header<Args>)];
};

template <class Args>
__device__ __forceinline__ Args device_args(const Launch<Args>& launch) {
  Args args = launch.args;
  const char* from = launch.table != nullptr ? launch.table : launch.packed;
  asm volatile("" : "+l"(from));  // so that what one call binds is not held in registers until the next: they are cheap to bind
  Bind bind{from};
  each_array(args, 0, bind);
  return args;
}

}  // namespace samk
