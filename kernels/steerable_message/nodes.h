// What the first product needs of a node: the products W h of its features with the weights of each role (target,
// source), once per node, in the order in which an edge contracts them; and back.
#pragma once

#include "classes.h"

namespace ace::message {

template <class T>
class Nodes : public Classes {
 public:
  explicit Nodes(const Arguments<T>& a) : a(a) {
    add(0, shares(a.one.paths, 0, a.D));
    add(1, shares(a.one.paths, a.D, 2 * a.D));
    for (Class& c : classes) {
      c.at = width;
      width += c.d1 * c.width;
      for (Column& column : c.columns) {
        column.coupling = couplings;
        couplings += column.path->V * column.rows();
        column.y = slice_of(*column.path);
      }
    }
    ld = round_up<T>(width) + lanes<T>;
    int64_t packed = 0;
    for (Part& p : parts) {
      p.packed = packed;
      p.sums = sums;
      packed += p.U * classes[p.cls].width;
      sums += p.U * round_up<T>(classes[p.cls].width);
    }
    packed_.resize(packed + lanes<T>);
    for (const Part& p : parts)
      for (size_t c = 0; c < p.shares.size(); ++c) {
        const Class& of = classes[p.cls];
        const int64_t count = p.shares[c].path->V * p.shares[c].path->W;
        for (int64_t u = 0; u < p.U; ++u)
          std::copy_n(a.one.weight + p.shares[c].weight + u * count, count,
                      packed_.data() + p.packed + u * of.width + of.columns[c].at);
      }
  }

  // Rows node .. node + nodes - 1 of a role's table into to[nodes][ld].
  void tables(int64_t role, int64_t node, int64_t nodes, T* to) const {
    for (size_t c = 0; c < classes.size(); ++c)
      for (int64_t i = 0; i < classes[c].d1; ++i) {  // in the order of their offsets: a product may write beyond its end
        const int64_t n = classes[c].width;
        T* target = to + classes[c].at + i * n;
        bool add = false;
        for (const Part& p : parts) {
          if (p.role != role || p.cls != static_cast<int64_t>(c)) continue;
          matmul<T>(nodes, n, p.U, a.h + node * a.D + p.o1 + i, a.D, classes[c].d1, packed_.data() + p.packed, n, target,
                    ld, add);
          add = true;
        }
        for (int64_t m = 0; !add && m < nodes; ++m) std::fill_n(target + m * ld, n, T(0));
      }
  }

  // g[nodes][ld], the gradient of those rows -> g_h[D][kRows], and the padded sums of the role's weights; both added to.
  void backward(int64_t role, int64_t node, int64_t nodes, const T* g, T* turned, T* g_h, T* weight) const {
    if (g_h) transpose(g, nodes, width, ld, turned, kRows);
    for (const Part& p : parts) {
      if (p.role != role) continue;
      const Class& c = classes[p.cls];
      for (int64_t i = 0; i < c.d1; ++i) {
        const int64_t at = c.at + i * c.width, component = p.o1 + i;
        if (g_h)
          matmul<T>(p.U, nodes, c.width, packed_.data() + p.packed, c.width, 1, turned + at * kRows, kRows,
                    g_h + component * kRows, c.d1 * kRows, true);
        if (weight)
          matmul<T>(p.U, c.width, nodes, a.h + node * a.D + component, c.d1, a.D, g + at, ld, weight + p.sums,
                    round_up<T>(c.width), true);
      }
    }
  }

  // The gradient of a role's weights from the sums of all chunks.
  void weight_gradient(int64_t role, const T* from, int64_t chunks, int64_t stride, T* out) const {
    for (const Part& p : parts)
      for (size_t c = 0; p.role == role && c < p.shares.size(); ++c) {
        const Path& path = *p.shares[c].path;
        sum_chunks(from + p.sums + classes[p.cls].columns[c].at, chunks, stride, p.U, path.V * path.W,
                   round_up<T>(classes[p.cls].width), out + p.shares[c].weight);
      }
  }

  struct Slice { int64_t o3, W, d3, y; };  // of the pre-activations: [d3][W padded] at `y` of a row

  const Arguments<T>& a;
  std::vector<Slice> slices;
  int64_t width = 0, ld = 0, couplings = 0, sums = 0;
  int64_t row = 0, covered = 0;  // length of a row of pre-activations, how many of them the slices hold

 private:
  int64_t slice_of(const Path& p) {
    for (const Slice& s : slices)
      if (s.o3 == p.o3) return s.y;
    slices.push_back({p.o3, p.W, p.d3, row});
    row += p.d3 * round_up<T>(p.W);
    covered += p.d3 * p.W;
    return slices.back().y;
  }

  std::vector<T> packed_;
};

}  // namespace ace::message
