// spectral_conv: rows along time, real products of channels and back to time, for a block of nodes in the cache.
#include "signs.h"
#include "weights.h"

namespace {

using namespace ace;
using spectral::Sizes, spectral::Term;

constexpr int64_t kNodes = 48;   // of a block: a multiple of every tile's height and every vector's width
constexpr int64_t kChunk = 256;  // nodes summed at a time in the gradient of the weight

// out[r, j] = sum over k of f[r, k] in[k, j], plus from[r, j], for `columns` columns; in, out, from by their strides.
template <class T>
void over_time(const T* f, int64_t rows, int64_t depth, const T* in, int64_t ld_in, T* out, int64_t ld_out,
               int64_t columns, const T* from = nullptr, int64_t ld_from = 0) {
  constexpr int64_t L = lanes<T>;
  const int64_t vectors = columns / L, whole = vectors * L, rest = columns - whole;
  for (int64_t j = 0; j < vectors; j += kTileVectors)
    for (int64_t r = 0; r < rows; r += kTileRows)
      tile_of<T>(std::min<int64_t>(kTileRows, rows - r), std::min<int64_t>(kTileVectors, vectors - j), depth,
                 f + r * depth, depth, 1, in + j * L, ld_in, out + r * ld_out + j * L, ld_out,
                 from ? from + r * ld_from + j * L : nullptr, ld_from);
  for (int64_t r = 0; rest && r < rows; ++r) {
    Vec<T> sum{};
    for (int64_t k = 0; k < depth; ++k) sum += f[r * depth + k] * load_first(in + k * ld_in + whole, rest);
    if (from) sum += load_first(from + r * ld_from + whole, rest);
    store_first(out + r * ld_out + whole, sum, rest);
  }
}

// A matrix along time, from the float64 table of either orientation.
template <class T>
std::vector<T> table(const Tensor& x, bool transposed) {
  const double* from = in<double>(x);
  const int64_t rows = x.size(0), columns = x.size(1);
  std::vector<T> found(rows * columns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) found[transposed ? c * rows + r : r * columns + c] = from[r * columns + c];
  return found;
}

// One way through the operator, `inner` channels to `outer`: forward, or with everything transposed.
template <class T>
struct Way {
  std::vector<T> first, last;   // [rows, times], [times, sums]
  std::vector<Term> terms;      // source: one of rows, to: one of sums
  std::vector<bool> adds;       // whether an earlier term of the same sum has been there
  int64_t times, rows, sums, inner, outer, ld;  // ld: a node's sums until they are compacted

  Way(const Tensor& analysis, const Tensor& synthesis, std::vector<Term> terms_, int64_t inner, int64_t outer,
      bool transposed)
      : first(table<T>(transposed ? synthesis : analysis, transposed)),
        last(table<T>(transposed ? analysis : synthesis, transposed)), terms(std::move(terms_)),
        times(analysis.size(1)), rows(first.size() / times), sums(last.size() / times), inner(inner), outer(outer),
        ld(round_up<T>(outer)) {
    std::vector<bool> seen(sums);
    for (Term& term : terms) {
      if (transposed) std::swap(term.source, term.to);
      adds.push_back(seen[term.to]);
      seen[term.to] = true;
    }
  }

  int64_t block() const {  // nodes: rows and sums stay in the second cache
    const int64_t values = kNodes * (rows * inner + sums * ld);
    return kNodes * std::clamp<int64_t>((1 << 16) / std::max<int64_t>(1, values), 1, 16);
  }

  int64_t flops() const { return 2 * times * (rows * inner + sums * outer) + 2 * terms.size() * inner * outer; }

