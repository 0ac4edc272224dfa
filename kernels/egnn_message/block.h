// A block of edges on its way through the edge network and the coordinate network, and back. Rows are edges, columns
// lie in whole vectors with zeros at their end, and everything stays in the second level of the cache.
#pragma once

#include "edges.h"

namespace ace::egnn {

constexpr int64_t kRows = 64;  // edges of a block: a multiple of the tile's height and of every vector

// Where a backward pass writes; null where nobody asks.
template <class T>
struct Gradients {
  T *x, *edge;         // [N, D], [E, A]
  T *nodes;            // [N, 2H], the first half is added to
  T *sent, *sent_r;    // [E, H], [E, D]: what the sources will sum
};

// Sums over the edges of a chunk, rows padded; null where nobody asks.
template <class T>
struct Sums { T *first, *two, *three, *bias2, *bias3, *four, *bias4; };

// x sigmoid(x) and its derivative s + x s (1 - s)
template <class T>
inline Vec<T> silu(Vec<T> x) { return x * sigmoid(x); }

template <class T>
inline std::pair<Vec<T>, Vec<T>> silu_and_grad(Vec<T> x) {
  const Vec<T> s = sigmoid(x), y = x * s;
  return {y, s + y * (T(1) - s)};
}

// out[z] = the sum over the lanes of parts[z], for z < kRows
template <class T>
inline void sum_lanes(const Vec<T>* parts, T* out) {
  constexpr int L = lanes<T>;
  for (int64_t z = 0; z < kRows; z += L) {
    Vec<T> a[L];
    for (int l = 0; l < L; ++l) a[l] = parts[z + l];
    store(out + z, sum_each<T>(a));
  }
}

template <class T>
class Block {
 public:
  Block(const Arguments<T>& a, const Weights<T>& w, const T* nodes)
      : a(a), w(w), nodes_(nodes), inputs_(kRows * (1 + a.A)), r_(kRows * a.D), g_r_(kRows * a.D),
        zeros_(std::max(a.H, a.D)), one(kRows, a.H), slope1(kRows, a.H), g1(kRows, a.H), two(kRows, a.M),
        slope2(kRows, a.M), g2(kRows, a.M), three(kRows, a.C) {
    std::fill_n(static_cast<T*>(zeros_), std::max(a.H, a.D), T(0));
  }

  // f() for the edges of nodes first..last-1, a block at a time.
  template <class F>
  void each(int64_t first, int64_t last, F&& f) {
    edges = 0;
    for (int64_t n = first; n < last; ++n)
      for (int64_t p = a.target.begin(n), end = a.target.end(n); p < end; ++p) {
        const int64_t e = a.target.order[p];
        if (!a.target.has(e)) continue;
        take(e, n);
        if (edges == kRows) f(), edges = 0;
      }
    if (edges) f();
  }

  // features [N, M] and coordinates [N, D] (not divided yet) are added to.
  void forward(const Kept<T>& kept, T* coordinates, T* features) {
    first_layer<false>();
    second_layer<false>(Kept<const T>{}, kept.pre2);
    third_product();
    Vec<T> parts[kRows] = {};
    for (int64_t z = 0; z < edges; ++z)
      for (int64_t c = 0; c < a.C; c += lanes<T>) {
        const Vec<T> x = load(three.row(z) + c) + load(w.bias3 + c);
        if (kept.pre3) store_first(kept.pre3 + id[z] * a.C + c, x, a.C - c);
        parts[z] += silu<T>(x) * load(w.four + c);
      }
    sum_lanes<T>(parts, weight_);
    for (int64_t z = 0; z < edges; ++z) {
      add(features + node[z] * a.M, two.row(z), a.M);
      for (int64_t d = 0; d < a.D; ++d)
        coordinates[node[z] * a.D + d] += r_[z * a.D + d] * (weight_[z] + w.bias4);
    }
  }

