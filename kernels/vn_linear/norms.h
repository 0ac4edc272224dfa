// vn_norm_stats and vn_leaky_relu: passes over rows [R, 3, C], vectors of channels, sums over rows in chunks.
#pragma once

#include "native.h"

namespace ace::norms {

constexpr double kEps = 1e-6;    // vnn's: added to norms and to squared norms of directions
constexpr int64_t kChunk = 32;   // rows summed at a time: their norms stay in the cache

template <class T> struct Triple { Vec<T> x, y, z; };

template <class T> inline Vec<T> all(T value) { return Vec<T>{} + value; }

template <class T>
inline Triple<T> load(const T* p, int64_t stride, int64_t count) {
  return {load_first(p, count), load_first(p + stride, count), load_first(p + 2 * stride, count)};
}

template <class T>
inline void store(T* p, int64_t stride, int64_t count, Triple<T> v) {
  store_first(p, v.x, count), store_first(p + stride, v.y, count), store_first(p + 2 * stride, v.z, count);
}

// Fetches the same place of the next row: the arithmetic between loads is too long for the processor to look ahead.
template <class T>
inline void ahead(const T* p, int64_t stride) {
  for (int i = 3; i < 6; ++i) __builtin_prefetch(p + i * stride);
}

template <class T> inline Vec<T> dot(Triple<T> a, Triple<T> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class T> inline Triple<T> times(Vec<T> s, Triple<T> a) { return {s * a.x, s * a.y, s * a.z}; }
template <class T> inline Triple<T> plus(Triple<T> a, Triple<T> b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }

template <class T>
inline Triple<T> select(Vec<T> positive, Triple<T> a, Triple<T> b) {  // a where positive >= 0; b where it is NaN
  const auto yes = positive >= T(0);
  return {yes ? a.x : b.x, yes ? a.y : b.y, yes ? a.z : b.z};
}

template <class T>
inline Vec<T> root(Vec<T> v) {
  T a[lanes<T>];
  ace::store(a, v);
  for (int l = 0; l < lanes<T>; ++l) a[l] = std::sqrt(a[l]);
  return ace::load(a);
}

// f(chunk, first row, end) on torch's threads; `width` values a row.
template <class F>
void over_rows(int64_t rows, int64_t width, F&& f) {
  parallel(ceil_div(rows, kChunk), ceil_div(20000, kChunk * width + 1),
           [&](int64_t i) { f(i, i * kChunk, std::min(rows, (i + 1) * kChunk)); });
}

// total[c] = sum over chunks of part[chunk, c], in order, in float64.
template <class T>
void add_chunks(const T* part, int64_t chunks, int64_t ld, int64_t n, double* total) {
  constexpr int64_t step = 64;
  parallel(ceil_div(n, step), ceil_div(30000, step * chunks + 1), [&](int64_t block) {
    const int64_t first = block * step, last = std::min(n, first + step);
    std::fill(total + first, total + last, 0.0);
    for (int64_t i = 0; i < chunks; ++i)
      for (int64_t c = first; c < last; ++c) total[c] += part[i * ld + c];
  });
}

// Mean and variance of each chunk by two sweeps over its norms, joined exactly: no cancellation of large squares.
template <class T>
void stats(const T* p, int64_t rows, int64_t n, T* mean, T* var) {
  const int64_t ld = round_up<T>(n), chunks = ceil_div(rows, kChunk);
  const Scratch<T> means(chunks * ld), squares(chunks * ld);
  over_rows(rows, 3 * n, [&](int64_t i, int64_t first, int64_t last) {
    const Scratch<T> norms(kChunk * ld);
    T *m = means + i * ld, *s = squares + i * ld;
    std::fill(m, m + ld, T(0));
    for (int64_t r = first; r < last; ++r)
      for (int64_t c = 0; c < n; c += lanes<T>) {
        const Triple<T> v = load(p + 3 * r * n + c, n, n - c);
        const Vec<T> norm = root<T>(dot<T>(v, v)) + T(kEps);
        ace::store(norms + (r - first) * ld + c, norm);
        ace::store(m + c, ace::load(m + c) + norm);
      }
    for (int64_t c = 0; c < ld; c += lanes<T>) {
      const Vec<T> centre = ace::load(m + c) / T(last - first);
      Vec<T> sum{};
      for (int64_t r = 0; r < last - first; ++r) {
        const Vec<T> d = ace::load(norms + r * ld + c) - centre;
        sum += d * d;
      }
      ace::store(m + c, centre);
      ace::store(s + c, sum);
    }
  });
  constexpr int64_t step = 64;
  parallel(ceil_div(n, step), ceil_div(30000, step * chunks + 1), [&](int64_t block) {
    const int64_t first = block * step, count = std::min(n - first, step);
    double total[step] = {}, square[step] = {};
    const auto each = [&](auto&& f) {
      for (int64_t i = 0; i < chunks; ++i)
        for (int64_t c = 0; c < count; ++c) f(c, std::min(kChunk, rows - i * kChunk), i * ld + first + c);
    };
    each([&](int64_t c, int64_t size, int64_t at) { total[c] += size * static_cast<double>(means[at]); });
    for (int64_t c = 0; c < count; ++c) total[c] /= std::max<int64_t>(rows, 1);
    each([&](int64_t c, int64_t size, int64_t at) {
      const double d = means[at] - total[c];
      square[c] += squares[at] + size * d * d;
    });
    for (int64_t c = 0; c < count; ++c) {
      mean[first + c] = static_cast<T>(total[c]);
      var[first + c] = static_cast<T>(square[c] / std::max<int64_t>(rows, 1));
    }
  });
}

template <class T>
void stats_backward(const T* g_mean, const T* g_var, const T* p, const T* mean, int64_t rows, int64_t n, T* g_p) {
  over_rows(rows, 6 * n, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t c = 0; c < n; c += lanes<T>) {
        const int64_t at = 3 * r * n + c, count = n - c;
        ahead(p + at, n), ahead(g_p + at, n);
        const Triple<T> v = load(p + at, n, count);
        const Vec<T> norm = root<T>(dot<T>(v, v)), away = norm + T(kEps) - load_first(mean + c, count);
        const Vec<T> slope = (load_first(g_mean + c, count) + T(2) * load_first(g_var + c, count) * away) / T(rows);
        store(g_p + at, n, count, times<T>(norm == T(0) ? all<T>(0) : slope / norm, v));
      }
  });
}

