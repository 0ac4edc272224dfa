// "uvu" paths with one channel of in2: the lanes are channels, so weights, gradients of weights and nodes are whole
// vectors as they lie, and a node's sum over its edges stays in registers. Nodes are packed to [component][channels].
#pragma once

#include <array>
#include <utility>

#include "edges.h"
#include "formula.h"

namespace ace::conv {

struct Term { int64_t j; double c; };  // c x2[j]

// One path for a run of edges. x and g: packed rows of in1 and out, component i at i * padded from the path's first.
template <class T>
struct Edges {
  int64_t first, last;                  // edges of the block
  const T *const *far, *const *weight;  // [edge]: the far node's packed row, the edge's weights
  int64_t far_at, weight_at;            // the path's part of them
  const T* m;                           // [slot][kRows] the coupled coefficients sum_j C_ijk x2_j
  int64_t channels, padded, ahead;      // ahead: weights to ask for
};

// What the path couples where its degrees are beyond the compiler's: (i, slot) of each k, (k, slot) of each i.
struct Pairs {
  struct Pair { int64_t component, slot; };
  std::vector<std::vector<Pair>> of_k, of_i;
};

// f(count of vectors, known to the compiler, and the first channel) for all channels: `most` vectors, then one.
template <class T, int most, class F>
inline void over_channels(int64_t channels, F&& f) {
  constexpr int L = lanes<T>;
  int64_t c = 0;
  if constexpr (most > 1)
    for (; c + (most - 1) * L < channels; c += most * L) f(std::integral_constant<int, most>{}, c);
  for (; c < channels; c += L) f(std::integral_constant<int, 1>{}, c);
}

// The weights of `V` vectors of channels from c on.
template <class T, int V>
inline void load_weights(const Edges<T>& a, int64_t e, int64_t c, Vec<T> (&w)[V]) {
  const T* from = a.weight[e] + a.weight_at + c;
  for (int v = 0; v < V; ++v) {
    __builtin_prefetch(from + v * lanes<T> + a.ahead);
    w[v] = v + 1 < V ? load(from + v * lanes<T>) : load_first(from + v * lanes<T>, a.channels - c - v * lanes<T>);
  }
}

// A row's vectors of channels from c on; only the last one may have fewer.
template <class T, int V>
inline void store_channels(T* to, const Vec<T> (&value)[V], int64_t channels, int64_t c) {
  for (int v = 0; v < V; ++v)
    if (v + 1 < V) store(to + c + v * lanes<T>, value[v]);
    else store_first(to + c + v * lanes<T>, value[v], channels - c - v * lanes<T>);
}

// ---- degrees known to the compiler ---------------------------------------------------------------------------------

#define UNROLL _Pragma("GCC unroll 7")

template <class T, int L1, int L2, int L3>
struct Unrolled {
  static constexpr auto& slot = kPattern<L1, L2, L3>.slot;
  static constexpr int d1 = 2 * L1 + 1, d3 = 2 * L3 + 1, L = lanes<T>, count = kPattern<L1, L2, L3>.count;
  static constexpr int most = kVectorBytes == 64 ? 2 : 1;  // vectors of channels at once, as registers allow

  // y[k] += w sum_i M[i, k] x[i] over the edges
  static void forward(const Edges<T>& a, const Pairs&, T* y) {
    over_channels<T, most>(a.channels, [&]<int V>(std::integral_constant<int, V>, int64_t c) {
      Vec<T> sum[d3][V];
      UNROLL for (int k = 0; k < d3; ++k)
        for (int v = 0; v < V; ++v) sum[k][v] = load(y + k * a.padded + c + v * L);
      for (int64_t e = a.first; e < a.last; ++e) {
        const T *x = a.far[e] + a.far_at + c, *m = a.m + e;
        Vec<T> w[V], t[d3][V] = {};
        load_weights<T, V>(a, e, c, w);
        UNROLL for (int i = 0; i < d1; ++i) {
          Vec<T> xi[V];
          for (int v = 0; v < V; ++v) xi[v] = load(x + i * a.padded + v * L);
          if constexpr (d1 <= d3)
            for (int v = 0; v < V; ++v) xi[v] *= w[v];
          UNROLL for (int k = 0; k < d3; ++k)
            for (int v = 0; v < V; ++v)
              if (slot[i][k] >= 0) (d1 <= d3 ? sum : t)[k][v] += m[slot[i][k] * kRows] * xi[v];
        }
        if constexpr (d1 > d3)
          UNROLL for (int k = 0; k < d3; ++k)
            for (int v = 0; v < V; ++v) sum[k][v] += w[v] * t[k][v];
      }
      UNROLL for (int k = 0; k < d3; ++k)
        for (int v = 0; v < V; ++v) store(y + k * a.padded + c + v * L, sum[k][v]);
    });
  }

