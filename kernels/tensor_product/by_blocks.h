// The product by blocks of rows, rows as vector lanes (block.h): every mode, shared weights or rows of them.
#pragma once

#include "call.h"
#include "second.h"

namespace ace::product {

template <class T>
class ByBlocks {
 public:
  ByBlocks(const Call& call, const std::vector<Path>& paths, const Layout& layout)
      : call(call), paths(paths), layout(layout), chunks(call.rows()) {}

  // pre [Z, dims[2]], and with an epilogue out [Z, its width]; both in mul_ir where there is one
  void forward(const T* bias, const Epilogue* epilogue, Tensor& pre, Tensor& result) const {
    const int64_t dim_out = epilogue ? result.size(1) : 0;
    const Start start(paths, 2, call.dims[2], bias ? call.biased() : std::vector<Slice>{});
    chunks.run([&](int64_t, auto&& visit) {
      Block<T> block(call.dims[0], call.dims[1], call.dims[2], paths);
      visit([&](int64_t z, int64_t n) {
        load(block, z, n);
        start(static_cast<T*>(block.y));
        const T* b = bias;
        for (size_t s = 0; b && s < call.slots.size(); s += 2)
          for (int64_t m = 0; m < call.slots[s + 1]; ++m) std::fill_n(block.y + (call.slots[s] + m) * kRows, kRows, *b++);
        const Weights<T> weights = weights_of(in<T>(call.weight), z, n);
        for (size_t p = 0; p < paths.size(); ++p) block.forward(paths[p], weights, !start.writes[p]);
        store_rows<T>(block.y, layout.slices[2], rows_from(out<T>(pre), z, n, call.dims[2]));
        if (!epilogue) return;
        block.epilogue(*epilogue);
        block.store_rows(block.gate_out, dim_out, n, out<T>(result) + z * dim_out);
      });
    });
  }

  // g: of out, or without an epilogue of pre
  void backward(const Tensor& g, const Tensor& pre, const Epilogue* epilogue, int64_t parameters, Gradients& to) const {
    const Start start[2] = {Start(paths, 0, call.dims[0]), Start(paths, 1, call.dims[1])};
    const int64_t padded = to.need_weight && call.shared() ? padded_weights<T>(paths) : 0, biases = call.biases();
    const Partial<T> partial(chunks.count, round_up<T>(padded + biases + parameters));
    chunks.run([&](int64_t chunk, auto&& visit) {
      Block<T> block(call.dims[0], call.dims[1], call.dims[2], paths);
      T* sums = partial.start(chunk);
      visit([&](int64_t z, int64_t n) {
        load(block, z, n);
        load_rows<T>(rows_from(in<T>(pre), z, n, call.dims[2]), layout.slices[2], block.y);
        prefetch_rows(in<T>(pre), call.dims[2], z + n, std::min(call.rows(), z + n + kRows));
        if (epilogue) {
          block.load_rows(in<T>(g) + z * g.size(1), g.size(1), n, block.gate_out);
          block.epilogue_backward(*epilogue, parameters ? sums + padded + biases : nullptr);
        }
        if (to.need_x1) start[0](static_cast<T*>(block.g_x1));
        if (to.need_x2) start[1](static_cast<T*>(block.g_x2));
        const Weights<T> weights = weights_of(in<T>(call.weight), z, n);
        const WeightSums<T> g_weights = weight_sums(to, sums, z, n);
        for (size_t p = 0; p < paths.size(); ++p)
          block.backward(paths[p], weights, to.need_x1, to.need_x2, g_weights, !start[paths[p].swapped].writes[p]);
        store(block, to, z, n);
        T* b = sums + padded;
        for (size_t s = 0; to.need_bias && s < call.slots.size(); s += 2)
          for (int64_t m = 0; m < call.slots[s + 1]; ++m, ++b) *b += block.sum_row(call.slots[s] + m);
      });
    });
    if (padded) sum_chunks<T>(paths, partial.data(), partial.chunks, partial.length, out<T>(to.weight));
    if (to.need_bias) partial.add(padded, biases, out<T>(to.bias));
    if (to.need_parameters) partial.add(padded + biases, parameters, out<T>(to.parameters));
  }

