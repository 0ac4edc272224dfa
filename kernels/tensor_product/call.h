// The arguments of a call as the CPU kernels take them, and where its results go.
#pragma once

#include "epilogue.h"
#include "paths.h"

namespace ace::product {

using Ints = std::vector<int64_t>;

// As in op.py, the tensors dense: x1 [Z, dim1], x2 [Z, dim2], weight [n] or [Z, n].
struct Call {
  Tensor x1, x2, weight, index, value;
  Ints dims, paths, slots;

  int64_t rows() const { return x1.size(0); }
  bool shared() const { return weight.dim() == 1; }
  bool ir_mul() const { return dims[3] != 0; }
  std::vector<Slice> biased() const {
    std::vector<Slice> found;
    for (size_t s = 0; s < slots.size(); s += 2) found.push_back({slots[s], slots[s + 1], 1});
    return found;
  }
  int64_t biases() const {
    int64_t n = 0;
    for (const Slice& s : biased()) n += s.mul;
    return n;
  }
};

// Gradients of the inputs, the biases and the epilogue's parameters; those that are not asked for have no elements.
struct Gradients {
  bool need_x1, need_x2, need_weight, need_bias, need_parameters;
  Tensor x1, x2, weight, bias, parameters;

  // Bit n of `needs` asks for the n-th.
  Gradients(const Call& call, int64_t needs, int64_t count = 0)
      : need_x1(needs & 1), need_x2(needs & 2), need_weight(needs & 4), need_bias(needs & 8), need_parameters(needs & 16),
        x1(fresh(call.x1, need_x1, {call.rows(), call.dims[0]})), x2(fresh(call.x1, need_x2, {call.rows(), call.dims[1]})),
        weight(fresh(call.x1, need_weight, weights(call))), bias(fresh(call.x1, need_bias, {call.biases()})),
        parameters(fresh(call.x1, need_parameters, {count})) {}

 private:
  static Tensor fresh(const Tensor& like, bool need, const Ints& size) {
    return in_huge_pages(empty(like, need ? size : Ints{0}));
  }
  static Ints weights(const Call& call) {
    return call.shared() ? Ints{call.weight.size(0)} : Ints{call.rows(), call.weight.size(1)};
  }
};

// Cotangents of the gradients of x1, x2 and weight, each where there is one.
struct Cotangents {
  std::optional<Tensor> x1, x2, weight;
};

// Sums of chunks, in order: [chunk][length], of which chunk 0 is there without any.
template <class T>
class Partial {
 public:
  Partial(int64_t chunks, int64_t length) : length(length), chunks(std::max<int64_t>(chunks, 1)), data_(this->chunks * length) {
    std::fill_n(static_cast<T*>(data_), length, T(0));
  }
  T* start(int64_t chunk) const { return std::fill_n(data_ + chunk * length, length, T(0)) - length; }
  const T* data() const { return data_; }

  void add(int64_t from, int64_t count, T* to) const {
    std::copy_n(data_ + from, count, to);
    for (int64_t c = 1; c < chunks; ++c)
      for (int64_t n = 0; n < count; ++n) to[n] += data_[c * length + from + n];
  }

  int64_t length, chunks;

 private:
  Scratch<T> data_;
};

}  // namespace ace::product
