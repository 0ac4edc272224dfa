// tensor_product, alone, gated and normed, its second derivative, and what follows it alone: which code runs for a table.
// Products of many channels with one run by rows (by_channels.h), all others by blocks of rows (by_blocks.h). Sums over
// rows are taken per chunk of blocks, then over chunks: their order does not depend on the number of threads.
#include "by_blocks.h"
#include "by_channels.h"

namespace {

using namespace ace;
using namespace ace::product;

// ---- epilogues ------------------------------------------------------------------------------------------------------

int64_t dim_out(const Epilogue& e) {
  return std::visit([](const auto& f) { return f.dim_out(); }, e);
}

// pre [Z, dim] -> [Z, dim out]
Tensor apply(const Tensor& pre_, const Epilogue& epilogue, bool ir_mul) {
  const Tensor pre = dense(pre_);
  const int64_t rows = pre.size(0), dim = pre.size(1), width = dim_out(epilogue);
  Tensor result = in_huge_pages(empty(pre, {rows, width}));
  dispatch(pre, [&]<class T>() {
    std::visit([&](const auto& f) {
      const std::vector<Slice> from = f.slices_in(ir_mul), to = f.slices_out(ir_mul);
      Chunks(rows).run([&](int64_t, auto&& visit) {
        const Scratch<T> x(dim * kRows), y(width * kRows);
        visit([&](int64_t z, int64_t n) {
          load_rows<T>(rows_from(in<T>(pre), z, n, dim), from, x);
          f.template forward<T>(x, y);
          store_rows<T>(y, to, rows_from(out<T>(result), z, n, width));
        });
      });
    }, epilogue);
  });
  return result;
}

// Gradients of pre and of the parameters from g [Z, dim out].
std::tuple<Tensor, Tensor> apply_backward(const Tensor& g_, const Tensor& pre_, const Epilogue& epilogue, bool ir_mul) {
  const Tensor g = dense(g_), pre = dense(pre_);
  const int64_t rows = pre.size(0), dim = pre.size(1), width = dim_out(epilogue);
  const int64_t parameters = std::visit([](const auto& f) { return f.parameters(); }, epilogue);
  Tensor g_pre = in_huge_pages(empty(pre, {rows, dim})), g_parameters = empty(pre, {parameters});
  dispatch(pre, [&]<class T>() {
    std::visit([&](const auto& f) {
      const std::vector<Slice> from = f.slices_in(ir_mul), to = f.slices_out(ir_mul);
      const Chunks chunks(rows);
      const Partial<T> partial(chunks.count, parameters);
      chunks.run([&](int64_t chunk, auto&& visit) {
        const Scratch<T> x(dim * kRows), y(width * kRows);
        T* sums = partial.start(chunk);
        visit([&](int64_t z, int64_t n) {
          load_rows<T>(rows_from(in<T>(pre), z, n, dim), from, x);
          load_rows<T>(rows_from(in<T>(g), z, n, width), to, y);
          f.template backward<T>(y, x, parameters ? sums : nullptr);
          store_rows<T>(x, from, rows_from(out<T>(g_pre), z, n, dim));
        });
      });
      partial.add(0, parameters, out<T>(g_parameters));
    }, epilogue);
  });
  return {g_pre, g_parameters};
}

// ---- products -------------------------------------------------------------------------------------------------------

// f(ByChannels or ByBlocks) with what runs the table.
template <class T, class F>
void run(const Call& call, F&& f) {
  const std::vector<Path> paths = read_paths<T>(call.paths, call.index, call.value, true);
  const Layout layout(paths, call.dims);
  if (ChannelPlan<T>::takes(paths)) f(ByChannels<T>(call, paths, layout));
  else f(ByBlocks<T>(call, paths, layout));
}

// (out, pre): pre [Z, dims[2]], and with an epilogue out. It is fused in blocks of rows in mul_ir; in ir_mul, where its
// slices need not be the product's, it runs on its own.
std::tuple<Tensor, Tensor> forward(const Call& call, const std::optional<Tensor>& bias_, const Epilogue* epilogue) {
  const std::optional<Tensor> bias = bias_ ? std::optional<Tensor>(dense(*bias_)) : std::nullopt;
  Tensor pre = in_huge_pages(empty(call.x1, {call.rows(), call.dims[2]})), result = pre;
  bool fused = false;
  dispatch(call.x1, [&]<class T>() {
    const T* b = bias ? in<T>(*bias) : nullptr;
    run<T>(call, [&](const auto& product) {
      if constexpr (requires { product.forward(b, epilogue, pre, result); }) {
        fused = epilogue && !call.ir_mul();
        if (fused) result = in_huge_pages(empty(call.x1, {call.rows(), dim_out(*epilogue)}));
        product.forward(b, fused ? epilogue : nullptr, pre, result);
      } else {
        product.forward(b, pre);
      }
    });
  });
  return {epilogue && !fused ? apply(pre, *epilogue, call.ir_mul()) : result, pre};
}

// Gradients of x1, x2, weight, bias and the epilogue's parameters.
Gradients backward(const Call& call, const Tensor& g_, const Tensor* pre_, const Epilogue* epilogue, int64_t needs) {
  const Tensor g = dense(g_), pre = pre_ ? dense(*pre_) : g;
  const int64_t parameters = epilogue ? std::visit([](const auto& f) { return f.parameters(); }, *epilogue) : 0;
  Gradients to(call, needs, parameters);
  const auto alone = [&] {  // the epilogue's part of the gradient
    if (!epilogue) return g;
    const auto [g_pre, g_parameters] = apply_backward(g, pre, *epilogue, call.ir_mul());
    if (to.need_parameters) to.parameters = g_parameters;
    return g_pre;
  };
  dispatch(call.x1, [&]<class T>() {
    run<T>(call, [&](const auto& product) {
      if constexpr (requires { product.backward(g, pre, epilogue, parameters, to); }) {
        if (!call.ir_mul()) return product.backward(g, pre, epilogue, parameters, to);
        const Tensor g_pre = alone();
        const bool need = std::exchange(to.need_parameters, false);
        product.backward(g_pre, g_pre, nullptr, 0, to);
        to.need_parameters = need;
      } else {
        product.backward(alone(), to);
      }
    });
  });
  return to;
}

Call make_call(const Tensor& x1, const Tensor& x2, const Tensor& weight, const Tensor& index, const Tensor& value,
               const Ints& dims, const Ints& paths, const Ints& slots) {
  return {dense(x1), dense(x2), dense(weight), dense(index), dense(value), dims, paths, slots};
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias, Tensor index, Tensor value,
                      Ints dims, Ints paths, Ints slots) {
  return std::get<1>(forward(make_call(x1, x2, weight, index, value, dims, paths, slots), bias, nullptr));
}

Four tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, Tensor index, Tensor value, Ints dims, Ints paths,
                        Ints slots, int64_t needs) {
  const Gradients to =
      backward(make_call(x1, x2, weight, index, value, dims, paths, slots), g, nullptr, nullptr, needs);
  return {to.x1, to.x2, to.weight, to.bias};
}

