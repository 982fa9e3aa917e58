// Draws: what weights are as integers, and the schemes that look at every sample once. W: the sum of the integers q.
//
//   systematic   points (m W + start) / k: a sample is drawn as often as points fall below its cumulative sum, less those before it
//   bernoulli    a random number of its own against k q / W
//
// Three reads of the weights (largest; sums of chunks; counts), 8 bytes written each; nothing of size k. Chunks of fixed size, cumulated in
// order, and integer arithmetic: equal bits for any number of threads. Points are counted by their formula, in fp64 where that settles it,
// and not walked: a vector of samples at a time, and a draw of 2^31 points costs no more than one of ten.
#include "draw.h"

#include <cstring>

namespace samk {
namespace {

template <class T>
WeightFacts<Acc<T>> survey(const DrawArgs& args, ParallelFor parallel_for) {
  const T* weights = static_cast<const T*>(args.weights);
  std::vector<WeightFacts<Acc<T>>> parts(size_t((args.n + kCpuChunk - 1) / kCpuChunk));
  for_each_range(args.n, 2 * kDrawGrain, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) {
    Scratch<T> room;
    for_each_block(end - begin, kStep<T>, [&](int64_t i, int64_t n) {
      survey_block(widened(weights + begin + i, n, room), n, parts[size_t(chunk)]);
    });
  });
  WeightFacts<Acc<T>> all;
  for (const auto& part : parts) all = {std::max(all.largest, part.largest), all.refused || part.refused};
  return all;
}

template <class T>
void systematic(const Draw<T>& draw) {
  uint64_t numbers[2];
  random_block(DrawSource::make(draw.args.state), 0, 1, numbers);
  const DrawGrid grid{draw.total(), position(numbers[0], draw.total()), draw.args.k};
  const DrawOdds odds{double(grid.k), double(grid.total), INT64_MAX};
  draw.for_each_chunk([&](int64_t chunk, int64_t begin, int64_t size) {
    int64_t q[kBlock], sums[kBlock], sum = draw.before[size_t(chunk)];
    int32_t below[1 + kBlock];  // after that of the sample before
    below[0] = int32_t(grid.below(sum));
    for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
      draw.integers(begin + i, n, q);
      for (int64_t j = 0; j < n; ++j) sums[j] = sum += q[j];
      below_block(grid, sums, n, below + 1);
      int32_t* counts = draw.args.counts + begin + i;
      for (int64_t j = 0; j < n; ++j) counts[j] = below[j + 1] - below[j];
      below[0] = below[n];
      inclusion_block(counts, q, n, odds, draw.inclusion(begin + i));
    });
  });
}

template <class T>
void bernoulli(const Draw<T>& draw) {
  const int64_t total = draw.total(), k = draw.args.k, certain = (total - 1) / k;
  const DrawOdds odds{double(k), double(total), certain};
  draw.for_each_numbered([&](int64_t first, int64_t n, const int64_t* q, const uint64_t* numbers) {
    int32_t* counts = draw.args.counts + first;
    for (int64_t j = 0; j < n; ++j) counts[j] = q[j] > certain || position(numbers[j], total) < k * q[j];
    inclusion_block(counts, q, n, odds, draw.inclusion(first));
  });
}

template <class T>
void run(const DrawArgs& args, ParallelFor parallel_for) {
  const WeightFacts<Acc<T>> facts = survey<T>(args, parallel_for);
  *args.flag = args.n == 0 ? 0 : facts.largest == 0 ? 2 : facts.refused;
  Draw<T> draw{args, parallel_for, FixedPoint<Acc<T>>::make(args.n, facts.largest), {}};
  draw.before.resize(1 + size_t((args.n + kCpuChunk - 1) / kCpuChunk));
  if (args.k > 0) {
    draw.for_each_chunk([&](int64_t chunk, int64_t begin, int64_t size) {
      int64_t q[kBlock], sum = 0;
      for_each_block(size, kBlock, [&](int64_t i, int64_t n) { sum += draw.integers(begin + i, n, q); });
      draw.before[size_t(chunk) + 1] = sum;
    });
    for (size_t i = 1; i < draw.before.size(); ++i) draw.before[i] += draw.before[i - 1];
  }
  if (draw.total() == 0) {
    std::memset(args.counts, 0, size_t(args.n) * sizeof(int32_t));
    std::memset(args.inclusion, 0, size_t(args.n) * sizeof(Acc<T>));
    return;
  }
  if (args.scheme == kSystematic) systematic(draw);
  if (args.scheme == kMultinomial) draw_multinomial(draw);
  if (args.scheme == kTopK) draw_race(draw);
  if (args.scheme == kBernoulli) bernoulli(draw);
}

}  // namespace

void cpu_draw(const DrawArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) { run<decltype(type)>(args, parallel_for); });
}

}  // namespace samk
