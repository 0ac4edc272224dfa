// tensor_product_conv: edges sorted by the node at which something is summed, in chunks of equal length (edges.h). "uvu"
// products with enough channels run with channels as lanes (channels.h), all others with edges as lanes, on the blocks of
// tensor_product. The chunks' sums at a node that they share, and at shared weights, are added in order at the end.
#include "../tensor_product/block.h"
#include "plan.h"

namespace {

using namespace ace;
using namespace ace::conv;
using product::Rows;

// The operator's tensors, dense.
struct Operands {
  Tensor x1, x2, weight, source, source_order, target, target_order;
  int64_t sources, targets, edges, dim1, dim2, dim3, weights;
  bool shared;

  Operands(const Tensor& x1_, const Tensor& x2_, const Tensor& weight_, const Tensor& source_, const Tensor& source_order_,
           const Tensor& target_, const Tensor& target_order_, int64_t targets, const Ints& dims)
      : x1(dense(x1_)), x2(dense(x2_)), weight(dense(weight_)), source(dense(source_)),
        source_order(dense(source_order_)), target(dense(target_)), target_order(dense(target_order_)),
        sources(x1.size(0)), targets(targets), edges(x2.size(0)), dim1(dims[0]), dim2(dims[1]), dim3(dims[2]),
        weights(weight.size(weight.dim() - 1)), shared(weight.dim() == 1) {}

