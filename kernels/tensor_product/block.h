// One block of rows of a tensor product, rows as vector lanes: a path's contraction, sum over channels, gate, gradients.
#pragma once

#include "native.h"
#include "vector_math.h"

namespace ace::product {

constexpr int64_t kRows = 48;  // three AVX-512 vectors of floats, a multiple of every vector length

struct Term { int64_t j; double c; };                    // one coefficient of a pair
struct Pair { int64_t i, k; std::vector<Term> terms; };  // components of in1 and out that the path couples
struct Source { int64_t component, pair; };              // what a component of a contraction is summed from

// One instruction (kernels/tensor_product/table.py, Path) with its coefficients grouped by (i, k).
struct Path {
  int64_t o1, U, d1, o2, V, d2, o3, W, d3, weight, padded;  // padded: offset of its block in the padded weight gradient
  bool channels_first;                                      // sum over channels before the contraction
  std::vector<Pair> pairs;
  std::vector<std::vector<Source>> of_k, of_i;  // the pairs of each component of out, of in1
};

template <class T>
std::vector<Path> read_paths(const std::vector<int64_t>& flat, const Tensor& index, const Tensor& value) {
  const Tensor ijk = dense(index), coefficients = dense(value);
  const int64_t* row = in<int64_t>(ijk);
  const double* c = in<double>(coefficients);
  std::vector<Path> paths;
  int64_t padded = 0;
  for (size_t p = 0; p < flat.size(); p += 13) {
    const int64_t* f = flat.data() + p;
    Path path{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], padded, f[2] < f[8], {}, {}, {}};
    path.of_k.resize(path.d3);
    path.of_i.resize(path.d1);
    padded += path.U * path.V * round_up<T>(path.W);
    std::vector<Pair> grid(path.d1 * path.d3);
    for (int64_t n = f[10]; n < f[11]; ++n)
      grid[row[3 * n + 2] * path.d1 + row[3 * n]].terms.push_back({row[3 * n + 1], c[n]});
    for (int64_t g = 0; g < path.d1 * path.d3; ++g) {
      if (grid[g].terms.empty()) continue;
      const int64_t i = g % path.d1, k = g / path.d1, n = path.pairs.size();
      path.of_k[k].push_back({i, n});
      path.of_i[i].push_back({k, n});
      path.pairs.push_back({i, k, std::move(grid[g].terms)});
    }
    paths.push_back(std::move(path));
  }
  return paths;
}

struct Gate { int64_t scalars = 0, gates = 0; std::vector<int64_t> gated; double scalar_gain = 1, gate_gain = 1; };

// Calls f(z) for the vectors of one row of a block.
template <class T, class F>
inline void lanes_of_row(F&& f) {
  for (int64_t z = 0; z < kRows; z += lanes<T>) f(z);
}

// Everything one thread needs for one block, all in [component][kRows] layout.
template <class T>
class Block {
 public:
  Block(int64_t dim1, int64_t dim2, int64_t dim3, const std::vector<Path>& paths)
      : x1(dim1 * kRows), x2(dim2 * kRows), y(dim3 * kRows),
        g_x1(dim1 * kRows), g_x2(dim2 * kRows), gate_out(dim3 * kRows),
        coupling(largest(paths, [](const Path& p) { return static_cast<int64_t>(p.pairs.size()); }) * kRows),
        t(largest(paths, widest) * kRows), s(largest(paths, widest) * kRows),
        turned(largest(paths, [](const Path& p) { return std::min(p.d1, p.d3) * round_up<T>(p.W); }) * kRows) {}

  // Asks for the block of rows after the one at `row`: a transposition reads too many rows at once to be foreseen.
  static void prefetch_next(const T* matrix, int64_t row, int64_t dim, int64_t total) {
    const T *begin = matrix + std::min(row + kRows, total) * dim, *end = matrix + std::min(row + 2 * kRows, total) * dim;
    for (const T* p = begin; p < end; p += 64 / sizeof(T)) __builtin_prefetch(p);
  }

  // Rows z0 .. z0+rows of a [Z, dim] matrix into [dim][kRows]; missing rows are zero.
  static void load_rows(const T* from, int64_t dim, int64_t rows, T* to) {
    if (rows < kRows)
      for (int64_t c = 0; c < dim; ++c) std::fill(to + c * kRows + rows, to + (c + 1) * kRows, T(0));
    transpose(from, rows, dim, dim, to, kRows);
  }
  static void store_rows(const T* from, int64_t dim, int64_t rows, T* to) { transpose(from, dim, rows, kRows, to, dim); }

