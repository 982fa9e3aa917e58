// What crosses from Python as tensors -> the plain structs of the kernels. Torch stable ABI only.
//
// The lists of a call arrive as one int64 tensor of addresses and sizes, made and checked in sam_kernels/backends/native/: a list
// of tensors through the dispatcher costs about 0.2 us per tensor, an address in a table nothing.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "core/entry_points.h"

namespace samk {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

// Elements of a contiguous CPU tensor of a known type, without a copy.
template <class T>
const T* elements(const Tensor& x, ScalarType type, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == type && x.is_contiguous() && x.is_cpu(), name, " must be a contiguous CPU tensor of its type");
  return static_cast<const T*>(x.data_ptr());
}

// A TensorTable over the words [count, dtype, slot of each operand, numel[count], group[count], address[lists][count]].
class Table {
 public:
  Table(const Tensor& tensor, int32_t chunk_size) {
    const int64_t* words = elements<int64_t>(tensor, ScalarType::Long, "table");
    constexpr int64_t kHeader = 2 + kOperands;
    const int64_t size = tensor.numel(), count = size >= kHeader ? words[0] : -1;
    STD_TORCH_CHECK(count >= 0 && words[1] >= kFloat32 && words[1] <= kFloat16, "malformed table");
    int64_t lists = 0;
    for (int k = 0; k < kOperands; ++k) {
      view_.slot[k] = int8_t(words[2 + k]);
      lists = lists > words[2 + k] ? lists : words[2 + k] + 1;
    }
    STD_TORCH_CHECK(size == kHeader + count * (2 + lists), "a table of ", lists, " lists of ", count, " tensors has ", size, " words");
    dtype_ = DType(words[1]);
    view_.numel = words + kHeader;
    view_.address = view_.numel + 2 * count;
    group_.assign(view_.numel + count, view_.address);
    first_chunk_.reserve(size_t(count) + 1);
    first_chunk_.push_back(0);
    for (int64_t t = 0; t < count; ++t) first_chunk_.push_back(first_chunk_.back() + int32_t((view_.numel[t] + chunk_size - 1) / chunk_size));
    view_.group = group_.data();
    view_.first_chunk = first_chunk_.data();
    view_.count = int32_t(count);
    view_.chunk_size = chunk_size;
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  const TensorTable& view() const { return view_; }
  DType dtype() const { return dtype_; }
  ScalarType accumulator() const { return dtype_ == kFloat64 ? ScalarType::Double : ScalarType::Float; }
  int64_t count() const { return view_.count; }

  // Rows of a hyperparameter table that the groups index.
  int64_t check_hyper(const Tensor& hyper, int columns) const {
    const int64_t groups = columns ? hyper.numel() / columns : 0;
    STD_TORCH_CHECK(groups * columns == hyper.numel() || columns == 0, "hyper has ", hyper.numel(), " entries, not a multiple of ", columns);
    for (int32_t row : group_) STD_TORCH_CHECK(columns == 0 || (row >= 0 && row < groups), "group index ", row, " of ", groups);
    return groups;
  }

 private:
  TensorTable view_{};
  DType dtype_ = kFloat32;
  std::vector<int32_t> group_, first_chunk_;
};

// A new tensor beside another one: made here, an output costs a quarter of what it costs in Python.
inline Tensor empty_beside(const Tensor& like, std::optional<int64_t> size, ScalarType type) {
  const int64_t length = size.value_or(1), stride = 1;
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made;
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(size ? 1 : 0, &length, &stride, dtype, device_type, device_index, &made));
  return Tensor(made);
}

// Address of an optional scalar tensor of `numel` elements of `type`.
inline void* scalar(const std::optional<Tensor>& x, int64_t numel, ScalarType type, const char* name) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->numel() >= numel && x->scalar_type() == type && x->is_contiguous(), name, " must hold ", numel,
                  " contiguous elements of its dtype");
  return x->data_ptr();
}

}  // namespace samk
