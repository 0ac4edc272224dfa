// relaxed_linear: a matrix product with the activation on its way in, and gate, bias, base and residual on its way out.
#include "vector_math.h"

namespace {

using ace::ceil_div, ace::lanes, ace::Scratch, ace::Tensor, ace::Vec;

constexpr int64_t kRows = 64;    // rows of x in flight per thread: activated input and product stay in the cache
constexpr int64_t kChunk = 256;  // rows of N summed at a time in the gradient of the weight

template <class T>
Vec<T> load_some(const T* p, int64_t count) {
  if (count >= lanes<T>) return ace::load(p);
  Vec<T> v{};
  std::memcpy(&v, p, count * sizeof(T));
  return v;
}

template <class T>
void store_some(T* p, Vec<T> v, int64_t count) {
  if (count >= lanes<T>) ace::store(p, v);
  else std::memcpy(p, &v, count * sizeof(T));
}

template <class T>
const T* maybe(const std::optional<Tensor>& x) { return x ? ace::in<T>(*x) : nullptr; }

std::optional<Tensor> dense(const std::optional<Tensor>& x) { return x ? std::optional(ace::dense(*x)) : x; }

// f(first, last) for ranges that cover 0..n-1 and start at multiples of the tile's height, on torch's threads.
template <class F>
void parallel_rows(int64_t n, int64_t flops_per_row, F&& f) {
  constexpr int64_t step = ace::kTileRows;
  const int64_t grain = std::max<int64_t>(1, 400000 / std::max<int64_t>(1, step * flops_per_row));
  if (n > 0)
    torch::stable::parallel_for(0, ceil_div(n, step), grain, [&](int64_t begin, int64_t end) {
      f(begin * step, std::min(n, end * step));
    });
}

// Whole vectors, and for rows that a product walks down not a multiple of 2 KB, which is a few sets of each cache.
template <class T>
int64_t apart(int64_t columns) {
  const int64_t ld = ace::round_up<T>(columns);
  return ld * sizeof(T) % 2048 ? ld : ld + lanes<T>;
}

// w [O, I] -> t [I][ldt]; what lies beyond O is read into columns of the product that are dropped.
template <class T>
void pack_transposed(const T* w, int64_t o_size, int64_t i_size, T* t, int64_t ldt) {
  constexpr int64_t width = 4 * lanes<T>;
  ace::parallel(ceil_div(i_size, width), ceil_div(30000, o_size * width + 1), [&](int64_t block) {
    const int64_t i = block * width;
    ace::transpose<T>(w + i, o_size, std::min(width, i_size - i), i_size, t + i * ldt, ldt);
  });
}

template <class T>
void gelu_rows(const T* x, int64_t rows, int64_t width, T* h, int64_t ldh) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < width; j += lanes<T>)
      ace::store(h + r * ldh + j, ace::gelu<T>(load_some(x + r * width + j, width - j)));
}

template <class T>
void copy_rows(const T* x, int64_t rows, int64_t width, T* h, int64_t ldh) {
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(x + r * width, width, h + r * ldh);
    std::fill(h + r * ldh + width, h + (r + 1) * ldh, T(0));
  }
}

template <class T>
struct Forward {
  const T *x, *weight, *bias, *base, *residual;
  T gamma, *out;
  int64_t n, i_size, o_size;
  bool gelu;

  void run() const {
    const int64_t ldo = apart<T>(o_size), ldi = ace::round_up<T>(i_size);
    const Scratch<T> packed(i_size * ldo);
    pack_transposed<T>(weight, o_size, i_size, packed, ldo);
    parallel_rows(n, 2 * i_size * o_size, [&](int64_t first, int64_t last) {
      const Scratch<T> h(gelu ? kRows * ldi : 0), product(kRows * ldo);
      for (int64_t r = first; r < last; r += kRows) {
        const int64_t rows = std::min(kRows, last - r);
        if (gelu) gelu_rows<T>(x + r * i_size, rows, i_size, h, ldi);
        ace::matmul<T>(rows, o_size, i_size, gelu ? h : x + r * i_size, gelu ? ldi : i_size, 1, packed, ldo, product,
                       ldo, false);
        for (int64_t k = 0; k < rows; ++k) finish(product + k * ldo, (r + k) * o_size);
      }
    });
  }