  // Gradients of sum_n <cotangent n, gradient n of <g, product>>: of g (where g_g is not null) and as `to` asks. A sum of
  // products and gradients with one operand replaced, block by block.
  void second(const Tensor& g, const Cotangents& cotangents, Tensor* g_g, Gradients& to) const {
    const int64_t dim1 = call.dims[0], dim2 = call.dims[1], dim3 = call.dims[2];
    const Partial<T> partial(chunks.count, to.need_weight && call.shared() ? padded_weights<T>(paths) : 0);
    chunks.run([&](int64_t chunk, auto&& visit) {
      Block<T> block(dim1, dim2, dim3, paths);
      typename Block<T>::Second other(paths);
      Scratch<T> c1(cotangents.x1 ? dim1 * kRows : 0), c2(cotangents.x2 ? dim2 * kRows : 0), product(g_g ? dim3 * kRows : 0);
      other.need_x1 = to.need_x1, other.need_x2 = to.need_x2;
      T* sums = partial.start(chunk);
      visit([&](int64_t z, int64_t n) {
        load(block, z, n);
        load_rows<T>(rows_from(in<T>(g), z, n, dim3), layout.slices[2], block.y);
        if (cotangents.x1) load_rows<T>(rows_from(in<T>(*cotangents.x1), z, n, dim1), layout.slices[0], c1);
        if (cotangents.x2) load_rows<T>(rows_from(in<T>(*cotangents.x2), z, n, dim2), layout.slices[1], c2);
        std::fill_n(static_cast<T*>(block.g_x1), dim1 * kRows, T(0));
        std::fill_n(static_cast<T*>(block.g_x2), dim2 * kRows, T(0));
        if (g_g) std::fill_n(static_cast<T*>(product), dim3 * kRows, T(0));
        other.c1 = cotangents.x1 ? static_cast<T*>(c1) : nullptr;
        other.c2 = cotangents.x2 ? static_cast<T*>(c2) : nullptr;
        other.product = g_g ? static_cast<T*>(product) : nullptr;
        if (cotangents.weight) other.weights = weights_of(in<T>(*cotangents.weight), z, n);
        const Weights<T> weights = weights_of(in<T>(call.weight), z, n);
        const WeightSums<T> g_weights = weight_sums(to, sums, z, n);
        for (const Path& p : paths) {
          if (p.mixes) block.second(p, weights, other, g_weights);
          else terms(block, p, weights, cotangents.x1 ? &c1 : nullptr, cotangents.x2 ? &c2 : nullptr, other, g_weights,
                     g_g ? &product : nullptr);
        }
        for (int64_t i = 0; !other.c1 && !other.c2 && i < g_weights.rows.count; ++i)
          std::fill_n(g_weights.rows.at[i], call.weight.size(1), T(0));
        if (g_g) store_rows<T>(product, layout.slices[2], rows_from(out<T>(*g_g), z, n, dim3));
        store(block, to, z, n);
      });
    });
    if (partial.length) sum_chunks<T>(paths, partial.data(), partial.chunks, partial.length, out<T>(to.weight));
  }

 private:
  // The second derivative of a path that does not mix channels: its terms, one after the other.
  static void terms(Block<T>& block, const Path& p, const Weights<T>& weights, Scratch<T>* c1, Scratch<T>* c2,
                    const typename Block<T>::Second& other, WeightSums<T> sums, Scratch<T>* product) {
    const auto term = [&](const Weights<T>& w, bool need_x1, bool need_x2, const WeightSums<T>& to) {
      if (need_x1 || need_x2 || to) block.backward(p, w, need_x1, need_x2, to);
      if (!product) return;
      block.y.swap(*product);
      block.forward(p, w);
      block.y.swap(*product);
    };
    if (c1) {
      block.x1.swap(*c1);
      term(weights, false, other.need_x2, sums);
      block.x1.swap(*c1);
    }
    if (c2) {
      block.x2.swap(*c2);
      term(weights, other.need_x1, false, c1 ? sums.added() : sums);
      block.x2.swap(*c2);
    }
    if (other.weights && p.weight >= 0) term(*other.weights, other.need_x1, other.need_x2, nullptr);
  }

  void load(Block<T>& block, int64_t z, int64_t n) const {
    load_rows<T>(rows_from(in<T>(call.x1), z, n, call.dims[0]), layout.slices[0], block.x1);
    load_rows<T>(rows_from(in<T>(call.x2), z, n, call.dims[1]), layout.slices[1], block.x2);
    prefetch_rows(in<T>(call.x1), call.dims[0], z + n, std::min(call.rows(), z + n + kRows));
  }
  void store(const Block<T>& block, Gradients& to, int64_t z, int64_t n) const {
    if (to.need_x1) store_rows<T>(block.g_x1, layout.slices[0], rows_from(out<T>(to.x1), z, n, call.dims[0]));
    if (to.need_x2) store_rows<T>(block.g_x2, layout.slices[1], rows_from(out<T>(to.x2), z, n, call.dims[1]));
  }

  // The weights, or their gradients, of `count` rows from z on.
  template <class P>
  WeightsOf<P> weights_of(P data, int64_t z, int64_t count) const {
    if (call.shared()) return data;
    return rows_from(data, z, count, call.weight.size(1));
  }
  WeightSums<T> weight_sums(Gradients& to, T* sums, int64_t z, int64_t n) const {
    if (!to.need_weight) return nullptr;
    return call.shared() ? WeightSums<T>(sums) : weights_of(out<T>(to.weight), z, n);
  }

  const Call& call;
  const std::vector<Path>& paths;
  const Layout& layout;
  const Chunks chunks;
};

}  // namespace ace::product