// The batch norm q = s p with s = a + b / r, and the leaky ReLU along d.
template <class T>
struct Relu {
  const T *p, *d;              // [R, 3, C], [R, 3, C or 1] or null
  const T *scale, *shift;      // a, b [C in whole vectors] or null
  T keep;                      // 1 - slope
  int64_t rows, n;
  bool shared;

  Triple<T> direction(int64_t r, int64_t c) const {
    if (!shared) return load(d + 3 * r * n + c, n, n - c);
    return {all(d[3 * r]), all(d[3 * r + 1]), all(d[3 * r + 2])};
  }

  void forward(T* y) const {
    over_rows(rows, (d ? 9 : 6) * n, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r)
        for (int64_t c = 0; c < n; c += lanes<T>) {
          const int64_t at = 3 * r * n + c;
          ahead(p + at, n), ahead(y + at, n);
          if (d && !shared) ahead(d + at, n);
          Triple<T> q = load(p + at, n, n - c);
          if (scale) q = times<T>(ace::load(scale + c) + ace::load(shift + c) / (root<T>(dot<T>(q, q)) + T(kEps)), q);
          if (d) {
            const Triple<T> v = direction(r, c);
            const Vec<T> along = dot<T>(q, v);
            q = select<T>(along, q, plus<T>(q, times<T>(-keep * along / (dot<T>(v, v) + T(kEps)), v)));
          }
          store(y + at, n, n - c, q);
        }
    });
  }

  // Gradients of p, d (null where not needed) and, if `sums` is not null, of a and b: [chunks, 2, C in whole vectors].
  void backward(const T* g, T* g_p, T* g_d, T* sums) const {
    const int64_t ld = round_up<T>(n);
    over_rows(rows, (d ? 15 : 9) * n, [&](int64_t chunk, int64_t first, int64_t last) {
      T *g_a = sums ? sums + 2 * chunk * ld : nullptr, *g_b = sums ? g_a + ld : nullptr;
      if (sums) std::fill(g_a, g_a + 2 * ld, T(0));
      for (int64_t r = first; r < last; ++r) {
        Triple<T> total{};
        for (int64_t c = 0; c < n; c += lanes<T>) {
          const int64_t at = 3 * r * n + c, count = n - c;
          ahead(p + at, n), ahead(g + at, n);
          if (d && !shared) ahead(d + at, n);
          if (g_p) ahead(g_p + at, n);
          if (g_d && !shared) ahead(g_d + at, n);
          const Triple<T> v = load(p + at, n, count), g_y = load(g + at, n, count);
          const Vec<T> norm = scale ? root<T>(dot<T>(v, v)) : all<T>(0), inverse = T(1) / (norm + T(kEps));
          const Vec<T> b = scale ? ace::load(shift + c) : all<T>(0);
          const Vec<T> s = scale ? ace::load(scale + c) + b * inverse : all<T>(1);
          Triple<T> g_q = g_y;
          if (d) {
            const Triple<T> q = times<T>(s, v), w = direction(r, c);
            const Vec<T> along = dot<T>(q, w), square = dot<T>(w, w) + T(kEps);
            const Vec<T> ratio = keep * along / square, removed = keep * dot<T>(g_y, w) / square;
            g_q = select<T>(along, g_y, plus<T>(g_y, times<T>(-removed, w)));
            if (g_d) {
              const Triple<T> first_two = plus<T>(times<T>(-ratio, g_y), times<T>(-removed, q));
              const Vec<T> third = T(2) * removed * along / square;
              const Triple<T> pull = select<T>(along, Triple<T>{}, plus<T>(first_two, times<T>(third, w)));
              if (shared) total = plus<T>(total, pull);
              else store(g_d + at, n, count, pull);
            }
          }
          const Vec<T> g_s = scale ? dot<T>(g_q, v) : all<T>(0);
          if (sums) {
            ace::store(g_a + c, ace::load(g_a + c) + g_s);
            ace::store(g_b + c, ace::load(g_b + c) + g_s * inverse);
          }
          if (!g_p) continue;
          const Vec<T> inward = norm == T(0) ? all<T>(0) : g_s * b * inverse * inverse / norm;
          store(g_p + at, n, count, scale ? plus<T>(times<T>(s, g_q), times<T>(-inward, v)) : g_q);
        }
        if (g_d && shared) {
          const Vec<T> parts[3] = {total.x, total.y, total.z};
          for (int i = 0; i < 3; ++i) {
            T sum = 0;
            for (int l = 0; l < lanes<T>; ++l) sum += parts[i][l];
            g_d[3 * r + i] = sum;
          }
        }
      }
    });
  }
};