  void finish(const T* product, int64_t row) const {
    for (int64_t j = 0; j < o_size; j += lanes<T>) {
      const int64_t count = o_size - j;
      Vec<T> y = ace::load(product + j);
      if (bias) y += load_some(bias + j, count);
      y *= gamma;
      if (base) y += load_some(base + row + j, count);
      if (residual) y += load_some(residual + row + j, count);
      store_some(out + row + j, y, count);
    }
  }
};

template <class T>
struct Backward {
  const T *g, *x, *weight, *bias;
  T gamma, *g_x, *g_weight, *g_bias, *g_gamma;  // null where not needed
  int64_t n, i_size, o_size;
  bool gelu;

  void run() const {
    const int64_t ldi = apart<T>(i_size);
    const bool matrix = g_weight || g_gamma, padded = ldi != i_size;
    const Scratch<T> w_(g_x && padded ? o_size * ldi : 0), h_(matrix && (gelu || padded) ? n * ldi : 0);
    const T* w = g_x && padded ? w_ : weight;
    if (g_x && padded) copy_rows<T>(weight, o_size, i_size, w_, ldi);
    T* h = matrix && (gelu || padded) ? static_cast<T*>(h_) : nullptr;
    if (g_x || h) parallel_rows(n, 2 * i_size * o_size, [&](int64_t first, int64_t last) { input(first, last, w, h); });
    if (g_weight || g_gamma || g_bias) parameters(h ? h : x);
  }

  // g_x = gamma (g W) act'(x), and act(x) for the gradient of the weight, for rows first..last-1.
  void input(int64_t first, int64_t last, const T* w, T* h) const {
    const int64_t ldi = apart<T>(i_size);
    const Scratch<T> product(g_x ? kRows * ldi : 0);
    for (int64_t r = first; r < last; r += kRows) {
      const int64_t rows = std::min(kRows, last - r);
      if (h && !gelu) copy_rows<T>(x + r * i_size, rows, i_size, h + r * ldi, ldi);
      if (h && gelu && !g_x) gelu_rows<T>(x + r * i_size, rows, i_size, h + r * ldi, ldi);
      if (!g_x) continue;
      ace::matmul<T>(rows, i_size, o_size, g + r * o_size, o_size, 1, w, ldi, product, ldi, false);
      for (int64_t k = 0; k < rows; ++k) finish(product + k * ldi, r + k, h && gelu ? h + (r + k) * ldi : nullptr);
    }
  }

  void finish(const T* product, int64_t row, T* h) const {
    for (int64_t j = 0; j < i_size; j += lanes<T>) {
      const int64_t count = i_size - j;
      Vec<T> y = ace::load(product + j) * gamma;
      if (gelu) {
        const auto [value, slope] = ace::gelu_and_grad<T>(load_some(x + row * i_size + j, count));
        y *= slope;
        if (h) ace::store(h + j, value);
      }
      store_some(g_x + row * i_size + j, y, count);
    }
  }

  // Each thread owns rows of dM = g^T act(x) and walks all of N in chunks, so the sums do not depend on the threads.
  void parameters(const T* h) const {
    const Scratch<double> terms(o_size);
    const bool matrix = g_weight || g_gamma;
    parallel_rows(o_size, 2 * n * (matrix ? i_size : 1) + i_size, [&](int64_t first, int64_t last) {
      const int64_t ldi = apart<T>(i_size), rows = last - first;
      const Scratch<T> total(matrix ? rows * ldi : 0), part(matrix ? rows * ldi : 0), sums(rows), sum(rows);
      std::fill_n(static_cast<T*>(total), matrix ? rows * ldi : 0, T(0));
      std::fill_n(static_cast<T*>(sums), rows, T(0));
      for (int64_t r = 0; r < n; r += kChunk) {
        const int64_t depth = std::min(kChunk, n - r);
        const T* gr = g + r * o_size + first;
        if (matrix) {
          ace::matmul<T>(rows, i_size, depth, gr, 1, o_size, h + r * ldi, ldi, part, ldi, false);
          for (int64_t j = 0; j < rows * ldi; ++j) total[j] += part[j];
        }
        std::fill_n(static_cast<T*>(sum), rows, T(0));
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t j = 0; j < rows; ++j) sum[j] += gr[k * o_size + j];
        for (int64_t j = 0; j < rows; ++j) sums[j] += sum[j];
      }
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t o = first + j;
        terms[o] = matrix ? finish_weight(total + j * ldi, o) : 0.0;
        if (bias) terms[o] += static_cast<double>(sums[j]) * bias[o];
        if (g_bias) g_bias[o] = gamma * sums[j];
      }
    });
    if (!g_gamma) return;
    double dot = 0;
    for (int64_t o = 0; o < o_size; ++o) dot += terms[o];
    *g_gamma = static_cast<T>(dot);
  }

  // Row o of the weight's gradient; returns that row's part of <dM, W>.
  double finish_weight(const T* d_matrix, int64_t o) const {
    Vec<T> dot{};
    for (int64_t j = 0; j < i_size; j += lanes<T>) {
      const int64_t count = i_size - j;
      const Vec<T> d = ace::load(d_matrix + j);
      if (g_gamma) dot += load_some(weight + o * i_size + j, count) * load_some(d_matrix + j, count);
      if (g_weight) store_some(g_weight + o * i_size + j, d * gamma, count);
    }
    double sum = 0;
    for (int l = 0; l < lanes<T>; ++l) sum += dot[l];
    return sum;
  }
};

}  // namespace

