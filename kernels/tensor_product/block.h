// One block of rows of a tensor product, rows as vector lanes: a path's contraction, its sum over channels, its gradients.
#pragma once

#include "epilogue.h"
#include "paths.h"

namespace ace::product {

// Weights of a block, or their gradients: `shared` [n] (gradients: padded sums, see Path), or where it is null the [n] of
// each row. Gradients with neither are not asked for; those of rows are written, or with `add` added to what is there.
template <class P>
struct WeightsOf {
  P shared = nullptr;
  Rows<P> rows = {{}, 0};
  bool add = false;
  WeightsOf(P shared) : shared(shared) {}
  WeightsOf(const Rows<P>& rows) : rows(rows) {}
  explicit operator bool() const { return shared || rows.count; }
  WeightsOf added() const {
    WeightsOf other = *this;
    other.add = true;
    return other;
  }
};
template <class T> using Weights = WeightsOf<const T*>;
template <class T> using WeightSums = WeightsOf<T*>;

// Everything one thread needs for one block, all in [component][kRows] layout.
template <class T>
class Block {
 public:
  Block(int64_t dim1, int64_t dim2, int64_t dim3, const std::vector<Path>& paths)
      : x1(dim1 * kRows), x2(dim2 * kRows), y(dim3 * kRows),
        g_x1(dim1 * kRows), g_x2(dim2 * kRows), gate_out(dim3 * kRows),
        coupling(largest(paths, pairs) * kRows),
        t(largest(paths, widest) * kRows), s(largest(paths, widest) * kRows), turned(largest(paths, widest) * kRows),
        back(largest(paths, widest) * kRows), lane_weights(largest(paths, elements) * kRows),
        lane_sums(largest(paths, elements) * kRows), last(lanes<T> * largest(paths, widest)), ones(largest(paths, elements)) {
    std::fill_n(static_cast<T*>(ones), largest(paths, elements), T(1));
    std::fill_n(static_cast<T*>(last), lanes<T> * largest(paths, widest), T(0));
  }

  // Rows of a matrix in mul_ir into [dim][kRows], missing ones as zero; and back.
  static void load_rows(const T* from, int64_t dim, int64_t rows, T* to) {
    product::load_rows<T>(rows_from(from, 0, rows, dim), {{0, dim, 1}}, to);
  }
  static void store_rows(const T* from, int64_t dim, int64_t rows, T* to) {
    product::store_rows<T>(from, {{0, dim, 1}}, rows_from(to, 0, rows, dim));
  }

  // to[pair][z] = sum_j C_ijk x[b, j, z] with x of side 2
  void couple(const Path& p, int64_t b) { couple(p, b, p.swapped ? x1 : x2, coupling); }
  static void couple(const Path& p, int64_t b, const T* x, T* to) {
    x += (p.o2 + b * p.d2) * kRows;
    for (size_t n = 0; n < p.pairs.size(); ++n)
      lanes_of_row<T>([&](int64_t z) {
        Vec<T> sum{};
        for (const Term& term : p.pairs[n].terms) sum += static_cast<T>(term.c) * load(x + term.j * kRows + z);
        store(to + n * kRows + z, sum);
      });
  }

  // to[m, k, z] (+)= sum_i from[m, i, z] coupling[i, k, z] for m < count; Transposed swaps the roles of i and k.
  template <bool Transposed>
  void contract(const Path& p, int64_t count, const T* from, T* to, bool add) const {
    contract<Transposed>(p, coupling, count, from, to, add);
  }
  template <bool Transposed>
  static void contract(const Path& p, const T* coupling, int64_t count, const T* from, T* to, bool add) {
    constexpr int vectors = kRows / lanes<T>;
    const std::span<const std::span<const Source>> sources = Transposed ? p.of_i : p.of_k;
    const int64_t d_from = Transposed ? p.d3 : p.d1;
    for (int64_t m = 0; m < count; ++m, from += d_from * kRows)
      for (const std::span<const Source>& list : sources) {
        Vec<T> sum[vectors];
        for (int v = 0; v < vectors; ++v) sum[v] = add ? load(to + v * lanes<T>) : Vec<T>{};
        for (const Source& source : list) {
          const T *a = from + source.component * kRows, *c = coupling + source.pair * kRows;
          for (int v = 0; v < vectors; ++v) sum[v] += load(a + v * lanes<T>) * load(c + v * lanes<T>);
        }
        for (int v = 0; v < vectors; ++v) store(to + v * lanes<T>, sum[v]);
        to += kRows;
      }
  }

