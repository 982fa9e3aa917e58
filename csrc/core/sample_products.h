// What is left of per-sample gradient norms on the CPU once the matrix products are made: sums of products, and the Gram matrix of
// patches out of that of pixels. No torch here.
#pragma once
#include <cstdint>

namespace samk {

constexpr int kSpatial = 3;  // convolutions in 1 or 2 dimensions lead with ones

struct ConvShape {
  int64_t in[kSpatial], out[kSpatial], kernel[kSpatial], stride[kSpatial], dilation[kSpatial];

  int64_t pixels() const { return in[0] * in[1] * in[2]; }
  int64_t positions() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  // The pixel that tap 0 sees at the first position of output row (z, y); and that tap `tap` adds.
  int64_t row(int64_t z, int64_t y) const { return (z * stride[0] * in[1] + y * stride[1]) * in[2]; }
  int64_t shift(int64_t tap) const {
    const int64_t x = tap % kernel[2], y = tap / kernel[2] % kernel[1], z = tap / kernel[2] / kernel[1];
    return (z * dilation[0] * in[1] + y * dilation[1]) * in[2] + x * dilation[2];
  }
};

}  // namespace samk
