// What egnn_message reads: its arguments, the edges of a chunk of target nodes, the weights as a block multiplies by
// them.
#pragma once

#include "vector_math.h"

namespace ace::egnn {

// Edges sorted by one of their ends; entries that point outside are never followed.
struct Sorted {
  const int64_t *index, *order, *ptr;
  int64_t nodes, edges;
  int64_t begin(int64_t node) const { return std::clamp<int64_t>(ptr[node], 0, edges); }
  int64_t end(int64_t node) const { return std::max(begin(node), std::clamp<int64_t>(ptr[node + 1], 0, edges)); }
  bool has(int64_t edge) const { return edge >= 0 && edge < edges; }
};

template <class T>
struct Arguments {
  int64_t D, F, A, H, M, C;
  const T *x, *h, *edge;                                                                  // [N, D], [N, F], [E, A]
  const T *weight1, *bias1, *weight2, *bias2, *weight3, *bias3, *weight4, *bias4;         // as the operator takes them
  Sorted source, target;
  bool mean;

  int64_t columns() const { return 1 + 2 * F + A; }  // of weight1
  // What the sum of a node's coordinates is divided by.
  T count(int64_t node) const {
    return mean ? static_cast<T>(std::max<int64_t>(1, target.ptr[node + 1] - target.ptr[node])) : T(1);
  }
};

// What the forward pass leaves to the gradient: [N, 2H], [E, M], [E, C]. Null: nothing. T is const where it is read.
template <class T>
struct Kept { T *nodes, *pre2, *pre3; };

// Rows of one line more than they need: rows of a power of two would share few sets of the cache.
template <class T> inline int64_t padded(int64_t n) { return round_up<T>(n) + lanes<T>; }

// ---- chunks --------------------------------------------------------------------------------------------------------

// Consecutive target nodes in chunks of about equal numbers of edges. How many depends on the graph alone.
class Chunks {
 public:
  explicit Chunks(const Sorted& edges) {
    count = std::clamp<int64_t>(ceil_div(edges.edges, 4096) * 8, 8, 64);
    const int64_t all = edges.edges + edges.nodes;  // nodes without edges are work too
    for (int64_t c = 0, n = 0; c <= count; ++c) {
      while (n < edges.nodes && (c == count || edges.begin(n) + n < c * all / count)) ++n;
      first_.push_back(n);
    }
  }

  int64_t begin(int64_t chunk) const { return first_[chunk]; }
  int64_t end(int64_t chunk) const { return first_[chunk + 1]; }

  // f(each) on torch's threads, once for all chunks that a thread gets: each(g) calls g(chunk) for each of them.
  template <class F>
  void run(F&& f) const {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      f([&](auto&& g) {
        for (int64_t chunk = begin; chunk < end; ++chunk) g(chunk);
      });
    });
  }

  int64_t count;

 private:
  std::vector<int64_t> first_;
};

// ---- weights -------------------------------------------------------------------------------------------------------

// A matrix with padded rows, the padding zero.
template <class T>
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns) : ld(padded<T>(columns)), data_(rows * ld) {
    std::fill_n(static_cast<T*>(data_), rows * ld, T(0));
  }
  T* row(int64_t r) const { return data_ + r * ld; }
  operator T*() const { return data_; }

  // from [rows, columns], and [columns, rows]
  void copy(const T* from, int64_t rows, int64_t columns, int64_t stride) const {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, columns, row(r));
  }
  void copy_transposed(const T* from, int64_t rows, int64_t columns, int64_t stride) const {
    transpose(from, rows, columns, stride, row(0), ld);
  }

  int64_t ld;

 private:
  Scratch<T> data_;
};

// Weights of an edge: the first layer's rows for |r|^2 and the edge features, the two square layers as they are (for
// gradients) and transposed (for values), biases and the last row.
template <class T>
struct Weights {
  explicit Weights(const Arguments<T>& a)
      : first(1 + a.A, a.H), two(a.M, a.H), two_t(a.H, a.M), three(a.C, a.M), three_t(a.M, a.C), bias2(1, a.M),
        bias3(1, a.C), four(1, a.C), bias4(a.bias4 ? *a.bias4 : T(0)) {
    first.copy_transposed(a.weight1, a.H, 1, a.columns());
    transpose(a.weight1 + 1 + 2 * a.F, a.H, a.A, a.columns(), first.row(1), first.ld);
    two.copy(a.weight2, a.M, a.H, a.H);
    two_t.copy_transposed(a.weight2, a.M, a.H, a.H);
    three.copy(a.weight3, a.C, a.M, a.M);
    three_t.copy_transposed(a.weight3, a.C, a.M, a.M);
    bias2.copy(a.bias2, 1, a.M, 0);
    bias3.copy(a.bias3, 1, a.C, 0);
    four.copy(a.weight4, 1, a.C, 0);
  }

  Matrix<T> first, two, two_t, three, three_t, bias2, bias3, four;
  T bias4;
};

// ---- products of the nodes -----------------------------------------------------------------------------------------

// nodes [N, 2H]: h with the first layer's weights of a target (and the bias), and with those of a source.
template <class T>
void node_products(const Arguments<T>& a, T* nodes) {
  constexpr int64_t W = gemm::kPanel<T>;
  const int64_t width = 2 * a.H, N = a.target.nodes;
  const Scratch<T> turned(a.F * width), panels(gemm::panels_size<T>(a.F, width)), bias(ceil_div(width, W) * W);
  for (int role = 0; role < 2; ++role)
    transpose(a.weight1 + 1 + role * a.F, a.H, a.F, a.columns(), turned + role * a.H, width);
  gemm::pack_panels_parallel<T, W>(a.F, width, turned, width, panels);
  std::fill(std::copy_n(a.bias1, a.H, static_cast<T*>(bias)), bias + ceil_div(width, W) * W, T(0));
  gemm::multiply<T>(N, width, a.F, gemm::Left<T>::rows(a.h, a.F), panels, nodes, width, false,
                    [&](int64_t, int64_t, int64_t j, T*) { return gemm::From<T>{bias + j, 0}; });
}

// g_nodes [N, 2H], the gradient of those products -> g_h [N, F]
template <class T>
void node_gradient(const Arguments<T>& a, const T* g_nodes, T* g_h) {
  constexpr int64_t W = gemm::kPanel<T>;
  const Scratch<T> rows(2 * a.H * a.F), panels(gemm::panels_size<T>(2 * a.H, a.F));
  for (int64_t r = 0; r < 2 * a.H; ++r)
    std::copy_n(a.weight1 + r % a.H * a.columns() + 1 + r / a.H * a.F, a.F, rows + r * a.F);
  gemm::pack_panels_parallel<T, W>(2 * a.H, a.F, rows, a.F, panels);
  gemm::multiply<T>(a.target.nodes, a.F, 2 * a.H, gemm::Left<T>::rows(g_nodes, 2 * a.H), panels, g_h, a.F, false,
                    gemm::from_zero<T>);
}

}  // namespace ace::egnn
