// dlogits = grad_i (S p_v - t_v) for every row: one read of the logits and one write, 8 bytes per logit in fp32.
//
// p_v = e^(z_v - top - log_sum) from what the forward pass saved; the target's own entry from 1 - p_y, which keeps its digits where p_y
// does not. Short rows are turned as in the forward pass. A large result is written round the cache. Rows of ignored targets are 0.
#include "cross_entropy_block.h"

namespace samk {
namespace {

template <class T>
class Pass {
 public:
  using A = Acc<T>;

  explicit Pass(const CrossEntropyArgs& args)
      : args_(args), smoothing_(A(args.smoothing)), classes_(A(args.classes)), w_(static_cast<const A*>(args.weight)),
        stream_(args.rows * args.classes * int64_t(sizeof(T)) >= kStreamBytes) {}

  void tile(int64_t first, int64_t rows) const {
    if (args_.classes > kNarrow) {
      for (int64_t r = first; r < first + rows; ++r) wide(r);
      return;
    }
    GradientTile<A> tile;
    for (int64_t r = 0; r < kTileRows; ++r) {
      const int64_t i = first + std::min(r, rows - 1);  // those beyond the last repeat it
      const T* logits = row_of<T>(args_, i).logits;
      tile.top[r] = statistics(i)[0];
      tile.log_sum[r] = statistics(i)[1];
      tile.c[r] = grad(i) * statistics(i)[2];
      tile.share[r] = share(i);
      for (int64_t v = 0; v < args_.classes; ++v) tile.z[v * kTileRows + r] = widen(logits[v]);
    }
    gradient_tile(tile, smoothed_weight(), args_.classes);
    for (int64_t r = 0; r < rows; ++r) {
      T* out = out_of(first + r);
      for (int64_t v = 0; v < args_.classes; ++v) narrow(tile.z[v * kTileRows + r], out[v]);
      finish(first + r);
    }
  }

 private:
  const A* statistics(int64_t row) const { return static_cast<const A*>(args_.statistics) + row * kRowStatistics; }
  A grad(int64_t row) const { return static_cast<const A*>(args_.grad)[row]; }
  T* out_of(int64_t row) const { return static_cast<T*>(args_.out) + row * args_.classes; }
  const A* smoothed_weight() const { return smoothing_ != A(0) ? w_ : nullptr; }
  A share(int64_t row) const { return smoothing_ != A(0) ? grad(row) * (smoothing_ / classes_) : A(0); }

  void wide(int64_t row) const {
    const A* saved = statistics(row);
    const T* logits = row_of<T>(args_, row).logits;
    T* out = out_of(row);
    Scratch<T> room;
    alignas(64) A block[kRowBlock];
    for_each_block(args_.classes, kRowBlock, [&](int64_t v, int64_t n) {
      gradient_row({widened(logits + v, n, room), offset(smoothed_weight(), v), block, n, saved[0], saved[1], grad(row) * saved[2],
                    share(row)});
      narrowed(block, out + v, n, stream_);
    });
    finish(row);
  }

  // The target's own entry, or the whole row where there is no target to learn from.
  void finish(int64_t row) const {
    T* out = out_of(row);
    if (args_.ignored(row) || !args_.valid(row)) {
      T value;
      narrow(no_loss<A>(args_.ignored(row)).loss, value);
      std::fill_n(out, args_.classes, value);
      return;
    }
    const Row<T> here = row_of<T>(args_, row);
    const A z_y = widen(here.logits[here.y]), w_y = w_ ? w_[here.y] : A(1);
    narrow(grad(row) * target_gradient(z_y, w_y, statistics(row), smoothing_, classes_), out[here.y]);
  }

  const CrossEntropyArgs& args_;
  const A smoothing_, classes_, *w_;
  const bool stream_;
};

}  // namespace

void cpu_cross_entropy_backward(const CrossEntropyArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) {
    const Pass<decltype(type)> pass(args);
    for_each_tile(args.rows, args.classes, parallel_for, [&](int64_t first, int64_t rows) { pass.tile(first, rows); });
  });
}

}  // namespace samk
