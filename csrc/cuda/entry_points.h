// What the CUDA backend exports to its binding. Plain C++: no torch here, and no CUDA header needed to include it.
//
// Every function launches on `stream` of `device` (a cudaStream_t, as an opaque pointer), never waits for the host, may be captured in
// a CUDA graph, and returns a cudaError_t (0 is success). Tables, hyperparameters and coefficients are host arrays, free to be
// reused on return; all other pointers are device memory. fp32, bf16 and fp16: fp64 is cudaErrorInvalidValue.
//
// `workspace` is device memory, 16-byte aligned, of 128 KiB and 256 bytes per tensor; less is cudaErrorInvalidValue where it
// does not suffice. Its owner zeroes the first 256 bytes once; they carry a counter from launch to launch that each one leaves at zero. Two
// launches that may run at the same time must not share it: keep one per device and stream, and another one for every captured graph.
// Host threads may share it, and with it the stream: their launches do not mix.
#pragma once
#include <cstdint>

#include "core/entry_points.h"

namespace samk {

constexpr int kCudaChunk = 8192;  // elements per chunk: the chunk_size of every table given to these functions

int cuda_inner_products(const InnerProductsArgs& args, void* workspace, int64_t workspace_bytes, int device, void* stream);
int cuda_ascend(const AscendArgs& args, int64_t groups, void* workspace, int64_t workspace_bytes, int device, void* stream);
int cuda_descend(const DescendArgs& args, int64_t groups, void* workspace, int64_t workspace_bytes, int device, void* stream);

const char* cuda_error_string(int error);

}  // namespace samk
