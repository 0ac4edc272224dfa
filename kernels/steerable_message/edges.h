// What both forms of steerable_message share: its arguments, tiles of nodes with their edges, and a block of edges on
// its way through the second product and back.
#pragma once

#include "tensor_product/block.h"

namespace ace::message {

using product::Block;
using product::Gate;
using product::kRows;
using product::lanes_of_row;
using product::Path;

// Edges sorted by one of their ends; entries that point outside are never followed.
struct Sorted {
  const int64_t *index, *order, *ptr;
  int64_t nodes, edges;
  int64_t begin(int64_t node) const { return std::clamp<int64_t>(ptr[node], 0, edges); }
  int64_t end(int64_t node) const { return std::max(begin(node), std::clamp<int64_t>(ptr[node + 1], 0, edges)); }
};

// One product with its bias and gate.
template <class T>
struct Product {
  int64_t dim1, dim2, dim3;
  std::vector<Path> paths;
  std::vector<int64_t> slots;
  std::optional<Gate> gate;
  const T *weight, *bias;
  int64_t padded, biases;  // lengths of a chunk's weight gradient (Block::backward) and of the bias
  int64_t width() const { return gate ? gate->dim_out() : dim3; }
};

template <class T>
struct Arguments {
  int64_t D, X, A;  // columns of h, extra, attr
  const T *h, *extra, *attr;
  Sorted source, target;
  Product<T> one, two;
};

// Where a backward pass writes; null where nobody asks.
template <class T>
struct Gradients {
  T *h, *extra, *attr;  // [N, D], [E, X], [E, A]
  T* sent;              // [E, sent_width]: what the sources' part of the gradients is made of
};

// ---- tiles ---------------------------------------------------------------------------------------------------------

// Consecutive nodes and all edges that are sorted to them.
struct Tile { int64_t node, nodes; };

// At most `most` nodes a tile, cut back to where their edges fill whole blocks.
inline std::vector<Tile> tiles_of(const Sorted& edges, int64_t most) {
  std::vector<Tile> tiles;
  for (int64_t n = 0, end; n < edges.nodes; n = end) {
    end = std::min(edges.nodes, n + most);
    const int64_t start = edges.begin(n), whole = (edges.end(end - 1) - start) / kRows * kRows;
    while (whole > 0 && end > n + 1 && edges.end(end - 1) - start > whole) --end;
    tiles.push_back({n, end - n});
  }
  return tiles;
}

// Tiles in chunks of about equal work, whose number depends on the graph alone.
class Chunks {
 public:
  explicit Chunks(const Sorted& edges) : tiles_(tiles_of(edges, edges.edges < 128 * kRows ? kRows / 2 : kRows)) {
    std::vector<int64_t> before(tiles_.size() + 1, 0);  // blocks before each tile
    for (size_t t = 0; t < tiles_.size(); ++t) {
      const int64_t node = tiles_[t].node, last = node + tiles_[t].nodes - 1;
      before[t + 1] = before[t] + std::max<int64_t>(1, ceil_div(edges.end(last) - edges.begin(node), kRows));
    }
    const int64_t blocks = before.back(), tiles = tiles_.size();
    count = std::min(tiles, std::max<int64_t>(8, blocks / 16));
    for (int64_t c = 0; c <= count; ++c)
      first_.push_back(std::lower_bound(before.begin(), before.end(), c * blocks / std::max<int64_t>(count, 1)) -
                       before.begin());
  }

  // f(each_chunk) on torch's threads, once for all chunks that a thread gets: each_chunk(g) calls g(chunk, each_tile)
  // for each of them, each_tile(h) calls h(tile) for each tile of the chunk.
  template <class F>
  void run(F&& f) const {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      f([&](auto&& g) {
        for (int64_t chunk = begin; chunk < end; ++chunk)
          g(chunk, [&](auto&& h) {
            for (int64_t t = first_[chunk]; t < first_[chunk + 1]; ++t) h(tiles_[t]);
          });
      });
    });
  }

  int64_t count;

 private:
  std::vector<Tile> tiles_;
  std::vector<int64_t> first_;
};

template <class T>
inline void add_row(T* to, const T* from, int64_t width) {
  for (int64_t c = 0; c < width; ++c) to[c] += from[c];
}

