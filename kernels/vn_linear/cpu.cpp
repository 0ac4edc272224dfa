// vn_linear: W x I3 + gamma D folded into one matrix on its way into the product's panels, its gradient unfolded.
#include "native.h"
#include "norms.h"

namespace {

namespace gemm = ace::gemm;
using ace::ceil_div, ace::in, ace::lanes, ace::out, ace::round_up, ace::Scratch, ace::Tensor, ace::Vec;
using Maybe = std::optional<Tensor>;

Maybe dense(const Maybe& x) { return x ? Maybe(ace::dense(*x)) : x; }
Maybe dense_rows(const Maybe& x) { return x ? Maybe(ace::dense_rows(*x)) : x; }

template <class T>
const T* maybe(const Maybe& x) { return x ? in<T>(*x) : nullptr; }

// x, y and z of a channel, side by side in `from`, to rows of their own; where `centre` is given, centre - from.
template <class T>
void part(const T* __restrict from, const T* __restrict centre, T gamma, int64_t n, T* __restrict to) {
  T *__restrict x = to, *__restrict y = to + n, *__restrict z = to + 2 * n;
  if (centre)
    for (int64_t c = 0; c < n; ++c) {
      x[c] = gamma * (centre[3 * c] - from[3 * c]);
      y[c] = gamma * (centre[3 * c + 1] - from[3 * c + 1]);
      z[c] = gamma * (centre[3 * c + 2] - from[3 * c + 2]);
    }
  else
    for (int64_t c = 0; c < n; ++c) {
      x[c] = gamma * from[3 * c];
      y[c] = gamma * from[3 * c + 1];
      z[c] = gamma * from[3 * c + 2];
    }
}

// The way back: to[3 c + a] = from[a n + c], less that of `centre` where it is given.
template <class T>
void join(const T* __restrict from, const T* __restrict centre, int64_t n, T* __restrict to) {
  const T *__restrict x = from, *__restrict y = from + n, *__restrict z = from + 2 * n;
  if (centre) {
    const T *__restrict u = centre, *__restrict v = centre + n, *__restrict w = centre + 2 * n;
    for (int64_t c = 0; c < n; ++c) {
      to[3 * c] = x[c] - u[c];
      to[3 * c + 1] = y[c] - v[c];
      to[3 * c + 2] = z[c] - w[c];
    }
  } else {
    for (int64_t c = 0; c < n; ++c) {
      to[3 * c] = x[c];
      to[3 * c + 1] = y[c];
      to[3 * c + 2] = z[c];
    }
  }
}

// M as the product sees it: [inner, width] from rows [rows, inner]; without D of x [3R, C], else of x [R, 3C].
template <class T>
struct Map {
  const T *weight, *dense, *bias;  // [O, C or 2C], [3O, 3C or 6C], [3O]
  int64_t weight_stride, dense_stride;
  T gamma;
  int64_t channels, outputs;
  bool edge;

  int64_t blocks() const { return dense ? 3 : 1; }
  int64_t inner() const { return blocks() * channels; }
  int64_t parts() const { return edge ? 2 * outputs : outputs; }
  int64_t width() const { return blocks() * parts(); }

  // Column n of M.
  void column(int64_t n, T* to) const {
    const int64_t b = n / parts(), part_of = n % parts(), o = part_of % outputs;
    const bool centre = part_of >= outputs;
    if (dense) {
      const T* row = dense + (3 * o + b) * dense_stride;
      part<T>(row, centre ? row + 3 * channels : nullptr, gamma, channels, to);
    } else {
      std::fill_n(to, channels, T(0));
    }
    const T* row = weight + o * weight_stride;
    T* block = to + b * channels;
    for (int64_t c = 0; c < channels; ++c) block[c] += centre ? row[channels + c] - row[c] : row[c];
  }

  // M in panels, columns turned in registers.
  void pack(T* to) const {
    constexpr int64_t L = lanes<T>, W = gemm::kPanel<T>;
    const int64_t k = inner(), ld = round_up<T>(k), n = width();
    ace::parallel(ceil_div(n, L), ceil_div(30000, L * k + 1), [&](int64_t group) {
      const Scratch<T> rows(L * ld);
      const int64_t first = group * L, count = std::min(L, n - first);
      for (int64_t r = 0; r < count; ++r) column(first + r, rows + r * ld);
      std::fill(rows + count * ld, rows + L * ld, T(0));
      ace::transpose<T>(rows, L, k, ld, to + first / W * W * k + first % W, W);
    });
  }

  // M^T in panels.
  void pack_transposed(T* to) const {
    constexpr int64_t W = gemm::kPanel<T>, step = 8;
    const int64_t k = inner(), n = width();
    ace::parallel(ceil_div(n, step), ceil_div(30000, step * k + 1), [&](int64_t group) {
      const Scratch<T> rows(step * k);
      const int64_t first = group * step, count = std::min(step, n - first);
      for (int64_t r = 0; r < count; ++r) column(first + r, rows + r * k);
      gemm::pack_panels<T, W>(count, k, rows, k, to + first * W, n);
    });
  }

