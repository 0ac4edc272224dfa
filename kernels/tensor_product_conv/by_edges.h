// tensor_product_conv with edges as lanes, on the blocks of tensor_product.
#pragma once

#include "nodes.h"
#include "tensor_product/block.h"

namespace ace::conv {

using product::Rows;

template <class P>
Rows<P> rows_at(P matrix, const int64_t* index, int64_t count, int64_t dim) {
  Rows<P> rows{{}, count};
  for (int64_t i = 0; i < count; ++i) rows.at[i] = matrix + index[i] * dim;
  return rows;
}

// Adds the rows of a block's edges to the sums of their nodes; `sum` goes on from block to block.
template <class T>
void add_runs(const EdgeBlock& block, const T* rows, int64_t dim, T* sum, int64_t chunk, NodeSums<T>& nodes) {
  for (const Run& run : block.runs) {
    if (run.opens) std::fill_n(sum, dim, T(0));
    for (int64_t e = run.first; e < run.last; ++e)
      for (int64_t i = 0; i < dim; ++i) sum[i] += rows[e * dim + i];
    if (run.closes) std::copy_n(sum, dim, nodes.row(chunk, run.node));
  }
}

template <class T>
product::Weights<T> weights_at(const Operands& o, const EdgeBlock& block) {
  if (o.shared) return in<T>(o.weight);
  return rows_at(in<T>(o.weight), block.edge, block.count, o.weights);
}

template <class T>
void forward_edges(const std::vector<product::Path>& paths, const Ints& dims, const Operands& o, T* y) {
  const product::Layout layout(paths, dims);
  const Chunks chunks(o.by_target());
  NodeSums<T> nodes(y, o.targets, o.dim3, chunks);
  chunks.run(kRows, [&](int64_t chunk, auto&& visit) {
    product::Block<T> lanes(o.dim1, o.dim2, o.dim3, paths);
    const Scratch<T> rows(kRows * o.dim3), sum(o.dim3);
    visit([&](const EdgeBlock& block) {
      product::load_rows<T>(rows_at(in<T>(o.x1), block.far, block.count, o.dim1), layout.slices[0], lanes.x1);
      product::load_rows<T>(rows_at(in<T>(o.x2), block.edge, block.count, o.dim2), layout.slices[1], lanes.x2);
      std::fill_n(static_cast<T*>(lanes.y), o.dim3 * kRows, T(0));
      const product::Weights<T> weights = weights_at<T>(o, block);
      for (const product::Path& p : paths) lanes.forward(p, weights);
      product::store_rows<T>(lanes.y, layout.slices[2],
                             product::rows_from(static_cast<T*>(rows), 0, block.count, o.dim3));
      add_runs<T>(block, rows, o.dim3, sum, chunk, nodes);
    });
  });
  nodes.finish();
}

template <class T>
void backward_edges(const std::vector<product::Path>& paths, const Ints& dims, const Operands& o, const T* g,
                    const Gradients<T>& grads) {
  const product::Layout layout(paths, dims);
  const Chunks chunks(o.by_source());
  NodeSums<T> nodes(grads.x1, o.sources, o.dim1, chunks);
  const bool total = grads.weight && o.shared;
  const int64_t stride = total ? round_up<T>(product::padded_weights<T>(paths)) : 0;
  const Scratch<T> totals(std::max<int64_t>(chunks.count, 1) * stride);
  std::fill_n(static_cast<T*>(totals), stride, T(0));
  chunks.run(kRows, [&](int64_t chunk, auto&& visit) {
    product::Block<T> lanes(o.dim1, o.dim2, o.dim3, paths);
    const Scratch<T> rows(kRows * o.dim1), sum(o.dim1);
    T* own = totals + chunk * stride;
    std::fill_n(own, stride, T(0));
    visit([&](const EdgeBlock& block) {
      std::array<int64_t, kRows> source;
      for (const Run& run : block.runs) std::fill(source.begin() + run.first, source.begin() + run.last, run.node);
      product::load_rows<T>(rows_at(in<T>(o.x1), source.data(), block.count, o.dim1), layout.slices[0], lanes.x1);
      product::load_rows<T>(rows_at(in<T>(o.x2), block.edge, block.count, o.dim2), layout.slices[1], lanes.x2);
      product::load_rows<T>(rows_at(g, block.far, block.count, o.dim3), layout.slices[2], lanes.y);
      if (grads.x1) std::fill_n(static_cast<T*>(lanes.g_x1), o.dim1 * kRows, T(0));
      if (grads.x2) std::fill_n(static_cast<T*>(lanes.g_x2), o.dim2 * kRows, T(0));
      product::WeightSums<T> sums = total ? own : nullptr;
      if (grads.weight && !o.shared) sums = rows_at(grads.weight, block.edge, block.count, o.weights);
      const product::Weights<T> weights = weights_at<T>(o, block);
      for (const product::Path& p : paths) lanes.backward(p, weights, grads.x1, grads.x2, sums);
      if (grads.x2)
        product::store_rows<T>(lanes.g_x2, layout.slices[1], rows_at(grads.x2, block.edge, block.count, o.dim2));
      if (!grads.x1) return;
      product::store_rows<T>(lanes.g_x1, layout.slices[0],
                             product::rows_from(static_cast<T*>(rows), 0, block.count, o.dim1));
      add_runs<T>(block, rows, o.dim1, sum, chunk, nodes);
    });
  });
  if (grads.x1) nodes.finish();
  if (total) product::sum_chunks<T>(paths, totals, std::max<int64_t>(chunks.count, 1), stride, grads.weight);
}

}  // namespace ace::conv