  // Gradients from those of the coordinates' sums [N, D] (divided already) and of the features [N, M].
  void backward(const Kept<const T>& kept, const T* g_coordinates, const T* g_features, const Gradients<T>& to,
                const Sums<T>& sums, bool inner, bool first) {
    if (first || sums.two || !kept.pre2) first_layer<true>();
    second_layer<true>(kept, nullptr);
    if (!kept.pre3) third_product();
    coordinate_gradient(kept, g_coordinates, sums);
    if (sums.three)
      matmul<T>(a.C, a.M, edges, three, 1, three.ld, two, two.ld, sums.three, padded<T>(a.M), true);
    if (!inner) return;
    matmul<T>(edges, a.M, a.C, three, three.ld, 1, w.three, w.three.ld, g2, g2.ld, false);
    for (int64_t c = 0; c < a.M; c += lanes<T>) {
      Vec<T> sum{};
      for (int64_t z = 0; z < edges; ++z) {
        T* at = g2.row(z) + c;
        const Vec<T> g = (load(at) + load_first(g_features + node[z] * a.M + c, a.M - c)) * load(slope2.row(z) + c);
        store(at, g);
        sum += g;
      }
      add_to(sums.bias2, c, sum);
    }
    if (sums.two) matmul<T>(a.M, a.H, edges, g2, 1, g2.ld, one, one.ld, sums.two, padded<T>(a.H), true);
    if (first) first_gradient(to, sums);
  }

  int64_t edges = 0, id[kRows], node[kRows], source[kRows];

 private:
  // One more edge e that ends in node n: its ends, difference and what enters the first layer beside the nodes.
  void take(int64_t e, int64_t n) {
    const int64_t j = a.source.index[e], z = edges++;
    id[z] = e;
    node[z] = n;
    source[z] = j >= 0 && j < a.source.nodes ? j : -1;
    const T *from = source[z] < 0 ? static_cast<const T*>(zeros_) : a.x + j * a.D, *to = a.x + n * a.D;
    T square = 0, *input = inputs_ + z * (1 + a.A);
    for (int64_t d = 0; d < a.D; ++d) {
      const T r = to[d] - from[d];
      r_[z * a.D + d] = r;
      square += r * r;
    }
    input[0] = square;
    std::copy_n(a.edge + e * a.A, a.A, input + 1);
  }

  // one = SiLU of the first layer, and its derivative.
  template <bool Slope>
  void first_layer() {
    for (int64_t z = 0; z < edges; ++z) {
      const T *to = nodes_ + node[z] * 2 * a.H, *input = inputs_ + z * (1 + a.A);
      const T* from = source[z] < 0 ? static_cast<const T*>(zeros_) : nodes_ + source[z] * 2 * a.H + a.H;
      for (int64_t c = 0; c < a.H; c += lanes<T>) {
        Vec<T> x = load_first(to + c, a.H - c) + load_first(from + c, a.H - c);
        for (int64_t k = 0; k <= a.A; ++k) x += input[k] * load(w.first.row(k) + c);
        activate<Slope>(x, one.row(z) + c, slope1.row(z) + c);
      }
    }
  }

  // two = the message, and its derivative; from `kept` where that is there, else computed, and kept in `pre2`.
  template <bool Slope>
  void second_layer(const Kept<const T>& kept, T* pre2) {
    if (!kept.pre2) matmul<T>(edges, a.M, a.H, one, one.ld, 1, w.two_t, w.two_t.ld, two, two.ld, false);
    for (int64_t z = 0; z < edges; ++z)
      for (int64_t c = 0; c < a.M; c += lanes<T>) {
        T* at = two.row(z) + c;
        const Vec<T> x = kept.pre2 ? load_first<T>(kept.pre2 + id[z] * a.M + c, a.M - c) : load(at) + load(w.bias2 + c);
        if (pre2) store_first(pre2 + id[z] * a.M + c, x, a.M - c);
        activate<Slope>(x, at, slope2.row(z) + c);
      }
  }

  void third_product() {
    matmul<T>(edges, a.C, a.M, two, two.ld, 1, w.three_t, w.three_t.ld, three, three.ld, false);
  }

  template <bool Slope>
  static void activate(Vec<T> x, T* value, T* slope) {
    if constexpr (Slope) {
      const auto [y, s] = silu_and_grad<T>(x);
      store(value, y);
      store(slope, s);
    } else {
      store(value, silu<T>(x));
    }
  }

