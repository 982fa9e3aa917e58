// A draw on the CPU: what its schemes share.
#pragma once
#include <algorithm>
#include <memory>

#include "draw_block.h"

namespace samk {

void cpu_draw(const DrawArgs& args, ParallelFor parallel_for);

constexpr int64_t kDrawGrain = 4;  // chunks that are worth another thread: some tens of microseconds

template <class T>
struct Draw {
  const DrawArgs& args;
  ParallelFor parallel_for;
  FixedPoint<Acc<T>> fixed;
  std::vector<int64_t> before;  // [chunks + 1]: sums of the integers of all earlier chunks

  int64_t total() const { return before.back(); }
  Acc<T>* inclusion(int64_t begin) const { return static_cast<Acc<T>*>(args.inclusion) + begin; }

  // The integers of a block, and their sum.
  int64_t integers(int64_t begin, int64_t n, int64_t* q) const {
    Scratch<T> room;
    return integers_block(widened(static_cast<const T*>(args.weights) + begin, n, room), n, fixed, q);
  }
  // body(first, n, q, numbers) for blocks of n samples from `first` on, each with its integer and a random number of its own
  template <class Body>
  void for_each_numbered(const Body& body) const {
    const DrawSource source = DrawSource::make(args.state);
    for_each_chunk([&](int64_t, int64_t begin, int64_t size) {
      int64_t q[kBlock];
      uint64_t numbers[kBlock];
      for_each_block(size, kBlock, [&](int64_t i, int64_t n) {
        integers(begin + i, n, q);
        random_block(source, begin + i, n, numbers);
        body(begin + i, n, q, numbers);
      });
    });
  }
  // body(chunk, begin of the chunk, its size) for every chunk of samples
  template <class Body>
  void for_each_chunk(const Body& body) const {
    for_each_range(args.n, kDrawGrain, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) { body(chunk, begin, end - begin); });
  }
};

template <class T>
void draw_multinomial(const Draw<T>& draw);
template <class T>
void draw_race(const Draw<T>& draw);

}  // namespace samk
