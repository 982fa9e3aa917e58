// Loss and gradient norm of every row of logits. Reads the logits once (4 bytes each in fp32), writes five numbers per row.
//
// A long row goes block by block: its largest logit, then the exponentials while the block is in L1; what is summed so far is rescaled
// where a block has a larger logit. A row of at most kNarrow logits is turned, sixteen rows side by side, because a vector over ten
// classes is mostly empty. The logits that fill no group of lanes, and those beside the target, wait until the end of their row: so the
// target is never in the sums (core/cross_entropy.h says why) and no loop tests for it. Every row is summed in one fixed order.
#include "cross_entropy_block.h"

namespace samk {
namespace {

constexpr int64_t kGroup = 32;  // every kLanes divides it

template <class T, int kMode>
class Pass {
 public:
  using A = Acc<T>;

  explicit Pass(const CrossEntropyArgs& args) : args_(args), w_(static_cast<const A*>(args.weight)) {
    for (int64_t v = 0; v < args.classes && kMode == kWeighted; ++v) {
      weights_ += double(w_[v]);
      squared_weights_ += double(w_[v]) * double(w_[v]);
    }
  }

  void tile(int64_t first, int64_t rows) const {
    LossTile<A, kMode> tile;
    tile.classes = args_.classes;
    for (int64_t r = 0; r < kTileRows; ++r) {
      const Row<T> row = row_of<T>(args_, first + std::min(r, rows - 1));  // those beyond the last repeat it
      tile.y[r] = row.y;
      tile.w_y[r] = w_ ? w_[row.y] : A(1);
      tile.sum[kWeights][r] = A(weights_);
      tile.sum[kSquaredWeights][r] = A(squared_weights_);
      if (args_.classes <= kNarrow) {
        for (int64_t v = 0; v < args_.classes; ++v) tile.z[v * kTileRows + r] = widen(row.logits[v]);
      } else if (r < rows) {
        add_row(row, tile, r);
      }
    }
    if (args_.classes <= kNarrow) add_tile(tile, w_);
    finish_tile(tile, A(args_.smoothing));
    for (int64_t r = 0; r < rows; ++r) write(first + r, tile, r);
  }

 private:
  void add_row(const Row<T>& row, LossTile<A, kMode>& tile, int64_t r) const {
    const int64_t n = args_.classes, whole = n / kGroup * kGroup, hole = row.y < whole ? row.y / kGroup * kGroup : whole;
    RowSums<A, kMode> sums;
    tile.z_y[r] = widen(row.logits[row.y]);
    add_range(row.logits, 0, hole, sums);
    add_range(row.logits, hole + kGroup, whole, sums);
    A z[2 * kGroup], w[2 * kGroup] = {};
    std::fill_n(z, 2 * kGroup, A(-INFINITY));
    int64_t kept = 0;
    const auto keep = [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v)
        if (v != row.y) {
          w[kept] = kMode == kWeighted ? w_[v] : A(0);
          z[kept++] = widen(row.logits[v]);
        }
    };
    keep(hole, std::min(hole + kGroup, whole));
    keep(whole, n);
    add_terms(z, w, 2 * kGroup, sums);
    if (kMode != kPlain) {
      Scratch<T> room;
      const A origin = spread_origin(tile.z_y[r]);
      for_each_block(n, kRowBlock, [&](int64_t v, int64_t size) {
        add_spread(widened(row.logits + v, size, room), offset(w_, v), size, origin, sums);
      });
      tile.sum[kSpread][r] = A(sums.spread.total(0));
    }
    tile.m[r] = sums.m;
    tile.sum[kMass][r] = A(sums.terms.total(0));
    tile.sum[kSquares][r] = A(sums.terms.total(1));
    if (kMode == kWeighted) tile.sum[kWeightedMass][r] = A(sums.terms.total(RowSums<A, kMode>::kTerms - 1));
  }

  void add_range(const T* logits, int64_t begin, int64_t end, RowSums<A, kMode>& sums) const {
    Scratch<T> room;
    if (begin < end)
      for_each_block(end - begin, kRowBlock, [&](int64_t v, int64_t size) {
        add_terms(widened(logits + begin + v, size, room), offset(w_, begin + v), size, sums);
      });
  }

  void write(int64_t row, const LossTile<A, kMode>& tile, int64_t r) const {
    const bool counts = args_.valid(row) && !args_.ignored(row);
    const SampleLoss<A> found{tile.loss[r], tile.norm[r], tile.top[r], tile.log_sum[r], tile.mass[r]};
    const SampleLoss<A> out = counts ? found : no_loss<A>(args_.ignored(row));
    static_cast<A*>(args_.loss)[row] = out.loss;
    static_cast<A*>(args_.norm)[row] = out.norm;
    A* statistics = static_cast<A*>(args_.statistics) + row * kRowStatistics;
    statistics[0] = out.top;
    statistics[1] = out.log_sum;
    statistics[2] = out.mass;
  }

  const CrossEntropyArgs& args_;
  const A* w_;
  double weights_ = 0, squared_weights_ = 0;
};

template <class T, int kMode>
void run(const CrossEntropyArgs& args, ParallelFor parallel_for) {
  const Pass<T, kMode> pass(args);
  for_each_tile(args.rows, args.classes, parallel_for, [&](int64_t first, int64_t rows) { pass.tile(first, rows); });
}

}  // namespace

void cpu_cross_entropy(const CrossEntropyArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.mode() == kPlain) run<T, kPlain>(args, parallel_for);
    if (args.mode() == kSmoothed) run<T, kSmoothed>(args, parallel_for);
    if (args.mode() == kWeighted) run<T, kWeighted>(args, parallel_for);
  });
}

}  // namespace samk
