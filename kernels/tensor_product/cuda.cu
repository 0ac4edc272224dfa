// tensor_product and gated_tensor_product on CUDA: which kernels run for a table.
#include "elementwise.cuh"
#include "general.cuh"

#include <algorithm>
#include <optional>
#include <tuple>

namespace {

using namespace ace;
using namespace ace::product;
using Ints = std::vector<int64_t>;

constexpr int64_t kRowsApart = 64, kStretches = 64;  // a sum over rows: at least so many in a stretch, at most so many

struct Static {
  const Ints &dims, &paths, &slots;
  int64_t dim1() const { return dims[0]; }
  int64_t dim2() const { return dims[1]; }
  int64_t dim3() const { return dims[2]; }
  bool ir_mul() const { return dims[3] != 0; }
  int biases() const {
    int64_t n = 0;
    for (size_t s = 1; s < slots.size(); s += 2) n += slots[s];
    return static_cast<int>(n);
  }
};

// Rows whose terms one block adds, a number that depends on Z alone.
int64_t stretch_rows(int64_t Z) { return std::max(kRowsApart, ceil_div(Z, kStretches)); }

Slots read_slots(const Ints& flat) {
  STD_TORCH_CHECK(flat.size() <= 2 * kSlices, "tensor_product: bias_slots must be at most ", kSlices, " slices, got ",
                  flat.size() / 2);
  Slots slots{static_cast<int>(flat.size() / 2), {}, {}};
  for (int s = 0; s < slots.count; ++s) {
    slots.offset[s] = static_cast<int>(flat[2 * s]);
    slots.length[s] = static_cast<int>(flat[2 * s + 1]);
  }
  return slots;
}

template <class T>
struct Call {
  const Static& fixed;
  std::vector<Path> paths;
  Operands<T> in;
  int64_t Z;
  const Stream& stream;

  // f(paths of one launch, bytes of shared memory for one row of the largest of them)
  template <class F>
  void launches(F&& f) const {
    for (size_t first = 0; first < paths.size(); first += kPaths) {
      Paths some{static_cast<int>(std::min<size_t>(kPaths, paths.size() - first)), {}};
      std::copy_n(paths.begin() + first, some.count, some.path);
      f(some);
    }
  }

  static size_t columns(const Paths& some, bool backward) {
    int most = 0;
    for (int n = 0; n < some.count; ++n) {
      const Path& p = some.path[n];
      most = std::max(most, backward ? 2 * p.d3 + p.d1 + p.d2 : p.d3);
    }
    return most * kPairs * sizeof(T);
  }

  void start(const T* bias, T* out) const {
    const int64_t size = Z * fixed.dim3();
    stream.launch("start_kernel", start_kernel<T>, grid(ceil_div(size, kThreads)), kThreads, 0, read_slots(fixed.slots),
                  bias, out, size, fixed.dim3());
  }

  void forward(T* out) const {
    launches([&](const Paths& some) {
      stream.launch("general_fwd_kernel", general_fwd_kernel<T>, grid(Z), kPairs, columns(some, false), some, in, out,
                    fixed.dim3());
    });
  }

  void backward(const Gradients<T>& to, int64_t rows) const {
    launches([&](const Paths& some) {
      stream.launch("general_bwd_kernel", general_bwd_kernel<T>, grid(ceil_div(Z, rows)), kPairs, columns(some, true),
                    some, in, to, Z, static_cast<int>(rows));
    });
  }

  // Gradient of shared weights: stretches of rows, then their sum.
  void backward_shared(T* g_weight, int64_t n, const Tensor& like) const {
    const int64_t rows = stretch_rows(Z), stretches = ceil_div(Z, rows);
    const Tensor part = empty(like, {stretches * n});
    stream.zero(out<T>(part), stretches * n * sizeof(T));
    backward({nullptr, nullptr, out<T>(part), 0, 0, n}, rows);
    reduce(in_part(part), g_weight, n, stretches);
  }