  // gamma times the bias (of an edge with its centre) plus each row of the offset, in the order of the columns.
  void constants(const T* offset, int64_t rows, T* to) const {
    const int64_t n = width(), ld = round_up<T>(n);
    for (int64_t r = 0; r < rows; ++r, to += ld) {
      std::fill_n(to, ld, T(0));
      if (offset) std::copy_n(offset + r * n, n, to);
      for (int64_t b = 0; bias && b < blocks(); ++b)
        for (int64_t o = 0; o < outputs; ++o) to[b * parts() + parts() - outputs + o] += gamma * bias[3 * o + b];
    }
  }

  void forward(const T* x, int64_t count, const T* offset, int64_t groups, T* y) const {
    constexpr int64_t W = gemm::kPanel<T>;
    const int64_t n = width(), xyz = 3 / blocks(), rows = count * xyz;
    const int64_t group = offset ? count / groups : count, ld = round_up<T>(n);
    const Scratch<T> panels(gemm::panels_size<T>(inner(), n)), constant(offset ? groups * xyz * ld : ld);
    pack(panels);
    constants(offset, offset ? groups * xyz : 1, constant);
    const auto origin = [&](int64_t r) { return constant + (offset ? r / xyz / group * xyz + r % xyz : 0) * ld; };
    const auto start = [&](int64_t i, int64_t height, int64_t j, T* scratch) -> gemm::From<T> {
      if (!bias && !offset) return {nullptr, 0};
      if (origin(i) == origin(i + height - 1) && (xyz == 1 || !offset)) return {origin(i) + j, 0};
      for (int64_t r = 0; r < height; ++r) std::copy_n(origin(i + r) + j, std::min(W, ld - j), scratch + r * W);
      return {scratch, W};
    };
    gemm::multiply<T>(rows, n, inner(), gemm::Left<T>::rows(x, inner()), panels, y, n, false, start);
  }

  void input(const T* g, int64_t count, T* g_x) const {
    const int64_t n = width();
    const Scratch<T> panels(gemm::panels_size<T>(n, inner()));
    pack_transposed(panels);
    gemm::multiply<T>(count * (3 / blocks()), inner(), n, gemm::Left<T>::rows(g, n), panels, g_x, inner(), false,
                      gemm::from_zero<T>);
  }

  // Of the parameters, null where not needed, from dM^T [width, inner] with the sum of g in one column more.
  void parameters(const T* g, const T* x, int64_t count, T* g_weight, T* g_dense, T* g_bias, T* g_gamma) const {
    const int64_t k = inner(), n = width(), ld = (round_up<T>(k + 1) / lanes<T> | 1) * lanes<T>;  // odd: no aliasing
    const Scratch<T> matrix(n * ld);
    const Scratch<double> terms(outputs);
    gemm::multiply_transposed<T>(n, k, count * (3 / blocks()), g, n, x, k, matrix, ld, g_bias || (bias && g_gamma));
    ace::parallel(outputs, ceil_div(30000, 3 * blocks() * k + 1), [&](int64_t o) {
      const int64_t wide = edge ? 2 * k : k;
      const Scratch<T> row(wide);
      T* weight_row = g_weight ? g_weight + o * wide / blocks() : nullptr;
      if (weight_row) std::fill_n(weight_row, wide / blocks(), T(0));
      terms[o] = 0;
      for (int64_t b = 0; b < blocks(); ++b) {
        const T* near = matrix + (b * parts() + o) * ld;
        const T* centre = edge ? near + outputs * ld : nullptr;
        if (weight_row) add_weight(near + b * channels, centre ? centre + b * channels : nullptr, weight_row);
        const int64_t i = 3 * o + b;
        if (g_dense || g_gamma) {
          join<T>(near, centre, channels, row);
          if (centre) join<T>(centre, nullptr, channels, row + k);
          terms[o] += finish_dense(row, wide, dense + i * dense_stride, g_dense ? g_dense + i * wide : nullptr);
        }
        const T sum = (centre ? centre : near)[k];
        if (g_bias) g_bias[i] = gamma * sum;
        if (bias && g_gamma) terms[o] += static_cast<double>(sum) * bias[i];
      }
    });
    if (!g_gamma) return;
    double dot = 0;
    for (int64_t o = 0; o < outputs; ++o) dot += terms[o];
    *g_gamma = static_cast<T>(dot);
  }

  void add_weight(const T* __restrict near, const T* __restrict centre, T* __restrict to) const {
    for (int64_t c = 0; c < channels; ++c) to[c] += centre ? near[c] - centre[c] : near[c];
    for (int64_t c = 0; centre && c < channels; ++c) to[channels + c] += centre[c];
  }

  // gamma times a row of dM; returns the row's part of <dM, D>.
  double finish_dense(const T* d_matrix, int64_t n, const T* matrix, T* to) const {
    Vec<T> dot{};
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const Vec<T> d = ace::load_first(d_matrix + j, n - j);
      dot += d * ace::load_first(matrix + j, n - j);
      if (to) ace::store_first(to + j, d * gamma, n - j);
    }
    double sum = 0;
    for (int l = 0; l < lanes<T>; ++l) sum += dot[l];
    return sum;
  }
};

