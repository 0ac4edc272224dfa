// Vectors of channels: D consecutive vectors of [channel][component] become one vector for each component, and back.
#pragma once

#include "native.h"

namespace ace::product {

// Element e of the row of vectors x; sources(l) says which e lane l takes. One two-vector shuffle for each vector but one.
template <class T, int D, class Sources, int... I>
inline Vec<T> pick(const Vec<T> (&x)[D], Sources, std::integer_sequence<int, I...>) {
  constexpr int L = lanes<T>;
  Vec<T> y = __builtin_shufflevector(x[0], x[1], (Sources::of(I) < 2 * L ? Sources::of(I) : I)...);
  const auto take = [&]<int V>(std::integral_constant<int, V>) {
    y = __builtin_shufflevector(y, x[V], (Sources::of(I) / L == V ? L + Sources::of(I) % L : I)...);
  };
  [&]<int... V>(std::integer_sequence<int, V...>) {
    (take(std::integral_constant<int, V + 2>{}), ...);
  }(std::make_integer_sequence<int, D - 2>{});
  return y;
}

template <int D, int N> struct OfComponent { static constexpr int of(int l) { return l * D + N; } };
template <int D, int N, int L>
struct OfVector { static constexpr int of(int l) { return (N * L + l) % D * L + (N * L + l) / D; } };

template <class T, int D>
inline void deinterleave(const Vec<T> (&x)[D], Vec<T> (&y)[D]) {
  if constexpr (D == 1) y[0] = x[0];
  else
    [&]<int... N>(std::integer_sequence<int, N...>) {
      ((y[N] = pick<T, D>(x, OfComponent<D, N>{}, std::make_integer_sequence<int, lanes<T>>{})), ...);
    }(std::make_integer_sequence<int, D>{});
}

template <class T, int D>
inline void interleave_components(const Vec<T> (&x)[D], Vec<T> (&y)[D]) {
  if constexpr (D == 1) y[0] = x[0];
  else
    [&]<int... N>(std::integer_sequence<int, N...>) {
      ((y[N] = pick<T, D>(x, OfVector<D, N, lanes<T>>{}, std::make_integer_sequence<int, lanes<T>>{})), ...);
    }(std::make_integer_sequence<int, D>{});
}

// `count` elements in vectors, as far as they reach.
template <class T, int D>
inline void load_vectors(const T* p, int64_t count, Vec<T> (&x)[D]) {
  for (int v = 0; v < D; ++v) x[v] = count > v * lanes<T> ? load_first(p + v * lanes<T>, count - v * lanes<T>) : Vec<T>{};
}

template <class T, int D>
inline void store_vectors(T* p, int64_t count, const Vec<T> (&x)[D]) {
  for (int v = 0; v < D; ++v)
    if (count > v * lanes<T>) store_first(p + v * lanes<T>, x[v], count - v * lanes<T>);
}

// One slice of a row, `mul` channels of D components (of d where D is 0), to and from [D][channels in whole vectors].
template <class T, int D>
void widen(const T* row, int64_t mul, int64_t d, bool ir_mul, T* to) {
  constexpr int L = lanes<T>;
  const int64_t width = round_up<T>(mul);
  if (ir_mul || D == 1) {
    for (int64_t i = 0; i < d; ++i)
      for (int64_t u = 0; u < mul; u += L) store(to + i * width + u, load_first(row + i * mul + u, mul - u));
  } else if constexpr (D == 0) {
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t u = 0; u < mul; ++u) to[i * width + u] = row[u * d + i];
      std::fill(to + i * width + mul, to + (i + 1) * width, T(0));
    }
  } else {
    for (int64_t u = 0; u < mul; u += L) {
      Vec<T> x[D], y[D];
      load_vectors<T, D>(row + u * D, (mul - u) * D, x);
      deinterleave<T, D>(x, y);
      for (int i = 0; i < D; ++i) store(to + i * width + u, y[i]);
    }
  }
}

template <class T, int D>
void narrow(const T* from, int64_t mul, int64_t d, bool ir_mul, T* row) {
  constexpr int L = lanes<T>;
  const int64_t width = round_up<T>(mul);
  if (ir_mul || D == 1) {
    for (int64_t i = 0; i < d; ++i)
      for (int64_t u = 0; u < mul; u += L) store_first(row + i * mul + u, load(from + i * width + u), mul - u);
  } else if constexpr (D == 0) {
    for (int64_t u = 0; u < mul; ++u)
      for (int64_t i = 0; i < d; ++i) row[u * d + i] = from[i * width + u];
  } else {
    for (int64_t u = 0; u < mul; u += L) {
      Vec<T> x[D], y[D];
      for (int i = 0; i < D; ++i) x[i] = load(from + i * width + u);
      interleave_components<T, D>(x, y);
      store_vectors<T, D>(row + u * D, (mul - u) * D, y);
    }
  }
}

// f<D>() with D = d where that is compiled for (degrees up to 3), f<0>() for any other.
template <class F>
inline auto with_degree(int64_t d, F&& f) {
  switch (d) {
    case 1: return f.template operator()<1>();
    case 3: return f.template operator()<3>();
    case 5: return f.template operator()<5>();
    case 7: return f.template operator()<7>();
    default: return f.template operator()<0>();
  }
}

}  // namespace ace::product
