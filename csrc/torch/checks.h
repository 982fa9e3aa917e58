// Tensor lists -> tensor tables, with the checks that protect memory. Names and advice come from the Python wrappers' own checks;
// these hold for whoever calls the native op directly. Torch stable ABI only.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/entry_points.h"

namespace samk {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;
using torch::headeronly::ScalarType;

inline DType dtype_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "expected float32 or float64 tensors");
  return type == ScalarType::Float ? kFloat32 : kFloat64;
}

// Owns the arrays that a TensorTable points to.
class Table {
 public:
  Table(std::initializer_list<std::pair<Operand, const TensorList*>> lists, const std::vector<int64_t>* group, int32_t chunk_size) {
    for (int8_t& slot : view_.slot) slot = -1;
    const TensorList* first = nullptr;
    int8_t rows = 0;
    for (const auto& [operand, list] : lists) {
      if (list->empty()) continue;
      if (!first) {
        first = list;
        dtype_ = dtype_of((*list)[0]);
      }
      STD_TORCH_CHECK(list->size() == first->size(), "tensor lists differ in length: ", list->size(), " and ", first->size());
      view_.slot[operand] = rows++;
      append(*list, *first);
    }
    const size_t count = first ? first->size() : 0;
    group_.assign(count, 0);
    if (group) {
      STD_TORCH_CHECK(group->size() == count, "group has ", group->size(), " entries for ", count, " tensors");
      for (size_t t = 0; t < count; ++t) group_[t] = int32_t((*group)[t]);
    }
    first_chunk_.push_back(0);
    for (int64_t n : numel_) first_chunk_.push_back(first_chunk_.back() + int32_t((n + chunk_size - 1) / chunk_size));
    view_.address = address_.data();
    view_.numel = numel_.data();
    view_.group = group_.data();
    view_.first_chunk = first_chunk_.data();
    view_.count = int32_t(count);
    view_.chunk_size = chunk_size;
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  const TensorTable& view() const { return view_; }
  DType dtype() const { return dtype_; }

  // Rows of a hyperparameter table that the groups index.
  int64_t check_hyper(const std::vector<double>& hyper, int columns) const {
    const int64_t groups = columns ? int64_t(hyper.size()) / columns : 0;
    STD_TORCH_CHECK(groups * columns == int64_t(hyper.size()), "hyper has ", hyper.size(), " entries, not a multiple of ", columns);
    for (int32_t row : group_) STD_TORCH_CHECK(columns == 0 || (row >= 0 && row < groups), "group index ", row, " of ", groups);
    return groups;
  }

 private:
  void append(const TensorList& list, const TensorList& like) {
    for (size_t t = 0; t < list.size(); ++t) {
      const Tensor& x = list[t];
      if (&list == &like) numel_.push_back(x.numel());
      STD_TORCH_CHECK(dtype_of(x) == dtype_ && x.numel() == numel_[t] && x.get_device_index() == like[0].get_device_index(),
                      "tensor ", t, " of a list differs in dtype, size or device");
      address_.push_back(reinterpret_cast<int64_t>(x.data_ptr()));
    }
  }

  TensorTable view_{};
  DType dtype_ = kFloat32;
  std::vector<int64_t> address_, numel_;
  std::vector<int32_t> group_, first_chunk_;
};

// Address of an optional scalar tensor of `numel` elements, of the accumulation type or (`type` null) float32.
inline void* scalar(const std::optional<Tensor>& x, int64_t numel, const DType* type, const char* name) {
  if (!x) return nullptr;
  const DType expected = type ? *type : kFloat32;
  STD_TORCH_CHECK(x->numel() >= numel && dtype_of(*x) == expected && x->is_contiguous(), name, " must hold ", numel,
                  " contiguous elements of the accumulation dtype");
  return x->data_ptr();
}

}  // namespace samk