  // coupling[pair][z] = sum_j C_ijk x2[v, j, z]
  void couple(const Path& p, int64_t v) {
    for (size_t n = 0; n < p.pairs.size(); ++n)
      lanes_of_row<T>([&](int64_t z) {
        Vec<T> sum{};
        for (const Term& term : p.pairs[n].terms)
          sum += static_cast<T>(term.c) * load(x2 + (p.o2 + v * p.d2 + term.j) * kRows + z);
        store(coupling + n * kRows + z, sum);
      });
  }

  // to[m, k, z] (+)= sum_i from[m, i, z] coupling[i, k, z] for m < count; Transposed swaps the roles of i and k.
  template <bool Transposed>
  void contract(const Path& p, int64_t count, const T* from, T* to, bool add) const {
    constexpr int vectors = kRows / lanes<T>;
    const std::vector<std::vector<Source>>& sources = Transposed ? p.of_i : p.of_k;
    const int64_t d_from = Transposed ? p.d3 : p.d1;
    for (int64_t m = 0; m < count; ++m, from += d_from * kRows)
      for (const std::vector<Source>& list : sources) {
        Vec<T> sum[vectors];
        for (int v = 0; v < vectors; ++v) sum[v] = add ? load(to + v * lanes<T>) : Vec<T>{};
        for (const Source& source : list) {
          const T *a = from + source.component * kRows, *c = coupling + source.pair * kRows;
          for (int v = 0; v < vectors; ++v) sum[v] += load(a + v * lanes<T>) * load(c + v * lanes<T>);
        }
        for (int v = 0; v < vectors; ++v) store(to + v * lanes<T>, sum[v]);
        to += kRows;
      }
  }

  void forward(const Path& p, const T* weight) {
    const T* x = x1 + p.o1 * kRows;
    T* target = y + p.o3 * kRows;
    for (int64_t v = 0; v < p.V; ++v) {
      const T* w = weight + p.weight + v * p.W;
      couple(p, v);
      if (p.channels_first) {  // s[w, i, z] = sum_u W[u, w] x1[u, i, z]
        matmul<T>(p.W, p.d1 * kRows, p.U, w, 1, p.V * p.W, x, p.d1 * kRows, s, p.d1 * kRows, false);
        contract<false>(p, p.W, s, target, true);
      } else {  // t[u, k, z] = contraction; y[w, k, z] += sum_u W[u, w] t[u, k, z]
        contract<false>(p, p.U, x, t, false);
        matmul<T>(p.W, p.d3 * kRows, p.U, w, 1, p.V * p.W, t, p.d3 * kRows, target, p.d3 * kRows, true);
      }
    }
  }

  // y holds the gradient of the output. g_weight: this chunk's padded sums, [U, V, W padded] a path, or null.
  void backward(const Path& p, const T* weight, bool need_x1, bool need_x2, T* g_weight) {
    const T* x = x1 + p.o1 * kRows;
    const T* g = y + p.o3 * kRows;
    T* g_x = g_x1 + p.o1 * kRows;
    const int64_t d = std::min(p.d1, p.d3), columns = d * kRows, padded = round_up<T>(p.W);
    for (int64_t v = 0; v < p.V; ++v) {
      const T* w = weight + p.weight + v * p.W;
      couple(p, v);
      const T *left = x, *right = g;  // g_weight[u, w] = sum over columns of left[u, .] right[w, .]
      if (p.channels_first) {
        contract<true>(p, p.W, g, s, false);  // s[w, i, z]
        right = s;
        if (need_x1) matmul<T>(p.U, columns, p.W, w, p.V * p.W, 1, s, columns, g_x, columns, true);
        if (need_x2) matmul<T>(p.W, columns, p.U, w, 1, p.V * p.W, x, columns, t, columns, false);
        if (need_x2) g_couple(p, v, p.W, t, g);
      } else {
        if (need_x1 || need_x2) matmul<T>(p.U, columns, p.W, w, p.V * p.W, 1, g, columns, t, columns, false);
        if (need_x1) contract<true>(p, p.U, t, g_x, true);
        if (need_x2) g_couple(p, v, p.U, x, t);
        if (g_weight) contract<false>(p, p.U, x, t, false);
        left = t;
      }
      if (g_weight) {
        transpose<T>(right, p.W, columns, columns, turned, padded);  // what stands beyond W stays in the padding
        matmul<T>(p.U, p.W, columns, left, columns, 1, turned, padded, g_weight + p.padded + v * padded, p.V * padded,
                  true);
      }
    }
  }

