// tensor_product: rows z are the vector lanes. A block of kRows rows is transposed to [component, z]; there the
// Clebsch-Gordan contraction is a handful of vector multiplications and the sum over channels is native.h's matmul,
// done on the side of the contraction with fewer components. Weight gradients are summed per chunk of blocks, then over
// chunks: the order of summation does not depend on the number of threads.
#include "native.h"
#include "vector_math.h"

namespace {

using namespace ace;

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
  for (size_t p = 0; p < flat.size(); p += 12) {
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

// Blocks are handed out in chunks whose number depends on the size alone.
struct Chunks {
  int64_t rows, blocks, count;
  explicit Chunks(int64_t rows) : rows(rows), blocks(ceil_div(rows, kRows)),
                                  count(std::min(blocks, std::max<int64_t>(8, blocks / 16))) {}

  // f(chunk, visit) on torch's threads; visit(g) calls g(first row, rows) for each block of the chunk.
  template <class F>
  void run(F&& f) const {
    parallel(count, 1, [&](int64_t chunk) {
      f(chunk, [&](auto&& g) {
        for (int64_t b = chunk * blocks / count; b < (chunk + 1) * blocks / count; ++b)
          g(b * kRows, std::min(kRows, rows - b * kRows));
      });
    });
  }
};

struct Static { std::vector<int64_t> dims, paths, slots; };  // as in op.py: dims, paths, bias_slots

// pre [Z, dims[2]], and with a gate out [Z, dims[2] - gates]
std::tuple<Tensor, Tensor> forward(const Tensor& x1_, const Tensor& x2_, const Tensor& weight_,
                                   const std::optional<Tensor>& bias_, const Tensor& index, const Tensor& value,
                                   const Static& fixed, const Gate* gate) {
  const Tensor x1 = dense(x1_), x2 = dense(x2_), weight = dense(weight_);
  const std::optional<Tensor> bias = bias_ ? std::optional<Tensor>(dense(*bias_)) : std::nullopt;
  const int64_t rows = x1.size(0), dim1 = fixed.dims[0], dim2 = fixed.dims[1], dim3 = fixed.dims[2];
  const int64_t dim_out = gate ? dim3 - gate->gates : 0;
  Tensor pre = empty(x1, {rows, dim3}), gated = empty(x1, {gate ? rows : 0, dim_out});
  dispatch(x1, [&]<class T>() {
    const std::vector<Path> paths = read_paths<T>(fixed.paths, index, value);
    Chunks(rows).run([&](int64_t, auto&& visit) {
      Block<T> block(dim1, dim2, dim3, paths);
      visit([&](int64_t z, int64_t n) {
        block.load_rows(in<T>(x1) + z * dim1, dim1, n, block.x1);
        block.load_rows(in<T>(x2) + z * dim2, dim2, n, block.x2);
        block.prefetch_next(in<T>(x1), z, dim1, rows);
        std::fill_n(static_cast<T*>(block.y), dim3 * kRows, T(0));
        const T* b = bias ? in<T>(*bias) : nullptr;
        for (size_t s = 0; b && s < fixed.slots.size(); s += 2)
          for (int64_t m = 0; m < fixed.slots[s + 1]; ++m) std::fill_n(block.y + (fixed.slots[s] + m) * kRows, kRows, *b++);
        for (const Path& path : paths) block.forward(path, in<T>(weight));
        block.store_rows(block.y, dim3, n, out<T>(pre) + z * dim3);
        if (gate) {
          block.gate(*gate);
          block.store_rows(block.gate_out, dim_out, n, out<T>(gated) + z * dim_out);
        }
      });
    });
  });
  return {gated, pre};
}

// out[u, v, w] = sum over chunks of padded[chunk][u, v, w]
template <class T>
void sum_chunks(const std::vector<Path>& paths, const T* padded, int64_t chunks, int64_t stride, T* out) {
  for (const Path& path : paths) {
    const int64_t width = round_up<T>(path.W);
    parallel(path.U * path.V, std::max<int64_t>(1, 16384 / (chunks * width)), [&](int64_t row) {
      T* target = out + path.weight + row * path.W;
      const T* source = padded + path.padded + row * width;
      std::copy_n(source, path.W, target);
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t w = 0; w < path.W; ++w) target[w] += source[c * stride + w];
    });
  }
}

// Gradients of x1, x2, weight and bias; bit n of `needs` asks for the n-th, the others are empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& g_, const Tensor* pre_, const Tensor& x1_,
                                                    const Tensor& x2_, const Tensor& weight_, const Tensor& index,
                                                    const Tensor& value, const Static& fixed, const Gate* gate,
                                                    int64_t needs) {
  const Tensor g = dense(g_), pre = pre_ ? dense(*pre_) : g, x1 = dense(x1_), x2 = dense(x2_), weight = dense(weight_);
  const int64_t rows = x1.size(0), dim1 = fixed.dims[0], dim2 = fixed.dims[1], dim3 = fixed.dims[2];
  const bool need_x1 = needs & 1, need_x2 = needs & 2, need_weight = needs & 4, need_bias = needs & 8;
  int64_t biases = 0;
  for (size_t s = 1; s < fixed.slots.size(); s += 2) biases += fixed.slots[s];
  Tensor g_x1 = empty(x1, need_x1 ? std::vector<int64_t>{rows, dim1} : std::vector<int64_t>{0});
  Tensor g_x2 = empty(x1, need_x2 ? std::vector<int64_t>{rows, dim2} : std::vector<int64_t>{0});
  Tensor g_weight = empty(x1, {need_weight ? weight.size(0) : 0}), g_bias = empty(x1, {need_bias ? biases : 0});
  dispatch(x1, [&]<class T>() {
    const std::vector<Path> paths = read_paths<T>(fixed.paths, index, value);
    const Chunks chunks(rows);
    int64_t padded = 0;
    for (const Path& path : paths) padded += path.U * path.V * round_up<T>(path.W);
    const int64_t stride = round_up<T>(padded + biases);
    Scratch<T> partial(std::max<int64_t>(chunks.count, 1) * stride);  // [chunk][padded weights, biases]
    std::fill_n(static_cast<T*>(partial), stride, T(0));
    chunks.run([&](int64_t chunk, auto&& visit) {
      Block<T> block(dim1, dim2, dim3, paths);
      T* sums = partial + chunk * stride;
      std::fill_n(sums, stride, T(0));
      visit([&](int64_t z, int64_t n) {
        block.load_rows(in<T>(x1) + z * dim1, dim1, n, block.x1);
        block.load_rows(in<T>(x2) + z * dim2, dim2, n, block.x2);
        block.load_rows(in<T>(pre) + z * dim3, dim3, n, block.y);
        block.prefetch_next(in<T>(x1), z, dim1, rows);
        block.prefetch_next(in<T>(pre), z, dim3, rows);
        if (gate) {
          block.load_rows(in<T>(g) + z * (dim3 - gate->gates), dim3 - gate->gates, n, block.gate_out);
          block.gate_backward(*gate);
        }
        if (need_x1) std::fill_n(static_cast<T*>(block.g_x1), dim1 * kRows, T(0));
        if (need_x2) std::fill_n(static_cast<T*>(block.g_x2), dim2 * kRows, T(0));
        for (const Path& path : paths)
          block.backward(path, in<T>(weight), need_x1, need_x2, need_weight ? sums : nullptr);
        if (need_x1) block.store_rows(block.g_x1, dim1, n, out<T>(g_x1) + z * dim1);
        if (need_x2) block.store_rows(block.g_x2, dim2, n, out<T>(g_x2) + z * dim2);
        T* b = sums + padded;
        for (size_t s = 0; need_bias && s < fixed.slots.size(); s += 2)
          for (int64_t m = 0; m < fixed.slots[s + 1]; ++m, ++b) *b += block.sum_row(fixed.slots[s] + m);
      });
    });
    const int64_t count = std::max<int64_t>(chunks.count, 1);
    if (need_weight) sum_chunks<T>(paths, partial, count, stride, out<T>(g_weight));
    for (int64_t m = 0; need_bias && m < biases; ++m) {
      T sum = 0;
      for (int64_t c = 0; c < count; ++c) sum += partial[c * stride + padded + m];
      out<T>(g_bias)[m] = sum;
    }
  });
  return {g_x1, g_x2, g_weight, g_bias};
}

