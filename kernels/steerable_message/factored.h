// The first product with its weights at the nodes: an edge adds what its two ends prepared and contracts the sum with
// its attributes, channels as vector lanes; the extra features are multiplied edge by edge.
#pragma once

#include "nodes.h"

namespace ace::message {

// The contraction for one thread: the coupling of a block of edges, rows of pre-activations, a tile's gradients.
template <class T>
class Contraction {
 public:
  explicit Contraction(const Nodes<T>& nodes)
      : rows(kRows * nodes.row), g_table(kRows * nodes.ld), nodes_(nodes), coupling_(nodes.couplings * kRows),
        turned_(nodes.width * kRows), g_h_(nodes.a.D * kRows), g_rows_(kRows * nodes.a.D) {
    std::fill_n(static_cast<T*>(rows), kRows * nodes.row, T(0));  // beyond a slice's channels they stay zero
  }

  // attr [A][kRows] -> coupling[v, i, k] = sum_j C_ijk a[v, j] of every column
  void couple(const T* attr) {
    for (const Class& of : nodes_.classes)
      for (const Column& column : of.columns) {
        const Path& p = *column.path;
        T* to = coupling_ + column.coupling * kRows;
        std::fill_n(to, p.V * column.rows() * kRows, T(0));
        for (int64_t v = 0; v < p.V; ++v, to += column.rows() * kRows)
          for (const auto& pair : p.pairs)
            lanes_of_row<T>([&](int64_t z) {
              Vec<T> sum{};
              for (const auto& term : pair.terms)
                sum += static_cast<T>(term.c) * load(attr + (p.o2 + v * p.d2 + term.j) * kRows + z);
              store(to + (column.diagonal ? pair.i : pair.i * p.d3 + pair.k) * kRows + z, sum);
            });
      }
  }

  // y, edge z's row of pre-activations, += the contraction of s + t, the products of both ends
  void contract(int64_t z, const T* s, const T* t, T* y) const {
    each(z, [=](int64_t d1, int64_t d3, int64_t W, bool diagonal, const T* c, int64_t at, int64_t step, int64_t to) {
      if (diagonal) return contract_diagonal(s + at, t + at, step, d1, W, c, y + to);
      stretches(0, d3, [=](int64_t k, auto K) {
        contract_components<K>(s + at, t + at, step, d1, d3, W, c + k * kRows, y + to + k * round_up<T>(W));
      });
    });
  }

  // t, a row of gradients of products, += the transposed contraction of y
  void spread(int64_t z, const T* y, T* t) const {
    each(z, [=](int64_t d1, int64_t d3, int64_t W, bool diagonal, const T* c, int64_t at, int64_t step, int64_t to) {
      if (diagonal) return spread_diagonal(t + at, step, d1, W, c, y + to);
      stretches(0, d3, [=](int64_t k, auto K) {
        spread_components<K>(t + at, step, d1, d3, W, c + k * kRows, y + to + k * round_up<T>(W));
      });
    });
  }

  // The gradient of a tile's table in a role -> gradients of h (written, or added to) and of the padded weights.
  void close(int64_t role, const Tile& tile, T* h, bool add, T* weight) {
    const int64_t D = nodes_.a.D;
    if (h) Edges<T>::clear(g_h_, D);
    nodes_.backward(role, tile.node, tile.nodes, g_table, turned_, h ? static_cast<T*>(g_h_) : nullptr, weight);
    if (!h) return;
    Block<T>::store_rows(g_h_, D, tile.nodes, add ? static_cast<T*>(g_rows_) : h + tile.node * D);
    if (add) add_row(h + tile.node * D, static_cast<const T*>(g_rows_), tile.nodes * D);
  }

  Scratch<T> rows, g_table;  // [kRows][row], [kRows][ld]

 private:
  // f(2l+1 of in1, of out, channels, whether diagonal, coupling, offset and step of the components in a row of products,
  // offset in a row of pre-activations) for every column and attribute v; by value, so that no store makes it unsure.
  template <class F>
  void each(int64_t z, F&& f) const {
    for (const Class& of : nodes_.classes)
      for (const Column& column : of.columns)
        for (int64_t v = 0; v < column.path->V; ++v)
          f(column.path->d1, column.path->d3, column.path->W, column.diagonal,
            coupling_ + (column.coupling + v * column.rows()) * kRows + z, of.at + column.at + v * column.path->W, of.width,
            column.y);
  }

  // f(k, K as a constant) for 0..d3-1 in stretches of at most eight
  template <int K = 8, class F>
  static void stretches(int64_t k, int64_t d3, F&& f) {
    if constexpr (K > 1) {
      if (d3 - k < K) return stretches<K - 1>(k, d3, f);
    }
    if (k >= d3) return;
    f(k, std::integral_constant<int, K>{});
    stretches<K>(k + K, d3, f);
  }