  // y += the path; without `add`, which a path that writes() may do without, y = the path
  void forward(const Path& p, const Weights<T>& weights, bool add = true) {
    if (!p.mixes) return forward_each(p, weights);
    const T* x = (p.swapped ? x2 : x1) + p.o1 * kRows;
    T* target = y + p.o3 * kRows;
    if (p.meet == Meet::equal) {
      p.groups([&](const Group& g) {
        couple(p, g.b);
        contract<false>(p, 1, x + g.b * p.d1 * kRows, t + g.b * p.d3 * kRows, false);
      });
      return mix(p, everything(p), weights, t, target, add);
    }
    p.groups([&](const Group& g) {
      const T* from = x + g.first * p.d1 * kRows;
      couple(p, g.b);
      if (p.channels_first) {  // s[w, i, z] = sum_a W[a, w] x[a, i, z]
        mix(p, g, weights, from, s, false);
        contract<false>(p, p.W, s, target, add);
      } else {  // t[a, k, z] = contraction; y[w, k, z] += sum_a W[a, w] t[a, k, z]
        contract<false>(p, g.count, from, t, false);
        mix(p, g, weights, t, target, add);
      }
    });
  }

  // y holds the gradient of the output; g_x1, g_x2 and shared sums are added to, weights of rows are written. Without
  // `add`, which a path that writes() may do without, the gradient of side 1 is written.
  void backward(const Path& p, const Weights<T>& weights, bool need_x1, bool need_x2, const WeightSums<T>& sums,
                bool add = true) {
    if (p.swapped) std::swap(need_x1, need_x2);
    const bool need_weight = sums && p.weight >= 0;
    if (!p.mixes) return backward_each(p, weights, need_x1, need_x2, need_weight, sums);
    const T *x = (p.swapped ? x2 : x1) + p.o1 * kRows, *g = y + p.o3 * kRows;
    T* g_x = (p.swapped ? g_x2 : g_x1) + p.o1 * kRows;
    if (p.meet == Meet::equal) {
      if (need_x1 || need_x2) unmix(p, everything(p), weights, g, t, false);
      p.groups([&](const Group& group) {
        const int64_t at = group.b * p.d1 * kRows, to = group.b * p.d3 * kRows;
        couple(p, group.b);
        if (need_x1) contract<true>(p, 1, t + to, g_x + at, add);
        if (need_x2) g_couple(p, group.b, 1, x + at, t + to);
        if (need_weight) contract<false>(p, 1, x + at, s + to, false);
      });
      if (need_weight) g_mix(p, everything(p), s, g, sums);
      return;
    }
    p.groups([&](const Group& group) {
      const int64_t at = group.first * p.d1 * kRows;
      couple(p, group.b);
      if (p.channels_first) {
        contract<true>(p, p.W, g, s, false);  // s[w, i, z]
        if (need_x1) unmix(p, group, weights, s, g_x + at, add);
        if (need_weight) g_mix(p, group, x + at, s, sums);
        if (need_x2) mix(p, group, weights, x + at, t, false);
        if (need_x2) g_couple(p, group.b, p.W, t, g);
      } else {
        if (need_x1 || need_x2) unmix(p, group, weights, g, t, false);
        if (need_x1) contract<true>(p, group.count, t, g_x + at, add);
        if (need_x2) g_couple(p, group.b, group.count, x + at, t);
        if (need_weight) contract<false>(p, group.count, x + at, t, false);
        if (need_weight) g_mix(p, group, t, g, sums);
      }
    });
  }

  // What else the gradients of sum <c1, g_x1> + <c2, g_x2> + <weight, g_weight> take: cotangents, null where there are
  // none, and where the gradient of g is added to, null where it is not asked for.
  struct Second {
    const T *c1, *c2;
    std::optional<Weights<T>> weights;
    bool need_x1, need_x2;
    T* product;
    Scratch<T> coupling, t, s;

    explicit Second(const std::vector<Path>& paths)
        : coupling(largest(paths, pairs) * kRows), t(largest(paths, widest) * kRows), s(largest(paths, widest) * kRows) {}
  };
  void second(const Path& p, const Weights<T>& weights, const Second& other, WeightSums<T> sums);

