// What a warp does for one path of one edge, its lanes channels: code of its own for each (l1, l2, l3) up to l = 3, in
// which the coefficients are constants, and a loop over the table for everything else.
#pragma once

#include "native.cuh"
#include "units.h"
#include "w3j.h"

#include <type_traits>

namespace ace::conv {

// f(std::integral_constant<int, n>) for n = 0 .. count - 1
template <int count, class F>
__device__ __forceinline__ void each(F&& f) {
  [&]<int... n>(std::integer_sequence<int, n...>) {
    (f(std::integral_constant<int, n>{}), ...);
  }(std::make_integer_sequence<int, count>{});
}

// What a path needs to know of its coefficients on the device.
template <class T>
struct PathInfo {
  T scale;  // they are `scale` times the compiler's, where `known`
  int start, stop, known;
};

struct Table {  // [nnz, 3] (i, j, k) and [nnz]
  const int64_t* index;
  const double* value;
};

struct Strides { int u, i; };  // between channels and between components of a slice

__device__ __forceinline__ Strides strides(bool ir_mul, int mul, int d) {
  return ir_mul ? Strides{1, mul} : Strides{d, 1};
}

// M[i, k] = sum_j C[i, j, k] y[j] of constant coefficients, up to its sign: equal values are computed once.
template <class T, int L1, int L2, int L3, int I, int K>
struct Cell {
  static constexpr double first() {
    for (int j = 0; j <= 2 * L2; ++j)
      if (kCoefficients<L1, L2, L3>.at[I][j][K] != 0) return kCoefficients<L1, L2, L3>.at[I][j][K];
    return 0;
  }
  static constexpr bool any = first() != 0, negative = first() < 0;

  template <int j>
  static constexpr double coefficient() {
    return negative ? -kCoefficients<L1, L2, L3>.at[I][j][K] : kCoefficients<L1, L2, L3>.at[I][j][K];
  }
  static __device__ __forceinline__ T value(const T (&y)[2 * L2 + 1]) {
    T sum = T(0);
    each<2 * L2 + 1>([&](auto j) {
      constexpr double c = coefficient<j.value>();
      if constexpr (c != 0) sum += T(c) * y[j.value];
    });
    return sum;
  }
};

// f(i, k, negative, M[i, k]) for the pairs (i, k) that the degrees couple.
template <class T, int L1, int L2, int L3, class F>
__device__ __forceinline__ void over_cells(const T (&y)[2 * L2 + 1], F&& f) {
  each<2 * L3 + 1>([&](auto k) {
    each<2 * L1 + 1>([&](auto i) {
      using C = Cell<T, L1, L2, L3, i.value, k.value>;
      if constexpr (C::any) f(i, k, std::bool_constant<C::negative>{}, C::value(y));
    });
  });
}

// sum[g][k] += w[g] sum_i M[i, k] x[g][i], from component `at` of sum on
template <class T, int L1, int L2, int L3, int at, int G, int n>
__device__ __forceinline__ void contract(T (&sum)[G][n], const T (&x)[G][2 * L1 + 1], const T (&y)[2 * L2 + 1],
                                         const T (&w)[G]) {
  constexpr int d1 = 2 * L1 + 1, d3 = 2 * L3 + 1;
  if constexpr (d1 <= d3) {
    T wx[G][d1];
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int i = 0; i < d1; ++i) wx[g][i] = w[g] * x[g][i];
    over_cells<T, L1, L2, L3>(y, [&](auto i, auto k, auto negative, T m) {
#pragma unroll
      for (int g = 0; g < G; ++g) sum[g][at + k.value] += negative.value ? -m * wx[g][i.value] : m * wx[g][i.value];
    });
  } else {
    T t[G][d3] = {};
    over_cells<T, L1, L2, L3>(y, [&](auto i, auto k, auto negative, T m) {
#pragma unroll
      for (int g = 0; g < G; ++g) t[g][k.value] += negative.value ? -m * x[g][i.value] : m * x[g][i.value];
    });
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int k = 0; k < d3; ++k) sum[g][at + k] += w[g] * t[g][k];
  }
}

// What the gradients of one path need, and where they are added up. w: with the scale of the coefficients.
template <class T, int L1, int G>
struct Adjoint {
  T x[G][2 * L1 + 1], g_x[G][2 * L1 + 1], w[G], g_w[G];
};