  // With t[i] = sum_k M[i, k] g[k] of an edge: g_x[i] += w t[i] and g_w = sum_i x[i] t[i], written to
  // g_weight[e][padded] or added to `total`, either of which may be null; x is the near node's.
  static void backward(const Edges<T>& a, const Pairs&, const T* x, T* g_x, T* g_weight, T* total) {
    constexpr int most_here = d1 <= 3 ? most : 1;
    over_channels<T, most_here>(a.channels, [&]<int V>(std::integral_constant<int, V>, int64_t c) {
      Vec<T> near[d1][V], sum[d1][V], shared[V] = {};
      UNROLL for (int i = 0; i < d1; ++i)
        for (int v = 0; v < V; ++v) {
          near[i][v] = load(x + i * a.padded + c + v * L);
          sum[i][v] = load(g_x + i * a.padded + c + v * L);
        }
      for (int64_t e = a.first; e < a.last; ++e) {
        const T *g = a.far[e] + a.far_at + c, *m = a.m + e;
        Vec<T> w[V], t[d1][V] = {}, g_w[V] = {};
        load_weights<T, V>(a, e, c, w);
        UNROLL for (int k = 0; k < d3; ++k)
          for (int v = 0; v < V; ++v) {
            const Vec<T> gk = load(g + k * a.padded + v * L);
            UNROLL for (int i = 0; i < d1; ++i)
              if (slot[i][k] >= 0) t[i][v] += m[slot[i][k] * kRows] * gk;
          }
        UNROLL for (int i = 0; i < d1; ++i)
          for (int v = 0; v < V; ++v) g_w[v] += near[i][v] * t[i][v], sum[i][v] += w[v] * t[i][v];
        if (g_weight)
          for (int v = 0; v < V; ++v) store(g_weight + e * a.padded + c + v * L, g_w[v]);
        for (int v = 0; v < V; ++v) shared[v] += g_w[v];
      }
      UNROLL for (int i = 0; i < d1; ++i)
        for (int v = 0; v < V; ++v) store(g_x + i * a.padded + c + v * L, sum[i][v]);
      if (!total) return;
      for (int v = 0; v < V; ++v) shared[v] += load_first(total + a.weight_at + c + v * L, a.channels - c - v * L);
      store_channels<T, V>(total + a.weight_at, shared, a.channels, c);
    });
  }

  // q[slot][kRows] = sum over channels of w x[i] g[k] of each edge, near[e] + near_at its near node's part
  static void couple(const Edges<T>& a, const Pairs&, const T* const* near, int64_t near_at, T* parts, T* q) {
    constexpr int wide = d1 * d3 <= 21 ? d3 : d1 <= 3 ? 7 : d1 == 5 ? 4 : 3;  // components of g in registers at once
    sum_over_lanes(a, count, parts, q, [&](int64_t e, T* to) { across<0, wide>(a, e, near[e] + near_at, to); });
  }

  // For a vector of edges at a time: f(e, to) writes the slots' vectors to to[slot * L * L], q[slot][e] is their sum.
  template <class F>
  static void sum_over_lanes(const Edges<T>& a, int64_t slots, T* parts, T* q, F&& f) {
    for (int64_t first = a.first; first < a.last; first += L) {
      for (int64_t l = 0; l < std::min<int64_t>(L, a.last - first); ++l) f(first + l, parts + l * L);
      for (int64_t s = 0; s < slots; ++s) {
        Vec<T> rows[L];
        for (int l = 0; l < L; ++l) rows[l] = load(parts + (s * L + l) * L);
        store(q + s * kRows + first, sum_each<T>(rows));
      }
    }
  }

 private:
  template <int first, int wide>
  static void across(const Edges<T>& a, int64_t e, const T* x, T* parts) {
    constexpr int n = first + wide <= d3 ? wide : d3 - first;
    const T *g = a.far[e] + a.far_at + first * a.padded, *weight = a.weight[e] + a.weight_at;
    Vec<T> sum[d1][n] = {};
    for (int64_t c = 0; c < a.channels; c += L) {
      const Vec<T> w = load_first(weight + c, a.channels - c);
      Vec<T> gk[n];
      UNROLL for (int k = 0; k < n; ++k) gk[k] = load(g + k * a.padded + c);
      UNROLL for (int i = 0; i < d1; ++i) {
        const Vec<T> wx = w * load(x + i * a.padded + c);
        UNROLL for (int k = 0; k < n; ++k)
          if (slot[i][first + k] >= 0) sum[i][k] += wx * gk[k];
      }
    }
    UNROLL for (int i = 0; i < d1; ++i)
      UNROLL for (int k = 0; k < n; ++k)
        if (slot[i][first + k] >= 0) store(parts + slot[i][first + k] * L * L, sum[i][k]);
    if constexpr (first + wide < d3) across<first + wide, wide>(a, e, x, parts);
  }
};

#undef UNROLL

// ---- any degree ----------------------------------------------------------------------------------------------------

template <class T>
struct AnyDegree {
  static constexpr int L = lanes<T>;

