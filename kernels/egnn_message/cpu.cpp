// egnn_message: blocks of edges in the order of their targets go through both networks without leaving the cache. The
// first layer's products with the nodes' features are formed once per node. A thread owns whole target nodes; sums run
// in the order of the edges, then over chunks that the graph alone decides.
#include "egnn_message/block.h"

#include <array>

namespace {

using namespace ace;
using namespace ace::egnn;
using Maybe = std::optional<Tensor>;
using Size = std::vector<int64_t>;

constexpr int kGradients = 11;  // x, h, edge, and four pairs of weight and bias

template <class T>
void forward(const Arguments<T>& a, const Kept<T>& kept, T* coordinates, T* features) {
  const Weights<T> weights(a);
  node_products(a, kept.nodes);
  const Chunks chunks(a.target);
  chunks.run([&](auto&& each) {
    Block<T> block(a, weights, kept.nodes);
    each([&](int64_t chunk) {
      const int64_t first = chunks.begin(chunk), last = chunks.end(chunk);
      std::fill(coordinates + first * a.D, coordinates + last * a.D, T(0));
      std::fill(features + first * a.M, features + last * a.M, T(0));
      block.each(first, last, [&] { block.forward(kept, coordinates, features); });
      for (int64_t n = first; n < last; ++n)
        for (int64_t d = 0; d < a.D; ++d) coordinates[n * a.D + d] /= a.count(n);
    });
  });
}

// Where a chunk's sums lie: rows of the padded widths, one after the other.
template <class T>
struct Layout {
  explicit Layout(const Arguments<T>& a)
      : two((1 + a.A) * padded<T>(a.H)), three(two + a.M * padded<T>(a.H)), bias2(three + a.C * padded<T>(a.M)),
        bias3(bias2 + padded<T>(a.M)), four(bias3 + padded<T>(a.C)), bias4(four + padded<T>(a.C)),
        stride(bias4 + lanes<T>) {}
  int64_t two, three, bias2, bias3, four, bias4, stride;
};

// out[n * stride + c] = the sum over chunks of sums[n * padded + c], in their order.
template <class T>
void add_chunks(const T* sums, int64_t chunks, const Layout<T>& layout, int64_t rows, int64_t width, T* out) {
  if (!out) return;
  parallel(rows, std::max<int64_t>(1, 16384 / (chunks * width)), [&](int64_t n) {
    T* to = out + n * width;
    const T* from = sums + n * padded<T>(width);
    std::fill_n(to, width, T(0));
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t i = 0; i < width; ++i) to[i] += from[c * layout.stride + i];
  });
}

// The sources' part of the gradients, in the order of each node's edges.
template <class T>
void receive(const Arguments<T>& a, const Gradients<T>& to) {
  parallel(a.source.nodes, std::max<int64_t>(1, 16384 / a.H), [&](int64_t n) {
    T* row = to.nodes ? to.nodes + n * 2 * a.H + a.H : nullptr;
    const auto each = [&](auto&& f) {
      for (int64_t p = a.source.begin(n); p < a.source.end(n); ++p)
        if (a.source.has(a.source.order[p])) f(a.source.order[p]);
    };
    if (row) std::fill_n(row, a.H, T(0));
    if (row) each([&](int64_t e) {
      for (int64_t c = 0; c < a.H; ++c) row[c] += to.sent[e * a.H + c];
    });
    for (int64_t d = 0; to.x && d < a.D; ++d) {
      T sum = 0;
      each([&](int64_t e) { sum += to.sent_r[e * a.D + d]; });
      to.x[n * a.D + d] -= sum;
    }
  });
}

// weight1 [H, 1 + 2F + A] and bias1 from the nodes' gradient and the chunks' sums `first` [1 + A][H].
template <class T>
void first_weights(const Arguments<T>& a, const T* g_nodes, const T* first, T* weight, T* bias) {
  const int64_t ld = round_up<T>(a.F + 1);
  const Scratch<T> found(2 * a.H * ld);
  gemm::multiply_transposed<T>(2 * a.H, a.F, a.target.nodes, g_nodes, 2 * a.H, a.h, a.F, found, ld, true);
  for (int64_t r = 0; r < a.H; ++r) {
    if (bias) bias[r] = found[r * ld + a.F];
    if (!weight) continue;
    T* row = weight + r * a.columns();
    for (int role = 0; role < 2; ++role) std::copy_n(found + (role * a.H + r) * ld, a.F, row + 1 + role * a.F);
    row[0] = first[r];
    for (int64_t k = 0; k < a.A; ++k) row[1 + 2 * a.F + k] = first[(1 + k) * a.H + r];
  }
}

