// What may follow a product, on blocks of rows as lanes: e3nn's Gate.
#pragma once

#include "rows.h"
#include "vector_math.h"

namespace ace::product {

// reference.py, gate: layout is scalars, gates, then multiplicity and components of each gated slice.
struct Gate {
  int64_t scalars, gates;
  std::vector<int64_t> gated;
  double scalar_gain, gate_gain;

  Gate(const std::vector<int64_t>& layout, double scalar_gain, double gate_gain)
      : scalars(layout[0]), gates(layout[1]), gated(layout.begin() + 2, layout.end()), scalar_gain(scalar_gain),
        gate_gain(gate_gain) {}

  int64_t dim_in() const { return dim_out() + gates; }
  int64_t dim_out() const {
    int64_t dim = scalars;
    for (size_t n = 0; n < gated.size(); n += 2) dim += gated[n] * gated[n + 1];
    return dim;
  }

  // Slices of its input (from = scalars + gates) and of its output (from = scalars).
  std::vector<Slice> slices(int64_t from, bool ir_mul) const {
    std::vector<Slice> found;
    for (size_t n = 0; n < gated.size(); n += 2) {
      found.push_back({from, gated[n], gated[n + 1]});
      from += gated[n] * gated[n + 1];
    }
    return fill_slices(found, from, ir_mul);
  }
  std::vector<Slice> slices_in(bool ir_mul) const { return slices(scalars + gates, ir_mul); }
  std::vector<Slice> slices_out(bool ir_mul) const { return slices(scalars, ir_mul); }

  template <class T>
  void forward(const T* pre, T* out) const {
    for (int64_t c = 0; c < scalars; ++c)
      lanes_of_row<T>([&](int64_t z) {
        const Vec<T> x = load(pre + c * kRows + z);
        store(out + c * kRows + z, static_cast<T>(scalar_gain) * x * sigmoid_of<T>(x));
      });
    int64_t from = scalars + gates, to = scalars, gate = scalars;
    for (size_t n = 0; n < gated.size(); n += 2) {
      const int64_t d = gated[n + 1];
      for (int64_t m = 0; m < gated[n]; ++m, ++gate, from += d, to += d)
        lanes_of_row<T>([&](int64_t z) {
          const Vec<T> factor = static_cast<T>(gate_gain) * sigmoid_of<T>(load(pre + gate * kRows + z));
          for (int64_t k = 0; k < d; ++k)
            store(out + (to + k) * kRows + z, factor * load(pre + (from + k) * kRows + z));
        });
    }
  }

  // pre becomes its gradient from g, that of the output.
  template <class T>
  void backward(const T* g, T* pre) const {
    for (int64_t c = 0; c < scalars; ++c)
      lanes_of_row<T>([&](int64_t z) {
        const Vec<T> x = load(pre + c * kRows + z), s = sigmoid_of<T>(x);
        store(pre + c * kRows + z, static_cast<T>(scalar_gain) * load(g + c * kRows + z) * s * (T(1) + x * (T(1) - s)));
      });
    int64_t from = scalars + gates, to = scalars, gate = scalars;
    for (size_t n = 0; n < gated.size(); n += 2) {
      const int64_t d = gated[n + 1];
      for (int64_t m = 0; m < gated[n]; ++m, ++gate, from += d, to += d)
        lanes_of_row<T>([&](int64_t z) {
          const Vec<T> s = sigmoid_of<T>(load(pre + gate * kRows + z));
          const Vec<T> factor = static_cast<T>(gate_gain) * s;
          Vec<T> sum{};
          for (int64_t k = 0; k < d; ++k) {
            const Vec<T> x = load(g + (to + k) * kRows + z);
            sum += x * load(pre + (from + k) * kRows + z);
            store(pre + (from + k) * kRows + z, factor * x);
          }
          store(pre + gate * kRows + z, sum * factor * (T(1) - s));
        });
    }
  }
};

}  // namespace ace::product
