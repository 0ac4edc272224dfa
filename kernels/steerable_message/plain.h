// The first product edge by edge: rows of both ends and the extra features are gathered and multiplied by the weights.
#pragma once

#include "edges.h"

namespace ace::message {

template <class T>
class Plain {
 public:
  explicit Plain(const Arguments<T>& a) : a(a), sums(a.one.padded), sent_width(a.D) {}

  void prepare() {}

  class Worker {
   public:
    explicit Worker(const Plain& form) : a(form.a), block(a, a.one.dim1, a.one.paths) {}

    void open(const Tile& tile, const Gradients<T>* to) {
      if (to && to->h) std::fill_n(to->h + tile.node * a.D, tile.nodes * a.D, T(0));
    }

    // block.first.y becomes the pre-activation with its bias.
    void forward() {
      auto& first = block.first;
      block.gather(a.h, a.D, block.target, first.x1);
      block.gather(a.h, a.D, block.source, first.x1 + a.D * kRows);
      if (a.X) block.gather(a.extra, a.X, block.id, first.x1 + 2 * a.D * kRows);
      block.clear(first.y, a.one.dim3);
      block.add_bias(a.one, first.y);
      for (const Path& path : a.one.paths) first.forward(path, a.one.weight);
    }

    // block.first.y holds its gradient; `weight`: this chunk's sums, or null.
    void backward(const Gradients<T>& to, T* weight) {
      auto& first = block.first;
      const bool need_x1 = to.h || to.extra;
      if (need_x1) block.clear(first.g_x1, a.one.dim1);
      if (to.attr) block.clear(first.g_x2, a.A);
      for (const Path& path : a.one.paths) first.backward(path, a.one.weight, need_x1, to.attr != nullptr, weight);
      if (to.h) block.add_to_targets(first.g_x1, a.D, to.h);
      if (to.h) block.store_edges(first.g_x1 + a.D * kRows, a.D, to.sent);
      if (to.extra) block.store_edges(first.g_x1 + 2 * a.D * kRows, a.X, to.extra);
      if (!to.attr) return;
      add_row(static_cast<T*>(first.g_x2), static_cast<const T*>(block.second.g_x2), a.A * kRows);
      block.store_edges(first.g_x2, a.A, to.attr);
    }

    void close(const Tile&, const Gradients<T>&, T*) {}

    const Arguments<T>& a;
    Edges<T> block;
  };

  // The sources' part of the gradients, from `sent` in the order of each node's edges.
  void receive(const Gradients<T>& to, T*) const {
    if (!to.h) return;
    parallel(a.source.nodes, std::max<int64_t>(1, 16384 / std::max<int64_t>(a.D, 1)), [&](int64_t n) {
      for (int64_t p = a.source.begin(n); p < a.source.end(n); ++p) {
        const int64_t e = a.source.order[p];
        if (e >= 0 && e < a.source.edges) add_row(to.h + n * a.D, to.sent + e * a.D, a.D);
      }
    });
  }

  // The gradient of the weights from the sums of all chunks.
  void weight_gradient(const T* from, int64_t chunks, int64_t stride, T* out) const {
    sum_weights(a.one.paths, from, chunks, stride, out);
  }

  const Arguments<T>& a;
  int64_t sums, sent_width;  // lengths of a chunk's weight gradient and of an edge's row of `sent`
};

}  // namespace ace::message
