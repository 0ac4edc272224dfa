// The filter network, Linear -> activation -> Linear of a radial basis, on a block of pairs: values, with `jets` = 2
// also their change along t, the rate at which the distances change; and the gradients of both.
#pragma once

#include "pairs.h"

namespace ace::cfconv {

enum Kind : int64_t { kGaussian, kExpnorm, kBessel };
enum Activation : int64_t { kShiftedSoftplus, kSilu };

// A basis function, its derivatives in d, those of value and slope in centre p and scale q.
template <class T>
struct Basis {
  Vec<T> b, b1, b2, bp, b1p, bq, b1q;
};

// u(d) with its derivatives: d itself, or exp(-alpha d).
template <class T>
struct Warped {
  T d, u, u1, u2;
  Warped(int64_t kind, T alpha, T d) : d(d), u(d), u1(1), u2(0) {
    if (kind == kExpnorm) u = std::exp(-alpha * d), u1 = -alpha * u, u2 = alpha * alpha * u;
  }
};

// exp(q (u - p)^2), zero below 1e-26 (float) and 1e-260 (double): products of subnormal numbers are very slow.
template <class T>
inline Basis<T> bell(Vec<T> p, Vec<T> q, const Warped<T>& w) {
  constexpr T least = sizeof(T) == 4 ? T(-60) : T(-600);
  const Vec<T> v = w.u - p, qv = q * v, power = qv * v;
  const auto nothing = power < least;
  const Vec<T> e = nothing ? Vec<T>{} : exp(nothing ? Vec<T>{} : power);
  const Vec<T> slope = (qv + qv) * e, bend = (q + q + T(4) * qv * qv) * e;
  return {e, slope * w.u1, bend * (w.u1 * w.u1) + slope * w.u2, -slope, bend * -w.u1, v * v * e,
          (v + v) * (T(1) + v * qv) * e * w.u1};
}

// q sin(p d) / d by f(z) = sin(z) / z, a series in z^2 for |z| < 1
template <class T>
inline Basis<T> wave(Vec<T> p, Vec<T> q, T d) {
  constexpr int terms = 10;
  T c0[terms], c1[terms], c2[terms], factor = 1;  // of f, f' / z and f''
  for (int k = 0; k < terms; ++k, factor /= T(-2 * k * (2 * k + 1))) {
    c0[k] = factor;
    const T next = factor / T(-(2 * k + 2) * (2 * k + 3));
    c1[k] = next * T(2 * k + 2), c2[k] = next * T((2 * k + 2) * (2 * k + 1));
  }
  const Vec<T> z = p * d, w = z * z;
  const auto [s, c] = sin_cos<T>(z);
  const auto small = w < T(1);
  const Vec<T> safe = small ? splat<T>(1) : z;
  const Vec<T> f = small ? polynomial<T>(w, c0) : s / safe;
  const Vec<T> f1 = small ? z * polynomial<T>(w, c1) : (c - f) / safe;
  const Vec<T> f2 = small ? polynomial<T>(w, c2) : -f - (f1 + f1) / safe;
  const Vec<T> qp = q * p;
  return {qp * f, qp * p * f1, qp * p * p * f2, q * c, -qp * s, p * f, p * p * f1};
}

template <class T>
inline Basis<T> basis_of(int64_t kind, Vec<T> p, Vec<T> q, const Warped<T>& w) {
  return kind == kBessel ? wave<T>(p, q, w.d) : bell<T>(p, q, w);
}

// Value, first and second derivative.
template <class T>
struct Active {
  Vec<T> h, h1, h2;
  Active(int64_t kind, Vec<T> x) {
    const Vec<T> e = exp(-abs_of<T>(x)), half = reciprocal<T>(e + T(1)), sigmoid = x >= T(0) ? half : e * half;
    const Vec<T> density = e * half * half;
    if (kind == kShiftedSoftplus) {
      h = (x > T(0) ? x : Vec<T>{}) + (log1p_of_unit<T>(e) - T(0.69314718055994530942));
      h1 = sigmoid, h2 = density;
    } else {
      h = x * sigmoid;
      h1 = sigmoid + x * density;
      h2 = density * (T(2) + x * (T(1) - (sigmoid + sigmoid)));
    }
  }
};

template <class T>
void repeat_row(const T* row, int64_t rows, int64_t ld, T* to) {
  for (int64_t z = 0; z < rows; ++z) std::copy_n(row, ld, to + z * ld);
}

// Adds the sum of a block's rows: a chunk's sum takes one number a block, not one a pair, and rounds as often.
template <class T>
void sum_rows(const T* from, int64_t rows, int64_t ld, T* to) {
  for (int64_t k = 0; k < ld; k += lanes<T>) {
    Vec<T> sum{};
    for (int64_t z = 0; z < rows; ++z) sum += load(from + z * ld + k);
    store(to + k, load(to + k) + sum);
  }
}

template <class T>
class Network {
 public:
  // weight1 [H, G], bias1 [H], weight2 [F, H], bias2 [F], centre [G], scale [G]
  Network(std::vector<Tensor> of, int64_t kind, int64_t activation, double alpha)
      : G(of[0].size(1)), H(of[0].size(0)), F(of[2].size(0)), g(round_up<T>(G)), h(round_up<T>(H)), f(round_up<T>(F)),
        kind_(kind), activation_(activation), alpha_(static_cast<T>(alpha)), weight1_(in<T>(of[0]), H, G),
        weight2_(in<T>(of[2]), F, H), bias1_(in<T>(of[1]), 1, H), bias2_(in<T>(of[3]), 1, F),
        centre_(in<T>(of[4]), 1, G), scale_(in<T>(of[5]), 1, G), turned1_(G * h), turned2_(H * f) {
    turn(weight1_, H, G, h, turned1_);
    turn(weight2_, F, H, f, turned2_);
  }