// a and b of the batch norm r -> a r + b, in whole vectors, and the inverse standard deviation.
template <class T>
struct Affine {
  Scratch<T> scale, shift;
  Scratch<double> inverse;
  const T *mean, *weight;
  int64_t n;

  Affine(const T* mean, const T* var, const T* weight, const T* bias, double eps, int64_t n)
      : scale(round_up<T>(n)), shift(round_up<T>(n)), inverse(n), mean(mean), weight(weight), n(n) {
    std::fill(scale + 0, scale + round_up<T>(n), T(0));
    std::fill(shift + 0, shift + round_up<T>(n), T(0));
    for (int64_t c = 0; mean && c < n; ++c) {
      inverse[c] = 1 / std::sqrt(var[c] + eps);
      const double a = weight[c] * inverse[c];
      scale[c] = static_cast<T>(a);
      shift[c] = static_cast<T>(bias[c] - mean[c] * a);
    }
  }

  // Of mean, var, weight and bias, null where not needed, from the chunks' sums.
  void backward(const T* sums, int64_t chunks, T* g_mean, T* g_var, T* g_weight, T* g_bias) const {
    const int64_t ld = round_up<T>(n);
    const Scratch<double> g_a(n), g_b(n);
    add_chunks<T>(sums, chunks, 2 * ld, n, g_a);
    add_chunks<T>(sums + ld, chunks, 2 * ld, n, g_b);
    for (int64_t c = 0; c < n; ++c) {
      const double i = inverse[c], g_scale = g_a[c] - mean[c] * g_b[c];
      if (g_mean) g_mean[c] = static_cast<T>(-weight[c] * i * g_b[c]);
      if (g_var) g_var[c] = static_cast<T>(-0.5 * weight[c] * i * i * i * g_scale);
      if (g_weight) g_weight[c] = static_cast<T>(i * g_scale);
      if (g_bias) g_bias[c] = static_cast<T>(g_b[c]);
    }
  }
};

using Maybe = std::optional<Tensor>;

inline Maybe dense(const Maybe& x) { return x ? Maybe(ace::dense(*x)) : x; }
template <class T> const T* maybe(const Maybe& x) { return x ? in<T>(*x) : nullptr; }

