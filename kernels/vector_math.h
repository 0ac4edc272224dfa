// Elementary functions of vectors, float and double: within a few units in the last place on the whole line, with
// overflow to infinity, gradual underflow to zero, and NaN kept.
#pragma once

#include <utility>

#include "native.h"

namespace ace {

template <class T> struct Bits;  // the integers of a float type, and what rounds to the nearest integer when added
template <> struct Bits<float> {
  using type = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float round = 12582912.0f;
};
template <> struct Bits<double> {
  using type = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double round = 6755399441055744.0;
};

template <class T> inline Vec<T> splat(T x) { return Vec<T>{} + x; }

template <class T>
inline Vec<typename Bits<T>::type> as_bits(Vec<T> x) {
  return reinterpret_cast<Vec<typename Bits<T>::type>>(x);
}

template <class T>
inline Vec<T> as_float(Vec<typename Bits<T>::type> x) {
  return reinterpret_cast<Vec<T>>(x);
}

template <class T>
inline Vec<T> abs_of(Vec<T> x) {
  using I = typename Bits<T>::type;
  return as_float<T>(as_bits<T>(x) & static_cast<I>(~(I(1) << (8 * sizeof(I) - 1))));
}

// c[0] + c[1] x + ... by Horner's rule.
template <class T, size_t N>
inline Vec<T> polynomial(Vec<T> x, const T (&c)[N]) {
  Vec<T> y = splat<T>(c[N - 1]);
  for (size_t i = N - 1; i-- > 0;) y = y * x + c[i];
  return y;
}

#if defined(__AVX512F__)
// y 2^n for whole n. (The masked forms are the plain instructions; GCC 12 warns of what its header does for the others.)
template <class T>
inline Vec<T> scaled(Vec<T> y, Vec<T> n) {
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_scalef_ps(-1, (__m512)y, (__m512)n);
  else return (Vec<T>)_mm512_maskz_scalef_pd(-1, (__m512d)y, (__m512d)n);
}
#endif

// 1 / x for x in 1..2, within a unit in the last place: 14 bits and Newton's steps in place of a division.
template <class T>
inline Vec<T> reciprocal(Vec<T> x) {
#if defined(__AVX512F__)
  Vec<T> y;
  if constexpr (sizeof(T) == 4) y = (Vec<T>)_mm512_maskz_rcp14_ps(-1, (__m512)x);
  else y = (Vec<T>)_mm512_maskz_rcp14_pd(-1, (__m512d)x);
  for (size_t step = 0; step < sizeof(T) / 4; ++step) y += y * (T(1) - x * y);
  return y;
#else
  return T(1) / x;
#endif
}

// The larger of x and a bound, the smaller: NaN stays. The instructions return their second operand where one is NaN.
template <class T>
inline Vec<T> at_least(Vec<T> x, T bound) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_max_ps(-1, (__m512)splat<T>(bound), (__m512)x);
  else return (Vec<T>)_mm512_maskz_max_pd(-1, (__m512d)splat<T>(bound), (__m512d)x);
#else
  return x < bound ? splat<T>(bound) : x;
#endif
}

template <class T>
inline Vec<T> at_most(Vec<T> x, T bound) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_min_ps(-1, (__m512)splat<T>(bound), (__m512)x);
  else return (Vec<T>)_mm512_maskz_min_pd(-1, (__m512d)splat<T>(bound), (__m512d)x);
#else
  return x > bound ? splat<T>(bound) : x;
#endif
}

