// sam_kernels._info: what this build is and what this CPU runs, for show_backends() and benchmark captions.
#include <pybind11/pybind11.h>

#include <string>

#include "core/tensor_table.h"
#include "cpu/chunk_loop.h"
#include "cpu/stream.h"

namespace {

// The compiled version that target_clones picks on this machine.
std::string cpu_isa() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2, FMA)";
  return "x86-64 (baseline)";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "generic";
#endif
}

}  // namespace

PYBIND11_MODULE(_info, m) {
  m.doc() = "Build and machine facts of the compiled kernels.";
  m.attr("compiler") = __VERSION__;
  m.attr("cpu_chunk") = samk::kCpuChunk;
  m.attr("stream_bytes") = samk::kStreamBytes;
  m.def("cpu_isa", &cpu_isa, "Instruction set of the CPU kernels that run on this machine.");
}
