// Shared by cpu.cpp and cuda.cu files: torch's stable tensors with pointers, and the switch over dtypes.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace ace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// A matrix whose rows lie at stride(0), each contiguous: slices of columns come without a copy.
inline Tensor dense_rows(const Tensor& x) { return x.stride(1) == 1 ? x : dense(x); }

template <class T>
const T* in(const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); }

template <class T>
T* out(const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); }

// torch::stable::new_empty, which would look the operator up by its name in the dispatcher.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size) {
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), size.data(), size.size(), nullptr, nullptr,
                                                          nullptr, 0, nullptr, &made));
  return Tensor(made);
}

// Calls f.template operator()<float or double>(); the Python side has already refused other dtypes.
template <class F>
void dispatch(const Tensor& x, F&& f) {
  if (x.scalar_type() == ScalarType::Float) return f.template operator()<float>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "ace_fast: expected float32 or float64");
  f.template operator()<double>();
}

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace ace
