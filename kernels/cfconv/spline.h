// Cubic Hermite splines on uniform knots, one for each channel, on a block of pairs; as in network.h with their changes
// along t and the gradients of both.
#pragma once

#include "pairs.h"

namespace ace::cfconv {

// The knot k before d and what the values and slopes of the knots k and k + 1 count, for order 0 to 2 of derivative.
template <class T>
struct Taps {
  int64_t k;
  T w[3][4];
  Taps(T d, T step, int64_t knots) {
    const T x = d / step;
    k = x > 0 ? std::min<int64_t>(static_cast<int64_t>(x), knots - 2) : 0;  // NaN: knot 0
    const T s = x - static_cast<T>(k), u = 1 - s, inverse = 1 / step;
    const T w0[] = {(1 + 2 * s) * u * u, s * u * u * step, s * s * (3 - 2 * s), -s * s * u * step};
    const T w1[] = {-6 * s * u * inverse, u * (1 - 3 * s), 6 * s * u * inverse, s * (3 * s - 2)};
    const T w2[] = {(12 * s - 6) * inverse * inverse, (6 * s - 4) * inverse, (6 - 12 * s) * inverse * inverse,
                    (6 * s - 2) * inverse};
    for (int m = 0; m < 4; ++m) w[0][m] = w0[m], w[1][m] = w1[m], w[2][m] = w2[m];
  }
};

template <class T>
class Spline {
 public:
  // table [K, 2, F]: values and slopes at K knots from 0 to the cutoff
  Spline(const Tensor& table, T cutoff)
      : K(table.size(0)), F(table.size(2)), f(round_up<T>(F)), step_(cutoff / static_cast<T>(K - 1)),
        table_(in<T>(table), 2 * K, F) {}

  struct Work {
    Work(const Spline&, int) {}
  };

  int64_t ld() const { return f; }
  int64_t sums() const { return 2 * K * f; }

  void forward(const Work&, const Pairs<T>& p, int jets, T* S) const {
    for (int64_t z = 0; z < p.n; ++z) {
      const Taps<T> of(p.d[z], step_, K);
      const T *from = table_[2 * of.k], t = jets == 2 ? p.t[z] : T(0);
      T *to = S + z * f, *moved = S + (p.n + z) * f;
      for (int64_t k = 0, end = f; k < end; k += lanes<T>) {
        const Knots at(from + k, end);
        store(to + k, at.sum(of.w[0]));
        if (jets == 2) store(moved + k, t * at.sum(of.w[1]));
      }
    }
  }

  void backward(const Work&, Pairs<T>& p, int jets, const T* g_S, bool distances, bool, T* sums) const {
    for (int64_t z = 0; z < p.n; ++z) {
      const Taps<T> of(p.d[z], step_, K);
      const T *value = g_S + z * f, *change = g_S + (p.n + z) * f, t = jets == 2 ? p.t[z] : T(0);
      if (sums)
        for (int m = 0; m < 4; ++m) {
          T* to = sums + (2 * of.k + m) * f;
          const T a = of.w[0][m], b = t * of.w[1][m];
          for (int64_t k = 0; k < f; k += lanes<T>) {
            Vec<T> g = a * load(value + k);
            if (jets == 2) g += b * load(change + k);
            store(to + k, load(to + k) + g);
          }
        }
      if (!distances) continue;
      const T* from = table_[2 * of.k];
      Vec<T> g_d{}, g_t{};
      for (int64_t k = 0; k < f; k += lanes<T>) {
        const Knots at(from + k, f);
        const Vec<T> slope = at.sum(of.w[1]);
        g_d += slope * load(value + k);
        if (jets == 1) continue;
        g_d += t * at.sum(of.w[2]) * load(change + k);
        g_t += slope * load(change + k);
      }
      p.g_d[z] += lane_sum<T>(g_d);
      if (jets == 2) p.g_t[z] += lane_sum<T>(g_t);
    }
  }

  void collect(const T* sums, int64_t chunks, T* const* to) const {
    if (to[0]) cfconv::collect(sums, chunks, this->sums(), 2 * K, F, f, to[0]);
  }

 private:
  struct Knots {  // a vector of channels of value, slope, next value, next slope
    Vec<T> at[4];
    Knots(const T* from, int64_t ld) {
      for (int m = 0; m < 4; ++m) at[m] = load(from + m * ld);
    }
    Vec<T> sum(const T (&w)[4]) const { return (w[0] * at[0] + w[1] * at[1]) + (w[2] * at[2] + w[3] * at[3]); }
  };

  const int64_t K, F, f;
  const T step_;
  const Rows<T> table_;
};

}  // namespace ace::cfconv