  // three = the gradient of the third pre-activation, g_r_ = the coordinates' part of that of the difference.
  void coordinate_gradient(const Kept<const T>& kept, const T* g_coordinates, const Sums<T>& sums) {
    Vec<T> parts[kRows] = {};
    T g_w[kRows], sum = 0;
    for (int64_t z = 0; z < edges; ++z) {
      g_w[z] = 0;
      for (int64_t d = 0; d < a.D; ++d) g_w[z] += g_coordinates[node[z] * a.D + d] * r_[z * a.D + d];
      sum += g_w[z];
    }
    if (sums.bias4) *sums.bias4 += sum;
    for (int64_t c = 0; c < a.C; c += lanes<T>) {
      const Vec<T> four = load(w.four + c), bias = load(w.bias3 + c);
      Vec<T> of_four{}, of_bias{};
      for (int64_t z = 0; z < edges; ++z) {
        T* at = three.row(z) + c;
        const Vec<T> x = kept.pre3 ? load_first<T>(kept.pre3 + id[z] * a.C + c, a.C - c) : load(at) + bias;
        const auto [y, slope] = silu_and_grad<T>(x);
        const Vec<T> g = four * slope * g_w[z];
        parts[z] += y * four;
        store(at, g);
        of_four += y * g_w[z];
        of_bias += g;
      }
      add_to(sums.four, c, of_four);
      add_to(sums.bias3, c, of_bias);
    }
    sum_lanes<T>(parts, weight_);
    for (int64_t z = 0; z < edges; ++z)
      for (int64_t d = 0; d < a.D; ++d)
        g_r_[z * a.D + d] = g_coordinates[node[z] * a.D + d] * (weight_[z] + w.bias4);
  }

  // From g2, the gradient of the second pre-activation, to all that the first layer reads.
  void first_gradient(const Gradients<T>& to, const Sums<T>& sums) {
    matmul<T>(edges, a.H, a.M, g2, g2.ld, 1, w.two, w.two.ld, g1, g1.ld, false);
    Vec<T> parts[kRows] = {};
    for (int64_t z = 0; z < edges; ++z) {
      T* row = g1.row(z);
      for (int64_t c = 0; c < a.H; c += lanes<T>) {
        const Vec<T> g = load(row + c) * load(slope1.row(z) + c);
        store(row + c, g);
        parts[z] += g * load(w.first.row(0) + c);
      }
      if (to.nodes) {
        add(to.nodes + node[z] * 2 * a.H, row, a.H);
        std::copy_n(row, a.H, to.sent + id[z] * a.H);
      }
    }
    if (sums.first) matmul<T>(1 + a.A, a.H, edges, inputs_, 1, 1 + a.A, g1, g1.ld, sums.first, padded<T>(a.H), true);
    if (to.edge) edge_gradient(to.edge);
    if (!to.x) return;
    sum_lanes<T>(parts, weight_);
    for (int64_t z = 0; z < edges; ++z)
      for (int64_t d = 0; d < a.D; ++d) {
        const T g = g_r_[z * a.D + d] + 2 * weight_[z] * r_[z * a.D + d];
        to.x[node[z] * a.D + d] += g;
        to.sent_r[id[z] * a.D + d] = g;
      }
  }

  void edge_gradient(T* g_edge) {
    for (int64_t k = 0; k < a.A; ++k) {
      Vec<T> parts[kRows] = {};
      for (int64_t z = 0; z < edges; ++z)
        for (int64_t c = 0; c < a.H; c += lanes<T>) parts[z] += load(g1.row(z) + c) * load(w.first.row(1 + k) + c);
      sum_lanes<T>(parts, weight_);
      for (int64_t z = 0; z < edges; ++z) g_edge[id[z] * a.A + k] = weight_[z];
    }
  }

  static void add_to(T* sums, int64_t c, Vec<T> x) {
    if (sums) store(sums + c, load(sums + c) + x);
  }

  static void add(T* to, const T* from, int64_t width) {
    for (int64_t c = 0; c < width; ++c) to[c] += from[c];
  }

  const Arguments<T>& a;
  const Weights<T>& w;
  const T* nodes_;
  Scratch<T> inputs_, r_, g_r_, zeros_;
  Matrix<T> one, slope1, g1, two, slope2, g2, three;
  alignas(64) T weight_[kRows];
};

}  // namespace ace::egnn