  struct Work {
    Work(const Network& of, int jets)
        : b(jets * kRows * of.g), y(jets * kRows * of.h), y1(kRows * of.h), y2(kRows * of.h),
          g_y(jets * kRows * of.h), g_b(jets * kRows * of.g) {}
    Scratch<T> b, y, y1, y2, g_y, g_b;  // basis, hidden, its derivatives (the second times the change), gradients
  };

  int64_t ld() const { return f; }
  int64_t sums() const { return H * g + h + F * h + f + 2 * g; }

  // S [jets n][f]: the values, then their changes
  void forward(const Work& work, const Pairs<T>& p, int jets, T* S) const {
    const int64_t n = p.n, rows = jets * n, kind = kind_, activation = activation_;
    const T *centre = centre_[0], *scale = scale_[0], *bias1 = bias1_[0];
    for (int64_t z = 0; z < n; ++z) {
      const Warped<T> w(kind, alpha_, p.d[z]);
      const T t = jets == 2 ? p.t[z] : T(0);
      T *to = work.b + z * g, *moved = work.b + (n + z) * g;
      for (int64_t k = 0, end = g; k < end; k += lanes<T>) {
        const Basis<T> of = basis_of<T>(kind, load(centre + k), load(scale + k), w);
        store(to + k, of.b);
        if (jets == 2) store(moved + k, of.b1 * t);
      }
    }
    matmul<T>(rows, H, G, work.b, g, 1, turned1_, h, work.y, h, false);
    for (int64_t z = 0; z < n; ++z) {
      T *y = work.y + z * h, *moved = work.y + (n + z) * h, *y1 = work.y1 + z * h, *y2 = work.y2 + z * h;
      for (int64_t k = 0, end = h; k < end; k += lanes<T>) {
        const Active<T> of(activation, load(y + k) + load(bias1 + k));
        store(y + k, of.h);
        store(y1 + k, of.h1);
        if (jets == 1) continue;
        const Vec<T> change = load(moved + k);
        store(y2 + k, of.h2 * change);
        store(moved + k, of.h1 * change);
      }
    }
    repeat_row(bias2_[0], n, f, S);
    std::fill_n(S + n * f, (rows - n) * f, T(0));
    matmul<T>(rows, F, H, work.y, h, 1, turned2_, f, S, f, true);
  }