  // sums [sums][count ld], each compact, of rows that lie `stride` apart; weights in panels.
  void mix(const T* from, int64_t stride, int64_t count, const T* weights, T* to) const {
    constexpr int64_t W = gemm::kPanel<T>;
    const int64_t size = spectral::panels<T>(inner, outer);
    for (size_t k = 0; k < terms.size(); ++k)
      for (int64_t j = 0; j < outer; j += W)
        matmul<T>(count, std::min(W, ld - j), inner, from + terms[k].source * stride, inner, 1,
                  weights + k * size + j * inner, W, to + terms[k].to * count * ld + j, ld, adds[k]);
    if (ld == outer) return;
    for (int64_t s = 0; s < sums; ++s)
      for (int64_t n = 1; n < count; ++n)
        std::memmove(to + s * count * ld + n * outer, to + s * count * ld + n * ld, outer * sizeof(T));
  }

  // y[t, nodes] (+ from) of `count` nodes whose rows lie `stride` apart.
  void finish(const T* from, int64_t stride, int64_t count, const T* weights, T* work, T* y, int64_t ld_y,
              const T* add = nullptr) const {
    mix(from, stride, count, weights, work);
    over_time<T>(last.data(), times, sums, work, count * ld, y, ld_y, count * outer, add, ld_y);
  }
};

// f(first, count, scratch) for blocks of nodes on torch's threads, with `size` values of scratch.
template <class T, class F>
void parallel_blocks(int64_t nodes, int64_t block, int64_t flops, int64_t size, F&& f) {
  if (!nodes) return;
  const int64_t grain = std::max<int64_t>(1, 400000 / std::max<int64_t>(1, block * flops));
  torch::stable::parallel_for(0, ceil_div(nodes, block), grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(size);
    for (int64_t b = begin; b < end; ++b) f(b * block, std::min(block, nodes - b * block), static_cast<T*>(scratch));
  });
}

template <class T>
struct Forward {
  Sizes s;
  Way<T> way;
  const T *x, *weight;
  T slope, *y;
  bool* positive;  // null: neither x is added nor the leaky ReLU taken

  void run() const {
    const Scratch<T> packed(way.terms.size() * spectral::panels<T>(s.inner, s.outer));
    spectral::pack_weights<T>(weight, s, way.terms, false, packed);
    const int64_t block = way.block(), in_rows = way.rows * block * s.inner;
    parallel_blocks<T>(s.nodes, block, way.flops(), in_rows + way.sums * block * way.ld,
                       [&](int64_t first, int64_t count, T* rows) {
      const int64_t columns = count * s.inner, offset = first * s.outer;
      over_time<T>(way.first.data(), way.rows, s.times, x + first * s.inner, s.nodes * s.inner, rows, columns, columns);
      way.finish(rows, columns, count, packed, rows + in_rows, y + offset, s.nodes * s.outer);
      for (int64_t t = 0; positive && t < s.times; ++t) activate(t * s.nodes * s.outer + offset, count * s.outer);
    });
  }

  void activate(int64_t first, int64_t count) const {
    for (int64_t j = first, rest = count; rest > 0; j += lanes<T>, rest -= lanes<T>) {
      const Vec<T> value = load_first(y + j, rest);
      const spectral::Signs<T> up = value > T(0);
      spectral::store_signs<T>(positive + j, up, rest);
      store_first<T>(y + j, load_first(x + j, rest) + (up ? value : value * slope), rest);
    }
  }
};

template <class T>
struct Backward {
  Sizes s;
  Way<T> way;  // from g to the gradient of x
  std::vector<T> analysis;  // [rows of x, times]
  const T *g, *x, *weight;
  const bool* positive;
  T slope, *g_x, *g_weight;  // null where not needed

