// Entry points of sample_products.cpp; T is float or double.
#pragma once
#include "chunk_loop.h"
#include "core/sample_products.h"

namespace samk {

// out[r] = sum_j x[r][j] y[r][j]
template <class T>
void cpu_row_dots(const T* x, const T* y, int64_t rows, int64_t n, T* out, ParallelFor parallel_for);

// out[q] = sum_ts k[q][t][s] sum_tap r[q][pixel(t, tap)][pixel(s, tap)]
template <class T>
void cpu_pixel_gram(const T* r, const T* k, int64_t count, const ConvShape& shape, T* out, ParallelFor parallel_for);

}  // namespace samk
