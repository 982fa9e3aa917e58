// The chunk loop of the CPU kernels: every family runs its body over the chunks of a table on torch's thread pool.
//
// Reductions are deterministic: each chunk owns a row of partial sums, combined in chunk order, whatever the number of threads.
// Only the first chunk of a range is searched for, the others are stepped to: with thousands of small tensors a chunk is a tensor.
#pragma once
#include <vector>

#include "core/entry_points.h"
#include "stream.h"

// One body, three compiled versions, chosen when the library loads; FMA and 512-bit vectors where the machine has them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SAMK_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SAMK_CLONES
#endif
#define SAMK_INLINE inline __attribute__((always_inline))

namespace samk {

constexpr int32_t kCpuChunk = 16384;  // elements: 64 KiB of each fp32 operand, a few operands fit a core's L2

// Runs body(context, begin, end) over [0, count) in parallel; handed in by the binding, since the kernels know no torch.
using ParallelFor = void (*)(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

inline Chunk chunk_at(const TensorTable& table, int32_t tensor, int32_t chunk) {
  const int64_t begin = int64_t(chunk - table.first_chunk[tensor]) * table.chunk_size, end = begin + table.chunk_size;
  return {tensor, begin, end < table.numel[tensor] ? end : table.numel[tensor]};
}

// body(chunk index, chunk) for every chunk. Each range runs a copy of its own of `body`, which may remember things between chunks.
template <class Body>
void for_each_chunk(const TensorTable& table, ParallelFor parallel_for, const Body& body) {
  struct Context {
    const TensorTable& table;
    const Body& body;
  } context{table, body};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    if (begin >= end) return;
    Body body = c.body;
    int32_t tensor = find_chunk(c.table, int32_t(begin)).tensor;
    for (int32_t i = int32_t(begin); i < end; ++i) {
      while (c.table.first_chunk[tensor + 1] <= i) ++tensor;
      body(i, chunk_at(c.table, tensor, i));
    }
    stream_end();
  };
  const int64_t chunks = table.chunks();
  int64_t elements = 0;
  for (int32_t t = 0; t < table.count; ++t) elements += table.numel[t];
  const int64_t grain = elements > 0 ? 1 + chunks * int64_t(kCpuChunk) / elements : 1;  // about one full chunk per task
  parallel_for(chunks, grain, range, &context);
}

// Sums of a fixed number of quantities over all chunks; body(chunk, row) adds a chunk's contribution to `row` (zeroed).
template <int kSums, class Body>
void reduce_chunks(const TensorTable& table, ParallelFor parallel_for, double (&total)[kSums], const Body& body) {
  std::vector<double> partial(size_t(table.chunks()) * kSums, 0.0);
  const auto summed = [body = body, &partial](int32_t i, const Chunk& chunk) mutable { body(chunk, &partial[size_t(i) * kSums]); };
  for_each_chunk(table, parallel_for, summed);
  for (double& sum : total) sum = 0;
  for (size_t row = 0; row < partial.size(); row += kSums)
    for (int k = 0; k < kSums; ++k) total[k] += partial[row + k];
}

// body(chunk, begin, end) for the chunks of one vector of n elements, at least `grain` of them to a thread.
template <class Body>
void for_each_range(int64_t n, int64_t grain, ParallelFor parallel_for, const Body& body) {
  struct Context {
    int64_t n;
    const Body& body;
  } context{n, body};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    for (int64_t i = begin; i < end; ++i) c.body(i, i * kCpuChunk, c.n < (i + 1) * kCpuChunk ? c.n : (i + 1) * kCpuChunk);
  };
  parallel_for((n + kCpuChunk - 1) / kCpuChunk, grain, range, &context);
}

// What was made for the last (group, steps); neighbouring tensors mostly share it, and an Adam update costs two logarithms to make.
template <class Value>
class Remembered {
 public:
  template <class Make>
  const Value& get(int32_t group, float steps, const Make& make) {
    if (group != group_ || steps != steps_) value_ = make(group_ = group, steps_ = steps);
    return value_;
  }

 private:
  int32_t group_ = -1;
  float steps_ = 0;
  Value value_{};
};

// Where this chunk of an operand begins, or null.
template <class T>
SAMK_INLINE T* chunk_data(const TensorTable& table, const Chunk& chunk, Operand operand) {
  T* data = table.data<T>(operand, chunk.tensor);
  return data ? data + chunk.begin : nullptr;
}

template <class T>
SAMK_INLINE T* offset(T* data, int64_t by) {
  return data ? data + by : nullptr;
}

// An absent operand reads as `fallback`, so that loops need no null checks; its factor is zero and the formulas skip it.
template <class T>
SAMK_INLINE const T* or_else(const T* data, const T* fallback) {
  return data ? data : fallback;
}

// run(T()) for the storage type T.
template <class Run>
void with_type(DType dtype, const Run& run) {
  if (dtype == kFloat32) run(float());
  if (dtype == kFloat64) run(double());
  if (dtype == kBFloat16) run(BFloat16());
  if (dtype == kFloat16) run(Float16());
}

// Gram entries over all tensors of the table; `lists` is the mask of operands to read: 1 = g, 2 = h, 4 = q.
template <class T>
void reduce_gram(const TensorTable& table, int lists, bool weighted, Acc<T> eta, ParallelFor parallel_for, double (&total)[kGram]);

void cpu_inner_products(const InnerProductsArgs& args, ParallelFor parallel_for);
void cpu_ascend(const AscendArgs& args, ParallelFor parallel_for);
void cpu_descend(const DescendArgs& args, ParallelFor parallel_for);

}  // namespace samk
