// Draws with replacement: k random points in [0, W), each of which finds the sample that it falls on.
//
// Points are scattered into equal parts of [0, W), two to a chunk of samples, which takes a shift and no search. Then a chunk looks up
// those of its parts in its own cumulative sums: memory is walked in order, and a chunk without points is skipped. Inside, a table of the
// samples at which equal parts of the chunk begin, four samples to a part, brings a search to within two samples on average whatever the
// weights are, because points fall uniformly. 8 bytes of scratch per point. Ranges of points reserve their places in a part by integer
// additions: the order of points in it depends on the threads, the counts do not.
#include <utility>

#include "draw.h"

namespace samk {
namespace {

constexpr int64_t kPartsPerChunk = 2, kSamplesPerPart = 4;

// The shift that leaves at most `parts` parts of [0, total), parts > 0.
int shift_to(int64_t total, int64_t parts) {
  int shift = 0;
  while ((total - 1) >> shift >= parts) ++shift;
  return shift;
}

struct Points {
  int shift;                      // part of a point: point >> shift
  std::vector<int64_t> end;       // [parts]
  std::unique_ptr<int64_t[]> at;  // [k], part by part
};

// Some of the points in their own order, and how many of them are in each part.
struct Range {
  std::vector<int64_t> points, counts;

  Range(const DrawSource& source, int64_t begin, int64_t size, int64_t total, const Points& all) {
    points.resize(size_t(size));
    counts.resize(all.end.size());
    uint64_t numbers[kBlock];
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      random_block(source, begin + i, n, numbers);
      for (int64_t j = 0; j < n; ++j) ++counts[size_t((points[size_t(i + j)] = position(numbers[j], total)) >> all.shift)];
    });
  }
  // counts <- what was in `to`, which they are added to
  void add_to(std::vector<int64_t>& to) {
    for (size_t part = 0; part < counts.size(); ++part)
      if (counts[part]) counts[part] = __atomic_fetch_add(&to[part], counts[part], __ATOMIC_RELAXED);
  }
};

template <class T>
Points scatter(const Draw<T>& draw) {
  const DrawSource source = DrawSource::make(draw.args.state);
  const int64_t k = draw.args.k, total = draw.total();
  Points all{shift_to(total, kPartsPerChunk * int64_t(draw.before.size() - 1)), {}, std::unique_ptr<int64_t[]>(new int64_t[size_t(k)])};
  all.end.resize(size_t((total - 1) >> all.shift) + 1);
  for_each_range(k, kDrawGrain, draw.parallel_for, [&](int64_t, int64_t begin, int64_t end) {
    Range(source, begin, end - begin, total, all).add_to(all.end);
  });
  int64_t sum = 0;
  for (int64_t& part : all.end) sum += std::exchange(part, sum);  // where a part begins, and when all points are there, where it ends
  for_each_range(k, kDrawGrain, draw.parallel_for, [&](int64_t, int64_t begin, int64_t end) {
    Range range(source, begin, end - begin, total, all);
    range.add_to(all.end);
    for (int64_t point : range.points) all.at[size_t(range.counts[size_t(point >> all.shift)]++)] = point;
  });
  return all;
}

// Cumulative sums of the samples of one chunk, from `low` on.
struct Index {
  static constexpr int64_t kTogether = 8;  // sums that a search looks at before it asks whether it is done: twice what it mostly needs
  int64_t low = 0, last = 0;
  int shift = 0;
  std::unique_ptr<int64_t[]> sums{new int64_t[kCpuChunk + kTogether]};           // of the samples up to and with one, less `low`
  std::unique_ptr<int32_t[]> first{new int32_t[kCpuChunk / kSamplesPerPart + 1]};  // sample on which a part begins

  template <class T>
  void make(const Draw<T>& draw, int64_t chunk, int64_t begin, int64_t size) {
    low = draw.before[size_t(chunk)];
    const int64_t total = draw.before[size_t(chunk) + 1] - low;
    shift = shift_to(total, 1 + size / kSamplesPerPart);
    last = size - 1;
    const int64_t parts = ((total - 1) >> shift) + 1;
    int64_t sum = 0, part = 0;
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      draw.integers(begin + i, n, &sums[size_t(i)]);
      for (int64_t j = i; j < i + n; ++j) {
        sums[size_t(j)] = sum += sums[size_t(j)];
        for (; part < parts && part <= (sum - 1) >> shift; ++part) first[size_t(part)] = int32_t(j);
      }
    });
    std::fill_n(&first[size_t(part)], parts - part, int32_t(last));  // none, unless somebody writes the weights meanwhile
    std::fill_n(&sums[size_t(size)], kTogether, INT64_MAX);
  }
  // The first sample whose sum is above the point.
  int64_t find(int64_t point) const {
    point -= low;
    int64_t sample = first[size_t(point >> shift)];
    for (int64_t passed = kTogether; passed == kTogether; sample += passed) {
      passed = 0;
      for (int64_t j = 0; j < kTogether; ++j) passed += sums[size_t(sample + j)] <= point;
    }
    return sample < last ? sample : last;
  }
};

}  // namespace

template <class T>
void draw_multinomial(const Draw<T>& draw) {
  const Points points = scatter(draw);
  const DrawOdds odds{double(draw.args.k), double(draw.total()), INT64_MAX};
  draw.for_each_chunk([&](int64_t chunk, int64_t begin, int64_t size) {
    int32_t* counts = draw.args.counts + begin;
    std::fill_n(counts, size, 0);
    std::fill_n(draw.inclusion(begin), size, Acc<T>(0));
    const int64_t low = draw.before[size_t(chunk)], high = draw.before[size_t(chunk) + 1];
    if (low == high) return;
    const int64_t part = low >> points.shift, from = part ? points.end[size_t(part) - 1] : 0;
    const int64_t *point = &points.at[size_t(from)], *last = &points.at[size_t(points.end[size_t((high - 1) >> points.shift)])];
    if (point == last) return;
    Index index;
    index.make(draw, chunk, begin, size);
    for (; point < last; ++point)
      if (*point >= low && *point < high) ++counts[index.find(*point)];
    int64_t q[kBlock];
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      draw.integers(begin + i, n, q);
      inclusion_block(counts + i, q, n, odds, draw.inclusion(begin + i));
    });
  });
}

template void draw_multinomial(const Draw<float>&);
template void draw_multinomial(const Draw<double>&);
template void draw_multinomial(const Draw<BFloat16>&);
template void draw_multinomial(const Draw<Float16>&);

}  // namespace samk