static ace::Tensor relaxed_linear(ace::Tensor x_, ace::Tensor weight_, std::optional<ace::Tensor> bias_,
                                  std::optional<ace::Tensor> gamma, std::optional<ace::Tensor> base_,
                                  std::optional<ace::Tensor> residual_, bool gelu) {
  const Tensor x = ace::dense(x_), weight = ace::dense(weight_);  // [N, I], [O, I]
  const auto bias = dense(bias_), base = dense(base_), residual = dense(residual_);  // [O], [N, O], [N, O]
  Tensor result = ace::empty(x, {x.size(0), weight.size(0)});
  ace::dispatch(x, [&]<class T>() {
    const Forward<T> job{ace::in<T>(x), ace::in<T>(weight), maybe<T>(bias), maybe<T>(base), maybe<T>(residual),
                         gamma ? *ace::in<T>(*gamma) : T(1), ace::out<T>(result), x.size(0), x.size(1), weight.size(0),
                         gelu};
    job.run();
  });
  return result;
}

static std::tuple<ace::Tensor, ace::Tensor, ace::Tensor, ace::Tensor> relaxed_linear_bwd(
    ace::Tensor g_, ace::Tensor x_, ace::Tensor weight_, std::optional<ace::Tensor> bias_,
    std::optional<ace::Tensor> gamma, bool gelu, bool need_x, bool need_weight, bool need_bias, bool need_gamma) {
  const Tensor g = ace::dense(g_), x = ace::dense(x_), weight = ace::dense(weight_);  // [N, O], [N, I], [O, I]
  const auto bias = dense(bias_);  // [O]
  const int64_t n = x.size(0), i_size = x.size(1), o_size = weight.size(0);
  const auto make = [&](bool need, std::vector<int64_t> size) {
    return ace::empty(g, need ? std::move(size) : std::vector<int64_t>{0});
  };
  Tensor g_x = make(need_x, {n, i_size}), g_weight = make(need_weight, {o_size, i_size});
  Tensor g_bias = make(need_bias, {o_size}), g_gamma = make(need_gamma, {});
  ace::dispatch(g, [&]<class T>() {
    const auto target = [](bool need, const Tensor& t) { return need ? ace::out<T>(t) : nullptr; };
    const Backward<T> job{ace::in<T>(g), ace::in<T>(x), ace::in<T>(weight), maybe<T>(bias),
                          gamma ? *ace::in<T>(*gamma) : T(1), target(need_x, g_x), target(need_weight, g_weight),
                          target(need_bias, g_bias), target(need_gamma, g_gamma), n, i_size, o_size, gelu};
    job.run();
  });
  return {g_x, g_weight, g_bias, g_gamma};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("relaxed_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? base, Tensor? residual, "
        "bool gelu) -> Tensor");
  m.def("relaxed_linear_bwd(Tensor g, Tensor x, Tensor weight, Tensor? bias, Tensor? gamma, bool gelu, bool need_x, "
        "bool need_weight, bool need_bias, bool need_gamma) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("relaxed_linear", TORCH_BOX(&relaxed_linear));
  m.impl("relaxed_linear_bwd", TORCH_BOX(&relaxed_linear_bwd));
}