// exp(x) = 2^n exp(r) with |r| <= ln(2)/2; exp(r) = 1 + r + r^2 P(r), P minimax (degree 4: 3e-9, degree 9: 4e-18).
// `Negative`: x is never positive.
template <class T, bool Negative = false>
inline Vec<T> exp_of(Vec<T> x) {
  constexpr bool single = sizeof(T) == 4;
  constexpr T high = single ? T(89) : T(710), low = single ? T(-104) : T(-746);
  constexpr T ln2_high = single ? T(0.693359375) : T(0.693147180369123816490);  // exact products with n
  constexpr T ln2_low = single ? T(-2.12194440054690583e-4) : T(1.90821492927058770e-10);
  if constexpr (!Negative) x = at_most<T>(x, high);
  x = at_least<T>(x, low);
  const Vec<T> shifted = x * T(1.44269504088896340736) + Bits<T>::round;
  const Vec<T> n = shifted - Bits<T>::round;
  const Vec<T> r = (x - n * ln2_high) - n * ln2_low;
  Vec<T> p;
  if constexpr (single) {
    const T c[] = {0.500000009479565577f, 0.166665184413808696f, 0.0416662053591784491f, 0.00836895742159516431f,
                   0.00139505728337587907f};
    p = polynomial<T>(r, c);
  } else {
    const T c[] = {0.500000000000001202,     0.166666666666666984,     0.0416666666665196265,   0.00833333333330746967,
                   0.00138888889462249823,   0.000198412699170394834,  0.0000248014905270096876, 2.75572164592678274e-6,
                   2.7631136443435355e-7,    2.51178469431367503e-8};
    p = polynomial<T>(r, c);
  }
  const Vec<T> y = (p * (r * r) + r) + T(1);
#if defined(__AVX512F__)
  return scaled<T>(y, n);
#else
  using I = typename Bits<T>::type;
  // 2^n in two factors, so that neither leaves the range of exponents.
  const Vec<I> exponent = as_bits<T>(shifted) - as_bits<T>(splat<T>(Bits<T>::round));
  const Vec<I> half = exponent >> 1;
  const auto power = [](Vec<I> k) { return as_float<T>((k + Bits<T>::bias) << Bits<T>::mantissa); };
  return y * power(half) * power(exponent - half);
#endif
}

// Of the negative absolute value, so that nothing overflows and the left tail keeps its relative precision.
template <class T>
inline Vec<T> sigmoid_of(Vec<T> x) {
  const Vec<T> e = exp_of<T, true>(-abs_of<T>(x));
  return (x >= T(0) ? splat<T>(T(1)) : e) * reciprocal<T>(e + T(1));
}

// In an array, which the compiler takes to one instruction.
template <class T>
inline Vec<T> sqrt_of(Vec<T> x) {
  alignas(kVectorBytes) T a[lanes<T>];
  store(a, x);
  for (int l = 0; l < lanes<T>; ++l) a[l] = std::sqrt(a[l]);
  return load(static_cast<const T*>(a));
}

// Cephes: near zero x + x^3 P(x^2) (float), x + x^3 P(x^2) / Q(x^2) (double), elsewhere 1 - 2 / (exp(2 |x|) + 1).
template <class T>
inline Vec<T> tanh_of(Vec<T> x) {
  const Vec<T> a = abs_of<T>(x), s = x * x;
  Vec<T> near;
  if constexpr (sizeof(T) == 4) {
    const T p[] = {-3.33332819422e-1f, 1.33314422036e-1f, -5.37397155531e-2f, 2.06390887954e-2f, -5.70498872745e-3f};
    near = polynomial<T>(s, p);
  } else {
    const T p[] = {-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1};
    const T q[] = {4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.0};
    near = polynomial<T>(s, p) / polynomial<T>(s, q);
  }
  const Vec<T> far = T(1) - T(2) / (exp_of<T>(a * T(2)) + T(1));
  return a < T(0.625) ? x + x * s * near : x < T(0) ? -far : far;
}