// The gradients of the coordinates' sums before their division.
template <class T>
void divide(const Arguments<T>& a, const T* g, T* out) {
  for (int64_t n = 0; n < a.target.nodes; ++n)
    for (int64_t d = 0; d < a.D; ++d) out[n * a.D + d] = g[n * a.D + d] / a.count(n);
}

// `to`: as the operator returns them; null where nobody asks.
template <class T>
void backward(const Arguments<T>& a, const T* g_coordinates, const T* g_features, Kept<const T> kept,
              T* const (&to)[kGradients]) {
  T *const x = to[0], *const h = to[1], *const edge = to[2], *const weight1 = to[3], *const bias1 = to[4],
    *const weight2 = to[5], *const bias2 = to[6], *const weight3 = to[7], *const bias3 = to[8], *const weight4 = to[9],
    *const bias4 = to[10];
  const bool of_nodes = h || weight1 || bias1, first = of_nodes || x || edge, inner = first || weight2 || bias2;
  const int64_t N = a.target.nodes, E = a.target.edges;
  const Weights<T> weights(a);
  const Scratch<T> products(kept.nodes ? 0 : N * 2 * a.H), g_sums(N * a.D), g_nodes(of_nodes ? N * 2 * a.H : 0),
      sent(of_nodes ? E * a.H : 0), sent_r(x ? E * a.D : 0);
  if (!kept.nodes) {
    node_products<T>(a, products);
    kept.nodes = products;
  }
  if (edge) std::fill_n(edge, E * a.A, T(0));
  divide<T>(a, g_coordinates, g_sums);
  const Gradients<T> edges{x, edge, of_nodes ? static_cast<T*>(g_nodes) : nullptr, sent, sent_r};
  const Chunks chunks(a.target);
  const Layout<T> at(a);
  const Scratch<T> sums(chunks.count * at.stride);
  chunks.run([&](auto&& each) {
    Block<T> block(a, weights, kept.nodes);
    each([&](int64_t chunk) {
      T* mine = sums + chunk * at.stride;
      std::fill_n(mine, at.stride, T(0));
      const auto part = [&](const T* wanted, int64_t offset) { return wanted ? mine + offset : nullptr; };
      const Sums<T> parts{part(weight1, 0), part(weight2, at.two), part(weight3, at.three), part(bias2, at.bias2),
                          part(bias3, at.bias3), part(weight4, at.four), part(bias4, at.bias4)};
      const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
      if (x) std::fill(x + begin * a.D, x + end * a.D, T(0));
      if (of_nodes) std::fill(g_nodes + begin * 2 * a.H, g_nodes + end * 2 * a.H, T(0));
      block.each(begin, end, [&] { block.backward(kept, g_sums, g_features, edges, parts, inner, first); });
    });
  });
  if (x || of_nodes) receive(a, edges);
  if (h) node_gradient<T>(a, g_nodes, h);
  if (weight1 || bias1) {
    const Scratch<T> found((1 + a.A) * a.H);
    add_chunks<T>(sums, chunks.count, at, 1 + a.A, a.H, weight1 ? static_cast<T*>(found) : nullptr);
    first_weights<T>(a, g_nodes, found, weight1, bias1);
  }
  add_chunks<T>(sums + at.two, chunks.count, at, a.M, a.H, weight2);
  add_chunks<T>(sums + at.three, chunks.count, at, a.C, a.M, weight3);
  add_chunks<T>(sums + at.bias2, chunks.count, at, 1, a.M, bias2);
  add_chunks<T>(sums + at.bias3, chunks.count, at, 1, a.C, bias3);
  add_chunks<T>(sums + at.four, chunks.count, at, 1, a.C, weight4);
  add_chunks<T>(sums + at.bias4, chunks.count, at, 1, 1, bias4);
}

#define ARGUMENTS                                                                                                    \
  Tensor x, Tensor h, Maybe edge, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3,        \
      Tensor bias3, Tensor weight4, Maybe bias4, Tensor source_index, Tensor source_order, Tensor source_ptr,        \
      Tensor target_index, Tensor target_order, Tensor target_ptr, bool mean
#define INPUTS                                                                                                       \
  Inputs{{x, h, edge ? *edge : x, weight1, bias1, weight2, bias2, weight3, bias3, weight4, bias4 ? *bias4 : x},      \
         {source_index, source_order, source_ptr, target_index, target_order, target_ptr},                           \
         edge.has_value(), bias4.has_value(), mean}

