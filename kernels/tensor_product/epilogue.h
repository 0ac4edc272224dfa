// What may follow a product, on blocks of rows as lanes: e3nn's Gate and NormActivation.
#pragma once

#include <variant>

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

  int64_t parameters() const { return 0; }

  std::vector<Slice> slices_in(bool ir_mul) const { return slices(scalars + gates, ir_mul); }
  std::vector<Slice> slices_out(bool ir_mul) const { return slices(scalars, ir_mul); }
  std::vector<Slice> slices(int64_t from, bool ir_mul) const {
    std::vector<Slice> found;
    for (size_t n = 0; n < gated.size(); n += 2) {
      found.push_back({from, gated[n], gated[n + 1]});
      from += gated[n] * gated[n + 1];
    }
    return fill_slices(found, from, ir_mul);
  }

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

  // pre becomes its gradient from g, that of the output; there are no parameters' gradients to add.
  template <class T>
  void backward(const T* g, T* pre, T* = nullptr) const {
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

// reference.py, norm_activation: layout is multiplicity and components of each slice, activation as in table.py.
struct Norm {
  enum Activation { silu, sigmoid, tanh, relu };
  std::vector<int64_t> layout;
  Activation activation;
  double epsilon;
  std::optional<Tensor> bias;  // [channels]

  Norm(const std::vector<int64_t>& layout, int64_t activation, double epsilon, const std::optional<Tensor>& bias)
      : layout(layout), activation(static_cast<Activation>(activation)), epsilon(epsilon) {
    if (bias) this->bias = dense(*bias);
  }

  int64_t dim_in() const {
    int64_t dim = 0;
    for (size_t n = 0; n < layout.size(); n += 2) dim += layout[n] * layout[n + 1];
    return dim;
  }
  int64_t dim_out() const { return dim_in(); }
  int64_t parameters() const { return bias ? bias->numel() : 0; }

  std::vector<Slice> slices_in(bool ir_mul) const {
    std::vector<Slice> found;
    int64_t from = 0;
    for (size_t n = 0; n < layout.size(); n += 2) {
      found.push_back({from, layout[n], layout[n + 1]});
      from += layout[n] * layout[n + 1];
    }
    return fill_slices(found, from, ir_mul);
  }
  std::vector<Slice> slices_out(bool ir_mul) const { return slices_in(ir_mul); }

  template <class T>
  void forward(const T* pre, T* out) const {
    channels<T>([&](int64_t c, int64_t at, int64_t d) {
      lanes_of_row<T>([&](int64_t z) {
        const Norms<T> n = norms(pre + at * kRows + z, d, c);
        const Vec<T> factor = value<T>(n.shifted) / n.norm;
        for (int64_t k = 0; k < d; ++k) store(out + (at + k) * kRows + z, factor * load(pre + (at + k) * kRows + z));
      });
    });
  }

  // pre becomes its gradient from g, that of the output; gradients of the biases are added to g_bias where it is not null.
  template <class T>
  void backward(const T* g, T* pre, T* g_bias = nullptr) const {
    channels<T>([&](int64_t c, int64_t at, int64_t d) {
      Vec<T> total{};
      lanes_of_row<T>([&](int64_t z) {
        const T* from = g + at * kRows + z;
        T* x = pre + at * kRows + z;
        const Norms<T> n = norms(x, d, c);
        Vec<T> along{};
        for (int64_t k = 0; k < d; ++k) along += load(from + k * kRows) * load(x + k * kRows);
        along /= n.norm;
        const Vec<T> f = value<T>(n.shifted) / n.norm, change = slope<T>(n.shifted);
        const Vec<T> radial = n.free ? (change - f) * along / n.norm : Vec<T>{};
        for (int64_t k = 0; k < d; ++k)
          store(x + k * kRows, load(from + k * kRows) * f + load(x + k * kRows) * radial);
        total += change * along;
      });
      if (g_bias)
        for (int l = 0; l < lanes<T>; ++l) g_bias[c] += total[l];
    });
  }

 private:
  template <class T>
  struct Norms {
    Vec<T> norm, shifted;                          // clamped, and with the bias
    decltype(Vec<T>{} < Vec<T>{}) free;            // where it is not clamped
  };

  template <class T>
  Norms<T> norms(const T* x, int64_t d, int64_t c) const {
    const T least = static_cast<T>(epsilon * epsilon);
    Vec<T> square{};
    for (int64_t k = 0; k < d; ++k) square += load(x + k * kRows) * load(x + k * kRows);
    const auto free = square >= least;
    const Vec<T> norm = sqrt_of<T>(free ? square : splat<T>(least));
    return {norm, bias ? norm + in<T>(*bias)[c] : norm, free};
  }

  // f(channel, its first component, its number of components)
  template <class T, class F>
  void channels(F&& f) const {
    int64_t channel = 0, at = 0;
    for (size_t n = 0; n < layout.size(); n += 2)
      for (int64_t m = 0; m < layout[n]; ++m, ++channel, at += layout[n + 1]) f(channel, at, layout[n + 1]);
  }

  template <class T>
  Vec<T> value(Vec<T> x) const {
    switch (activation) {
      case silu: return x * sigmoid_of<T>(x);
      case sigmoid: return sigmoid_of<T>(x);
      case tanh: return tanh_of<T>(x);
      default: return x > T(0) ? x : Vec<T>{};
    }
  }
  template <class T>
  Vec<T> slope(Vec<T> x) const {
    const Vec<T> y = activation == tanh ? tanh_of<T>(x) : sigmoid_of<T>(x);
    switch (activation) {
      case silu: return y * (T(1) + x * (T(1) - y));
      case sigmoid: return y * (T(1) - y);
      case tanh: return T(1) - y * y;
      default: return x > T(0) ? splat<T>(T(1)) : Vec<T>{};
    }
  }
};

using Epilogue = std::variant<Gate, Norm>;

}  // namespace ace::product