// log(1 + y) for y in 0..1: 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...), above 0.4 of (1 + y)/2, so that |s| < 0.18.
template <class T>
inline Vec<T> log1p_of_unit(Vec<T> y) {
  const auto upper = y > T(0.4);
  const Vec<T> x = upper ? (y - T(1)) * T(0.5) : y, s = x / (x + T(2)), w = s * s;
  Vec<T> p;
  if constexpr (sizeof(T) == 4) {
    const T c[] = {1.0f, 1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9};
    p = polynomial<T>(w, c);
  } else {
    const T c[] = {1.0, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
    p = polynomial<T>(w, c);
  }
  const Vec<T> z = (s + s) * p;
  return upper ? z + T(0.69314718055994530942) : z;
}

// Sine and cosine: x = n pi/2 + r with |r| <= pi/4 and Cephes' polynomials of r, for |x| below 1e4 (float), 1e8 (double).
template <class T>
inline std::pair<Vec<T>, Vec<T>> sin_cos(Vec<T> x) {
  using I = typename Bits<T>::type;
  const Vec<T> shifted = x * T(0.63661977236758134308) + Bits<T>::round, n = shifted - Bits<T>::round;
  Vec<T> r, p, q;
  if constexpr (sizeof(T) == 4) {
    r = ((x - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.54978995489188216e-8f;
    const T a[] = {-1.6666654611e-1f, 8.3321608736e-3f, -1.9515295891e-4f};
    const T b[] = {4.166664568298827e-2f, -1.388731625493765e-3f, 2.443315711809948e-5f};
    p = polynomial<T>(r * r, a), q = polynomial<T>(r * r, b);
  } else {
    r = ((x - n * 1.57079625129699707031) - n * 7.54978941586159635336e-8) - n * 5.39030285815811905290e-15;
    const T a[] = {-1.66666666666666307295e-1, 8.33333333332211858878e-3,  -1.98412698295895385996e-4,
                   2.75573136213857245213e-6,  -2.50507477628578072866e-8, 1.58962301576546568060e-10};
    const T b[] = {4.16666666666665929218e-2, -1.38888888888730564116e-3, 2.48015872888517045348e-5,
                   -2.75573141792967388112e-7, 2.08757008419747316778e-9, -1.13585365213876817300e-11};
    p = polynomial<T>(r * r, a), q = polynomial<T>(r * r, b);
  }
  const Vec<T> w = r * r, sine = r + r * w * p, cosine = (w * w * q - w * T(0.5)) + T(1);
  const Vec<I> turns = as_bits<T>(shifted) - as_bits<T>(splat<T>(Bits<T>::round));
  const auto odd = (turns & I(1)) != 0, negative = (turns & I(2)) != 0, other = ((turns + I(1)) & I(2)) != 0;
  const Vec<T> s = odd ? cosine : sine, c = odd ? sine : cosine;
  return {negative ? -s : s, other ? -c : c};
}

inline Vec<float> exp(Vec<float> x) { return exp_of<float>(x); }
inline Vec<double> exp(Vec<double> x) { return exp_of<double>(x); }
inline Vec<float> sigmoid(Vec<float> x) { return sigmoid_of<float>(x); }
inline Vec<double> sigmoid(Vec<double> x) { return sigmoid_of<double>(x); }

// x P(x^2) / Q(x^2), relative error 2e-8 up to 3.925; from 3.92 on erf rounds to one.
inline Vec<float> erf(Vec<float> x) {
  const float p[] = {1.12837914776f, 0.190349095028f, 0.0527355413779f, 0.00376176876299f, 0.000284552493994f,
                     2.04720293099e-6f};
  const float q[] = {1.0f, 0.50202527167f, 0.114080345312f, 0.0149615259144f, 0.00116116058448f, 3.80448926339e-5f};
  constexpr float end = 3.92f * 3.92f;
  Vec<float> s = x * x;
  s = s > end ? splat(end) : s;
  const Vec<float> sign = as_float<float>((as_bits<float>(x) & INT32_MIN) | as_bits<float>(splat(1.0f)));
  return s >= end ? sign : x * (polynomial<float>(s, p) / polynomial<float>(s, q));
}

inline Vec<double> erf(Vec<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = std::erf(x[i]);
  return x;
}

// x Phi(x) and its derivative Phi(x) + x phi(x), with the normal distribution Phi and density phi.
template <class T>
inline Vec<T> gelu(Vec<T> x) {
  return (x * T(0.5)) * (erf(x * T(0.70710678118654752440)) + T(1));
}

template <class T>
inline std::pair<Vec<T>, Vec<T>> gelu_and_grad(Vec<T> x) {
  const Vec<T> normal = (erf(x * T(0.70710678118654752440)) + T(1)) * T(0.5);
  const Vec<T> density = exp_of<T>((x * x) * T(-0.5)) * T(0.39894228040143267794);
  return {x * normal, normal + x * density};
}

}  // namespace ace
