// The operator's tensors as the CPU kernels read them, and the sums at nodes.
#pragma once

#include "edges.h"

namespace ace::conv {

using Ints = std::vector<int64_t>;

// The operator's tensors, dense.
struct Operands {
  Tensor x1, x2, weight, source, source_order, target, target_order;
  int64_t sources, targets, edges, dim1, dim2, dim3, weights;
  bool shared;

  Operands(const Tensor& x1, const Tensor& x2, const Tensor& weight, const Tensor& source, const Tensor& source_order,
           const Tensor& target, const Tensor& target_order, int64_t targets, const Ints& dims)
      : x1(dense(x1)), x2(dense(x2)), weight(dense(weight)), source(dense(source)), source_order(dense(source_order)),
        target(dense(target)), target_order(dense(target_order)), sources(x1.size(0)), targets(targets),
        edges(x2.size(0)), dim1(dims[0]), dim2(dims[1]), dim3(dims[2]), weights(weight.size(weight.dim() - 1)),
        shared(weight.dim() == 1) {}

  Ends by_target() const {
    return {in<int64_t>(target_order), in<int64_t>(target), in<int64_t>(source), edges, targets, sources};
  }
  Ends by_source() const {
    return {in<int64_t>(source_order), in<int64_t>(source), in<int64_t>(target), edges, sources, targets};
  }
};

// The gradients asked for, [N_src, dim1], [E, dim2], [E, n] or [n]; null pointers for the others.
template <class T>
struct Gradients {
  T *x1, *x2, *weight;
};

template <class T>
void fill_zero(T* p, int64_t rows, int64_t width) {
  parallel(rows, std::max<int64_t>(1, 65536 / (width + 1)),
           [&](int64_t n) { std::fill_n(p + n * width, width, T(0)); });
}

// Sums at nodes: a chunk writes those that it begins and keeps apart the one that it continues.
template <class T>
class NodeSums {
 public:
  NodeSums(T* rows, int64_t nodes, int64_t dim, const Chunks& chunks)
      : rows_(rows), dim_(dim), chunks_(chunks), apart_(chunks.count * dim), node_(chunks.count, -1) {
    if (rows) fill_zero(rows, nodes, dim);
    for (int64_t c = 0; c < chunks.count; ++c) node_[c] = chunks.continued(c);
  }
  // Where a chunk writes the sum at a node.
  T* row(int64_t chunk, int64_t node) const {
    return node == node_[chunk] ? zeroed(apart_ + chunk * dim_) : rows_ + node * dim_;
  }
  void finish() {
    for (int64_t c = 0; c < chunks_.count; ++c)
      for (int64_t i = 0; node_[c] >= 0 && i < dim_; ++i) rows_[node_[c] * dim_ + i] += apart_[c * dim_ + i];
  }

 private:
  T* zeroed(T* p) const {
    std::fill_n(p, dim_, T(0));
    return p;
  }
  T* rows_;
  int64_t dim_;
  const Chunks& chunks_;
  Scratch<T> apart_;
  std::vector<int64_t> node_;
};

// Edges that are in no block have gradients too: zeros.
template <class T>
void zero_outside(const Operands& o, const Gradients<T>& g) {
  const int64_t *source = in<int64_t>(o.source), *target = in<int64_t>(o.target);
  parallel(o.edges, 4096, [&](int64_t e) {
    if (source[e] >= 0 && source[e] < o.sources && target[e] >= 0 && target[e] < o.targets) return;
    if (g.x2) std::fill_n(g.x2 + e * o.dim2, o.dim2, T(0));
    if (g.weight && !o.shared) std::fill_n(g.weight + e * o.weights, o.weights, T(0));
  });
}

}  // namespace ace::conv
