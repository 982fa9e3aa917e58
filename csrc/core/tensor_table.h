// A bucket of tensors as plain addresses: the only thing that crosses from the bindings to the kernels. No torch here.
//
// A bucket is T tensors of one dtype on one device. Its operands are parallel lists; only the lists that are present take a row of
// `address`, so that a table with few operands holds more tensors in the same kernel-argument space.
// Every tensor is cut into chunks; chunk c belongs to the tensor t with first_chunk[t] <= c < first_chunk[t + 1].
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SAMK_HD __host__ __device__ __forceinline__
#else
#define SAMK_HD inline __attribute__((always_inline))
#endif

namespace samk {

// w, stash, h and g are stored in the dtype of the bucket; what lives from step to step (q and the state m, v, v_max) in the
// accumulation type: float, or double for double tensors.
enum Operand : int { kW, kStash, kH, kG, kQ, kM, kV, kVMax, kOperands };
enum DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct TensorTable {
  const int64_t* address;      // [present lists][count]
  const int64_t* numel;        // [count]
  const int32_t* group;        // [count] row of the hyperparameter table
  const int32_t* first_chunk;  // [count + 1]
  int32_t count;
  int32_t chunk_size;
  int8_t slot[kOperands];  // row of `address`, or -1 where the operand is absent

  SAMK_HD int32_t chunks() const { return first_chunk[count]; }
  SAMK_HD bool has(Operand operand) const { return slot[operand] >= 0; }

  template <class T>
  SAMK_HD T* data(Operand operand, int32_t tensor) const {
    return has(operand) ? reinterpret_cast<T*>(address[int64_t(slot[operand]) * count + tensor]) : nullptr;
  }
};

// One chunk: elements [begin, end) of tensor `tensor`.
struct Chunk {
  int32_t tensor;
  int64_t begin, end;
};

SAMK_HD Chunk find_chunk(const TensorTable& table, int32_t chunk) {
  int32_t low = 0, high = table.count;  // invariant: first_chunk[low] <= chunk < first_chunk[high]
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (table.first_chunk[middle] <= chunk ? low : high) = middle;
  }
  const int64_t begin = int64_t(chunk - table.first_chunk[low]) * table.chunk_size;
  const int64_t end = begin + table.chunk_size;
  return {low, begin, end < table.numel[low] ? end : table.numel[low]};
}

}  // namespace samk
