// Features of degrees 0 to 3 turned by orthogonal matrices, a vector's worth of matrices at a time, with derivatives.
// Degree l is a traceless symmetric tensor of rank l, of which turning by R takes every index; e3nn's basis is an
// orthonormal one of them. A symmetric matrix is kept as xx, xy, xz, yy, yz, zz, one of rank 3 as its three slices.
#pragma once

#include "vector_math.h"

namespace ace::turn {

template <class T> using Matrix = Vec<T>[3][3];
template <class T> using Symmetric = Vec<T>[6];

constexpr int kAt[3][3] = {{0, 1, 2}, {1, 3, 4}, {2, 4, 5}};
constexpr double kHalf = 0.70710678118654752440, kSixth = 0.40824829046386301637;  // square roots of 1/2 and 1/6
constexpr double kA = 0.5, kB = 0.38729833462074168852, kC = 0.51639777949432225157, kD = 0.12909944487358056284;
constexpr double kE = 0.31622776601683793320, kF = 0.63245553203367586640;  // roots of 3/20, 4/15, 1/60, 1/10, 2/5

template <class T>
inline void spread2(const Vec<T>* v, Symmetric<T>& s) {
  const T half = kHalf, sixth = kSixth;
  s[0] = -sixth * v[2] - half * v[4];
  s[1] = half * v[1];
  s[2] = half * v[0];
  s[3] = 2 * sixth * v[2];
  s[4] = half * v[3];
  s[5] = half * v[4] - sixth * v[2];
}

template <class T>
inline void collect2(const Symmetric<T>& s, Vec<T>* v) {
  const T half = kHalf, sixth = kSixth;
  v[0] = 2 * half * s[2];
  v[1] = 2 * half * s[1];
  v[2] = sixth * (2 * s[3] - s[0] - s[5]);
  v[3] = 2 * half * s[4];
  v[4] = half * (s[5] - s[0]);
}

template <class T>
inline void spread3(const Vec<T>* v, Symmetric<T> (&s)[3]) {
  const T a = kA, b = kB, c = kC, d = kD, e = kE, f = kF, sixth = kSixth;
  const Vec<T> xxy = -e * v[3] - sixth * v[5], xxz = -d * v[4] - a * v[6], xyy = c * v[2], xyz = sixth * v[1];
  const Vec<T> xzz = a * v[0] - d * v[2], yyz = c * v[4], yzz = sixth * v[5] - e * v[3];
  const Vec<T> x[6] = {-a * v[0] - b * v[2], xxy, xxz, xyy, xyz, xzz};
  const Vec<T> y[6] = {xxy, xyy, xyz, f * v[3], yyz, yzz};
  const Vec<T> z[6] = {xxz, xyz, xzz, yyz, yzz, a * v[6] - b * v[4]};
  for (int i = 0; i < 6; ++i) s[0][i] = x[i], s[1][i] = y[i], s[2][i] = z[i];
}

// From the ten elements of a symmetric tensor: xxx, xxy, xxz, xyy, xyz, xzz, yyy, yyz, yzz, zzz.
template <class T>
inline void collect3(const Vec<T> (&s)[10], Vec<T>* v) {
  const T a = kA, b = kB, c = 3 * kC, d = 3 * kD, e = 3 * kE, f = kF, sixth = kSixth;
  v[0] = 3 * a * s[5] - a * s[0];
  v[1] = 6 * sixth * s[4];
  v[2] = c * s[3] - b * s[0] - d * s[5];
  v[3] = f * s[6] - e * (s[1] + s[8]);
  v[4] = c * s[7] - d * s[2] - b * s[9];
  v[5] = 3 * sixth * (s[8] - s[1]);
  v[6] = a * s[9] - 3 * a * s[2];
}

// w = R S, and R S R^T.
template <class T>
inline void half_turned(const Matrix<T>& r, const Symmetric<T>& s, Matrix<T>& w) {
  for (int i = 0; i < 3; ++i)
    for (int a = 0; a < 3; ++a) w[i][a] = r[i][0] * s[kAt[0][a]] + r[i][1] * s[kAt[1][a]] + r[i][2] * s[kAt[2][a]];
}

template <class T>
inline void turned(const Matrix<T>& r, const Symmetric<T>& s, Symmetric<T>& out) {
  Matrix<T> w;
  half_turned<T>(r, s, w);
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j) out[kAt[i][j]] = w[i][0] * r[j][0] + w[i][1] * r[j][1] + w[i][2] * r[j][2];
}

template <class T>
inline Vec<T> dot(const Symmetric<T>& s, const Symmetric<T>& t) {
  const Vec<T> diagonal = s[0] * t[0] + s[3] * t[3] + s[5] * t[5];
  return diagonal + T(2) * (s[1] * t[1] + s[2] * t[2] + s[4] * t[4]);
}

// out = D(R) v, 2l + 1 components.
template <class T>
inline void degree(int64_t l, const Matrix<T>& r, const Vec<T>* v, Vec<T>* out) {
  if (l == 0) {
    out[0] = v[0];
  } else if (l == 1) {
    for (int i = 0; i < 3; ++i) out[i] = r[i][0] * v[0] + r[i][1] * v[1] + r[i][2] * v[2];
  } else if (l == 2) {
    Symmetric<T> s, t;
    spread2<T>(v, s);
    turned<T>(r, s, t);
    collect2<T>(t, out);
  } else {
    Symmetric<T> s[3], t[3];
    spread3<T>(v, s);
    for (int a = 0; a < 3; ++a) turned<T>(r, s[a], t[a]);
    Vec<T> all[10];
    int n = 0;
    for (int i = 0; i < 3; ++i)
      for (int j = i; j < 3; ++j)
        for (int k = j; k < 3; ++k, ++n)
          all[n] = r[i][0] * t[0][kAt[j][k]] + r[i][1] * t[1][kAt[j][k]] + r[i][2] * t[2][kAt[j][k]];
    collect3<T>(all, out);
  }
}

// g_r += the gradient of <g, D(R) v> with respect to R: l times that of one of the l equal indices.
template <class T>
inline void degree_grad(int64_t l, const Matrix<T>& r, const Vec<T>* v, const Vec<T>* g, Matrix<T>& g_r) {
  if (l == 1) {
    for (int i = 0; i < 3; ++i)
      for (int a = 0; a < 3; ++a) g_r[i][a] += g[i] * v[a];
  } else if (l == 2) {
    Symmetric<T> s, t;
    spread2<T>(v, s);
    spread2<T>(g, t);
    Matrix<T> w;
    half_turned<T>(r, s, w);
    for (int i = 0; i < 3; ++i)
      for (int a = 0; a < 3; ++a)
        g_r[i][a] += T(2) * (t[kAt[i][0]] * w[0][a] + t[kAt[i][1]] * w[1][a] + t[kAt[i][2]] * w[2][a]);
  } else if (l == 3) {
    Symmetric<T> s[3], t[3], m;
    spread3<T>(v, s);
    spread3<T>(g, t);
    for (int a = 0; a < 3; ++a) {
      turned<T>(r, s[a], m);
      for (int i = 0; i < 3; ++i) g_r[i][a] += T(3) * dot<T>(t[i], m);
    }
  }
}

}  // namespace ace::turn