// With t[i] = sum_k M[i, k] g[k]: g_x[i] += w t[i], g_w = sum_i x[i] t[i] (without the scale) and, over the same cells,
// g_y[j] += sum_ik C[i, j, k] w x[i] g[k].
template <class T, int L1, int L2, int L3, int G>
__device__ __forceinline__ void adjoint(Adjoint<T, L1, G>& a, const T (&y)[2 * L2 + 1], const T (&g)[G][2 * L3 + 1],
                                        bool need_xw, bool need_y, T* g_y) {
  constexpr int d1 = 2 * L1 + 1;
  if (need_xw) {
    T t[G][d1] = {};
    over_cells<T, L1, L2, L3>(y, [&](auto i, auto k, auto negative, T m) {
#pragma unroll
      for (int s = 0; s < G; ++s) t[s][i.value] += negative.value ? -m * g[s][k.value] : m * g[s][k.value];
    });
#pragma unroll
    for (int s = 0; s < G; ++s) {
      T sum = T(0);
#pragma unroll
      for (int i = 0; i < d1; ++i) {
        sum += a.x[s][i] * t[s][i];
        a.g_x[s][i] += a.w[s] * t[s][i];
      }
      a.g_w[s] = sum;
    }
  }
  if (need_y) {
    T wx[G][d1];
#pragma unroll
    for (int s = 0; s < G; ++s)
#pragma unroll
      for (int i = 0; i < d1; ++i) wx[s][i] = a.w[s] * a.x[s][i];
    each<2 * L3 + 1>([&](auto k) {
      each<d1>([&](auto i) {
        if constexpr (Cell<T, L1, L2, L3, i.value, k.value>::any) {
          T product = T(0);
#pragma unroll
          for (int s = 0; s < G; ++s) product += wx[s][i.value] * g[s][k.value];
          each<2 * L2 + 1>([&](auto j) {
            constexpr double c = kCoefficients<L1, L2, L3>.at[i.value][j.value][k.value];
            if constexpr (c != 0) g_y[j.value] += T(c) * product;
          });
        }
      });
    });
  }
}

// The lanes' sums of value[0 .. d - 1] are added to to[0 .. d - 1], in shared memory.
template <class T, int d>
__device__ __forceinline__ void add_over_lanes(T (&value)[8], T* to, int lane) {
  constexpr int n = d == 1 ? 1 : d == 3 ? 4 : 8;
  T some[n];
#pragma unroll
  for (int i = 0; i < n; ++i) some[i] = i < d ? value[i] : T(0);
  const T sum = sum_scattered<T, n>(some, lane);
  if (lane < d) to[lane] += sum;
}

// ---- any path: a loop over its coefficients ---------------------------------------------------------------------

// What an edge multiplies, in shared memory.
template <class T>
struct Row { const T *x1, *x2, *weight; };

// One stream of a unit with one of its paths, for one edge.
template <class T>
struct OnePath {
  const T *x, *w, *y;
  int d1, d2, d3, mul, count, V, weighted, lane;
  bool ir_mul;

  __device__ OnePath(const Unit& unit, const Entry& entry, int stream, const Row<T>& row, bool ir_mul)
      : x(row.x1 + unit.x[stream]), w(row.weight + entry.w[stream]), y(row.x2 + entry.o2), d1(unit.d1), d2(entry.d2),
        d3(entry.d3), mul(unit.mul), count(unit.count), V(entry.V), weighted(entry.weighted), lane(lane_id()),
        ir_mul(ir_mul) {}
  __device__ int in1(int i) const { return ir_mul ? i * mul + lane : lane * d1 + i; }
  __device__ int in2(int v, int j) const { return ir_mul ? j * V + v : v * d2 + j; }
  __device__ int out(int k) const { return ir_mul ? k * mul + lane : lane * d3 + k; }
  __device__ T weight(int v) const { return !weighted ? T(1) : lane < count ? w[lane * V + v] : T(0); }

  // f(v, i, j, k, C) for the channels of in2 and the coefficients
  template <class F>
  __device__ void over(const Table& table, const PathInfo<T>& info, F&& f) const {
    for (int v = 0; v < V; ++v)
      for (int n = info.start; n < info.stop; ++n) {
        const int64_t* ijk = table.index + 3 * int64_t(n);
        f(v, static_cast<int>(ijk[0]), static_cast<int>(ijk[1]), static_cast<int>(ijk[2]),
          static_cast<T>(table.value[n]));
      }
  }
};

}  // namespace ace::conv