// out[n * width + c] = sum over chunks of sums[chunk * stride + n * padded + c], in order.
template <class T>
void sum_chunks(const T* sums, int64_t chunks, int64_t stride, int64_t rows, int64_t width, int64_t padded, T* out) {
  parallel(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(chunks * padded, 1)), [&](int64_t n) {
    std::fill_n(out + n * width, width, T(0));
    for (int64_t c = 0; c < chunks; ++c) add_row(out + n * width, sums + c * stride + n * padded, width);
  });
}

// The same for the weights of all paths, padded as Block::backward pads them.
template <class T>
void sum_weights(const std::vector<Path>& paths, const T* sums, int64_t chunks, int64_t stride, T* out) {
  for (const Path& p : paths)
    sum_chunks(sums + p.padded, chunks, stride, p.U * p.V, p.W, round_up<T>(p.W), out + p.weight);
}

// ---- a block of edges ----------------------------------------------------------------------------------------------

// At most kRows edges of a tile and the nodes they are sorted to; -1 where there is none.
struct Taken {
  int64_t edges = 0, id[kRows], node[kRows];

  // Calls f(taken) for each block of the tile's edges.
  template <class F>
  static void each(const Sorted& sorted, const Tile& tile, F&& f) {
    Taken taken;
    const int64_t end = sorted.end(tile.node + tile.nodes - 1);
    int64_t node = tile.node;
    for (int64_t first = sorted.begin(tile.node); first < end; first += kRows) {
      taken.edges = std::min(kRows, end - first);
      for (int64_t z = 0; z < taken.edges; ++z) {
        while (sorted.end(node) <= first + z) ++node;
        const int64_t e = sorted.order[first + z];
        taken.id[z] = e >= 0 && e < sorted.edges ? e : -1;
        taken.node[z] = taken.id[z] < 0 ? -1 : node;
      }
      f(taken);
    }
  }
};

// Rows which[z] of a matrix, zeros where that is -1 and beyond n -> component(c)[kRows] for each column c.
template <class T, class Component>
void gather_rows(const T* matrix, int64_t width, const int64_t* which, int64_t n, const T* zeros,
                 Component&& component) {
  const T* rows[kRows];
  for (int64_t z = 0; z < n; ++z) rows[z] = which[z] < 0 ? zeros : matrix + which[z] * width;
  if (n < kRows)
    for (int64_t c = 0; c < width; ++c) std::fill(component(c) + n, component(c) + kRows, T(0));
  transpose_rows<T>([&](int64_t z) { return rows[z]; }, n, width, component);
}

// Asks for the rows of a matrix of edges that are read next, in an order that no processor foresees.
template <class T>
void prefetch(const T* matrix, int64_t width, const Taken& taken) {
  for (int64_t z = 0; z < taken.edges; ++z)
    for (int64_t c = 0; taken.id[z] >= 0 && c < width; c += 64 / sizeof(T))
      __builtin_prefetch(matrix + taken.id[z] * width + c);
}

// Everything in [component][kRows]: first.y -> message, and from its gradient back to first.y. `dim1` and `paths` are
// what `first` multiplies edge by edge.
template <class T>
class Edges {
 public:
  Edges(const Arguments<T>& a, int64_t dim1, const std::vector<Path>& paths)
      : a(a), first(dim1, a.A, a.one.dim3, paths), second(a.two.dim1, a.A, a.two.dim3, a.two.paths),
        zeros_(std::max({a.D, a.X, a.A, a.two.width()})), rows_(kRows * std::max({a.D, a.X, a.A, a.two.width()})) {
    std::fill_n(static_cast<T*>(zeros_), std::max({a.D, a.X, a.A, a.two.width()}), T(0));
  }

  // Edges that are sorted to their targets, and their attributes.
  void take(const Taken& taken) {
    edges = taken.edges;
    id = taken.id;
    target = taken.node;
    for (int64_t z = 0; z < edges; ++z) {
      const int64_t j = id[z] < 0 ? -1 : a.source.index[id[z]];
      source[z] = j < a.source.nodes ? std::max<int64_t>(j, -1) : -1;
    }
    gather(a.attr, a.A, id, components(first.x2));
    std::copy_n(static_cast<const T*>(first.x2), a.A * kRows, static_cast<T*>(second.x2));
  }