// Gradients of g, x1, x2 and weight.
Four tensor_product_bwd_bwd(Tensor g_, Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> gg_x1,
                            std::optional<Tensor> gg_x2, std::optional<Tensor> gg_weight, Tensor index, Tensor value,
                            Ints dims, Ints paths, Ints slots, int64_t needs) {
  const Call call = make_call(x1, x2, weight, index, value, dims, paths, slots);
  const auto made_dense = [](const std::optional<Tensor>& x) { return x ? std::optional<Tensor>(dense(*x)) : x; };
  const Cotangents cotangents{made_dense(gg_x1), made_dense(gg_x2), made_dense(gg_weight)};
  const Tensor g = dense(g_);
  Gradients to(call, needs >> 1 & 7);
  Tensor g_g = in_huge_pages(empty(g, needs & 1 ? Ints{call.rows(), dims[2]} : Ints{0}));
  dispatch(call.x1, [&]<class T>() {
    run<T>(call, [&](const auto& product) { product.second(g, cotangents, needs & 1 ? &g_g : nullptr, to); });
  });
  return {g_g, to.x1, to.x2, to.weight};
}

std::tuple<Tensor, Tensor> gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                Tensor index, Tensor value, Ints dims, Ints paths, Ints slots,
                                                Ints layout, double scalar_gain, double gate_gain) {
  const Epilogue gate = Gate(layout, scalar_gain, gate_gain);
  return forward(make_call(x1, x2, weight, index, value, dims, paths, slots), bias, &gate);
}

Four gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, Tensor index, Tensor value,
                              Ints dims, Ints paths, Ints slots, Ints layout, double scalar_gain, double gate_gain,
                              int64_t needs) {
  const Epilogue gate = Gate(layout, scalar_gain, gate_gain);
  const Gradients to = backward(make_call(x1, x2, weight, index, value, dims, paths, slots), g, &pre, &gate, needs);
  return {to.x1, to.x2, to.weight, to.bias};
}

