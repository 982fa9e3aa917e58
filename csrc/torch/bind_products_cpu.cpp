// The sums of products of sample_products.cpp as torch ops; backends/native/products.py calls them on scratch that it owns.
#include "checks.h"
#include "cpu/sample_products.h"
#include "parallel_for.h"

namespace {

using namespace samk;

template <class Run>
void by_float(const Tensor& x, const Run& run) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "expected fp32 or fp64");
  x.scalar_type() == ScalarType::Float ? run(float()) : run(double());
}

void check(const Tensor& x, const Tensor& like, int64_t numel, const char* name) {
  STD_TORCH_CHECK(x.numel() == numel && x.scalar_type() == like.scalar_type() && x.is_contiguous() && x.is_cpu(), name, " must hold ", numel,
                  " contiguous elements of one dtype");
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

void row_dots(Tensor x, Tensor y, Tensor out) {
  const int64_t rows = out.numel(), n = rows ? x.numel() / rows : 0;
  check(x, out, rows * n, "x");
  check(y, out, rows * n, "y");
  check(out, x, rows, "out");
  by_float(out, [&](auto t) {
    using T = decltype(t);
    cpu_row_dots<T>(data<T>(x), data<T>(y), rows, n, data<T>(out), parallel_for);
  });
}

void pixel_gram(Tensor r, Tensor k, Tensor out, std::vector<int64_t> geometry) {
  STD_TORCH_CHECK(geometry.size() == 5 * kSpatial, "geometry holds 5 rows of ", kSpatial);
  ConvShape shape;
  int64_t* const rows[] = {shape.in, shape.out, shape.kernel, shape.stride, shape.dilation};
  for (int i = 0; i < 5; ++i)
    for (int j = 0; j < kSpatial; ++j) rows[i][j] = geometry[size_t(i * kSpatial + j)];
  for (int64_t size : geometry) STD_TORCH_CHECK(size > 0 && size < (int64_t(1) << 20), "sizes must be positive");
  for (int j = 0; j < kSpatial; ++j)
    STD_TORCH_CHECK((shape.out[j] - 1) * shape.stride[j] + (shape.kernel[j] - 1) * shape.dilation[j] < shape.in[j] && shape.out[j] > 0,
                    "the kernel leaves the input");
  check(r, out, out.numel() * shape.pixels() * shape.pixels(), "r");
  check(k, out, out.numel() * shape.positions() * shape.positions(), "k");
  check(out, r, out.numel(), "out");
  by_float(out, [&](auto t) {
    using T = decltype(t);
    cpu_pixel_gram<T>(data<T>(r), data<T>(k), out.numel(), shape, data<T>(out), parallel_for);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sam_kernels_native, CPU, m) {
  m.impl("row_dots", TORCH_BOX(&row_dots));
  m.impl("pixel_gram", TORCH_BOX(&pixel_gram));
}