using Ints = std::vector<int64_t>;

Gate read_gate(const Ints& layout, double scalar_gain, double gate_gain) {
  return {layout[0], layout[1], Ints(layout.begin() + 2, layout.end()), scalar_gain, gate_gain};
}

Tensor tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias, Tensor index, Tensor value,
                      Ints dims, Ints paths, Ints slots) {
  return std::get<1>(forward(x1, x2, weight, bias, index, value, {dims, paths, slots}, nullptr));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight,
                                                              Tensor index, Tensor value, Ints dims, Ints paths,
                                                              Ints slots, int64_t needs) {
  return backward(g, nullptr, x1, x2, weight, index, value, {dims, paths, slots}, nullptr, needs);
}

std::tuple<Tensor, Tensor> gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                Tensor index, Tensor value, Ints dims, Ints paths, Ints slots,
                                                Ints layout, double scalar_gain, double gate_gain) {
  const Gate gate = read_gate(layout, scalar_gain, gate_gain);
  return forward(x1, x2, weight, bias, index, value, {dims, paths, slots}, &gate);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2,
                                                                    Tensor weight, Tensor index, Tensor value,
                                                                    Ints dims, Ints paths, Ints slots, Ints layout,
                                                                    double scalar_gain, double gate_gain,
                                                                    int64_t needs) {
  const Gate gate = read_gate(layout, scalar_gain, gate_gain);
  return backward(g, &pre, x1, x2, weight, index, value, {dims, paths, slots}, &gate, needs);
}

}  // namespace

#define TABLES "Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, int[] bias_slots"
#define GATE "int[] layout, float scalar_gain, float gate_gain"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ") -> Tensor");
  m.def("tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, " TABLES
        ", int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ", " GATE
        ") -> (Tensor, Tensor)");
  m.def("gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, " TABLES ", " GATE
        ", int needs) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("tensor_product", TORCH_BOX(&tensor_product));
  m.impl("tensor_product_bwd", TORCH_BOX(&tensor_product_bwd));
  m.impl("gated_tensor_product", TORCH_BOX(&gated_tensor_product));
  m.impl("gated_tensor_product_bwd", TORCH_BOX(&gated_tensor_product_bwd));
}
