// normalization_grads: backward of a normalization layer, with the affine gradients of every sample.
//
//   dx = rstd (h - xhat avg(h xhat) - avg(h)),  h = weight grad,  xhat = (x - mean) rstd;   rows[b] = sums of (grad xhat, grad)
//
// Two sweeps over each (entry, group): sums, then dx; 12 bytes per element in fp32, since the second sweep finds grad and x in cache
// as long as a group fits there. Parallel over pieces of work (sample, run of its entries, run of groups) that follow from the sizes
// alone; the rows of a piece are its own, and pieces of one sample are added in their order: equal bits for any number of threads.
// Runs of entries stay short also where samples are many: fp32 rows over thousands of entries would add up roundings.
#include <algorithm>

#include "layers.h"
#include "normalization_block.h"
#include "stage.h"

namespace samk {
namespace {

constexpr int64_t kPieces = 128, kPieceElements = 16384, kMostEntries = 512;

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
class Layer {
  using A = Acc<T>;

 public:
  explicit Layer(const NormalizationArgs& args) : a_(args) {}

  // Entry n of group `group`: writes its dx, adds to scale[c] and shift[c]; sums: room for two numbers per channel.
  void group(int64_t n, int64_t group, A* scale, A* shift, A* sums) const {
    const int64_t at = n * a_.groups + group, size = a_.channels * a_.positions;
    const A *mean = static_cast<const A*>(a_.mean), *weight = static_cast<const A*>(a_.weight) + group * a_.channels;
    const T *x = static_cast<const T*>(a_.x) + at * size, *g = static_cast<const T*>(a_.grad) + at * size;
    T* dx = static_cast<T*>(a_.dx) + at * size;
    Statistics<A> s{mean ? mean[at] : A(0), static_cast<const A*>(a_.rstd)[at], A(0), A(0), a_.coupled};
    const WeightedSums<A> total = a_.positions == 1 ? sum_row(x, g, weight, s, scale, shift) : sum_map(x, g, weight, s, scale, shift, sums);
    s.pull = -s.rstd * (s.rstd * (s.rstd * (total.gx / A(size))));
    s.shift = mean ? -s.rstd * (total.g / A(size)) : A(0);
    each_block([&](int64_t c, int64_t begin, int64_t channels, int64_t length) {
      const int64_t first = c * a_.positions + begin, n = channels * length;
      const A *values = widened(x + first, n, room_x_), *grads = widened(g + first, n, room_g_);
      A* out = target(dx + first, room_dx_);
      a_.positions == 1 ? grad_channels({values, grads, weight + c, n}, s, out)
                        : grad_positions({values, grads, channels, length}, weight + c, s, out);
      narrowed(out, dx + first, n, false);
    });
  }

 private:
  // body(channel, position, channels, positions): whole channels as many as a block holds, or a part of one.
  template <class Body>
  void each_block(const Body& body) const {
    const int64_t length = a_.positions, whole = kStep<T> / length;
    if (whole > 0)
      for_each_block(a_.channels, whole, [&](int64_t c, int64_t channels) { body(c, 0, channels, length); });
    else
      for (int64_t c = 0; c < a_.channels; ++c)
        for_each_block(length, kStep<T>, [&](int64_t begin, int64_t n) { body(c, begin, 1, n); });
  }

  WeightedSums<A> sum_row(const T* x, const T* g, const A* weight, const Statistics<A>& s, A* scale, A* shift) const {
    WeightedSums<A> total{};
    each_block([&](int64_t c, int64_t, int64_t n, int64_t) {
      const auto sum = sum_channels({widened(x + c, n, room_x_), widened(g + c, n, room_g_), weight + c, n}, s, scale + c, shift + c);
      total.gx += sum.gx;
      total.g += sum.g;
    });
    return total;
  }

  WeightedSums<A> sum_map(const T* x, const T* g, const A* weight, const Statistics<A>& s, A* scale, A* shift, A* sums) const {
    A *gx = sums, *gs = sums + a_.channels;
    std::fill(sums, sums + 2 * a_.channels, A(0));
    each_block([&](int64_t c, int64_t begin, int64_t channels, int64_t length) {
      const int64_t first = c * a_.positions + begin, n = channels * length;
      sum_positions({widened(x + first, n, room_x_), widened(g + first, n, room_g_), channels, length}, s.mean, gx + c, gs + c);
    });
    WeightedSums<A> total{};
    for (int64_t c = 0; c < a_.channels; ++c) {
      scale[c] += gx[c] * s.rstd;
      shift[c] += gs[c];
      total.gx += weight[c] * gx[c];
      total.g += weight[c] * gs[c];
    }
    return total;
  }

  const NormalizationArgs& a_;
  mutable Scratch<T> room_x_, room_g_, room_dx_;
};

template <class T>
void normalization_grads(const NormalizationArgs& args, ParallelFor parallel_for) {
  using A = Acc<T>;
  const Pieces pieces(args);
  const int64_t affine = args.groups * args.channels, count = args.samples * pieces.per_sample();
  std::vector<A> partial(pieces.runs > 1 ? size_t(args.samples * pieces.runs * 2 * affine) : 0);
  A* rows = pieces.runs > 1 ? partial.data() : static_cast<A*>(args.rows);
  struct Context {
    const NormalizationArgs& args;
    const Pieces& pieces;
    A* rows;
  } context{args, pieces, rows};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const auto& [args, pieces, rows] = *static_cast<Context*>(pointer);
    const int64_t d = args.channels, affine = args.groups * d;
    const Layer<T> layer(args);
    std::vector<A> sums(args.positions > 1 ? size_t(2 * d) : 0);
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / pieces.group_runs, sample = row / pieces.runs;
      const int64_t first = sample * pieces.own + row % pieces.runs * pieces.entries;
      const int64_t last = std::min(first + pieces.entries, (sample + 1) * pieces.own);
      const int64_t from = piece % pieces.group_runs * pieces.groups, to = std::min(from + pieces.groups, args.groups);
      A *scale = rows + row * 2 * affine, *shift = scale + affine;
      std::fill(scale + from * d, scale + to * d, A(0));
      std::fill(shift + from * d, shift + to * d, A(0));
      for (int64_t n = first; n < last; ++n)
        for (int64_t group = from; group < to; ++group) layer.group(n, group, scale + group * d, shift + group * d, sums.data());
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
