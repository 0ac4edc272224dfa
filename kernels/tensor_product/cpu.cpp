// tensor_product: rows z are the vector lanes. A block of kRows rows is transposed to [component, z]; there the
// Clebsch-Gordan contraction is a handful of vector multiplications and the sum over channels is native.h's matmul,
// done on the side of the contraction with fewer components. Weight gradients are summed per chunk of blocks, then over
// chunks: the order of summation does not depend on the number of threads.
#include "block.h"
#include "channels.h"

namespace {

using namespace ace;
using namespace ace::product;

using Ints = std::vector<int64_t>;
// As in op.py: dims, paths, bias_slots.
struct Static {
  Ints dims, paths, slots;

  std::vector<Slice> biased() const {
    std::vector<Slice> found;
    for (size_t s = 0; s < slots.size(); s += 2) found.push_back({slots[s], slots[s + 1], 1});
    return found;
  }
  int64_t biases() const {
    int64_t n = 0;
    for (const Slice& s : biased()) n += s.mul;
    return n;
  }
};

// The weights [n] or [Z, n], or their gradients, of `count` rows from z on.
template <class P>
WeightsOf<P> weights_of(P data, const Tensor& weight, int64_t z, int64_t count) {
  if (weight.dim() == 1) return data;
  return rows_from(data, z, count, weight.size(1));
}

// The gate alone: out [Z, dim - gates] of pre [Z, dim], and the gradient of pre from g [Z, dim - gates].
Tensor apply_gate(const Tensor& pre_, const Gate& gate, bool ir_mul) {
  const Tensor pre = dense(pre_);
  const int64_t rows = pre.size(0), dim = gate.dim_in(), dim_out = gate.dim_out();
  const std::vector<Slice> slices_in = gate.slices_in(ir_mul), slices_out = gate.slices_out(ir_mul);
  Tensor gated = in_huge_pages(empty(pre, {rows, dim_out}));
  dispatch(pre, [&]<class T>() {
    Chunks(rows).run([&](int64_t, auto&& visit) {
      const Scratch<T> y(dim * kRows), to(dim_out * kRows);
      visit([&](int64_t z, int64_t n) {
        load_rows<T>(rows_from(in<T>(pre), z, n, dim), slices_in, y);
        gate.forward<T>(y, to);
        store_rows<T>(to, slices_out, rows_from(out<T>(gated), z, n, dim_out));
      });
    });
  });
  return gated;
}

Tensor apply_gate_backward(const Tensor& g_, const Tensor& pre_, const Gate& gate, bool ir_mul) {
  const Tensor g = dense(g_), pre = dense(pre_);
  const int64_t rows = pre.size(0), dim = gate.dim_in(), dim_out = gate.dim_out();
  const std::vector<Slice> slices_in = gate.slices_in(ir_mul), slices_out = gate.slices_out(ir_mul);
  Tensor g_pre = in_huge_pages(empty(pre, {rows, dim}));
  dispatch(pre, [&]<class T>() {
    Chunks(rows).run([&](int64_t, auto&& visit) {
      const Scratch<T> y(dim * kRows), to(dim_out * kRows);
      visit([&](int64_t z, int64_t n) {
        load_rows<T>(rows_from(in<T>(pre), z, n, dim), slices_in, y);
        load_rows<T>(rows_from(in<T>(g), z, n, dim_out), slices_out, to);
        gate.backward<T>(to, y);
        store_rows<T>(y, slices_in, rows_from(out<T>(g_pre), z, n, dim));
      });
    });
  });
  return g_pre;
}

// The product of channels, see channels.h.
template <class T>
void forward_channels(const ChannelPlan<T>& plan, const Tensor& x1, const Tensor& x2, const Tensor& weight,
                      const T* bias, const Static& fixed, Tensor& pre) {
  const int64_t rows = x1.size(0), dim3 = fixed.dims[2], ld = weight.dim() == 2 ? weight.size(1) : 0;
  Chunks(rows).run([&](int64_t, auto&& visit) {
    Channels<T> channels(plan);
    visit([&](int64_t first, int64_t count) {
      for (int64_t z = first; z < first + count; ++z) {
        const int64_t lane = (z - first) % lanes<T>, batch = std::min<int64_t>(lanes<T>, first + count - z);
        if (lane == 0)
          channels.couple(rows_from(in<T>(x1), z, batch, plan.dim[0]), rows_from(in<T>(x2), z, batch, plan.dim[1]));
        T* row = out<T>(pre) + z * dim3;
        channels.load_row(in<T>(x1) + z * plan.dim[0], in<T>(x2) + z * plan.dim[1]);
        channels.forward(lane, in<T>(weight) + z * ld, [&](const ChannelPath& p, auto&& into) {
          into(channels.slice, !p.first);
          if (p.last) plan.store_slice(p, channels.slice, row);
        });
        for (const Slice& s : plan.unreached) std::fill_n(row + s.o, s.mul, T(0));
        const T* b = bias;
        for (size_t s = 0; b && s < fixed.slots.size(); s += 2)
          for (int64_t m = 0; m < fixed.slots[s + 1]; ++m) row[fixed.slots[s] + m] += *b++;
      }
    });
  });
}

// pre [Z, dims[2]], and with a gate out [Z, dims[2] - gates]
std::tuple<Tensor, Tensor> forward(const Tensor& x1_, const Tensor& x2_, const Tensor& weight_,
                                   const std::optional<Tensor>& bias_, const Tensor& index, const Tensor& value,
                                   const Static& fixed, const Gate* gate) {
  const Tensor x1 = dense(x1_), x2 = dense(x2_), weight = dense(weight_);
  const std::optional<Tensor> bias = bias_ ? std::optional<Tensor>(dense(*bias_)) : std::nullopt;
  const int64_t rows = x1.size(0), dim1 = fixed.dims[0], dim2 = fixed.dims[1], dim3 = fixed.dims[2];
  const int64_t dim_out = gate ? gate->dim_out() : 0;
  bool fused = gate && !fixed.dims[3];
  Tensor pre = in_huge_pages(empty(x1, {rows, dim3})), gated = in_huge_pages(empty(x1, {fused ? rows : 0, dim_out}));
  dispatch(x1, [&]<class T>() {
    const std::vector<Path> paths = read_paths<T>(fixed.paths, index, value, true);
    const Layout layout(paths, fixed.dims);
    if (ChannelPlan<T>::takes(paths)) {
      fused = false;
      const ChannelPlan<T> plan(paths, fixed.dims, layout);
      return forward_channels<T>(plan, x1, x2, weight, bias ? in<T>(*bias) : nullptr, fixed, pre);
    }
    const Start start(paths, 2, dim3, bias ? fixed.biased() : std::vector<Slice>{});
    Chunks(rows).run([&](int64_t, auto&& visit) {
      Block<T> block(dim1, dim2, dim3, paths);
      visit([&](int64_t z, int64_t n) {
        load_rows<T>(rows_from(in<T>(x1), z, n, dim1), layout.slices[0], block.x1);
        load_rows<T>(rows_from(in<T>(x2), z, n, dim2), layout.slices[1], block.x2);
        prefetch_rows(in<T>(x1), dim1, z + n, std::min(rows, z + n + kRows));
        start(static_cast<T*>(block.y));
        const T* b = bias ? in<T>(*bias) : nullptr;
        for (size_t s = 0; b && s < fixed.slots.size(); s += 2)
          for (int64_t m = 0; m < fixed.slots[s + 1]; ++m) std::fill_n(block.y + (fixed.slots[s] + m) * kRows, kRows, *b++);
        const Weights<T> weights = weights_of(in<T>(weight), weight, z, n);
        for (size_t p = 0; p < paths.size(); ++p) block.forward(paths[p], weights, !start.writes[p]);
        store_rows<T>(block.y, layout.slices[2], rows_from(out<T>(pre), z, n, dim3));
        if (fused) {
          block.gate(*gate);
          block.store_rows(block.gate_out, dim_out, n, out<T>(gated) + z * dim_out);
        }
      });
    });
  });
  return {gate && !fused ? apply_gate(pre, *gate, fixed.dims[3]) : gated, pre};
}

template <class T>
void backward_channels(const ChannelPlan<T>& plan, const Tensor& g, const Tensor& x1, const Tensor& x2,
                       const Tensor& weight, const Static& fixed, int64_t needs, Tensor& g_x1, Tensor& g_x2,
                       Tensor& g_weight, Tensor& g_bias) {
  const int64_t rows = x1.size(0), dim3 = fixed.dims[2], ld = weight.dim() == 2 ? weight.size(1) : 0;
  const bool need[2] = {(needs & 1) != 0, (needs & 2) != 0}, need_weight = needs & 4, need_bias = needs & 8;
  Tensor* const g_in[2] = {&g_x1, &g_x2};
  const Chunks chunks(rows);
  const int64_t weights = need_weight && !ld ? plan.sums : 0, biases = need_bias ? fixed.biases() : 0;
  const int64_t stride = weights + biases, count = std::max<int64_t>(chunks.count, 1);
  Scratch<T> partial(count * stride);  // [chunk][padded weights, biases]
  std::fill_n(static_cast<T*>(partial), stride, T(0));
  chunks.run([&](int64_t chunk, auto&& visit) {
    Channels<T> channels(plan);
    T* sums = partial + chunk * stride;
    std::fill_n(sums, stride, T(0));
    visit([&](int64_t first, int64_t n) {
      for (int64_t z = first; z < first + n; ++z) {
        const int64_t lane = (z - first) % lanes<T>, batch = std::min<int64_t>(lanes<T>, first + n - z);
        if (lane == 0)
          channels.couple(rows_from(in<T>(x1), z, batch, plan.dim[0]), rows_from(in<T>(x2), z, batch, plan.dim[1]));
        const T* row = in<T>(g) + z * dim3;
        channels.load_row(in<T>(x1) + z * plan.dim[0], in<T>(x2) + z * plan.dim[1]);
        for (int side = 0; side < 2; ++side)
          if (need[side]) std::fill_n(static_cast<T*>(channels.g_x[side]), plan.in[side].size, T(0));
        channels.backward(lane, in<T>(weight) + z * ld, need, need_weight && ld ? out<T>(g_weight) + z * ld : nullptr,
                          weights ? sums : nullptr, [&](const ChannelPath& p) {
          if (p.first) plan.load_slice(p, row, channels.slice);
          return static_cast<const T*>(channels.slice);
        });
        for (int side = 0; side < 2; ++side) {
          if (!need[side]) continue;
          T* to = out<T>(*g_in[side]);
          const bool wide = plan.wide[side] || !plan.single[side];
          if (wide) plan.in[side].store(channels.g_x[side], to + z * plan.dim[side]);
          if (plan.single[side] && (lane + 1 == lanes<T> || z + 1 == first + n))
            channels.uncouple(rows_from(to, z - lane, lane + 1, plan.dim[side]), side, wide);
        }
        T* b = sums + weights;
        for (size_t s = 0; need_bias && s < fixed.slots.size(); s += 2)
          for (int64_t m = 0; m < fixed.slots[s + 1]; ++m) *b++ += row[fixed.slots[s] + m];
      }
    });
  });
  const auto total = [&](int64_t at) {
    T sum = partial[at];
    for (int64_t c = 1; c < count; ++c) sum += partial[c * stride + at];
    return sum;
  };
  for (const ChannelPath& p : plan.paths)
    for (int64_t u = 0; weights && p.weight >= 0 && u < p.U; ++u) out<T>(g_weight)[p.weight + u] = total(p.sums + u);
  for (int64_t m = 0; m < biases; ++m) out<T>(g_bias)[m] = total(weights + m);
}

// Gradients of x1, x2, weight and bias; bit n of `needs` asks for the n-th, the others are empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& g_, const Tensor* pre_, const Tensor& x1_,
                                                    const Tensor& x2_, const Tensor& weight_, const Tensor& index,
                                                    const Tensor& value, const Static& fixed, const Gate* gate,
                                                    int64_t needs) {
  const Tensor g = dense(g_), pre = pre_ ? dense(*pre_) : g, x1 = dense(x1_), x2 = dense(x2_), weight = dense(weight_);
  const int64_t rows = x1.size(0), dim1 = fixed.dims[0], dim2 = fixed.dims[1], dim3 = fixed.dims[2];
  const bool need_x1 = needs & 1, need_x2 = needs & 2, need_weight = needs & 4, need_bias = needs & 8;
  const bool shared = weight.dim() == 1;
  const int64_t biases = fixed.biases();
  const auto result = [&](bool need, const Ints& size) { return in_huge_pages(empty(x1, need ? size : Ints{0})); };
  const int64_t n = weight.size(weight.dim() - 1);
  Tensor g_x1 = result(need_x1, {rows, dim1}), g_x2 = result(need_x2, {rows, dim2});
  Tensor g_weight = result(need_weight, shared ? Ints{n} : Ints{rows, n}), g_bias = result(need_bias, {biases});
  dispatch(x1, [&]<class T>() {
    const std::vector<Path> paths = read_paths<T>(fixed.paths, index, value, true);
    const Layout layout(paths, fixed.dims);
    if (ChannelPlan<T>::takes(paths)) {
      const ChannelPlan<T> plan(paths, fixed.dims, layout);
      const Tensor g_pre = gate ? apply_gate_backward(g, pre, *gate, fixed.dims[3]) : g;
      return backward_channels<T>(plan, g_pre, x1, x2, weight, fixed, needs, g_x1, g_x2, g_weight, g_bias);
    }
    const Chunks chunks(rows);
    const Start start[2] = {Start(paths, 0, dim1), Start(paths, 1, dim2)};
    const int64_t padded = need_weight && shared ? padded_weights<T>(paths) : 0, stride = round_up<T>(padded + biases);
    Scratch<T> partial(std::max<int64_t>(chunks.count, 1) * stride);  // [chunk][padded weights, biases]
    std::fill_n(static_cast<T*>(partial), stride, T(0));
    chunks.run([&](int64_t chunk, auto&& visit) {
      Block<T> block(dim1, dim2, dim3, paths);
      T* sums = partial + chunk * stride;
      std::fill_n(sums, stride, T(0));
      visit([&](int64_t z, int64_t n) {
        load_rows<T>(rows_from(in<T>(x1), z, n, dim1), layout.slices[0], block.x1);
        load_rows<T>(rows_from(in<T>(x2), z, n, dim2), layout.slices[1], block.x2);
        load_rows<T>(rows_from(in<T>(pre), z, n, dim3), layout.slices[2], block.y);
        prefetch_rows(in<T>(x1), dim1, z + n, std::min(rows, z + n + kRows));
        prefetch_rows(in<T>(pre), dim3, z + n, std::min(rows, z + n + kRows));
        if (gate) {
          block.load_rows(in<T>(g) + z * gate->dim_out(), gate->dim_out(), n, block.gate_out);
          block.gate_backward(*gate);
        }
        if (need_x1) start[0](static_cast<T*>(block.g_x1));
        if (need_x2) start[1](static_cast<T*>(block.g_x2));
        const Weights<T> weights = weights_of(in<T>(weight), weight, z, n);
        WeightSums<T> g_weights = nullptr;
        if (need_weight) g_weights = shared ? sums : weights_of(out<T>(g_weight), weight, z, n);
        for (size_t p = 0; p < paths.size(); ++p)
          block.backward(paths[p], weights, need_x1, need_x2, g_weights, !start[paths[p].swapped].writes[p]);
        if (need_x1) store_rows<T>(block.g_x1, layout.slices[0], rows_from(out<T>(g_x1), z, n, dim1));
        if (need_x2) store_rows<T>(block.g_x2, layout.slices[1], rows_from(out<T>(g_x2), z, n, dim2));
        T* b = sums + padded;
        for (size_t s = 0; need_bias && s < fixed.slots.size(); s += 2)
          for (int64_t m = 0; m < fixed.slots[s + 1]; ++m, ++b) *b += block.sum_row(fixed.slots[s] + m);
      });
    });
    const int64_t count = std::max<int64_t>(chunks.count, 1);
    if (need_weight && shared) sum_chunks<T>(paths, partial, count, stride, out<T>(g_weight));
    for (int64_t m = 0; need_bias && m < biases; ++m) {
      T sum = 0;
      for (int64_t c = 0; c < count; ++c) sum += partial[c * stride + padded + m];
      out<T>(g_bias)[m] = sum;
    }
  });
  return {g_x1, g_x2, g_weight, g_bias};
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

// The epilogue is fused in mul_ir; in ir_mul, where the slices of the gate need not be the product's, it runs on its own.
std::tuple<Tensor, Tensor> gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                Tensor index, Tensor value, Ints dims, Ints paths, Ints slots,
                                                Ints layout, double scalar_gain, double gate_gain) {
  const Gate gate(layout, scalar_gain, gate_gain);
  if (!dims[3]) return forward(x1, x2, weight, bias, index, value, {dims, paths, slots}, &gate);
  const Tensor pre = std::get<1>(forward(x1, x2, weight, bias, index, value, {dims, paths, slots}, nullptr));
  return {apply_gate(pre, gate, true), pre};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2,
                                                                    Tensor weight, Tensor index, Tensor value,
                                                                    Ints dims, Ints paths, Ints slots, Ints layout,
                                                                    double scalar_gain, double gate_gain,
                                                                    int64_t needs) {
  const Gate gate(layout, scalar_gain, gate_gain);
  const Static fixed{dims, paths, slots};
  if (!dims[3]) return backward(g, &pre, x1, x2, weight, index, value, fixed, &gate, needs);
  return backward(apply_gate_backward(g, pre, gate, true), nullptr, x1, x2, weight, index, value, fixed, nullptr, needs);
}

Tensor gate(Tensor pre, Ints layout, double scalar_gain, double gate_gain, bool ir_mul) {
  return apply_gate(pre, Gate(layout, scalar_gain, gate_gain), ir_mul);
}

Tensor gate_bwd(Tensor g, Tensor pre, Ints layout, double scalar_gain, double gate_gain, bool ir_mul) {
  return apply_gate_backward(g, pre, Gate(layout, scalar_gain, gate_gain), ir_mul);
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
  m.def("gate(Tensor pre, " GATE ", bool ir_mul) -> Tensor");
  m.def("gate_bwd(Tensor g, Tensor pre, " GATE ", bool ir_mul) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("tensor_product", TORCH_BOX(&tensor_product));
  m.impl("tensor_product_bwd", TORCH_BOX(&tensor_product_bwd));
  m.impl("gated_tensor_product", TORCH_BOX(&gated_tensor_product));
  m.impl("gated_tensor_product_bwd", TORCH_BOX(&gated_tensor_product_bwd));
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("gate_bwd", TORCH_BOX(&gate_bwd));
}