std::tuple<Tensor, Tensor> normed_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                 std::optional<Tensor> norm_bias, Tensor index, Tensor value, Ints dims,
                                                 Ints paths, Ints slots, Ints layout, int64_t activation,
                                                 double epsilon) {
  const Epilogue norm = Norm(layout, activation, epsilon, norm_bias);
  return forward(make_call(x1, x2, weight, index, value, dims, paths, slots), bias, &norm);
}

Five normed_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> norm_bias,
                               Tensor index, Tensor value, Ints dims, Ints paths, Ints slots, Ints layout,
                               int64_t activation, double epsilon, int64_t needs) {
  const Epilogue norm = Norm(layout, activation, epsilon, norm_bias);
  const Gradients to = backward(make_call(x1, x2, weight, index, value, dims, paths, slots), g, &pre, &norm, needs);
  return {to.x1, to.x2, to.weight, to.bias, to.parameters};
}

Tensor gate(Tensor pre, Ints layout, double scalar_gain, double gate_gain, bool ir_mul) {
  return apply(pre, Gate(layout, scalar_gain, gate_gain), ir_mul);
}

Tensor gate_bwd(Tensor g, Tensor pre, Ints layout, double scalar_gain, double gate_gain, bool ir_mul) {
  return std::get<0>(apply_backward(g, pre, Gate(layout, scalar_gain, gate_gain), ir_mul));
}

Tensor norm_activation(Tensor pre, std::optional<Tensor> norm_bias, Ints layout, int64_t activation, double epsilon,
                       bool ir_mul) {
  return apply(pre, Norm(layout, activation, epsilon, norm_bias), ir_mul);
}

std::tuple<Tensor, Tensor> norm_activation_bwd(Tensor g, Tensor pre, std::optional<Tensor> norm_bias, Ints layout,
                                               int64_t activation, double epsilon, bool ir_mul) {
  return apply_backward(g, pre, Norm(layout, activation, epsilon, norm_bias), ir_mul);
}

}  // namespace

#define TABLES "Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, int[] bias_slots"
#define GATE "int[] layout, float scalar_gain, float gate_gain"
#define NORM "int[] layout, int activation, float epsilon"
#define FOUR " -> (Tensor, Tensor, Tensor, Tensor)"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ") -> Tensor");
  m.def("tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, " TABLES ", int needs)" FOUR);
  m.def("tensor_product_bwd_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, Tensor? gg_x1, Tensor? gg_x2, "
        "Tensor? gg_weight, " TABLES ", int needs)" FOUR);
  m.def("gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ", " GATE
        ") -> (Tensor, Tensor)");
  m.def("gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, " TABLES ", " GATE
        ", int needs)" FOUR);
  m.def("normed_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, Tensor? norm_bias, " TABLES ", " NORM
        ") -> (Tensor, Tensor)");
  m.def("normed_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, Tensor? norm_bias, " TABLES
        ", " NORM ", int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gate(Tensor pre, " GATE ", bool ir_mul) -> Tensor");
  m.def("gate_bwd(Tensor g, Tensor pre, " GATE ", bool ir_mul) -> Tensor");
  m.def("norm_activation(Tensor pre, Tensor? norm_bias, " NORM ", bool ir_mul) -> Tensor");
  m.def("norm_activation_bwd(Tensor g, Tensor pre, Tensor? norm_bias, " NORM ", bool ir_mul) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("tensor_product", TORCH_BOX(&tensor_product));
  m.impl("tensor_product_bwd", TORCH_BOX(&tensor_product_bwd));
  m.impl("tensor_product_bwd_bwd", TORCH_BOX(&tensor_product_bwd_bwd));
  m.impl("gated_tensor_product", TORCH_BOX(&gated_tensor_product));
  m.impl("gated_tensor_product_bwd", TORCH_BOX(&gated_tensor_product_bwd));
  m.impl("normed_tensor_product", TORCH_BOX(&normed_tensor_product));
  m.impl("normed_tensor_product_bwd", TORCH_BOX(&normed_tensor_product_bwd));
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("gate_bwd", TORCH_BOX(&gate_bwd));
  m.impl("norm_activation", TORCH_BOX(&norm_activation));
  m.impl("norm_activation_bwd", TORCH_BOX(&norm_activation_bwd));
}
