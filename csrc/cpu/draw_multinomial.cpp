// Draws with replacement: k random points in [0, W), each of which finds the sample that it falls on.
//
// A table of the samples at which equal parts of [0, W) begin, four samples to a part: a search starts where its part does and goes on by
// about two samples, whatever the weights are, because the points fall uniformly. Each point costs three visits to memory (table, cumulative
// sums, counts), which are asked for a block of points ahead. 12 bytes of scratch per sample. Counts are added to atomically: integers,
// whose sums do not depend on the order.
#include "draw.h"

namespace samk {
namespace {

constexpr int64_t kSamplesPerPart = 4;
constexpr int64_t kTogether = 8;  // sums that a search looks at before it asks whether it is done: twice what it mostly needs

struct Index {
  std::unique_ptr<int64_t[]> sums;   // [n] of the integers up to and with a sample, and some that no point reaches
  std::unique_ptr<int32_t[]> first;  // [parts] sample on which a part begins
  int shift;                         // part of a point: point >> shift

  int64_t part_after(int64_t sum) const { return ((sum - 1) >> shift) + 1; }

  // The first sample whose sum is above the point, from one that is not after it.
  int64_t find(int64_t sample, int64_t point) const {
    for (int64_t passed = kTogether; passed == kTogether; sample += passed) {
      passed = 0;
      for (int64_t j = 0; j < kTogether; ++j) passed += sums[size_t(sample + j)] <= point;
    }
    return sample;
  }
};

template <class T>
Index index_of(const Draw<T>& draw) {
  const int64_t n = draw.args.n, total = draw.total();
  int shift = 0;
  while ((total - 1) >> shift > 1 + n / kSamplesPerPart) ++shift;
  Index index{nullptr, nullptr, shift};
  index.sums.reset(new int64_t[size_t(n + kTogether)]);
  index.first.reset(new int32_t[size_t(index.part_after(total))]);
  std::fill_n(&index.sums[size_t(n)], kTogether, INT64_MAX);
  draw.for_each_chunk([&](int64_t chunk, int64_t begin, int64_t size) {  // makes the parts that begin inside
    int64_t sum = draw.before[size_t(chunk)], part = index.part_after(sum);
    const int64_t end = index.part_after(draw.before[size_t(chunk) + 1]);
    int64_t* sums = index.sums.get() + begin;
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      draw.integers(begin + i, n, sums + i);
      for (int64_t j = i; j < i + n; ++j) {
        sums[j] = sum += sums[j];
        for (; part < end && part << shift < sum; ++part) index.first[size_t(part)] = int32_t(begin + j);
      }
    });
  });
  return index;
}

}  // namespace

template <class T>
void draw_multinomial(const Draw<T>& draw) {
  const Index index = index_of(draw);
  const DrawSource source = DrawSource::make(draw.args.state);
  const int64_t total = draw.total();
  int32_t* counts = draw.args.counts;
  std::fill_n(counts, draw.args.n, 0);
  for_each_range(draw.args.k, 1, draw.parallel_for, [&](int64_t, int64_t begin, int64_t end) {
    uint64_t numbers[kBlock];
    int64_t points[kBlock], found[kBlock];
    for_each_block(end - begin, kBlock, [&](int64_t i, int64_t n) {
      random_block(source, begin + i, n, numbers);
      for (int64_t j = 0; j < n; ++j) {
        points[j] = position(numbers[j], total);
        __builtin_prefetch(&index.first[size_t(points[j] >> index.shift)]);
      }
      for (int64_t j = 0; j < n; ++j) {
        found[j] = index.first[size_t(points[j] >> index.shift)];
        __builtin_prefetch(&index.sums[size_t(found[j])]);
        __builtin_prefetch(&counts[found[j]], 1);
      }
      for (int64_t j = 0; j < n; ++j) found[j] = index.find(found[j], points[j]);
      for (int64_t j = 0; j < n; ++j) __atomic_fetch_add(&counts[found[j]], 1, __ATOMIC_RELAXED);
    });
  });
  const DrawOdds odds{double(draw.args.k), double(total), INT64_MAX};
  draw.for_each_chunk([&](int64_t, int64_t begin, int64_t size) {
    int64_t q[kBlock];
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      draw.integers(begin + i, n, q);
      inclusion_block(counts + begin + i, q, n, odds, draw.inclusion(begin + i));
    });
  });
}

template void draw_multinomial(const Draw<float>&);
template void draw_multinomial(const Draw<double>&);
template void draw_multinomial(const Draw<BFloat16>&);
template void draw_multinomial(const Draw<Float16>&);

}  // namespace samk