// Everything the operator takes, contiguous; x stands where nothing is given.
struct Inputs {
  Inputs(std::vector<Tensor> floats_, std::vector<Tensor> indices_, bool has_edge, bool has_bias4, bool mean)
      : has_edge(has_edge), has_bias4(has_bias4), mean(mean) {
    for (const Tensor& t : floats_) floats.push_back(ace::dense(t));
    for (const Tensor& t : indices_) indices.push_back(ace::dense(t));
  }

  int64_t edges() const { return indices[0].size(0); }

  template <class T>
  Arguments<T> read() const {
    const auto f = [&](int n) { return in<T>(floats[n]); };
    const auto i = [&](int n) { return in<int64_t>(indices[n]); };
    const int64_t N = floats[0].size(0), E = edges();
    return {floats[0].size(1), floats[1].size(1), has_edge ? floats[2].size(1) : 0, floats[3].size(0),
            floats[5].size(0), floats[7].size(0), f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9),
            has_bias4 ? f(10) : nullptr, {i(0), i(1), i(2), N, E}, {i(3), i(4), i(5), N, E}, mean};
  }

  std::vector<Tensor> floats, indices;
  bool has_edge, has_bias4, mean;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> egnn_message(ARGUMENTS, bool keep) {
  const Inputs inputs = INPUTS;
  const int64_t N = x.size(0), E = inputs.edges(), H = weight1.size(0), M = weight2.size(0), C = weight3.size(0);
  const auto kept = [&](Size size) { return in_huge_pages(empty(x, keep ? size : Size{0})); };
  const Tensor coordinates = empty(x, {N, x.size(1)}), features = empty(x, {N, M});
  const Tensor nodes = kept({N, 2 * H}), pre2 = kept({E, M}), pre3 = kept({E, C});
  dispatch(x, [&]<class T>() {
    const Arguments<T> a = inputs.read<T>();
    const Scratch<T> products(keep ? 0 : N * 2 * H);
    const Kept<T> to = keep ? Kept<T>{out<T>(nodes), out<T>(pre2), out<T>(pre3)} : Kept<T>{products, nullptr, nullptr};
    forward<T>(a, to, out<T>(coordinates), out<T>(features));
  });
  return {coordinates, features, nodes, pre2, pre3};
}

using Eleven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients in the order of the arguments; bit n of `needs` asks for the n-th, the others are empty.
Eleven egnn_message_bwd(Tensor g_coordinates_, Tensor g_features_, ARGUMENTS, Maybe nodes_, Maybe pre2_, Maybe pre3_,
                        int64_t needs) {
  const Inputs inputs = INPUTS;
  const Tensor g_coordinates = ace::dense(g_coordinates_), g_features = ace::dense(g_features_);
  const Maybe nodes = nodes_ ? Maybe(ace::dense(*nodes_)) : nodes_, pre2 = nodes_ ? Maybe(ace::dense(*pre2_)) : pre2_,
              pre3 = nodes_ ? Maybe(ace::dense(*pre3_)) : pre3_;
  std::array<Tensor, kGradients> found;
  for (int n = 0; n < kGradients; ++n) {
    const Tensor& like = inputs.floats[n];
    Size size(like.sizes().begin(), like.sizes().end());
    if (n == 2 && !inputs.has_edge) size = {inputs.edges(), 0};
    if (n == 10) size = {1};
    found[n] = empty(x, needs >> n & 1 ? size : Size{0});
  }
  dispatch(x, [&]<class T>() {
    const Arguments<T> a = inputs.read<T>();
    T* to[kGradients];
    for (int n = 0; n < kGradients; ++n) to[n] = needs >> n & 1 ? out<T>(found[n]) : nullptr;
    const auto read = [](const Maybe& t) { return t ? in<T>(*t) : nullptr; };
    backward<T>(a, in<T>(g_coordinates), in<T>(g_features), {read(nodes), read(pre2), read(pre3)}, to);
  });
  return std::apply([](const auto&... x) { return Eleven{x...}; }, found);
}

}  // namespace

#define SCHEMA                                                                                                       \
  "Tensor x, Tensor h, Tensor? edge, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3, "   \
  "Tensor bias3, Tensor weight4, Tensor? bias4, Tensor source_index, Tensor source_order, Tensor source_ptr, "       \
  "Tensor target_index, Tensor target_order, Tensor target_ptr, bool mean"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("egnn_message(" SCHEMA ", bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("egnn_message_bwd(Tensor g_coordinates, Tensor g_features, " SCHEMA ", Tensor? nodes, Tensor? pre2, "
        "Tensor? pre3, int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("egnn_message", TORCH_BOX(&egnn_message));
  m.impl("egnn_message_bwd", TORCH_BOX(&egnn_message_bwd));
}