  void gate(const Gate& f) { f.forward<T>(y, gate_out); }
  void gate_backward(const Gate& f) { f.backward<T>(gate_out, y); }

  // y (pre-activation) -> gate_out; y and gate_out (gradient of the result) -> y (gradient of the pre-activation) and
  // the parameters' gradients, added to `sums`
  void epilogue(const Epilogue& e) {
    std::visit([&](const auto& f) { f.template forward<T>(y, gate_out); }, e);
  }
  void epilogue_backward(const Epilogue& e, T* sums) {
    std::visit([&](const auto& f) { f.template backward<T>(gate_out, y, sums); }, e);
  }

  T sum_row(int64_t c) const { return sum_lanes(y + c * kRows); }

  Scratch<T> x1, x2, y, g_x1, g_x2, gate_out;

 private:
  static int64_t pairs(const Path& p) { return static_cast<int64_t>(p.pairs.size()); }
  static int64_t widest(const Path& p) { return std::max(round_up<T>(p.U), round_up<T>(p.W)) * std::max(p.d1, p.d3); }
  static int64_t elements(const Path& p) { return p.mixes ? (p.weight < 0 ? p.rows() * p.W : 1) : p.rows(); }
  template <class F>
  static int64_t largest(const std::vector<Path>& paths, F&& f) {
    int64_t most = 1;
    for (const Path& p : paths) most = std::max(most, f(p));
    return most;
  }

  static Group everything(const Path& p) { return {0, 0, p.U, 0, 1}; }

  static T sum_lanes(const T* row) {
    Vec<T> sum{};
    lanes_of_row<T>([&](int64_t z) { sum += load(row + z); });
    T total = 0;
    for (int l = 0; l < lanes<T>; ++l) total += sum[l];
    return total;
  }

  // The path's shared weights, ones where it has none; null where every row has its own.
  const T* shared_weights(const Path& p, const Weights<T>& weights) const {
    if (p.weight < 0) return ones;
    return weights.shared ? weights.shared + p.weight : nullptr;
  }

  // to[w, m, z] (+)= sum_a W[a, w] from[a, m, z] for the channels a of a group and m < p.d
  void mix(const Path& p, const Group& g, const Weights<T>& weights, const T* from, T* to, bool add) {
    const int64_t columns = p.d * kRows, width = round_up<T>(p.W);
    if (const T* w = shared_weights(p, weights))
      return matmul<T>(p.W, columns, g.count, w + g.weight * p.W, 1, g.step * p.W, from, columns, to, columns, add);
    // A row at a time, as its weights lie; the last channels are copied, so that no vector reaches beyond.
    const int64_t ld = g.step * p.W, ends = std::min(g.count, ceil_div(width - p.W, ld)), whole = g.count - ends;
    for (int64_t z = 0; z < weights.rows.count; ++z) {
      const T* w = weights.rows.at[z] + p.weight + g.weight * p.W;
      T* row = turned + z * p.d * width;
      matmul<T>(p.d, p.W, whole, from + z, kRows, columns, w, ld, row, width, false);
      if (!ends) continue;
      for (int64_t a = 0; a < ends; ++a) std::copy_n(w + (whole + a) * ld, p.W, last + a * width);
      matmul<T>(p.d, p.W, ends, from + z + whole * columns, kRows, columns, last, width, row, width, true);
    }
    turn_back(p.d, p.W, weights.rows.count, to, add);
  }

  // to[a, m, z] (+)= sum_w W[a, w] from[w, m, z]
  void unmix(const Path& p, const Group& g, const Weights<T>& weights, const T* from, T* to, bool add) {
    constexpr int L = lanes<T>;
    const int64_t columns = p.d * kRows, width = round_up<T>(p.W), high = round_up<T>(g.count), ld = g.step * p.W;
    if (const T* w = shared_weights(p, weights))
      return matmul<T>(g.count, columns, p.W, w + g.weight * p.W, ld, 1, from, columns, to, columns, add);
    turn(p.d, p.W, from);
    for (int64_t z = 0; z < weights.rows.count; ++z)
      for (int64_t a = 0; a < g.count; a += L)
        for (int64_t m = 0; m < p.d; ++m) {
          const T *w = weights.rows.at[z] + p.weight + (g.weight + a * g.step) * p.W, *row = turned + (z * p.d + m) * width;
          Vec<T> sums[L] = {};
          for (int64_t l = 0; l < std::min<int64_t>(L, g.count - a); ++l)
            for (int64_t c = 0; c < p.W; c += L) sums[l] += load_first(w + l * ld + c, p.W - c) * load(row + c);
          store(back + (z * p.d + m) * high + a, sum_each<T>(sums));
        }
    turned.swap(back);
    turn_back(p.d, g.count, weights.rows.count, to, add);
  }

