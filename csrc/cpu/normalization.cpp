// normalization_grads: backward of a normalization layer, with the affine gradients of every sample.
//
//   dx = rstd (h - xhat avg(h xhat) - avg(h)),  h = weight grad,  xhat = (x - mean) rstd;   rows[b] = sums of (grad xhat, grad)
//
// Two sweeps over each (entry, group): sums, then dx; 12 bytes per element in fp32, since the second sweep finds grad and x in cache
// as long as a group fits there. Parallel over pieces of work (sample, run of its entries, run of groups) that follow from the sizes
// alone; the rows of a piece are its own, and pieces of one sample are added in their order: equal bits for any number of threads.
// Runs of entries stay short also where samples are many: fp32 rows over thousands of entries would add up roundings.
#include <memory>

#include "layers.h"
#include "normalization_layer.h"

namespace samk {
namespace {

constexpr int64_t kPieces = 64, kPieceElements = 16384, kMostEntries = 512;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Pieces {
  int64_t own, entries, runs, groups, group_runs;  // entries of a sample; entries of a run, runs of a sample; the same of groups

  explicit Pieces(const NormalizationArgs& a) : own(a.entries / a.samples) {
    const int64_t group = a.channels * a.positions;
    groups = ceil_div(a.groups, std::min(a.groups, ceil_div(kPieces, a.samples)));
    groups = std::min(a.groups, std::max(groups, ceil_div(kPieceElements, own * group)));
    group_runs = ceil_div(a.groups, groups);
    entries = ceil_div(own, ceil_div(kPieces, a.samples * group_runs));
    entries = std::min({own, kMostEntries, std::max(entries, ceil_div(kPieceElements, groups * group))});
    runs = ceil_div(own, entries);
  }
  int64_t per_sample() const { return runs * group_runs; }
};

template <class T>
void normalization_grads(const NormalizationArgs& args, ParallelFor parallel_for) {
  using A = Acc<T>;
  const Pieces pieces(args);
  const int64_t affine = args.groups * args.channels, count = args.samples * pieces.per_sample();
  const std::unique_ptr<A[]> partial(pieces.runs > 1 ? new A[size_t(args.samples * pieces.runs * 2 * affine)] : nullptr);
  A* rows = partial ? partial.get() : static_cast<A*>(args.rows);
  struct Context {
    const NormalizationArgs& args;
    const Pieces& pieces;
    A* rows;
  } context{args, pieces, rows};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const auto& [args, pieces, rows] = *static_cast<Context*>(pointer);
    const int64_t d = args.channels, affine = args.groups * d;
    NormalizationLayer<T> layer(args);
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / pieces.group_runs, sample = row / pieces.runs;
      const int64_t first = sample * pieces.own + row % pieces.runs * pieces.entries;
      const int64_t last = std::min(first + pieces.entries, (sample + 1) * pieces.own);
      const int64_t from = piece % pieces.group_runs * pieces.groups, to = std::min(from + pieces.groups, args.groups);
      A *scale = rows + row * 2 * affine, *shift = scale + affine;
      std::fill(scale + from * d, scale + to * d, A(0));
      std::fill(shift + from * d, shift + to * d, A(0));
      for (int64_t group = from; group < to; ++group) layer.backward(first, last, group, scale + group * d, shift + group * d);
    }
  };
  const int64_t piece_elements = pieces.entries * pieces.groups * args.channels * args.positions;
  parallel_for(count, 1 + 2 * kPieceElements / (piece_elements + 1), range, &context);
  if (pieces.runs == 1) return;
  A* out = static_cast<A*>(args.rows);
  for (int64_t sample = 0; sample < args.samples; ++sample, out += 2 * affine, rows += 2 * affine * pieces.runs)
    for (int64_t i = 0; i < 2 * affine; ++i) {
      A sum = rows[i];
      for (int64_t run = 1; run < pieces.runs; ++run) sum += rows[run * 2 * affine + i];
      out[i] = sum;
    }
}

}  // namespace

void cpu_normalization_grads(const NormalizationArgs& args, ParallelFor parallel_for) {
  const int64_t size = args.entries * args.groups * args.channels * args.positions;
  if (size == 0) return;  // the binding has zeroed the rows
  with_type(args.dtype, [&](auto type) { normalization_grads<decltype(type)>(args, parallel_for); });
}

}  // namespace samk