  static void contract_diagonal(const T* s, const T* t, int64_t step, int64_t d1, int64_t W, const T* c, T* y) {
    for (int64_t i = 0; i < d1; ++i, s += step, t += step, y += round_up<T>(W))
      for (int64_t w = 0; w < W; w += lanes<T>)
        store(y + w, load(y + w) + c[i * kRows] * (load(s + w) + load(t + w)));
  }

  static void spread_diagonal(T* t, int64_t step, int64_t d1, int64_t W, const T* c, const T* y) {
    for (int64_t i = 0; i < d1; ++i, t += step, y += round_up<T>(W))
      for (int64_t w = 0; w < W; w += lanes<T>) store(t + w, load(t + w) + c[i * kRows] * load(y + w));
  }

  template <int K>
  static void contract_components(const T* s, const T* t, int64_t step, int64_t d1, int64_t d3, int64_t W, const T* c,
                                  T* y) {
    const int64_t ld = round_up<T>(W);
    for (int64_t w = 0; w < W; w += lanes<T>) {
      Vec<T> sum[K];
      for (int k = 0; k < K; ++k) sum[k] = load(y + k * ld + w);
      for (int64_t i = 0; i < d1; ++i) {
        const Vec<T> x = load(s + i * step + w) + load(t + i * step + w);
        for (int k = 0; k < K; ++k) sum[k] += c[(i * d3 + k) * kRows] * x;
      }
      for (int k = 0; k < K; ++k) store(y + k * ld + w, sum[k]);
    }
  }

  template <int K>
  static void spread_components(T* t, int64_t step, int64_t d1, int64_t d3, int64_t W, const T* c, const T* y) {
    const int64_t ld = round_up<T>(W);
    for (int64_t w = 0; w < W; w += lanes<T>) {
      Vec<T> g[K];
      for (int k = 0; k < K; ++k) g[k] = load(y + k * ld + w);
      for (int64_t i = 0; i < d1; ++i) {
        Vec<T> sum = load(t + i * step + w);
        for (int k = 0; k < K; ++k) sum += c[(i * d3 + k) * kRows] * g[k];
        store(t + i * step + w, sum);
      }
    }
  }

  const Nodes<T>& nodes_;
  Scratch<T> coupling_, turned_, g_h_, g_rows_;
};

template <class T>
class Factored {
 public:
  explicit Factored(const Arguments<T>& a)
      : a(a), nodes(a), table(a.source.nodes * nodes.ld), sent_width(nodes.row) {
    for (const Share& s : shares(a.one.paths, 2 * a.D, 2 * a.D + a.X)) {
      Path p = *s.path;
      p.o1 = s.o1;
      p.U = s.U;
      p.weight = s.weight;
      p.padded = extra_sums;
      extra_sums += p.U * p.V * round_up<T>(p.W);
      extra.push_back(std::move(p));
    }
    sums = extra_sums + nodes.sums;
  }

  // The sources' table, which edges read anywhere; that of the targets is made tile by tile.
  void prepare() {
    parallel(ceil_div(a.source.nodes, kRows), 1, [&](int64_t n) {
      nodes.tables(1, n * kRows, std::min(kRows, a.source.nodes - n * kRows), table + n * kRows * nodes.ld);
    });
  }

  class Worker {
   public:
    explicit Worker(const Factored& form)
        : a(form.a), block(a, a.X, form.extra), form_(form), nodes_(form.nodes), contraction_(nodes_),
          table_(kRows * nodes_.ld), zeros_(nodes_.ld), rows_(kRows * nodes_.row) {
      std::fill_n(static_cast<T*>(zeros_), nodes_.ld, T(0));
    }

    void open(const Tile& tile, const Gradients<T>* to) {
      tile_ = tile.node;
      nodes_.tables(0, tile.node, tile.nodes, table_);
      if (to) std::fill_n(static_cast<T*>(contraction_.g_table), tile.nodes * nodes_.ld, T(0));
    }