  Ends by_target() const { return {in<int64_t>(target_order), in<int64_t>(target), in<int64_t>(source), edges, targets, sources}; }
  Ends by_source() const { return {in<int64_t>(source_order), in<int64_t>(source), in<int64_t>(target), edges, sources, targets}; }
};

// The gradients asked for, [N_src, dim1], [E, dim2], [E, n] or [n]; null pointers for the others.
template <class T>
struct Gradients {
  T *x1, *x2, *weight;
};

template <class T>
void fill_zero(T* p, int64_t rows, int64_t width) {
  parallel(rows, std::max<int64_t>(1, 65536 / (width + 1)), [&](int64_t n) { std::fill_n(p + n * width, width, T(0)); });
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
  T* row(int64_t chunk, int64_t node) { return node == node_[chunk] ? zeroed(apart_ + chunk * dim_) : rows_ + node * dim_; }
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

// ---- channels as lanes -----------------------------------------------------------------------------------------------

// What a thread keeps for the blocks of a chunk. The sums of a block's runs lie in `sums`, the one that goes on in the
// next block becomes its first.
template <class T>
struct Worker {
  const Plan<T>& plan;
  Scratch<T> x2, g_x2, m, parts, q, g_weight;  // g_weight: [path][kRows][padded]
  std::vector<T*> sums;
  std::array<const T*, kRows> near, far, weight;

  Worker(const Plan<T>& plan, int64_t dim2, int64_t size, int64_t most, int64_t weights = 0)
      : plan(plan), x2(dim2 * kRows), g_x2(dim2 * kRows), m(plan.slots * kRows), parts(plan.slots * lanes<T> * lanes<T>),
        q(plan.slots * kRows), g_weight(weights * kRows), buffer_(size * most) {
    std::fill_n(static_cast<T*>(x2), dim2 * kRows, T(0));
    std::fill_n(static_cast<T*>(parts), plan.slots * lanes<T> * lanes<T>, T(0));
    for (int64_t r = 0; r < most; ++r) sums.push_back(buffer_ + r * size);
  }

  void load_x2(const EdgeBlock& block, const T* matrix, int64_t dim) {
    for (int64_t e = 0; e < block.count; ++e)
      for (int64_t j = 0; j < dim; ++j) x2[j * kRows + e] = matrix[block.edge[e] * dim + j];
  }

  // m[slot] = sum_j C x2[j]
  void couple(const ChannelPath<T>& p, int64_t count) {
    for (int64_t s = 0; s < p.slots; ++s)
      for (int64_t z = 0; z < count; z += lanes<T>) {
        Vec<T> sum{};
        for (const Term& t : p.terms[s]) sum += static_cast<T>(t.c) * load(x2 + t.j * kRows + z);
        store(m + s * kRows + z, sum);
      }
  }

  // g_x2[j] += sum over slots of C q[slot]
  void decouple(const ChannelPath<T>& p, int64_t count) {
    for (int64_t s = 0; s < p.slots; ++s)
      for (const Term& t : p.terms[s])
        for (int64_t z = 0; z < count; z += lanes<T>)
          store(g_x2 + t.j * kRows + z, load(g_x2 + t.j * kRows + z) + static_cast<T>(t.c) * load(q + s * kRows + z));
  }

  // Where the rows of a block's edges lie: the far node's and the weights.
  void point(const EdgeBlock& block, const PackedRows<T>& far_rows, const Operands& o) {
    const T* weights = in<T>(o.weight);
    for (int64_t e = 0; e < block.count; ++e) {
      far[e] = far_rows[block.far[e]];
      weight[e] = weights + (o.shared ? 0 : block.edge[e] * o.weights);
    }
  }

  // Rows of g_weight: memory sees them one after the other, however the paths take turns.
  void store_weights(const EdgeBlock& block, T* to, int64_t weights) const {
    for (int64_t e = 0; e < block.count; ++e) {
      const T* from = g_weight;
      for (const ChannelPath<T>& p : plan.paths) {
        T* row = to + block.edge[e] * weights + p.weight;
        for (int64_t c = 0; c < p.channels; c += lanes<T>)
          store_first(row + c, load(from + e * p.padded + c), p.channels - c);
        from += kRows * p.padded;
      }
    }
  }

  Edges<T> edges(const ChannelPath<T>& p, const Run& run, int64_t far_at) const {
    return {run.first, run.last, far.data(), weight.data(), far_at, p.weight, m, p.channels, p.padded, p.ahead};
  }

  void open(const EdgeBlock& block, int64_t size) {
    for (size_t r = 0; r < block.runs.size(); ++r)
      if (block.runs[r].opens) std::fill_n(sums[r], size, T(0));
  }

  void close(const EdgeBlock& block, const Packing<T>& packing, int64_t chunk, NodeSums<T>& nodes) {
    for (size_t r = 0; r < block.runs.size(); ++r)
      if (block.runs[r].closes) packing.unpack(sums[r], nodes.row(chunk, block.runs[r].node));
    if (!block.runs.back().closes) std::swap(sums[0], sums[block.runs.size() - 1]);
  }

 private:
  Scratch<T> buffer_;
};

// Runs of a block: their sums stay in the cache.
template <class T>
int64_t most_runs(int64_t size) {
  return std::clamp<int64_t>((256 << 10) / (size * sizeof(T) + 1), 1, kRows);
}

template <class T>
void forward_channels(const Plan<T>& plan, const Operands& o, T* y) {
  const PackedRows<T> x1(in<T>(o.x1), o.sources, plan.in1);
  const Chunks chunks(o.by_target());
  NodeSums<T> nodes(y, o.targets, o.dim3, chunks);
  const int64_t most = most_runs<T>(plan.out.size);
  chunks.run(most, [&](int64_t chunk, auto&& visit) {
    Worker<T> worker(plan, o.dim2, plan.out.size, most);
    visit([&](const EdgeBlock& block) {
      worker.load_x2(block, in<T>(o.x2), o.dim2);
      worker.point(block, x1, o);
      worker.open(block, plan.out.size);
      for (const ChannelPath<T>& p : plan.paths) {
        worker.couple(p, block.count);
        for (size_t r = 0; r < block.runs.size(); ++r)
          p.code.forward(worker.edges(p, block.runs[r], p.x), p.pairs, worker.sums[r] + p.y);
      }
      worker.close(block, plan.out, chunk, nodes);
    });
  });
  nodes.finish();
}

template <class T>
void backward_channels(const Plan<T>& plan, const Operands& o, const T* g_, const Gradients<T>& grads) {
  const PackedRows<T> x1(in<T>(o.x1), o.sources, plan.in1), g(g_, o.targets, plan.out);
  const Chunks chunks(o.by_source());
  const int64_t most = most_runs<T>(plan.in1.size), n = o.weights;
  Scratch<T> totals(grads.weight && o.shared ? chunks.count * n : 0);
  NodeSums<T> nodes(grads.x1, o.sources, o.dim1, chunks);
  chunks.run(most, [&](int64_t chunk, auto&& visit) {
    Worker<T> worker(plan, o.dim2, plan.in1.size, most, grads.weight && !o.shared ? plan.weights : 0);
    T* total = grads.weight && o.shared ? totals + chunk * n : nullptr;
    if (total) std::fill_n(total, n, T(0));
    visit([&](const EdgeBlock& block) {
      worker.load_x2(block, in<T>(o.x2), o.dim2);
      worker.point(block, g, o);
      for (const Run& run : block.runs)
        std::fill(worker.near.begin() + run.first, worker.near.begin() + run.last, x1[run.node]);
      worker.open(block, plan.in1.size);
      std::fill_n(static_cast<T*>(worker.g_x2), o.dim2 * kRows, T(0));
      T* g_weight = grads.weight && !o.shared ? static_cast<T*>(worker.g_weight) : nullptr;
      for (const ChannelPath<T>& p : plan.paths) {
        worker.couple(p, block.count);
        for (size_t r = 0; (grads.x1 || grads.weight) && r < block.runs.size(); ++r) {
          const Run& run = block.runs[r];
          p.code.backward(worker.edges(p, run, p.y), p.pairs, worker.near[run.first] + p.x, worker.sums[r] + p.x,
                          g_weight, total);
        }
        if (g_weight) g_weight += kRows * p.padded;
        if (!grads.x2) continue;
        p.code.couple(worker.edges(p, {-1, 0, block.count, false, false}, p.y), p.pairs, worker.near.data(), p.x, worker.parts,
                      worker.q);
        worker.decouple(p, block.count);
      }
      if (g_weight) worker.store_weights(block, grads.weight, n);
      for (int64_t e = 0; grads.x2 && e < block.count; ++e)
        for (int64_t j = 0; j < o.dim2; ++j) grads.x2[block.edge[e] * o.dim2 + j] = worker.g_x2[j * kRows + e];
      if (grads.x1) worker.close(block, plan.in1, chunk, nodes);
    });
  });
  if (grads.x1) nodes.finish();
  for (int64_t i = 0; grads.weight && o.shared && i < n; ++i) {
    grads.weight[i] = 0;
    for (int64_t c = 0; c < chunks.count; ++c) grads.weight[i] += totals[c * n + i];
  }
}

// ---- edges as lanes --------------------------------------------------------------------------------------------------

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
      product::load_rows<T>(rows_at(in<T>(o.x1), block.far, block.count, o.dim1), layout.in1, lanes.x1);
      product::load_rows<T>(rows_at(in<T>(o.x2), block.edge, block.count, o.dim2), layout.in2, lanes.x2);
      std::fill_n(static_cast<T*>(lanes.y), o.dim3 * kRows, T(0));
      const product::Weights<T> weights = weights_at<T>(o, block);
      for (const product::Path& p : paths) lanes.forward(p, weights);
      product::store_rows<T>(lanes.y, layout.out, product::rows_from(static_cast<T*>(rows), 0, block.count, o.dim3));
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
      product::load_rows<T>(rows_at(in<T>(o.x1), source.data(), block.count, o.dim1), layout.in1, lanes.x1);
      product::load_rows<T>(rows_at(in<T>(o.x2), block.edge, block.count, o.dim2), layout.in2, lanes.x2);
      product::load_rows<T>(rows_at(g, block.far, block.count, o.dim3), layout.out, lanes.y);
      if (grads.x1) std::fill_n(static_cast<T*>(lanes.g_x1), o.dim1 * kRows, T(0));
      if (grads.x2) std::fill_n(static_cast<T*>(lanes.g_x2), o.dim2 * kRows, T(0));
      product::WeightSums<T> sums = total ? own : nullptr;
      if (grads.weight && !o.shared) sums = rows_at(grads.weight, block.edge, block.count, o.weights);
      const product::Weights<T> weights = weights_at<T>(o, block);
      for (const product::Path& p : paths) lanes.backward(p, weights, grads.x1, grads.x2, sums);
      if (grads.x2)
        product::store_rows<T>(lanes.g_x2, layout.in2, rows_at(grads.x2, block.edge, block.count, o.dim2));
      if (!grads.x1) return;
      product::store_rows<T>(lanes.g_x1, layout.in1, product::rows_from(static_cast<T*>(rows), 0, block.count, o.dim1));
      add_runs<T>(block, rows, o.dim1, sum, chunk, nodes);
    });
  });
  if (grads.x1) nodes.finish();
  if (total) product::sum_chunks<T>(paths, totals, std::max<int64_t>(chunks.count, 1), stride, grads.weight);
}