  // Gradient of a group's weights: sum over m (and over z where they are shared) of left[a, m, z] right[w, m, z]
  void g_mix(const Path& p, const Group& g, const T* left, const T* right, const WeightSums<T>& sums) {
    const int64_t columns = p.d * kRows, width = round_up<T>(p.W);
    if (sums.shared) {
      transpose<T>(right, p.W, columns, columns, turned, width);
      clear_padding(columns, p.W);
      return matmul<T>(g.count, p.W, columns, left, columns, 1, turned, width,
                       sums.shared + p.padded + g.weight * width, g.step * width, true);
    }
    turn(p.d, p.W, right);
    for (int64_t z = 0; z < sums.rows.count; ++z) {
      T* to = sums.rows.at[z] + p.weight + g.weight * p.W;
      const T* row = turned + z * p.d * width;
      if (width == p.W) {
        matmul<T>(g.count, p.W, p.d, left + z, columns, kRows, row, width, to, g.step * p.W, sums.add);
        continue;
      }
      matmul<T>(g.count, p.W, p.d, left + z, columns, kRows, row, width, back, width, false);
      for (int64_t a = 0; a < g.count; ++a)
        for (int64_t w = 0; w < p.W; ++w) {
          T& target = to[a * g.step * p.W + w];
          target = back[a * width + w] + (sums.add ? target : T(0));
        }
    }
  }

  // turned[z][m][w, zeros up to whole vectors] = from[w, m, z]
  void turn(int64_t d, int64_t n, const T* from) {
    const int64_t width = round_up<T>(n);
    for (int64_t m = 0; m < d; ++m)
      transpose<T>(from + m * kRows, n, kRows, d * kRows, turned + m * width, d * width);
    clear_padding(kRows * d, n);
  }

  // Zeros beyond n in the rows of `turned`: what is found there can be numbers that are slow to calculate with.
  void clear_padding(int64_t rows, int64_t n) {
    const int64_t width = round_up<T>(n);
    for (int64_t r = 0; n < width && r < rows; ++r) std::fill(turned + r * width + n, turned + (r + 1) * width, T(0));
  }

  // to[w, m, z] (+)= turned[z][m][w] for z < rows, zero for the others
  void turn_back(int64_t d, int64_t n, int64_t rows, T* to, bool add) {
    const int64_t width = round_up<T>(n);
    std::fill(turned + rows * d * width, turned + kRows * d * width, T(0));
    T* target = add ? static_cast<T*>(back) : to;
    for (int64_t m = 0; m < d; ++m) transpose<T>(turned + m * width, kRows, n, d * width, target + m * kRows, d * kRows);
    for (int64_t i = 0; add && i < n * d * kRows; i += lanes<T>) store(to + i, load(to + i) + load(back + i));
  }

  // g_x2[b, j, z] += sum over pairs of C_ijk sum_m a[m, i, z] c[m, k, z], or g_x1 where side 2 is in1
  void g_couple(const Path& p, int64_t b, int64_t count, const T* a, const T* c) {
    T* g_x = (p.swapped ? g_x1 : g_x2) + (p.o2 + b * p.d2) * kRows;
    for (size_t n = 0; n < p.pairs.size(); ++n)
      lanes_of_row<T>([&](int64_t z) {
        Vec<T> sum{};
        for (int64_t m = 0; m < count; ++m)
          sum += load(a + (m * p.d1 + p.pairs[n].i) * kRows + z) * load(c + (m * p.d3 + p.pairs[n].k) * kRows + z);
        for (const Term& term : p.pairs[n].terms) {
          T* target = g_x + term.j * kRows + z;
          store(target, load(target) + static_cast<T>(term.c) * sum);
        }
      });
  }

