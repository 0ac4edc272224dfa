// Products of any mode: tensor_product's own kernels on gathered rows of a bounded number of edges, sorted by target,
// and sums in the order of the edges.
#pragma once

#include "call.cuh"

#include <array>

namespace ace::conv {

// to[p] = from[index[order[begin + p]]], or from[order[begin + p]] where index is null; zeros for an edge with an end
// outside.
template <class T>
__global__ void __launch_bounds__(kBlock) gather_rows_kernel(Graph graph, const int64_t* index, const T* from, T* to,
                                                             int64_t dim, int64_t begin, int64_t size) {
  const int64_t n = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (n >= size) return;
  const int64_t e = graph.order[begin + n / dim];
  const bool there = e >= 0 && e < graph.edges && graph.source[e] >= 0 && graph.source[e] < graph.sources &&
                     graph.target[e] >= 0 && graph.target[e] < graph.targets;
  to[n] = there ? from[(index ? index[e] : e) * dim + n % dim] : T(0);
}

// to[order[begin + p]] = from[p]
template <class T>
__global__ void __launch_bounds__(kBlock) scatter_rows_kernel(const int64_t* order, int64_t edges, const T* from, T* to,
                                                              int64_t dim, int64_t begin, int64_t size) {
  const int64_t n = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (n >= size) return;
  const int64_t e = order[begin + n / dim];
  if (e >= 0 && e < edges) to[e * dim + n % dim] = from[n];
}

template <class T>
struct GeneralCall {
  const Inputs& inputs;
  const Stream& stream;
  int64_t precision;

  void forward(T* y) const {
    const int64_t dim = inputs.dims[2];
    if (inputs.edges == 0) stream.zero(y, inputs.targets * dim * sizeof(T));
    for_chunks([&](int64_t begin, int64_t count) {
      const Tensor rows = product(gather(inputs.x1, in<int64_t>(inputs.source), begin, count),
                                  gather(inputs.x2, nullptr, begin, count), weights(begin, count));
      sum(inputs.target_order, inputs.target_ptr, nullptr, inputs.source, inputs.sources, rows, y, inputs.targets, dim,
          begin, count);
    });
  }

  void backward(const Tensor& g, T* g_x1, T* g_x2, T* g_weight) const {
    const int64_t edges = inputs.edges, dim1 = inputs.dims[0], dim2 = inputs.dims[1], n = inputs.n;
    const int64_t needs = (g_x1 ? 1 : 0) | (g_x2 ? 2 : 0) | (g_weight ? 4 : 0);
    const Tensor where = bytes_like(inputs.x1, g_x1 ? edges * sizeof(int) : 0);
    int* const positions = reinterpret_cast<int*>(out<T>(where));
    if (g_x1 && edges == 0) stream.zero(g_x1, inputs.sources * dim1 * sizeof(T));
    if (g_weight && inputs.shared && edges == 0) stream.zero(g_weight, n * sizeof(T));
    if (g_x1)
      stream.launch("invert_kernel", invert_kernel, grid(ceil_div(edges, kBlock)), kBlock, 0,
                    in<int64_t>(inputs.target_order), positions, edges);
    for_chunks([&](int64_t begin, int64_t count) {
      const auto [r_x1, r_x2, r_weight] = gradients(
          gather(g, in<int64_t>(inputs.target), begin, count),
          gather(inputs.x1, in<int64_t>(inputs.source), begin, count), gather(inputs.x2, nullptr, begin, count),
          weights(begin, count), needs);
      if (g_x1)
        sum(inputs.source_order, inputs.source_ptr, positions, inputs.target, inputs.targets, r_x1, g_x1,
            inputs.sources, dim1, begin, count);
      if (g_x2) scatter(r_x2, g_x2, dim2, begin, count);
      if (g_weight && !inputs.shared) scatter(r_weight, g_weight, n, begin, count);
      if (g_weight && inputs.shared)
        stream.launch("sum_blocks_kernel", sum_blocks_kernel<T>, grid(ceil_div(n, kBlock)), kBlock, 0, in<T>(r_weight),
                      g_weight, n, int64_t(1), begin > 0);
    });
  }

 private:
  // f(first position, count): as many edges as keep their rows in 64 MB.
  template <class F>
  void for_chunks(F&& f) const {
    const Ints& d = inputs.dims;
    const int64_t row = sizeof(T) * std::max<int64_t>(1, 2 * (d[0] + d[1] + d[2] + (inputs.shared ? 0 : inputs.n)));
    const int64_t step = std::max<int64_t>(256, (64 << 20) / row);
    for (int64_t begin = 0; begin < inputs.edges; begin += step) f(begin, std::min(step, inputs.edges - begin));
  }

  Tensor gather(const Tensor& x, const int64_t* index, int64_t begin, int64_t count) const {
    const int64_t dim = x.size(1);
    const Tensor rows = empty(x, {count, dim});
    stream.launch("gather_rows_kernel", gather_rows_kernel<T>, grid(ceil_div(count * dim, kBlock)), kBlock, 0,
                  inputs.graph(), index, in<T>(x), out<T>(rows), dim, begin, count * dim);
    return rows;
  }
  Tensor weights(int64_t begin, int64_t count) const {
    return inputs.shared ? inputs.weight : gather(inputs.weight, nullptr, begin, count);
  }
  void scatter(const Tensor& rows, T* to, int64_t dim, int64_t begin, int64_t count) const {
    stream.launch("scatter_rows_kernel", scatter_rows_kernel<T>, grid(ceil_div(count * dim, kBlock)), kBlock, 0,
                  in<int64_t>(inputs.target_order), inputs.edges, in<T>(rows), to, dim, begin, count * dim);
  }
  void sum(const Tensor& order, const Tensor& ptr, const int* where, const Tensor& far, int64_t fars,
           const Tensor& rows, T* to, int64_t nodes, int64_t dim, int64_t begin, int64_t count) const {
    stream.launch("sum_rows_kernel", sum_rows_kernel<T>, grid(nodes, ceil_div(dim, kBlock)), kBlock, 0,
                  in<int64_t>(order), in<int64_t>(ptr), where, in<int64_t>(far), fars, in<T>(rows), to,
                  static_cast<int>(dim), inputs.edges, begin, count, begin > 0);
  }

  Tensor product(const Tensor& x1, const Tensor& x2, const Tensor& weight) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 10> stack{from(x1), from(x2), from(weight), from(std::optional<Tensor>()),
                                       from(inputs.index), from(inputs.value), from(inputs.dims), from(inputs.paths),
                                       from(Ints()), from(precision)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("ace_fast_cuda::tensor_product", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
  std::tuple<Tensor, Tensor, Tensor> gradients(const Tensor& g, const Tensor& x1, const Tensor& x2,
                                               const Tensor& weight, int64_t needs) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 11> stack{from(g), from(x1), from(x2), from(weight), from(inputs.index),
                                       from(inputs.value), from(inputs.dims), from(inputs.paths), from(Ints()),
                                       from(needs), from(precision)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("ace_fast_cuda::tensor_product_bwd", "", stack.data(), TORCH_ABI_VERSION));
    using torch::stable::detail::to;
    const Tensor bias = to<Tensor>(stack[3]);
    return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
  }
};

}  // namespace ace::conv