  // Rows of all nodes are kept for the gradient of the weight: of x [A, nodes, inner], of g [B, nodes, outer].
  void run() const {
    const int64_t x_rows = way.sums, g_size = s.nodes * s.outer, x_size = s.nodes * s.inner, slack = lanes<T>;
    const Scratch<T> packed(g_x ? way.terms.size() * spectral::panels<T>(s.outer, s.inner) : 0);
    const Scratch<T> of_g(g_weight ? way.rows * g_size + slack : 0), of_x(g_weight ? x_rows * x_size : 0);
    if (g_x) spectral::pack_weights<T>(weight, s, forward_terms(), true, packed);
    const int64_t block = way.block(), in_rows = way.rows * block * s.outer, sums = way.sums * block * way.ld;
    const int64_t flops = 2 * s.times * (way.rows * s.outer + x_rows * s.inner) + (g_x ? way.flops() : 0);
    parallel_blocks<T>(s.nodes, block, flops, in_rows + sums + (positive ? s.times * block * s.outer : 0),
                       [&](int64_t first, int64_t count, T* scratch) {
      const int64_t columns = count * s.outer, stride = g_weight ? g_size : columns;
      T *rows = g_weight ? of_g + first * s.outer : scratch, *work = scratch + in_rows;
      const T* slopes = positive ? scaled(first, count, work + sums) : g + first * s.outer;
      over_time<T>(way.first.data(), way.rows, s.times, slopes, positive ? columns : g_size, rows, stride, columns);
      if (g_weight)
        over_time<T>(analysis.data(), x_rows, s.times, x + first * s.inner, x_size, of_x + first * s.inner, x_size,
                     count * s.inner);
      if (g_x)
        way.finish(rows, stride, count, packed, work, g_x + first * s.inner, x_size,
                   positive ? g + first * s.inner : nullptr);
    });
    if (g_weight) weights(of_x, of_g);
  }

  std::vector<Term> forward_terms() const {
    std::vector<Term> found = way.terms;
    for (Term& term : found) std::swap(term.source, term.to);
    return found;
  }

  // [times][count outer]: g times the leaky ReLU's slope.
  const T* scaled(int64_t first, int64_t count, T* to) const {
    const int64_t columns = count * s.outer;
    for (int64_t t = 0; t < s.times; ++t) {
      const int64_t offset = (t * s.nodes + first) * s.outer;
      for (int64_t j = 0; j < columns; j += lanes<T>) {
        const Vec<T> value = load_first(g + offset + j, columns - j);
        const spectral::Signs<T> up = spectral::load_signs<T>(positive + offset + j, columns - j);
        store_first<T>(to + t * columns + j, up ? value : value * slope, columns - j);
      }
    }
    return to;
  }

  // Each item owns rows of one term's matrix and walks all nodes in chunks, so that the sums do not depend on threads.
  void weights(const T* of_x, const T* of_g) const {
    constexpr int64_t high = 4 * kTileRows;
    const int64_t ld = round_up<T>(s.outer), blocks = ceil_div(s.inner, high), count = way.terms.size();
    const Scratch<T> matrices(count * s.inner * ld);
    parallel(count * blocks, ceil_div(400000, 2 * high * s.outer * s.nodes + 1), [&](int64_t item) {
      const Term& term = way.terms[item / blocks];  // of the way back: its source is a row of g
      const int64_t first = item % blocks * high, rows = std::min(high, s.inner - first);
      const T *left = of_x + term.to * s.nodes * s.inner + first, *right = of_g + term.source * s.nodes * s.outer;
      T* to = matrices + (item / blocks * s.inner + first) * ld;
      for (int64_t n = 0; n == 0 || n < s.nodes; n += kChunk)
        matmul<T>(rows, s.outer, std::min(kChunk, s.nodes - n), left + n * s.inner, 1, s.inner, right + n * s.outer,
                  s.outer, to, ld, n > 0);
    });
    spectral::unpack_gradients<T>(matrices, ld, s, way.terms, g_weight);
  }
};

std::vector<Term> read_terms(const std::vector<int64_t>& values) {
  std::vector<Term> terms;
  for (size_t i = 0; i + 5 <= values.size(); i += 5)
    terms.push_back({values[i], values[i + 1], values[i + 2], values[i + 3], values[i + 4]});
  return terms;
}