Tensor tensor_product_conv(Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr,
                           Tensor target, Tensor target_order, Tensor target_ptr, Tensor index, Tensor value, Ints dims,
                           Ints paths_) {
  (void)source_ptr;
  const Operands o(x1, x2, weight, source, source_order, target, target_order, target_ptr.size(0) - 1, dims);
  Tensor y = empty(o.x1, {o.targets, o.dim3});
  dispatch(o.x1, [&]<class T>() {
    const std::vector<product::Path> paths = product::read_paths<T>(paths_, index, value);
    if (const auto plan = make_plan<T>(paths, paths_, dims)) return forward_channels<T>(*plan, o, out<T>(y));
    forward_edges<T>(paths, dims, o, out<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> tensor_product_conv_bwd(Tensor g_, Tensor x1, Tensor x2, Tensor weight, Tensor source,
                                                           Tensor source_order, Tensor source_ptr, Tensor target,
                                                           Tensor target_order, Tensor target_ptr, Tensor index,
                                                           Tensor value, Ints dims, Ints paths_, int64_t needs) {
  (void)source_ptr;
  const Operands o(x1, x2, weight, source, source_order, target, target_order, target_ptr.size(0) - 1, dims);
  const Tensor g = dense(g_);
  const auto like = [&](const Tensor& x, int64_t bit) {
    return needs & bit ? in_huge_pages(torch::stable::empty_like(x)) : empty(x, {0});
  };
  Tensor g_x1 = like(o.x1, 1), g_x2 = like(o.x2, 2), g_weight = like(o.weight, 4);
  dispatch(o.x1, [&]<class T>() {
    const std::vector<product::Path> paths = product::read_paths<T>(paths_, index, value);
    const Gradients<T> grads{needs & 1 ? out<T>(g_x1) : nullptr, needs & 2 ? out<T>(g_x2) : nullptr,
                             needs & 4 ? out<T>(g_weight) : nullptr};
    zero_outside<T>(o, grads);
    if (const auto plan = make_plan<T>(paths, paths_, dims)) return backward_channels<T>(*plan, o, in<T>(g), grads);
    backward_edges<T>(paths, dims, o, in<T>(g), grads);
  });
  return {g_x1, g_x2, g_weight};
}

}  // namespace

#define INPUTS                                                                                                           \
  "Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr, Tensor target, "           \
  "Tensor target_order, Tensor target_ptr, Tensor cg_index, Tensor cg_value, int[] dims, int[] paths"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("tensor_product_conv(" INPUTS ") -> Tensor");
  m.def("tensor_product_conv_bwd(Tensor g, " INPUTS ", int needs) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("tensor_product_conv", TORCH_BOX(&tensor_product_conv));
  m.impl("tensor_product_conv_bwd", TORCH_BOX(&tensor_product_conv_bwd));
}
