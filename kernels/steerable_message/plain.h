// The first product edge by edge: rows of both ends and the extra features are gathered and multiplied by the weights.
// Slices of the three that take part in the same paths lie side by side, and so do their weights: one product for all.
#pragma once

#include "classes.h"

namespace ace::message {

template <class T>
class Plain {
 public:
  explicit Plain(const Arguments<T>& a) : a(a), sent_width(a.D), where(a.one.dim1, -1) {
    if (divides(a.one.paths, a.D) && divides(a.one.paths, 2 * a.D)) {
      slices.add(0, shares(a.one.paths, 0, a.D));
      slices.add(a.D, shares(a.one.paths, a.D, 2 * a.D));
      slices.add(2 * a.D, shares(a.one.paths, 2 * a.D, a.one.dim1));
    } else {
      slices.add(0, shares(a.one.paths, 0, a.one.dim1));
    }
    int64_t component = 0, packed = 0;
    for (const Class& c : slices.classes) {
      for (const Column& column : c.columns) {
        Path p = *column.path;
        p.o1 = component;
        p.U = c.U;
        p.weight = packed;
        p.padded = sums;
        packed += c.U * p.V * p.W;
        sums += c.U * p.V * round_up<T>(p.W);
        paths.push_back(std::move(p));
      }
      for (const Part& part : slices.parts)
        if (&slices.classes[part.cls] == &c)
          for (int64_t n = 0; n < part.U * c.d1; ++n) where[part.role + part.o1 + n] = component++;
    }
    for (int64_t& w : where)
      if (w < 0) w = component++;  // what no path reads
    weight.resize(packed);
    each_share([&](const Path& p, const Share& s, int64_t first) {
      std::copy_n(a.one.weight + s.weight, s.U * p.V * p.W, weight.data() + p.weight + first * p.V * p.W);
    });
  }

  void prepare() {}

  class Worker {
   public:
    explicit Worker(const Plain& form) : a(form.a), block(a, a.one.dim1, form.paths), form_(form) {}

    void open(const Tile& tile, const Gradients<T>* to) {
      if (to && to->h) std::fill_n(to->h + tile.node * a.D, tile.nodes * a.D, T(0));
    }

    // block.first.y becomes the pre-activation with its bias.
    void forward() {
      auto& first = block.first;
      block.gather(a.h, a.D, block.target, part(first.x1, 0));
      block.gather(a.h, a.D, block.source, part(first.x1, a.D));
      if (a.X) block.gather(a.extra, a.X, block.id, part(first.x1, 2 * a.D));
      block.clear(first.y, a.one.dim3);
      block.add_bias(a.one, first.y);
      for (const Path& path : form_.paths) first.forward(path, form_.weight.data());
    }

    // block.first.y holds its gradient; `weight`: this chunk's sums, or null.
    void backward(const Gradients<T>& to, T* weight) {
      auto& first = block.first;
      const bool need_x1 = to.h || to.extra;
      if (need_x1) block.clear(first.g_x1, a.one.dim1);
      if (to.attr) block.clear(first.g_x2, a.A);
      for (const Path& path : form_.paths)
        first.backward(path, form_.weight.data(), need_x1, to.attr != nullptr, weight);
      if (to.h) block.add_to_targets(a.D, part(first.g_x1, 0), to.h);
      if (to.h) block.store_edges(a.D, part(first.g_x1, a.D), to.sent);
      if (to.extra) block.store_edges(a.X, part(first.g_x1, 2 * a.D), to.extra);
      if (!to.attr) return;
      add_row(static_cast<T*>(first.g_x2), static_cast<const T*>(block.second.g_x2), a.A * kRows);
      block.store_edges(a.A, block.components(first.g_x2), to.attr);
    }

    void close(const Tile&, const Gradients<T>&, T*) {}

    const Arguments<T>& a;
    Edges<T> block;

   private:
    // Where column c of one of the three parts of in1, which begins at `begin`, lies in a block.
    auto part(T* x, int64_t begin) const {
      return [x, where = form_.where.data() + begin](int64_t c) { return x + where[c] * kRows; };
    }

    const Plain& form_;
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
    each_share([&](const Path& p, const Share& s, int64_t first) {
      const int64_t padded = round_up<T>(p.W);
      sum_chunks(from + p.padded + first * p.V * padded, chunks, stride, s.U * p.V, p.W, padded, out + s.weight);
    });
  }

  const Arguments<T>& a;
  int64_t sums = 0, sent_width;  // lengths of a chunk's weight gradient and of an edge's row of `sent`
  Classes slices;
  std::vector<Path> paths;     // of the slices of a class together
  std::vector<T> weight;       // of these, [U, V, W] one after the other
  std::vector<int64_t> where;  // the component of each column of in1 in a block

 private:
  // f(path of the class, what one slice has of it, its first channel in the class)
  template <class F>
  void each_share(F&& f) const {
    for (const Part& part : slices.parts) {
      size_t n = 0;
      for (int64_t c = 0; c < part.cls; ++c) n += slices.classes[c].columns.size();
      for (const Share& share : part.shares) f(paths[n++], share, part.first);
    }
  }
};

}  // namespace ace::message