template <class T>
Map<T> map_of(const Tensor& x, const Tensor& weight, const Maybe& matrix, const Maybe& bias, const Maybe& gamma,
              bool edge) {
  return {in<T>(weight), maybe<T>(matrix), maybe<T>(bias), weight.stride(0), matrix ? matrix->stride(0) : 0,
          gamma ? *in<T>(*gamma) : T(1), x.size(2), weight.size(0), edge};
}

Tensor vn_linear(Tensor x_, Tensor weight_, Maybe dense_, Maybe bias_, Maybe gamma, Maybe offset_, bool edge) {
  const Tensor x = ace::dense(x_), weight = ace::dense_rows(weight_);  // [R, 3, C], [O, C or 2C]
  const Maybe matrix = dense_rows(dense_), bias = dense(bias_);        // [3O, 3C or 6C], [3O]
  const Maybe offset = dense(offset_);                                 // [G, 3, O or 2O]
  Tensor result = ace::empty(x, {x.size(0), 3, weight.size(0) * (edge ? 2 : 1)});
  if (x.size(0) > 0)
    ace::dispatch(x, [&]<class T>() {
      map_of<T>(x, weight, matrix, bias, gamma, edge)
          .forward(in<T>(x), x.size(0), maybe<T>(offset), offset ? offset->size(0) : 1, out<T>(result));
    });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vn_linear_bwd(
    Tensor g_, Tensor x_, Tensor weight_, Maybe dense_, Maybe bias_, Maybe gamma, bool edge, bool need_x,
    bool need_weight, bool need_dense, bool need_bias, bool need_gamma) {
  const Tensor g = ace::dense(g_), x = ace::dense(x_), weight = ace::dense_rows(weight_);
  const Maybe matrix = dense_rows(dense_), bias = dense(bias_);
  const auto make = [&](bool need, const Tensor* like) {
    std::vector<int64_t> size;
    for (int64_t i = 0; like && i < like->dim(); ++i) size.push_back(like->size(i));
    return ace::empty(g, need ? size : std::vector<int64_t>{0});
  };
  Tensor g_x = make(need_x, &x), g_weight = make(need_weight, &weight);
  Tensor g_dense = make(need_dense, matrix ? &*matrix : nullptr), g_bias = make(need_bias, bias ? &*bias : nullptr);
  Tensor g_gamma = make(need_gamma, nullptr);
  ace::dispatch(g, [&]<class T>() {
    Map<T> map = map_of<T>(x, weight, matrix, bias, gamma, edge);
    const auto target = [](bool need, const Tensor& t) { return need ? out<T>(t) : nullptr; };
    if (need_x && x.size(0) > 0) map.input(in<T>(g), x.size(0), out<T>(g_x));
    if (!need_dense && !need_bias && !need_gamma) map.dense = nullptr;  // then a third of the products will do
    if (need_weight || map.dense)
      map.parameters(in<T>(g), in<T>(x), x.size(0), target(need_weight, g_weight), target(need_dense, g_dense),
                     target(need_bias, g_bias), target(need_gamma, g_gamma));
  });
  return {g_x, g_weight, g_dense, g_bias, g_gamma};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("vn_linear(Tensor x, Tensor weight, Tensor? dense, Tensor? bias, Tensor? gamma, Tensor? offset, bool edge)"
        " -> Tensor");
  m.def("vn_linear_bwd(Tensor g, Tensor x, Tensor weight, Tensor? dense, Tensor? bias, Tensor? gamma, bool edge, "
        "bool need_x, bool need_weight, bool need_dense, bool need_bias, bool need_gamma) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("vn_norm_stats(Tensor p) -> (Tensor, Tensor)");
  m.def("vn_norm_stats_bwd(Tensor g_mean, Tensor g_var, Tensor p, Tensor mean) -> Tensor");
  m.def("vn_leaky_relu(Tensor p, Tensor? d, Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, float eps, "
        "float slope) -> Tensor");
  m.def("vn_leaky_relu_bwd(Tensor g, Tensor p, Tensor? d, Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, "
        "float eps, float slope, bool need_p, bool need_d, bool need_mean, bool need_var, bool need_weight, "
        "bool need_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("vn_linear", TORCH_BOX(&vn_linear));
  m.impl("vn_linear_bwd", TORCH_BOX(&vn_linear_bwd));
  m.impl("vn_norm_stats", TORCH_BOX(&ace::norms::vn_norm_stats));
  m.impl("vn_norm_stats_bwd", TORCH_BOX(&ace::norms::vn_norm_stats_bwd));
  m.impl("vn_leaky_relu", TORCH_BOX(&ace::norms::vn_leaky_relu));
  m.impl("vn_leaky_relu_bwd", TORCH_BOX(&ace::norms::vn_leaky_relu_bwd));
}