  void bias_gradient(T* g_bias, const Tensor& like) const {
    const int64_t rows = stretch_rows(Z), stretches = ceil_div(Z, rows), n = fixed.biases();
    const Tensor part = empty(like, {stretches * n});
    stream.launch("bias_bwd_kernel", bias_bwd_kernel<T>, grid(stretches, ceil_div(n, 32)), kThreads, 0,
                  read_slots(fixed.slots), in.g, in.ld_g, Z, rows, out<T>(part), static_cast<int>(n));
    reduce(in_part(part), g_bias, n, stretches);
  }

  static const T* in_part(const Tensor& part) { return ace::in<T>(part); }

  void reduce(const T* part, T* to, int64_t n, int64_t stretches) const {
    stream.launch("reduce_kernel", reduce_kernel<T>, grid(ceil_div(n, kThreads)), kThreads, 0, part, to, n,
                  static_cast<int>(stretches));
  }
};

template <class T>
Operands<T> operands(const Tensor* g, const Tensor& x1, const Tensor& x2, const Tensor& weight, const Tensor& index,
                     const Tensor& value, const Static& fixed) {
  return {g ? in<T>(*g) : nullptr, in<T>(x1), in<T>(x2), in<T>(weight), g ? g->stride(0) : 0, x1.stride(0), x2.stride(0),
          weight.dim() == 2 ? weight.size(1) : 0, {in<int64_t>(index), in<double>(value)}, fixed.ir_mul()};
}

Tensor forward(const Tensor& x1_, const Tensor& x2_, const Tensor& weight_, const std::optional<Tensor>& bias_,
               const Tensor& index_, const Tensor& value_, const Static& fixed) {
  const Tensor x1 = dense_rows(x1_), x2 = dense_rows(x2_), weight = dense(weight_);
  const Tensor index = dense(index_), value = dense(value_), bias = bias_ ? dense(*bias_) : weight;
  const int64_t Z = x1.size(0);
  Tensor y = empty(x1, {Z, fixed.dim3()});  // [Z, dim_out]
  const Stream stream(x1);
  dispatch(x1, [&]<class T>() {
    const Call<T> call{fixed, read_paths(fixed.paths), operands<T>(nullptr, x1, x2, weight, index, value, fixed), Z,
                       stream};
    call.start(bias_ ? in<T>(bias) : nullptr, out<T>(y));
    call.forward(out<T>(y));
  });
  return y;
}

// Gradients of x1, x2, weight and bias; bit n of `needs` asks for the n-th, the others are empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& g_, const Tensor& x1_, const Tensor& x2_,
                                                    const Tensor& weight_, const Tensor& index_, const Tensor& value_,
                                                    const Static& fixed, int64_t needs) {
  const Tensor g = dense_rows(g_), x1 = dense_rows(x1_), x2 = dense_rows(x2_), weight = dense(weight_);
  const Tensor index = dense(index_), value = dense(value_);
  const int64_t Z = x1.size(0);
  const bool need_x1 = needs & 1, need_x2 = needs & 2, need_weight = needs & 4, need_bias = needs & 8;
  const bool per_row = weight.dim() == 2;
  const auto like = [&](bool need, Ints size) { return empty(x1, need ? size : Ints{0}); };
  const int64_t n = weight.size(per_row ? 1 : 0);
  Tensor g_x1 = like(need_x1, {Z, fixed.dim1()}), g_x2 = like(need_x2, {Z, fixed.dim2()});
  Tensor g_weight = like(need_weight, per_row ? Ints{Z, n} : Ints{n}), g_bias = like(need_bias, {fixed.biases()});
  const Stream stream(x1);
  dispatch(x1, [&]<class T>() {
    const Call<T> call{fixed, read_paths(fixed.paths), operands<T>(&g, x1, x2, weight, index, value, fixed), Z, stream};
    const auto start = [&](const Tensor& x, bool need) {
      if (need) stream.zero(out<T>(x), x.numel() * sizeof(T));
      return need ? out<T>(x) : nullptr;
    };
    const Gradients<T> to{start(g_x1, need_x1), start(g_x2, need_x2), start(g_weight, need_weight && per_row),
                          fixed.dim1(), fixed.dim2(), n};
    if (to.x1 || to.x2 || to.weight) call.backward(to, 1);
    if (need_weight && !per_row) call.backward_shared(out<T>(g_weight), n, x1);
    if (need_bias) call.bias_gradient(out<T>(g_bias), x1);
  });
  return {g_x1, g_x2, g_weight, g_bias};
}

