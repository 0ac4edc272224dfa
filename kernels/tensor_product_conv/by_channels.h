// tensor_product_conv with channels as lanes.
#pragma once

#include "nodes.h"
#include "plan.h"

namespace ace::conv {

// What a thread keeps for the blocks of a chunk. The sums of a block's runs lie in `sums`, the one that goes on in the
// next block becomes its first.
template <class T>
struct Worker {
  const Plan<T>& plan;
  Scratch<T> x2, g_x2, m, parts, q, g_weight;  // g_weight: [path][kRows][padded]
  std::vector<T*> sums;
  std::array<const T*, kRows> near, far, weight;

  Worker(const Plan<T>& plan, int64_t dim2, int64_t size, int64_t most, int64_t weights = 0)
      : plan(plan), x2(dim2 * kRows), g_x2(dim2 * kRows), m(plan.slots * kRows),
        parts(plan.slots * lanes<T> * lanes<T>), q(plan.slots * kRows), g_weight(weights * kRows),
        buffer_(size * most) {
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
        p.code.couple(worker.edges(p, {-1, 0, block.count, false, false}, p.y), p.pairs, worker.near.data(), p.x,
                      worker.parts, worker.q);
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

}  // namespace ace::conv