  // Row which[z] of a matrix -> component(c)[z] for each column c
  template <class Component>
  void gather(const T* matrix, int64_t width, const int64_t* which, Component&& component) {
    gather_rows(matrix, width, which, edges, static_cast<const T*>(zeros_), component);
  }

  // f(z, row of component(c)[z] for c < width) for the edges that exist
  template <class Component, class F>
  void each_row(int64_t width, Component&& component, F&& f) {
    transpose_rows<T>(component, width, edges, [&](int64_t z) { return rows_ + z * width; });
    for (int64_t z = 0; z < edges; ++z)
      if (id[z] >= 0) f(z, rows_ + z * width);
  }

  // These rows as rows of a matrix of all edges, and added to those of the targets in a matrix of nodes.
  template <class Component>
  void store_edges(int64_t width, Component&& component, T* matrix) {
    each_row(width, component, [&](int64_t z, const T* row) { std::copy_n(row, width, matrix + id[z] * width); });
  }
  template <class Component>
  void add_to_targets(int64_t width, Component&& component, T* matrix) {
    each_row(width, component, [&](int64_t z, const T* row) { add_row(matrix + target[z] * width, row, width); });
  }

  static auto components(T* block) {
    return [=](int64_t c) { return block + c * kRows; };
  }

  static void add_bias(const Product<T>& p, T* y) {
    const T* b = p.bias;
    for (size_t s = 0; b && s < p.slots.size(); s += 2)
      for (int64_t m = 0; m < p.slots[s + 1]; ++m, ++b)
        lanes_of_row<T>([&](int64_t z) {
          T* at = y + (p.slots[s] + m) * kRows + z;
          store(at, load(at) + *b);
        });
  }

  // first.y, complete with its bias -> second.y, the pre-activation of the message
  void second_product() {
    if (a.one.gate) a.one.gate->template forward<T>(first.y, second.x1);
    else std::copy_n(static_cast<const T*>(first.y), a.two.dim1 * kRows, static_cast<T*>(second.x1));
    clear(second.y, a.two.dim3);
    add_bias(a.two, second.y);
    for (const Path& path : a.two.paths) second.forward(path, a.two.weight);
  }

  // second.y -> out[target] += message
  void add_messages(T* out) {
    if (a.two.gate) second.gate(*a.two.gate);
    add_to_targets(a.two.width(), components(a.two.gate ? second.gate_out : second.y), out);
  }

  // The gradient g [N, width] of the sums, and second.y -> first.y, the gradient of the first pre-activation, and
  // second.g_x2. The sums of weights (padded) and biases are added to, where not null.
  void second_backward(const T* g, bool need_first, bool need_attr, T* weight2, T* bias2, T* bias1) {
    gather(g, a.two.width(), target, components(a.two.gate ? second.gate_out : second.y));
    if (a.two.gate) second.gate_backward(*a.two.gate);
    sum_bias(a.two, second, bias2);
    clear(second.g_x1, a.two.dim1);
    if (need_attr) clear(second.g_x2, a.A);
    for (const Path& path : a.two.paths) second.backward(path, a.two.weight, need_first, need_attr, weight2);
    if (!need_first) return;
    if (a.one.gate) a.one.gate->template backward<T>(second.g_x1, first.y);
    else std::copy_n(static_cast<const T*>(second.g_x1), a.two.dim1 * kRows, static_cast<T*>(first.y));
    sum_bias(a.one, first, bias1);
  }

  static void clear(T* block, int64_t components) { std::fill_n(block, components * kRows, T(0)); }

  const Arguments<T>& a;
  Block<T> first, second;
  int64_t edges = 0, source[kRows];
  const int64_t *id = nullptr, *target = nullptr;

 private:
  static void sum_bias(const Product<T>& p, const Block<T>& block, T* sums) {
    for (size_t s = 0; sums && s < p.slots.size(); s += 2)
      for (int64_t m = 0; m < p.slots[s + 1]; ++m) *sums++ += block.sum_row(p.slots[s] + m);
  }

  Scratch<T> zeros_, rows_;
};

}  // namespace ace::message