  static void forward(const Edges<T>& a, const Pairs& pairs, T* y) {
    for (size_t k = 0; k < pairs.of_k.size(); ++k)
      for (int64_t c = 0; c < a.channels; c += L) {
        Vec<T> sum = load(y + k * a.padded + c);
        for (int64_t e = a.first; e < a.last; ++e) sum += weights(a, e, c) * contract(a, e, pairs.of_k[k], c);
        store(y + k * a.padded + c, sum);
      }
  }

  static void backward(const Edges<T>& a, const Pairs& pairs, const T* x, T* g_x, T* g_weight, T* total) {
    for (int64_t c = 0; c < a.channels; c += L)
      for (int64_t e = a.first; e < a.last; ++e) {
        const Vec<T> w = weights(a, e, c);
        Vec<T> g_w{};
        for (size_t i = 0; i < pairs.of_i.size(); ++i) {
          const Vec<T> t = contract(a, e, pairs.of_i[i], c);
          g_w += load(x + i * a.padded + c) * t;
          store(g_x + i * a.padded + c, load(g_x + i * a.padded + c) + w * t);
        }
        if (g_weight) store(g_weight + e * a.padded + c, g_w);
        if (!total) continue;
        T* sum = total + a.weight_at + c;
        store_first(sum, load_first(sum, a.channels - c) + g_w, a.channels - c);
      }
  }

  static void couple(const Edges<T>& a, const Pairs& pairs, const T* const* near, int64_t near_at, T* parts, T* q) {
    int64_t slots = 0;
    for (const auto& list : pairs.of_i) slots += list.size();
    Unrolled<T, 0, 0, 0>::sum_over_lanes(a, slots, parts, q, [&](int64_t e, T* to) {
      for (size_t i = 0; i < pairs.of_i.size(); ++i)
        for (const Pairs::Pair& p : pairs.of_i[i]) {
          Vec<T> sum{};
          for (int64_t c = 0; c < a.channels; c += L)
            sum += weights(a, e, c) * load(near[e] + near_at + i * a.padded + c) * load(far(a, e, p, c));
          store(to + p.slot * L * L, sum);
        }
    });
  }

 private:
  static Vec<T> weights(const Edges<T>& a, int64_t e, int64_t c) {
    return load_first(a.weight[e] + a.weight_at + c, a.channels - c);
  }
  static const T* far(const Edges<T>& a, int64_t e, const Pairs::Pair& p, int64_t c) {
    return a.far[e] + a.far_at + p.component * a.padded + c;
  }
  // sum over pairs of M times the far node's component
  static Vec<T> contract(const Edges<T>& a, int64_t e, const std::vector<Pairs::Pair>& pairs, int64_t c) {
    Vec<T> t{};
    for (const Pairs::Pair& p : pairs) t += a.m[p.slot * kRows + e] * load(far(a, e, p, c));
    return t;
  }
};

// ---- which code a path takes ---------------------------------------------------------------------------------------

template <class T>
struct Code {
  void (*forward)(const Edges<T>&, const Pairs&, T*) = AnyDegree<T>::forward;
  void (*backward)(const Edges<T>&, const Pairs&, const T*, T*, T*, T*) = AnyDegree<T>::backward;
  void (*couple)(const Edges<T>&, const Pairs&, const T* const*, int64_t, T*, T*) = AnyDegree<T>::couple;
};

template <class T, int L1, int L2, int L3>
constexpr Code<T> code_of_degrees() {
  if constexpr (triangle(L1, L2, L3)) {
    using U = Unrolled<T, L1, L2, L3>;
    return {U::forward, U::backward, U::couple};
  } else {
    return {};
  }
}

template <class T>
Code<T> code_of(int64_t l1, int64_t l2, int64_t l3) {
  constexpr int n = kMaxDegree + 1;
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Code<T>, n * n * n>{code_of_degrees<T, I / (n * n), I / n % n, I % n>()...};
  }(std::make_integer_sequence<int, n * n * n>{});
  if (std::max({l1, l2, l3}) > kMaxDegree) return {};
  return table[(l1 * n + l2) * n + l3];
}

}  // namespace ace::conv
