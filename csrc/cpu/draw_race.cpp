// Draws without replacement: the k first arrivals of a race, ties to the lower position, weighted by the chance to beat the first loser.
//
// Arrival times are positive, so their bits are in their order. The first that lost is found by selection, not by sorting: a sample of the
// times gives two bounds that it almost surely lies between, one pass counts what is below and keeps the few candidates between, and where
// chance is against it a second pass keeps all. Positions of the sample are fixed, and the result is exact whatever they hit. 16 bytes of
// scratch per sample: the arrival times, written once and read twice, and room for the candidates.
#include "draw.h"

namespace samk {
namespace {

struct Bounds {
  uint64_t low, high;
};

// Between which the time of rank k of n probably is.
Bounds guess(const uint64_t* times, int64_t n, int64_t k) {
  constexpr int64_t kSample = 4096, kMargin = 128;  // four standard deviations of the rank in the sample
  if (n < 4 * kSample) return {0, UINT64_MAX};
  std::vector<uint64_t> sample(kSample);
  for (int64_t i = 0; i < kSample; ++i) sample[size_t(i)] = times[i * (n / kSample)];
  const int64_t rank = int64_t(double(k) / double(n) * kSample), low = rank - kMargin, high = rank + kMargin;
  const auto ranked = [&](int64_t r) {
    std::nth_element(sample.begin(), sample.begin() + r, sample.end());
    return sample[size_t(r)];
  };
  return {low < 0 ? 0 : ranked(low), high >= kSample ? UINT64_MAX : ranked(high)};
}

struct Loser {
  uint64_t time;
  int64_t ties;  // arrivals at this very time that won
};

// The time of rank k, k < n. `kept`: room for n times.
Loser loser_of(const uint64_t* times, uint64_t* kept, int64_t n, int64_t k, Bounds bounds, ParallelFor parallel_for) {
  struct Part {
    int64_t below = 0, between = 0;
  };
  std::vector<Part> parts(size_t((n + kCpuChunk - 1) / kCpuChunk));
  for_each_range(n, kDrawGrain, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) {
    Part part;
    for (int64_t i = begin; i < end; ++i) {
      kept[begin + part.between] = times[i];
      part.below += times[i] < bounds.low;
      part.between += times[i] - bounds.low <= bounds.high - bounds.low;
    }
    parts[size_t(chunk)] = part;
  });
  Part all;
  for (size_t i = 0; i < parts.size(); ++i) {
    std::copy_n(kept + i * kCpuChunk, parts[i].between, kept + all.between);
    all = {all.below + parts[i].below, all.between + parts[i].between};
  }
  if (k < all.below || k >= all.below + all.between) return loser_of(times, kept, n, k, {0, UINT64_MAX}, parallel_for);
  uint64_t *begin = kept, *end = begin + all.between, *at = begin + (k - all.below);
  std::nth_element(begin, at, end);
  return {*at, std::count(begin, at, *at)};  // what stands before `at` is not greater
}

// The position after the last tie that won; there is hardly ever one.
int64_t end_of_ties(const uint64_t* times, const Loser& loser) {
  int64_t i = 0;
  for (int64_t left = loser.ties; left > 0; ++i) left -= times[i] == loser.time;
  return i;
}

}  // namespace

template <class T>
void draw_race(const Draw<T>& draw) {
  const DrawArgs& args = draw.args;
  constexpr uint64_t kNever = 0x7ff0000000000000;  // infinity: those without a weight
  const std::unique_ptr<uint64_t[]> room(new uint64_t[2 * size_t(args.n)]);  // one block: the second of two would go back to the system
  uint64_t* const times = room.get();
  draw.for_each_numbered([&](int64_t first, int64_t n, const int64_t* q, uint64_t* numbers) {
    arrival_block(numbers, q, n);
    std::copy_n(numbers, n, times + first);
  });
  Loser loser{kNever, 0};
  if (args.k < args.n) loser = loser_of(times, times + args.n, args.n, args.k, guess(times, args.n, args.k), draw.parallel_for);
  const int64_t tied = loser.time < kNever ? end_of_ties(times, loser) : 0;
  const double last = bit_cast<double>(loser.time);
  draw.for_each_chunk([&](int64_t, int64_t begin, int64_t size) {
    int64_t q[kBlock], drawn[kBlock];
    double x[kBlock];
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      const int64_t first = begin + i;
      int64_t count = 0;
      for (int64_t j = 0; j < n; ++j) {
        const uint64_t time = times[first + j], limit = loser.time + uint64_t(first + j < tied);
        drawn[count] = j;
        count += args.counts[first + j] = time < limit;
      }
      draw.integers(first, n, q);
      for (int64_t j = 0; j < count; ++j) x[j] = double(q[drawn[j]]) * last;
      race_inclusion_block(x, count);
      Acc<T>* out = draw.inclusion(first);
      std::fill_n(out, n, Acc<T>(0));
      for (int64_t j = 0; j < count; ++j) out[drawn[j]] = Acc<T>(x[j]);
    });
  });
}

template void draw_race(const Draw<float>&);
template void draw_race(const Draw<double>&);
template void draw_race(const Draw<BFloat16>&);
template void draw_race(const Draw<Float16>&);

}  // namespace samk