inline std::tuple<Tensor, Tensor> vn_norm_stats(Tensor p_) {
  const Tensor p = ace::dense(p_);  // [R, 3, C]
  Tensor mean = empty(p, {p.size(2)}), var = empty(p, {p.size(2)});
  dispatch(p, [&]<class T>() { stats<T>(in<T>(p), p.size(0), p.size(2), out<T>(mean), out<T>(var)); });
  return {mean, var};
}

inline Tensor vn_norm_stats_bwd(Tensor g_mean_, Tensor g_var_, Tensor p_, Tensor mean_) {
  const Tensor g_mean = ace::dense(g_mean_), g_var = ace::dense(g_var_), p = ace::dense(p_), mean = ace::dense(mean_);
  Tensor g_p = empty(p, {p.size(0), 3, p.size(2)});
  dispatch(p, [&]<class T>() {
    stats_backward<T>(in<T>(g_mean), in<T>(g_var), in<T>(p), in<T>(mean), p.size(0), p.size(2), out<T>(g_p));
  });
  return g_p;
}

// Calls f(Relu, Affine) in the dtype of p; the tensors live until it returns.
template <class F>
void with_relu(const Tensor& p_, const Maybe& d_, const Maybe& mean_, const Maybe& var_, const Maybe& weight_,
               const Maybe& bias_, double eps, double slope, F&& f) {
  const Tensor p = ace::dense(p_);  // [R, 3, C]
  const Maybe d = dense(d_), mean = dense(mean_), var = dense(var_), weight = dense(weight_), bias = dense(bias_);
  dispatch(p, [&]<class T>() {
    const int64_t n = p.size(2);
    const Affine<T> affine(maybe<T>(mean), maybe<T>(var), maybe<T>(weight), maybe<T>(bias), eps, n);
    const T *scale = mean ? affine.scale + 0 : nullptr, *shift = mean ? affine.shift + 0 : nullptr;
    const bool shared = d && d->size(2) != n;
    f(Relu<T>{in<T>(p), maybe<T>(d), scale, shift, static_cast<T>(1 - slope), p.size(0), n, shared}, affine);
  });
}

inline Tensor vn_leaky_relu(Tensor p, Maybe d, Maybe mean, Maybe var, Maybe weight, Maybe bias, double eps,
                            double slope) {
  Tensor y = empty(p, {p.size(0), 3, p.size(2)});
  with_relu(p, d, mean, var, weight, bias, eps, slope,
            [&]<class T>(const Relu<T>& relu, const Affine<T>&) { relu.forward(out<T>(y)); });
  return y;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> vn_leaky_relu_bwd(
    Tensor g_, Tensor p, Maybe d, Maybe mean, Maybe var, Maybe weight, Maybe bias, double eps, double slope,
    bool need_p, bool need_d, bool need_mean, bool need_var, bool need_weight, bool need_bias) {
  const Tensor g = ace::dense(g_);
  const int64_t rows = p.size(0), n = p.size(2);
  const auto make = [&](bool need, std::vector<int64_t> size) {
    return empty(g, need ? std::move(size) : std::vector<int64_t>{0});
  };
  Tensor g_p = make(need_p, {rows, 3, n}), g_d = make(need_d, {rows, 3, d ? d->size(2) : 0});
  Tensor g_mean = make(need_mean, {n}), g_var = make(need_var, {n});
  Tensor g_weight = make(need_weight, {n}), g_bias = make(need_bias, {n});
  const bool need_sums = need_mean || need_var || need_weight || need_bias;
  with_relu(p, d, mean, var, weight, bias, eps, slope, [&]<class T>(const Relu<T>& relu, const Affine<T>& affine) {
    const auto target = [](bool need, const Tensor& t) { return need ? out<T>(t) : nullptr; };
    const int64_t chunks = need_sums ? ceil_div(rows, kChunk) : 0;
    const Scratch<T> sums(2 * chunks * round_up<T>(n));
    relu.backward(in<T>(g), target(need_p, g_p), target(need_d, g_d), need_sums ? sums + 0 : nullptr);
    if (need_sums)
      affine.backward(sums, chunks, target(need_mean, g_mean), target(need_var, g_var), target(need_weight, g_weight),
                      target(need_bias, g_bias));
  });
  return {g_p, g_d, g_mean, g_var, g_weight, g_bias};
}

}  // namespace ace::norms