  // f(channel of side 1, output channel, weight) for the channels of a group
  template <class F>
  static void each(const Path& p, const Group& g, F&& f) {
    for (int64_t n = 0; n < g.count; ++n) {
      const int64_t weight = g.weight + n * g.step;
      f(g.first + n, p.spreads ? weight : g.first + n, weight);
    }
  }

  // The weight of a pair, of every row: f(z) gives a vector.
  template <class F>
  void with_weight(const Path& p, const Weights<T>& weights, F&& f) {
    if (const T* w = shared_weights(p, weights)) return f([w](int64_t n, int64_t) { return splat<T>(w[n]); });
    const T* w = lane_weights;
    product::load_rows<T>(shifted(weights.rows, p.weight), {{0, p.rows(), 1}}, lane_weights);
    f([w](int64_t n, int64_t z) { return load(w + n * kRows + z); });
  }

  template <class P>
  static Rows<P> shifted(Rows<P> rows, int64_t offset) {
    for (int64_t z = 0; z < rows.count; ++z) rows.at[z] += offset;
    return rows;
  }

  // Each pair has a weight and an output channel of its own.
  void forward_each(const Path& p, const Weights<T>& weights) {
    const T* x = (p.swapped ? x2 : x1) + p.o1 * kRows;
    with_weight(p, weights, [&](auto&& weight_of) {
      p.groups([&](const Group& g) {
        couple(p, g.b);
        each(p, g, [&](int64_t a, int64_t to, int64_t n) {
          contract<false>(p, 1, x + a * p.d1 * kRows, t, false);
          T* target = y + (p.o3 + to * p.d3) * kRows;
          lanes_of_row<T>([&](int64_t z) {
            const Vec<T> w = weight_of(n, z);
            for (int64_t k = 0; k < p.d3; ++k)
              store(target + k * kRows + z, load(target + k * kRows + z) + w * load(t + k * kRows + z));
          });
        });
      });
    });
  }

  void backward_each(const Path& p, const Weights<T>& weights, bool need_1, bool need_2, bool need_weight,
                     const WeightSums<T>& sums) {
    const T *x = (p.swapped ? x2 : x1) + p.o1 * kRows, *g = y + p.o3 * kRows;
    T* g_x = (p.swapped ? g_x2 : g_x1) + p.o1 * kRows;
    with_weight(p, weights, [&](auto&& weight_of) {
      p.groups([&](const Group& group) {
        couple(p, group.b);
        each(p, group, [&](int64_t a, int64_t from, int64_t n) {
          const int64_t at = a * p.d1 * kRows, scaled = (a - group.first) * p.d3 * kRows;
          contract<true>(p, 1, g + from * p.d3 * kRows, s, false);  // s[i, z] = sum_k coupling g
          lanes_of_row<T>([&](int64_t z) {
            const Vec<T> w = weight_of(n, z);
            Vec<T> sum{};
            for (int64_t i = 0; i < p.d1; ++i) {
              const Vec<T> h = load(s + i * kRows + z);
              sum += h * load(x + at + i * kRows + z);
              if (need_1) store(g_x + at + i * kRows + z, load(g_x + at + i * kRows + z) + w * h);
            }
            store(lane_sums + n * kRows + z, sum);
            for (int64_t k = 0; need_2 && k < p.d3; ++k)
              store(t + scaled + k * kRows + z, w * load(g + (from * p.d3 + k) * kRows + z));
          });
        });
        if (need_2) g_couple(p, group.b, group.count, x + group.first * p.d1 * kRows, t);
      });
    });
    if (need_weight && sums.add) {
      Rows<const T*> before{{}, sums.rows.count};
      std::copy_n(sums.rows.at, before.count, before.at);
      product::load_rows<T>(shifted(before, p.weight), {{0, p.rows(), 1}}, lane_weights);
      for (int64_t i = 0; i < p.rows() * kRows; i += lanes<T>) store(lane_sums + i, load(lane_sums + i) + load(lane_weights + i));
    }
    if (need_weight && !sums.shared)
      product::store_rows<T>(lane_sums, {{0, p.rows(), 1}}, shifted(sums.rows, p.weight));
    for (int64_t n = 0; need_weight && sums.shared && n < p.rows(); ++n)
      sums.shared[p.padded + n] += sum_lanes(lane_sums + n * kRows);
  }

  Scratch<T> coupling, t, s, turned, back, lane_weights, lane_sums, last, ones;
};

}  // namespace ace::product