GateSlices read_gate(const Ints& layout, double scalar_gain, double gate_gain, const Ints& dims) {
  STD_TORCH_CHECK(layout.size() <= 2 + 2 * kSlices, "gated_tensor_product: layout must be at most ", kSlices,
                  " slices, got ", (layout.size() - 2) / 2);
  GateSlices gate{static_cast<int>(layout[0]), static_cast<int>(layout[1]), 0, {}, {}, dims[3] != 0, scalar_gain,
                  gate_gain};
  for (size_t n = 2; n + 1 < layout.size(); n += 2) {
    gate.mul[gate.count] = static_cast<int>(layout[n]);
    gate.d[gate.count++] = static_cast<int>(layout[n + 1]);
  }
  return gate;
}

Tensor tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias, Tensor index, Tensor value,
                      Ints dims, Ints paths, Ints slots) {
  return forward(x1, x2, weight, bias, index, value, {dims, paths, slots});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight,
                                                              Tensor index, Tensor value, Ints dims, Ints paths,
                                                              Ints slots, int64_t needs) {
  return backward(g, x1, x2, weight, index, value, {dims, paths, slots}, needs);
}

std::tuple<Tensor, Tensor> gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                Tensor index, Tensor value, Ints dims, Ints paths, Ints slots,
                                                Ints layout, double scalar_gain, double gate_gain) {
  const Tensor pre = forward(x1, x2, weight, bias, index, value, {dims, paths, slots});
  const GateSlices gate = read_gate(layout, scalar_gain, gate_gain, dims);
  const int64_t Z = pre.size(0), dim = pre.size(1), size = Z * (dim - gate.gates);
  Tensor y = empty(pre, {Z, dim - gate.gates});
  const Stream stream(pre);
  dispatch(pre, [&]<class T>() {
    stream.launch("gate_fwd_kernel", gate_fwd_kernel<T>, grid(ceil_div(size, kThreads)), kThreads, 0, gate, in<T>(pre),
                  out<T>(y), size, static_cast<int>(dim));
  });
  return {y, pre};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_tensor_product_bwd(Tensor g_, Tensor pre_, Tensor x1, Tensor x2,
                                                                    Tensor weight, Tensor index, Tensor value,
                                                                    Ints dims, Ints paths, Ints slots, Ints layout,
                                                                    double scalar_gain, double gate_gain,
                                                                    int64_t needs) {
  const Tensor g = dense(g_), pre = dense(pre_);
  const GateSlices gate = read_gate(layout, scalar_gain, gate_gain, dims);
  Tensor g_pre = empty(pre, {pre.size(0), pre.size(1)});
  const Stream stream(pre);
  dispatch(pre, [&]<class T>() {
    const int64_t size = pre.numel();
    stream.launch("gate_bwd_kernel", gate_bwd_kernel<T>, grid(ceil_div(size, kThreads)), kThreads, 0, gate, in<T>(g),
                  in<T>(pre), out<T>(g_pre), size, static_cast<int>(pre.size(1)));
  });
  return backward(g_pre, x1, x2, weight, index, value, {dims, paths, slots}, needs);
}

}  // namespace

#define TABLES "Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, int[] bias_slots"
#define GATE "int[] layout, float scalar_gain, float gate_gain"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ") -> Tensor");
  m.def("tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, " TABLES
        ", int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ", " GATE
        ") -> (Tensor, Tensor)");
  m.def("gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, " TABLES ", " GATE
        ", int needs) -> (Tensor, Tensor, Tensor, Tensor)");
}

ACE_CUDA_IMPL(m) {
  m.impl("tensor_product", TORCH_BOX(&tensor_product));
  m.impl("tensor_product_bwd", TORCH_BOX(&tensor_product_bwd));
  m.impl("gated_tensor_product", TORCH_BOX(&gated_tensor_product));
  m.impl("gated_tensor_product_bwd", TORCH_BOX(&gated_tensor_product_bwd));
}
