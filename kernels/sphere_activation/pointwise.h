// What happens at a point: the activations with two derivatives, and the functions of the operator and its derivatives.
#pragma once

#include "transform.h"
#include "vector_math.h"

namespace ace::sphere_activation {

enum Activation { kNone, kSiLU, kReLU, kGELU, kTanh, kSigmoid, kSoftplus, kActivations };  // as in reference.py

// f(u), f'(u), f''(u); what a caller does not use is not computed.
template <int A, class T>
struct Values {
  Vec<T> f, slope, curve;
  explicit Values(Vec<T> u) {
    const Vec<T> zero{}, one = splat<T>(T(1));
    if constexpr (A == kNone) f = u, slope = one, curve = zero;
    if constexpr (A == kReLU) f = u > T(0) ? u : zero, slope = u > T(0) ? one : zero, curve = zero;
    if constexpr (A == kTanh) f = tanh_of<T>(u), slope = T(1) - f * f, curve = T(-2) * f * slope;
    if constexpr (A == kGELU) {
      const Vec<T> normal = (erf(u * T(0.70710678118654752440)) + T(1)) * T(0.5);
      const Vec<T> density = exp_of<T>((u * u) * T(-0.5)) * T(0.39894228040143267794);
      f = u * normal, slope = normal + u * density, curve = density * (T(2) - u * u);
    }
    if constexpr (A == kSigmoid) {
      f = sigmoid_of<T>(u), slope = f * (T(1) - f), curve = slope * (T(1) - T(2) * f);
    }
    if constexpr (A == kSiLU) {
      const Vec<T> s = sigmoid_of<T>(u), rise = s * (T(1) - s);
      f = u * s, slope = s + u * rise, curve = rise * (T(2) + u * (T(1) - T(2) * s));
    }
    if constexpr (A == kSoftplus) {
      const Vec<T> s = sigmoid_of<T>(u), log = log1p_of_unit<T>(exp_of<T, true>(-abs_of<T>(u)));
      const auto linear = u > T(20);  // as PyTorch has it
      f = linear ? u : (u > T(0) ? u : zero) + log;
      slope = linear ? one : s, curve = linear ? zero : s * (T(1) - s);
    }
  }
};

// y = h f(u) v; with `Two` there is a second field v.
template <bool Two>
struct Forward {
  static constexpr int in = 1 + Two, out = 1;
  template <int A, class T>
  static Vec<T> at(const Vec<T>* x, Vec<T> h, Vec<T>, Vec<T>* y) {
    y[0] = Values<A, T>(x[0]).f * h;
    if constexpr (Two) y[0] *= x[1];
    return Vec<T>{};
  }
};

// Of u, w (and v) to the gradients of x (and x2); returns that of the gate.
template <bool Two>
struct Gradient {
  static constexpr int in = 2 + Two, out = 1 + Two;
  template <int A, class T>
  static Vec<T> at(const Vec<T>* x, Vec<T> h, Vec<T>, Vec<T>* y) {
    const Values<A, T> a(x[0]);
    const Vec<T> w = x[1] * h;
    y[0] = a.slope * w;
    if constexpr (!Two) return a.f * x[1];
    else {
      y[0] *= x[2];
      y[1] = a.f * w;
      return a.f * x[1] * x[2];
    }
  }
};

// Of u, v, w and the cotangents p, q and r of the gradients to the gradients of g, x and x2; returns that of the gate.
struct Second {
  static constexpr int in = 5, out = 3;
  template <int A, class T>
  static Vec<T> at(const Vec<T>* x, Vec<T> h, Vec<T> r, Vec<T>* y) {
    const Values<A, T> a(x[0]);
    const Vec<T> v = x[1], w = x[2], p = x[3], q = x[4], t = p * a.slope * v + q * a.f;
    y[0] = h * t + r * a.f * v;
    y[1] = w * (h * (p * a.curve * v + q * a.slope) + r * a.slope * v);
    y[2] = w * (h * p * a.slope + r * a.f);
    return w * t;
  }
};

// A group of points of a block: every field as even and odd rows `step` apart (0: the same everywhere).
template <class T>
struct Points {
  const T *even[5], *odd[5];
  int64_t step[5];
  T *out_even[3], *out_odd[3];
  const T *gate, *c_gate;  // [lanes]
  T* sum;                  // [lanes], what `at` returns, over all points
  int64_t count, opposite;  // rows; of rings the first and `opposite` are azimuths 0 and pi, their own opposites
  bool paired;
};

template <class T, class F, int A>
void visit(const Points<T>& p) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t v = 0; v < W; v += lanes<T>) {
    const Vec<T> h = load(p.gate + v), r = load(p.c_gate + v);
    Vec<T> sum = load(static_cast<const T*>(p.sum + v));
    for (int64_t j = 0; j < p.count; ++j) {
      Vec<T> x[F::in], odd[F::in], y[F::out], other[F::out];
      for (int i = 0; i < F::in; ++i) x[i] = load(p.even[i] + j * p.step[i] + v);
      if (!p.paired || j == 0 || j == p.opposite) {
        sum += F::template at<A, T>(x, h, r, y);
        for (int o = 0; o < F::out; ++o) store(p.out_even[o] + j * W + v, y[o]);
        continue;
      }
      for (int i = 0; i < F::in; ++i) odd[i] = load(p.odd[i] + j * p.step[i] + v), x[i] += odd[i];
      sum += F::template at<A, T>(x, h, r, y);
      for (int i = 0; i < F::in; ++i) x[i] -= T(2) * odd[i];
      sum += F::template at<A, T>(x, h, r, other);
      for (int o = 0; o < F::out; ++o) {
        store(p.out_even[o] + j * W + v, y[o] + other[o]);
        store(p.out_odd[o] + j * W + v, y[o] - other[o]);
      }
    }
    store(p.sum + v, sum);
  }
}

template <class T> using Visit = void (*)(const Points<T>&);

template <class T, class F>
Visit<T> visit_of(int64_t act) {
  constexpr auto all = []<int... A>(std::integer_sequence<int, A...>) {
    return std::array<Visit<T>, sizeof...(A)>{&visit<T, F, A>...};
  }(std::make_integer_sequence<int, kActivations>{});
  return all[act];
}

}  // namespace ace::sphere_activation