    // block.first.y becomes the pre-activation with its bias.
    void forward() {
      auto& first = block.first;
      contraction_.couple(first.x2);
      std::fill_n(static_cast<T*>(rows_), kRows * nodes_.row, T(0));
      for (int64_t z = 0; z < block.edges; ++z) {
        const T* target = block.target[z] < 0 ? zeros_ : table_ + (block.target[z] - tile_) * nodes_.ld;
        const T* source = block.source[z] < 0 ? zeros_ : form_.table + block.source[z] * nodes_.ld;
        contraction_.contract(z, target, source, rows_ + z * nodes_.row);
      }
      if (nodes_.covered < a.one.dim3) block.clear(first.y, a.one.dim3);
      for (const auto& s : nodes_.slices)
        for (int64_t k = 0; k < s.d3; ++k)
          transpose<T>(rows_ + s.y + k * round_up<T>(s.W), kRows, s.W, nodes_.row, first.y + (s.o3 + k) * kRows,
                       s.d3 * kRows);
      block.add_bias(a.one, first.y);
      if (a.X) block.gather(a.extra, a.X, block.id, block.components(first.x1));
      for (const Path& path : form_.extra) first.forward(path, a.one.weight);
    }

    // block.first.y holds its gradient; `weight`: this chunk's sums, or null. There is no gradient of the attributes.
    void backward(const Gradients<T>& to, T* weight) {
      auto& first = block.first;
      if (to.sent) {
        T* rows = contraction_.rows;
        for (const auto& s : nodes_.slices)
          for (int64_t k = 0; k < s.d3; ++k)
            transpose<T>(first.y + (s.o3 + k) * kRows, s.W, kRows, s.d3 * kRows, rows + s.y + k * round_up<T>(s.W),
                         nodes_.row);
        for (int64_t z = 0; z < block.edges; ++z) {
          if (block.id[z] < 0) continue;
          std::copy_n(rows + z * nodes_.row, nodes_.row, to.sent + block.id[z] * nodes_.row);
          contraction_.spread(z, rows + z * nodes_.row, contraction_.g_table + (block.target[z] - tile_) * nodes_.ld);
        }
      }
      if (to.extra) block.clear(first.g_x1, a.X);
      for (const Path& path : form_.extra) first.backward(path, a.one.weight, to.extra != nullptr, false, weight);
      if (to.extra) block.store_edges(a.X, block.components(first.g_x1), to.extra);
    }

    void close(const Tile& tile, const Gradients<T>& to, T* weight) {
      contraction_.close(0, tile, to.h, false, weight ? weight + form_.extra_sums : nullptr);
    }

    const Arguments<T>& a;
    Edges<T> block;

   private:
    const Factored& form_;
    const Nodes<T>& nodes_;
    Contraction<T> contraction_;
    Scratch<T> table_, zeros_, rows_;
    int64_t tile_ = 0;
  };

  // The sources' part of the gradients, from `sent` in the order of each node's edges.
  void receive(const Gradients<T>& to, T* g_weight) const {
    if (!to.sent) return;
    const Chunks chunks(a.source);
    Scratch<T> sums_of(chunks.count * nodes.sums);
    chunks.run([&](auto&& each_chunk) {
      Contraction<T> contraction(nodes);
      Scratch<T> attr(a.A * kRows), zeros(a.A);
      std::fill_n(static_cast<T*>(zeros), a.A, T(0));
      each_chunk([&](int64_t chunk, auto&& each_tile) {
        T* weight = g_weight ? sums_of + chunk * nodes.sums : nullptr;
        if (weight) std::fill_n(weight, nodes.sums, T(0));
        each_tile([&](const Tile& tile) {
          std::fill_n(static_cast<T*>(contraction.g_table), tile.nodes * nodes.ld, T(0));
          Taken::each(a.source, tile, [&](const Taken& taken) {
            prefetch(to.sent, nodes.row, taken);
            gather_rows(a.attr, a.A, taken.id, taken.edges, static_cast<const T*>(zeros),
                        [&](int64_t c) { return attr + c * kRows; });
            contraction.couple(attr);
            for (int64_t z = 0; z < taken.edges; ++z)
              if (taken.id[z] >= 0)
                contraction.spread(z, to.sent + taken.id[z] * nodes.row,
                                   contraction.g_table + (taken.node[z] - tile.node) * nodes.ld);
          });
          contraction.close(1, tile, to.h, true, weight);
        });
      });
    });
    if (g_weight) nodes.weight_gradient(1, sums_of, chunks.count, nodes.sums, g_weight);
  }

  // The gradient of the weights of the targets and of the extra features from the sums of all chunks.
  void weight_gradient(const T* from, int64_t chunks, int64_t stride, T* out) const {
    sum_weights(extra, from, chunks, stride, out);
    nodes.weight_gradient(0, from + extra_sums, chunks, stride, out);
  }

  const Arguments<T>& a;
  const Nodes<T> nodes;
  std::vector<Path> extra;  // what is multiplied edge by edge
  Scratch<T> table;  // [N][ld]
  int64_t sums = 0, extra_sums = 0, sent_width;
};

}  // namespace ace::message