  // After `forward`: the gradient g_S of S to p.g_d and p.g_t, where `distances`, and to the sums of the parameters,
  // where not null; all added to.
  void backward(const Work& work, Pairs<T>& p, int jets, const T* g_S, bool distances, bool basis, T* sums) const {
    const int64_t n = p.n, rows = jets * n;
    const Layout at(*this, sums);
    if (sums) {
      matmul<T>(F, H, rows, g_S, 1, f, work.y, h, at.weight2, h, true);
      sum_rows(g_S, n, f, at.bias2);
    }
    matmul<T>(rows, H, F, g_S, f, 1, weight2_[0], h, work.g_y, h, false);
    for (int64_t z = 0; z < n; ++z) {
      T *to = work.g_y + z * h, *moved = work.g_y + (n + z) * h, *y1 = work.y1 + z * h, *y2 = work.y2 + z * h;
      for (int64_t k = 0, end = h; k < end; k += lanes<T>) {
        const Vec<T> slope = load(y1 + k), value = slope * load(to + k);
        if (jets == 1) {
          store(to + k, value);
          continue;
        }
        store(to + k, value + load(y2 + k) * load(moved + k));
        store(moved + k, slope * load(moved + k));
      }
    }
    if (sums) {
      matmul<T>(H, G, rows, work.g_y, 1, h, work.b, g, at.weight1, g, true);
      sum_rows<T>(work.g_y, n, h, at.bias1);
    }
    if (!distances && !(sums && basis)) return;
    matmul<T>(rows, G, H, work.g_y, h, 1, weight1_[0], g, work.g_b, g, false);
    for (int64_t z = 0; z < n; ++z) basis_backward(work.g_b + z * g, n, jets, z, p, sums && basis ? &at : nullptr);
  }

  // to: gradients of weight1, bias1, weight2, bias2, centre, scale; null where not needed
  void collect(const T* sums, int64_t chunks, T* const* to) const {
    const Layout at(*this, const_cast<T*>(sums));
    const auto part = [&](int n, const T* from, int64_t rows, int64_t width, int64_t ld) {
      if (to[n]) cfconv::collect(from, chunks, this->sums(), rows, width, ld, to[n]);
    };
    part(0, at.weight1, H, G, g), part(1, at.bias1, 1, H, h), part(2, at.weight2, F, H, h), part(3, at.bias2, 1, F, f);
    part(4, at.centre, 1, G, g), part(5, at.scale, 1, G, g);
  }

 private:
  struct Layout {
    T *weight1 = nullptr, *bias1 = nullptr, *weight2 = nullptr, *bias2 = nullptr, *centre = nullptr, *scale = nullptr;
    Layout(const Network& of, T* sums) {
      if (!sums) return;
      weight1 = sums, bias1 = weight1 + of.H * of.g, weight2 = bias1 + of.h, bias2 = weight2 + of.F * of.h;
      centre = bias2 + of.f, scale = centre + of.g;
    }
  };

  static void turn(const Rows<T>& from, int64_t rows, int64_t cols, int64_t ld, T* to) {
    transpose(from[0], rows, cols, from.ld, to, ld);
    for (int64_t k = 0; k < cols; ++k) std::fill(to + k * ld + rows, to + (k + 1) * ld, T(0));
  }

  void basis_backward(const T* g_b, int64_t n, int jets, int64_t z, Pairs<T>& p, const Layout* at) const {
    const Warped<T> w(kind_, alpha_, p.d[z]);
    const T t = jets == 2 ? p.t[z] : T(0), *centre = centre_[0], *scale = scale_[0];
    Vec<T> g_d{}, g_t{};
    for (int64_t k = 0, end = g, kind = kind_; k < end; k += lanes<T>) {
      const Basis<T> of = basis_of<T>(kind, load(centre + k), load(scale + k), w);
      const Vec<T> value = load(g_b + k), change = jets == 2 ? load(g_b + n * g + k) : Vec<T>{};
      g_d += value * of.b1 + t * change * of.b2;
      g_t += change * of.b1;
      if (!at) continue;
      store(at->centre + k, load(at->centre + k) + value * of.bp + t * change * of.b1p);
      store(at->scale + k, load(at->scale + k) + value * of.bq + t * change * of.b1q);
    }
    p.g_d[z] += lane_sum<T>(g_d);
    if (jets == 2) p.g_t[z] += lane_sum<T>(g_t);
  }

  const int64_t G, H, F, g, h, f;
  const int64_t kind_, activation_;
  const T alpha_;
  const Rows<T> weight1_, weight2_, bias1_, bias2_, centre_, scale_;
  const Scratch<T> turned1_, turned2_;  // [G][h], [H][f]
};

}  // namespace ace::cfconv