  // y (pre-activation) -> gate_out
  void gate(const Gate& f) {
    for (int64_t c = 0; c < f.scalars; ++c)
      lanes_of_row<T>([&](int64_t z) {
        const Vec<T> x = load(y + c * kRows + z);
        store(gate_out + c * kRows + z, static_cast<T>(f.scalar_gain) * x * sigmoid_of<T>(x));
      });
    int64_t from = f.scalars + f.gates, to = f.scalars, gate = f.scalars;
    for (size_t n = 0; n < f.gated.size(); n += 2) {
      const int64_t d = f.gated[n + 1];
      for (int64_t m = 0; m < f.gated[n]; ++m, ++gate, from += d, to += d)
        lanes_of_row<T>([&](int64_t z) {
          const Vec<T> factor = static_cast<T>(f.gate_gain) * sigmoid_of<T>(load(y + gate * kRows + z));
          for (int64_t k = 0; k < d; ++k)
            store(gate_out + (to + k) * kRows + z, factor * load(y + (from + k) * kRows + z));
        });
    }
  }

  // y (pre-activation) and gate_out (gradient of the gate's output) -> y (gradient of the pre-activation)
  void gate_backward(const Gate& f) {
    for (int64_t c = 0; c < f.scalars; ++c)
      lanes_of_row<T>([&](int64_t z) {
        const Vec<T> x = load(y + c * kRows + z), s = sigmoid_of<T>(x);
        store(y + c * kRows + z, static_cast<T>(f.scalar_gain) * load(gate_out + c * kRows + z) * s *
                                     (T(1) + x * (T(1) - s)));
      });
    int64_t from = f.scalars + f.gates, to = f.scalars, gate = f.scalars;
    for (size_t n = 0; n < f.gated.size(); n += 2) {
      const int64_t d = f.gated[n + 1];
      for (int64_t m = 0; m < f.gated[n]; ++m, ++gate, from += d, to += d)
        lanes_of_row<T>([&](int64_t z) {
          const Vec<T> s = sigmoid_of<T>(load(y + gate * kRows + z));
          const Vec<T> factor = static_cast<T>(f.gate_gain) * s;
          Vec<T> sum{};
          for (int64_t k = 0; k < d; ++k) {
            const Vec<T> g = load(gate_out + (to + k) * kRows + z);
            sum += g * load(y + (from + k) * kRows + z);
            store(y + (from + k) * kRows + z, factor * g);
          }
          store(y + gate * kRows + z, sum * factor * (T(1) - s));
        });
    }
  }

  T sum_row(int64_t c) const {
    Vec<T> sum{};
    lanes_of_row<T>([&](int64_t z) { sum += load(y + c * kRows + z); });
    T total = 0;
    for (int l = 0; l < lanes<T>; ++l) total += sum[l];
    return total;
  }

  Scratch<T> x1, x2, y, g_x1, g_x2, gate_out;

 private:
  static int64_t widest(const Path& p) { return std::max(p.U, p.W) * std::min(p.d1, p.d3); }
  template <class F>
  static int64_t largest(const std::vector<Path>& paths, F&& f) {
    int64_t most = 1;
    for (const Path& p : paths) most = std::max(most, f(p));
    return most;
  }

  // g_x2[v, j, z] += sum over pairs of C_ijk sum_m a[m, i, z] b[m, k, z]
  void g_couple(const Path& p, int64_t v, int64_t count, const T* a, const T* b) {
    for (size_t n = 0; n < p.pairs.size(); ++n)
      lanes_of_row<T>([&](int64_t z) {
        Vec<T> sum{};
        for (int64_t m = 0; m < count; ++m)
          sum += load(a + (m * p.d1 + p.pairs[n].i) * kRows + z) * load(b + (m * p.d3 + p.pairs[n].k) * kRows + z);
        for (const Term& term : p.pairs[n].terms) {
          T* target = g_x2 + (p.o2 + v * p.d2 + term.j) * kRows + z;
          store(target, load(target) + static_cast<T>(term.c) * sum);
        }
      });
  }

  Scratch<T> coupling, t, s, turned;
};

}  // namespace ace::product
