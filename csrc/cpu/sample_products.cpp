// Sums over matrix products that torch's GEMMs have left in a scratch in cache.
//
// row_dots: one read of x and y. pixel_gram: taps * T^2 / 2 additions a sample, on rows of the pixels' Gram matrix; the patches' Gram
// matrix exists only one row at a time, and only its upper triangle. Deterministic: blocks of fixed size, each with a partial sum in
// double, added in order.
#include "sample_products.h"

#include "lanes.h"

namespace samk {
namespace {

constexpr int64_t kDotBlock = 8192, kRowBlock = 8;

template <class T>
SAMK_INLINE double dot(const T* x, const T* y, int64_t n) {
  Lanes<T, 1> lanes;
  lanes.add(n, [=](int64_t i, T* out) __attribute__((always_inline)) { out[0] = x[i] * y[i]; });
  return lanes.total(0);
}

// Row t of the patches' Gram matrix, from s = t on, into `sum`. `start`: the first pixel of every output row, where divisions are few.
template <bool kUnit, class T>
SAMK_INLINE void patch_row(const T* r, const ConvShape& shape, const int64_t* start, int64_t t, T* sum) {
  const int64_t width = shape.out[2], pixels = shape.pixels(), step = shape.stride[2];
  const int64_t first = t / width, rows = shape.out[1] * shape.out[0];
  const int64_t own = start[first] + t % width * step;
  for (int64_t s = t; s < shape.positions(); ++s) sum[s] = T(0);
  for (int64_t tap = 0; tap < shape.taps(); ++tap) {
    const int64_t shift = shape.shift(tap);
    const T* source = r + (own + shift) * pixels + shift;
    for (int64_t row = first; row < rows; ++row) {
      const T* from = source + start[row];
      T* to = sum + row * width;
#pragma GCC ivdep
      for (int64_t x = row == first ? t % width : 0; x < width; ++x) to[x] += from[kUnit ? x : x * step];
    }
  }
}

// Rows [begin, end) of sum_ts k[t][s] (patches' Gram)[t][s]; both are symmetric.
template <class T>
SAMK_INLINE double pixel_rows(const T* r, const T* k, const ConvShape& shape, const int64_t* start, int64_t begin, int64_t end, T* scratch) {
  const int64_t positions = shape.positions();
  double total = 0;
  for (int64_t t = begin; t < end; ++t) {
    if (shape.stride[2] == 1)
      patch_row<true>(r, shape, start, t, scratch);
    else
      patch_row<false>(r, shape, start, t, scratch);
    const T* row = k + t * positions;
    total += 2 * dot(scratch + t, row + t, positions - t) - double(scratch[t]) * double(row[t]);
  }
  return total;
}

#define SAMK_PRODUCT_CLONES(T)                                                                                          \
  SAMK_CLONES double dot_of(const T* x, const T* y, int64_t n) { return dot(x, y, n); }                                 \
  SAMK_CLONES double rows_of(const T* r, const T* k, const ConvShape& s, const int64_t* start, int64_t begin, int64_t end, T* scratch) { \
    return pixel_rows(r, k, s, start, begin, end, scratch);                                                             \
  }
SAMK_PRODUCT_CLONES(float)
SAMK_PRODUCT_CLONES(double)

// out[i] = the sum of part(i, b) over the `blocks` parts b of item i, whoever computes them.
template <class T, class Part>
void sum_parts(int64_t items, int64_t blocks, int64_t grain, T* out, ParallelFor parallel_for, const Part& part) {
  std::vector<double> partial(size_t(items * blocks));
  struct Context {
    const Part& part;
    double* partial;
    int64_t blocks;
  } context{part, partial.data(), blocks};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    for (int64_t i = begin; i < end; ++i) c.partial[i] = c.part(i / c.blocks, i % c.blocks);
  };
  parallel_for(items * blocks, grain, range, &context);
  for (int64_t i = 0; i < items; ++i) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += partial[size_t(i * blocks + b)];
    out[i] = T(sum);
  }
}

}  // namespace

template <class T>
void cpu_row_dots(const T* x, const T* y, int64_t rows, int64_t n, T* out, ParallelFor parallel_for) {
  const int64_t blocks = n > 0 ? (n + kDotBlock - 1) / kDotBlock : 1, size = n < kDotBlock ? n : kDotBlock;
  sum_parts(rows, blocks, 1 + 4 * kDotBlock / (size + 1), out, parallel_for, [=](int64_t row, int64_t block) {
    const int64_t begin = block * kDotBlock, at = row * n + begin;
    return dot_of(x + at, y + at, n - begin < kDotBlock ? n - begin : kDotBlock);
  });
}

template <class T>
void cpu_pixel_gram(const T* r, const T* k, int64_t count, const ConvShape& shape, T* out, ParallelFor parallel_for) {
  const int64_t positions = shape.positions(), pixels = shape.pixels(), blocks = (positions + kRowBlock - 1) / kRowBlock;
  std::vector<int64_t> start;
  for (int64_t z = 0; z < shape.out[0]; ++z)
    for (int64_t y = 0; y < shape.out[1]; ++y) start.push_back(shape.row(z, y));
  sum_parts(count, blocks, 1 + (1 << 15) / (kRowBlock * positions * shape.taps()), out, parallel_for, [&](int64_t q, int64_t block) {
    const int64_t begin = block * kRowBlock, end = begin + kRowBlock < positions ? begin + kRowBlock : positions;
    std::vector<T> scratch(static_cast<size_t>(positions));
    return rows_of(r + q * pixels * pixels, k + q * positions * positions, shape, start.data(), begin, end, scratch.data());
  });
}

template void cpu_row_dots<float>(const float*, const float*, int64_t, int64_t, float*, ParallelFor);
template void cpu_row_dots<double>(const double*, const double*, int64_t, int64_t, double*, ParallelFor);
template void cpu_pixel_gram<float>(const float*, const float*, int64_t, const ConvShape&, float*, ParallelFor);
template void cpu_pixel_gram<double>(const double*, const double*, int64_t, const ConvShape&, double*, ParallelFor);

}  // namespace samk