Sizes sizes(const Tensor& x, const Tensor& weight) {
  return {x.size(0), x.size(1), x.size(2), weight.size(1), weight.size(2)};
}

Tensor run_forward(const Tensor& x_, const Tensor& weight_, const Tensor& analysis, const Tensor& synthesis,
                   const std::vector<int64_t>& terms, double slope, const Tensor* positive) {
  const Tensor x = dense(x_), weight = dense(weight_);  // [T, N, I], [I, O, M, 2]
  const Sizes s = sizes(x, weight);
  Tensor y = in_huge_pages(empty(x, {s.times, s.nodes, s.outer}));
  dispatch(x, [&]<class T>() {
    const Forward<T> job{s, Way<T>(analysis, synthesis, read_terms(terms), s.inner, s.outer, false), in<T>(x),
                         in<T>(weight), static_cast<T>(slope), out<T>(y), positive ? out<bool>(*positive) : nullptr};
    job.run();
  });
  return y;
}

}  // namespace

static ace::Tensor spectral_conv(ace::Tensor x, ace::Tensor weight, ace::Tensor analysis, ace::Tensor synthesis,
                                 std::vector<int64_t> terms) {
  return run_forward(x, weight, analysis, synthesis, terms, 1.0, nullptr);
}

static std::tuple<ace::Tensor, ace::Tensor> time_conv(ace::Tensor x, ace::Tensor weight, ace::Tensor analysis,
                                                      ace::Tensor synthesis, std::vector<int64_t> terms, double slope) {
  const Tensor positive = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)}, ScalarType::Bool);
  return {run_forward(x, weight, analysis, synthesis, terms, slope, &positive), positive};
}

static std::tuple<ace::Tensor, ace::Tensor> spectral_conv_bwd(
    ace::Tensor g_, std::optional<ace::Tensor> positive_, ace::Tensor x_, ace::Tensor weight_, ace::Tensor analysis,
    ace::Tensor synthesis, std::vector<int64_t> terms, double slope, bool need_x, bool need_weight) {
  const Tensor g = dense(g_), x = dense(x_), weight = dense(weight_);  // [T, N, O], [T, N, I], [I, O, M, 2]
  const std::optional<Tensor> positive = positive_ ? std::optional(dense(*positive_)) : positive_;  // [T, N, O] bool
  const Sizes s = sizes(x, weight);
  const auto make = [&](bool need, std::vector<int64_t> size) {
    return need ? in_huge_pages(empty(x, std::move(size))) : empty(x, {0});
  };
  const Tensor g_x = make(need_x, {s.times, s.nodes, s.inner});
  const Tensor g_weight = make(need_weight, {s.inner, s.outer, s.modes, 2});
  if (!need_x && !need_weight) return {g_x, g_weight};
  dispatch(x, [&]<class T>() {
    const Backward<T> job{s, Way<T>(analysis, synthesis, read_terms(terms), s.outer, s.inner, true),
                          table<T>(analysis, false), in<T>(g), in<T>(x), in<T>(weight),
                          positive ? in<bool>(*positive) : nullptr, static_cast<T>(slope),
                          need_x ? out<T>(g_x) : nullptr, need_weight ? out<T>(g_weight) : nullptr};
    job.run();
  });
  return {g_x, g_weight};
}

#define TABLES "Tensor analysis, Tensor synthesis, int[] terms"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("spectral_conv(Tensor x, Tensor weight, " TABLES ") -> Tensor");
  m.def("time_conv(Tensor x, Tensor weight, " TABLES ", float slope) -> (Tensor, Tensor)");
  m.def("spectral_conv_bwd(Tensor g, Tensor? positive, Tensor x, Tensor weight, " TABLES ", float slope, bool need_x, "
        "bool need_weight) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("spectral_conv", TORCH_BOX(&spectral_conv));
  m.impl("time_conv", TORCH_BOX(&time_conv));
  m.impl("spectral_conv_bwd", TORCH_BOX(&spectral_conv_bwd));
}
