// Principal axes of a vector's worth of symmetric 3 x 3 matrices at a time: Jacobi's rotations, no branch on a value.
#pragma once

#include "philox.h"
#include "vector_math.h"

namespace ace::axes {

constexpr int kSweeps = 6;  // of three rotations; convergence is quadratic
constexpr double kTurn = 6.283185307179586476925;

template <class T> using Vec3 = Vec<T>[3];

template <class T>
inline void cross(const Vec3<T>& a, const Vec3<T>& b, Vec3<T>& c) {
  for (int i = 0; i < 3; ++i) {
    const int j = (i + 1) % 3, k = (i + 2) % 3;
    c[i] = a[j] * b[k] - a[k] * b[j];
  }
}

// The rotation of axes p and q that makes the element pq zero; r is the third.
template <class T>
inline void annihilate(Vec<T>& pp, Vec<T>& qq, Vec<T>& pq, Vec<T>& rp, Vec<T>& rq, Vec3<T>& p, Vec3<T>& q) {
  const Vec<T> d = qq - pp, h = abs_of<T>(d) + sqrt_of<T>(d * d + T(4) * pq * pq);
  Vec<T> t = T(2) * pq / (h == T(0) ? splat<T>(1) : h);
  t = d < T(0) ? -t : t;
  const Vec<T> c = T(1) / sqrt_of<T>(t * t + T(1)), s = t * c;
  pp -= t * pq, qq += t * pq, pq = Vec<T>{};
  const auto turn = [&](Vec<T>& x, Vec<T>& y) {
    const Vec<T> old = x;
    x = c * old - s * y, y = s * old + c * y;
  };
  turn(rp, rq);
  for (int i = 0; i < 3; ++i) turn(p[i], q[i]);
}

template <class T>
inline void order(Vec<T>& a, Vec<T>& b, Vec3<T>& of_a, Vec3<T>& of_b) {
  const auto swapped = b < a;
  const auto exchange = [&](Vec<T>& x, Vec<T>& y) {
    const Vec<T> old = x;
    x = swapped ? y : x, y = swapped ? old : y;
  };
  exchange(a, b);
  for (int i = 0; i < 3; ++i) exchange(of_a[i], of_b[i]);
}

// The largest component becomes positive, of equal ones the first decides.
template <class T>
inline void make_positive(Vec3<T>& v) {
  const Vec<T> x = abs_of<T>(v[0]), y = abs_of<T>(v[1]), z = abs_of<T>(v[2]);
  const Vec<T> later = y >= z ? v[1] : v[2], largest = x >= (y >= z ? y : z) ? v[0] : later;
  for (int i = 0; i < 3; ++i) v[i] = largest < T(0) ? -v[i] : v[i];
}

// second: xx, xy, xz, yy, yz, zz. values ascend, axis[k] belongs to values[k], right-handed.
template <class T>
inline void principal(const Vec<T> (&second)[6], Vec3<T>& values, Vec3<T> (&axis)[3]) {
  Vec<T> scale{};
  for (const Vec<T>& x : second) {
    const Vec<T> size = abs_of<T>(x);
    scale = size > scale ? size : scale;
  }
  scale = scale == T(0) ? splat<T>(1) : scale;  // squares neither overflow nor vanish
  Vec<T> a[6];
  for (int i = 0; i < 6; ++i) a[i] = second[i] / scale;
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 3; ++k) axis[k][i] = splat<T>(i == k);
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    annihilate<T>(a[0], a[3], a[1], a[2], a[4], axis[0], axis[1]);
    annihilate<T>(a[0], a[5], a[2], a[1], a[4], axis[0], axis[2]);
    annihilate<T>(a[3], a[5], a[4], a[1], a[2], axis[1], axis[2]);
  }
  values[0] = a[0] * scale, values[1] = a[3] * scale, values[2] = a[5] * scale;
  order<T>(values[0], values[1], axis[0], axis[1]);
  order<T>(values[1], values[2], axis[1], axis[2]);
  order<T>(values[0], values[1], axis[0], axis[1]);
  make_positive<T>(axis[0]);
  make_positive<T>(axis[1]);
  cross<T>(axis[0], axis[1], axis[2]);
}

// A Haar-distributed rotation, rows in turn, from three of Philox's words: a random quaternion.
template <class T>
inline void random_turn(const std::array<uint32_t, 4>& words, T (&turn)[3][3]) {
  const T u = uniform<T>(words[0]), v = T(kTurn) * uniform<T>(words[1]), w = T(kTurn) * uniform<T>(words[2]);
  const T a = std::sqrt(1 - u), b = std::sqrt(u);
  const T x = a * std::sin(v), y = a * std::cos(v), z = b * std::sin(w), r = b * std::cos(w);
  const T found[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - z * r), 2 * (x * z + y * r)},
                         {2 * (x * y + z * r), 1 - 2 * (x * x + z * z), 2 * (y * z - x * r)},
                         {2 * (x * z - y * r), 2 * (y * z + x * r), 1 - 2 * (x * x + y * y)}};
  std::memcpy(turn, found, sizeof(found));
}

// What rounding leaves of the moments of n coincident points at c: of c, n eps is their sum's, 16 eps what moved them.
template <class T>
inline T rounding(int64_t n, const T (&c)[3]) {
  const T part = std::numeric_limits<T>::epsilon() * static_cast<T>(n + 16);
  return part * part * (c[0] * c[0] + c[1] * c[1] + c[2] * c[2]);
}

// axis [3][3], component by axis: those whose values differ by at most `same` become a random basis of theirs.
template <class T>
inline void open_axes(const T (&values)[3], T same, const std::array<uint32_t, 4>& words, T (&axis)[3][3]) {
  const bool low = values[1] - values[0] <= same, high = values[2] - values[1] <= same;
  if (!low && !high) return;
  T turn[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
  if (low && high) {
    random_turn<T>(words, turn);
  } else {
    const T angle = T(kTurn) * uniform<T>(words[0]);
    const int p = low ? 0 : 1, q = p + 1;
    turn[p][p] = turn[q][q] = std::cos(angle);
    turn[q][p] = std::sin(angle);
    turn[p][q] = -turn[q][p];
  }
  for (auto& row : axis) {
    const T old[3] = {row[0], row[1], row[2]};
    for (int k = 0; k < 3; ++k) row[k] = old[0] * turn[0][k] + old[1] * turn[1][k] + old[2] * turn[2][k];
  }
}

}  // namespace ace::axes
