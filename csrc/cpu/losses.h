// The CPU kernels over rows of logits and over vectors of norms, and what the two directions of the loss share.
#pragma once
#include <algorithm>

#include "core/cross_entropy.h"
#include "core/gibbs_weights.h"
#include "stage.h"

namespace samk {

void cpu_cross_entropy(const CrossEntropyArgs& args, ParallelFor parallel_for);
void cpu_cross_entropy_backward(const CrossEntropyArgs& args, ParallelFor parallel_for);
void cpu_gibbs_weights(const GibbsArgs& args, ParallelFor parallel_for);

constexpr int kTileRows = 16;            // rows whose last few operations are done side by side
constexpr int64_t kNarrow = 64;          // rows of at most so many logits are turned: vectors run over rows
constexpr int64_t kRowBlock = kBlock;    // logits of a longer row at a time

// Rows of a tile: all of them where rows are short, one where a row is work enough for a task.
inline int64_t tile_rows(int64_t classes) {
  return std::max<int64_t>(1, std::min<int64_t>(kTileRows, kCpuChunk / std::max<int64_t>(classes, 1)));
}

// body(first row, rows) for every tile, in parallel. What a row becomes does not depend on its tile.
template <class Body>
void for_each_tile(int64_t rows, int64_t classes, ParallelFor parallel_for, const Body& body) {
  struct Context {
    int64_t rows, step;
    const Body& body;
  } context{rows, tile_rows(classes), body};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    for (int64_t tile = begin; tile < end; ++tile) c.body(tile * c.step, std::min(c.step, c.rows - tile * c.step));
    stream_end();
  };
  const int64_t work = context.step * std::max<int64_t>(classes, 1);
  parallel_for((rows + context.step - 1) / context.step, 1 + kCpuChunk / work, range, &context);
}

template <class T>
struct Row {
  const T* logits;
  int64_t y;  // target, or 0 where there is none to look at
};

template <class T>
SAMK_INLINE Row<T> row_of(const CrossEntropyArgs& args, int64_t row) {
  return {static_cast<const T*>(args.logits) + row * args.stride, args.valid(row) && !args.ignored(row) ? args.target[row] : 0};
}

}  // namespace samk
