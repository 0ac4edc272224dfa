// Gram-Schmidt over the predicted vectors of a set, then over the axes of a random element, with its derivative.
#pragma once

#include <cmath>
#include <limits>

#include "axes.h"

namespace ace {

constexpr uint32_t kConcat = 1;   // Philox's stream
constexpr double kEnough = 0.5;   // of a random axis across those before: one of three always has it

template <class T> inline T dot(const T* a, const T* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

template <class T>
inline void cross(const T* a, const T* b, T* c) {
  for (int i = 0; i < 3; ++i) c[i] = a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3];
}

// x less its part along a unit vector; twice is enough.
template <class T>
inline void take_off(T* x, const T* axis) {
  for (int twice = 0; twice < 2; ++twice) {
    const T along = dot(x, axis);
    for (int i = 0; i < 3; ++i) x[i] -= along * axis[i];
  }
}

// Gram-Schmidt over vectors, then over the axes of a random element; see gram_schmidt in reference.py.
template <class T>
struct Frame {
  const T* vectors;  // [n, 3]
  int64_t count, set;
  uint64_t seed;
  bool improper, finite, drawn = false;
  T least, random[3][3];  // rows are axes, drawn where they are asked for
  int64_t first, second;
  T side = 1, axis[3][3], length_a, length_b;  // axis[k] is column k

  Frame(const T* vectors, int64_t count, uint64_t seed, int64_t set, bool improper, T tolerance)
      : vectors(vectors), count(count), set(set), seed(seed), improper(improper) {
    T total = 0, longest = 0;
    for (int64_t n = 0; n < count; ++n) {
      const T square = dot(vectors + 3 * n, vectors + 3 * n);
      total += square;
      longest = std::max(longest, square);
    }
    least = tolerance * std::max(std::sqrt(longest), T(1));
    finite = std::isfinite(total);
    if (finite) choose();
    else std::fill_n(axis[0], 9, side = std::numeric_limits<T>::quiet_NaN());
  }

  void draw() {
    const auto words = philox(seed, set, kConcat);
    T turn[3][3];
    axes::random_turn<T>(words, turn);
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < 3; ++i) random[k][i] = turn[i][k] * (k == 2 && improper && words[3] >> 31 ? T(-1) : T(1));
    drawn = true;
  }

  const T* candidate(int64_t n) const { return n < count ? vectors + 3 * n : random[n - count]; }

  // The first candidate n for which `size(candidate)` is enough.
  template <class F>
  int64_t find(F&& size) {
    for (int64_t n = 0; n < count; ++n)
      if (size(candidate(n)) > least) return n;
    if (!drawn) draw();
    for (int64_t n = count; n < count + 2; ++n)
      if (size(candidate(n)) > T(kEnough)) return n;
    return count + 2;
  }

  void choose() {
    first = find([](const T* u) { return std::sqrt(dot(u, u)); });
    const T* a = candidate(first);
    length_a = std::sqrt(dot(a, a));
    for (int i = 0; i < 3; ++i) axis[0][i] = a[i] / length_a;
    T b[3];
    const auto across = [&](const T* u) {
      std::copy_n(u, 3, b);
      take_off<T>(b, axis[0]);
      return length_b = std::sqrt(dot<T>(b, b));
    };
    second = find(across);
    across(candidate(second));
    for (int i = 0; i < 3; ++i) axis[1][i] = b[i] / length_b;
    cross<T>(axis[0], axis[1], axis[2]);
    if (!improper) return;
    const T* off = candidate(find([&](const T* u) { return std::abs(dot<T>(u, axis[2])); }));
    if (dot<T>(off, axis[2]) < 0) side = -1;
    for (T& x : axis[2]) x *= side;
  }

  // g [3, 3] of the columns; adds to g_vectors [n, 3].
  void backward(const T (&g)[3][3], T* g_vectors) const {
    if (!finite) return;
    const T *one = axis[0], *two = axis[1], *b = candidate(second);
    T g_one[3], g_off[3], g_three[3], part[3], plain[3];
    for (int i = 0; i < 3; ++i) g_one[i] = g[i][0], g_off[i] = g[i][1], g_three[i] = side * g[i][2];
    cross<T>(two, g_three, part);
    for (int i = 0; i < 3; ++i) g_one[i] += part[i];
    cross<T>(g_three, one, part);
    for (int i = 0; i < 3; ++i) g_off[i] += part[i];
    take_off<T>(g_off, two);
    for (T& x : g_off) x /= length_b;
    const T along = dot(b, one), pull = dot<T>(g_off, one);
    for (int i = 0; i < 3; ++i) plain[i] = g_one[i] - along * g_off[i] - pull * b[i];
    take_off<T>(plain, one);
    take_off<T>(g_off, one);
    for (int i = 0; i < 3; ++i) {
      if (first < count) g_vectors[3 * first + i] += plain[i] / length_a;
      if (second < count) g_vectors[3 * second + i] += g_off[i];
    }
  }
};

}  // namespace ace
