// A normalization layer between its tensors and the loops over blocks: two sweeps over each (entry, group), sums and then dx.
#pragma once
#include <algorithm>

#include "core/layers.h"
#include "normalization_block.h"
#include "stage.h"

namespace samk {

template <class T>
class NormalizationLayer {
  using A = Acc<T>;

 public:
  explicit NormalizationLayer(const NormalizationArgs& args)
      : a_(args), size_(args.channels * args.positions), sums_(args.positions > 1 ? size_t(args.channels) : 0) {}

  // Group `group` of the entries [first, last): writes their dx, adds to scale[c] and shift[c].
  void backward(int64_t first, int64_t last, int64_t group, A* scale, A* shift) {
    const A* weight = static_cast<const A*>(a_.weight) + group * a_.channels;
    if (a_.positions > 1)
      for (int64_t n = first; n < last; ++n) map(n * a_.groups + group, weight, scale, shift);
    else
      for (int64_t n = first; n < last; n += kTogether)
        rows(n * a_.groups + group, int(std::min<int64_t>(kTogether, last - n)), weight, scale, shift);
  }

 private:
  static constexpr int kTogether = kStaged<T> ? 1 : kRows;  // the scratch of more rows would leave L1

  Statistics<A> statistics(int64_t at) const {
    return {a_.mean ? static_cast<const A*>(a_.mean)[at] : A(0), static_cast<const A*>(a_.rstd)[at], A(0), A(0), a_.coupled};
  }
  void finish(Statistics<A>& s, const PairSum<A>& sum) const {  // rstd on its own may have no third power
    s.pull = -s.rstd * (s.rstd * (s.rstd * (sum.gx / A(size_))));
    s.shift = a_.mean ? -s.rstd * (sum.g / A(size_)) : A(0);
  }
  const T* x(int64_t at) const { return static_cast<const T*>(a_.x) + at * size_; }
  const T* grad(int64_t at) const { return static_cast<const T*>(a_.grad) + at * size_; }
  T* dx(int64_t at) const { return static_cast<T*>(a_.dx) + at * size_; }

  // One position: `count` rows, the first at (entry, group) `at`.
  void rows(int64_t at, int count, const A* weight, A* scale, A* shift) {
    Statistics<A> s[kRows];
    PairSum<A> sums[kRows] = {};
    for (int r = 0; r < count; ++r) s[r] = statistics(at + r * a_.groups);
    const auto block = [&](int64_t c, int64_t n) {
      RowBlock<A> b{{}, {}, weight + c, {}, n, count};
      for (int r = 0; r < count; ++r) {
        b.x[r] = widened(x(at + r * a_.groups) + c, n, room_x_[r]);
        b.g[r] = widened(grad(at + r * a_.groups) + c, n, room_g_[r]);
        b.dx[r] = target(dx(at + r * a_.groups) + c, room_dx_[r]);
      }
      return b;
    };
    for_each_block(size_, kStep<T>, [&](int64_t c, int64_t n) { sum_rows(block(c, n), s, scale + c, shift + c, sums); });
    for (int r = 0; r < count; ++r) finish(s[r], sums[r]);
    for_each_block(size_, kStep<T>, [&](int64_t c, int64_t n) {
      const RowBlock<A> b = block(c, n);
      grad_rows(b, s);
      for (int r = 0; r < count; ++r) narrowed(b.dx[r], dx(at + r * a_.groups) + c, n, false);
    });
  }

  // body(channel, channels, offset, positions): whole channels as many as a block holds, or a part of one.
  template <class Body>
  void each_block(const Body& body) const {
    const int64_t length = a_.positions, whole = kStep<T> / length;
    if (whole > 0)
      for_each_block(a_.channels, whole, [&](int64_t c, int64_t channels) { body(c, channels, c * length, length); });
    else
      for (int64_t c = 0; c < a_.channels; ++c)
        for_each_block(length, kStep<T>, [&](int64_t begin, int64_t n) { body(c, 1, c * length + begin, n); });
  }

  // Many positions: the map of (entry, group) `at`.
  void map(int64_t at, const A* weight, A* scale, A* shift) {
    Statistics<A> s = statistics(at);
    const auto block = [&](int64_t channels, int64_t offset, int64_t length) {
      const int64_t n = channels * length;
      return PositionBlock<A>{widened(x(at) + offset, n, room_x_[0]), widened(grad(at) + offset, n, room_g_[0]), channels, length};
    };
    std::fill(sums_.begin(), sums_.end(), PairSum<A>{});
    each_block([&](int64_t c, int64_t channels, int64_t offset, int64_t length) {
      sum_positions(block(channels, offset, length), s.mean, &sums_[size_t(c)]);
    });
    PairSum<A> total{};
    for (int64_t c = 0; c < a_.channels; ++c) {
      const PairSum<A>& sum = sums_[size_t(c)];
      scale[c] += sum.gx * s.rstd;
      shift[c] += sum.g;
      total.gx += weight[c] * sum.gx;
      total.g += weight[c] * sum.g;
    }
    finish(s, total);
    each_block([&](int64_t c, int64_t channels, int64_t offset, int64_t length) {
      A* out = target(dx(at) + offset, room_dx_[0]);
      grad_positions(block(channels, offset, length), weight + c, s, out);
      narrowed(out, dx(at) + offset, channels * length, false);
    });
  }

  const NormalizationArgs& a_;
  const int64_t size_;
  std::vector<PairSum<A>> sums_;
  Scratch<T> room_x_[kTogether], room_g_[kTogether], room_dx_[kTogether];
};

}  // namespace samk
