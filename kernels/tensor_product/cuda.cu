// tensor_product on CUDA, alone, gated and normed, and what follows it alone: which kernels run for a table.
#include "dense_weight.cuh"
#include "epilogue.cuh"
#include "plan.h"

namespace {

using namespace ace;
using namespace ace::product;
using Ints = std::vector<int64_t>;

struct Static {
  const Ints &dims, &paths, &slots;
  Precision precision;

  Static(const Ints& dims, const Ints& paths, const Ints& slots, int64_t precision)
      : dims(dims), paths(paths), slots(slots), precision(static_cast<Precision>(precision)) {}
  bool ir_mul() const { return dims[3] != 0; }
  int64_t biases() const {
    int64_t n = 0;
    for (size_t s = 1; s < slots.size(); s += 2) n += slots[s];
    return n;
  }
};

constexpr int64_t kWholeRows = 2048;  // so many fill a GPU's multiprocessors without sharing out the columns of x2
constexpr int64_t kPartialSums = int64_t(1) << 22;  // numbers that general.cuh's partial sums may take: 16 MB of floats

// Rows whose terms one block (or, where stretches are short, one warp) adds: this depends on Z and on the paths alone.
int64_t stretch_rows(int64_t Z, bool short_ones = false) {
  return short_ones ? std::max<int64_t>(16, ceil_div(Z, 512)) : std::max<int64_t>(64, ceil_div(Z, 64));
}

// The same where general.cuh alone has weights. Its blocks walk their rows one after the other: many short stretches,
// as far as the partial sums [stretches, n] stay small.
int64_t general_stretch_rows(int64_t Z, int64_t n) {
  const int64_t most = std::clamp<int64_t>(kPartialSums / std::max<int64_t>(n, 1), 1, 512);  // stretches
  return std::max<int64_t>(1, std::min(stretch_rows(Z), ceil_div(Z, most)));
}

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
  Operands<T> in;
  int64_t Z;
  const Stream& stream;

  // out [Z, dim_out]: one kernel writes it, or, where it does not reach everything, all add to start_kernel's.
  void forward(const T* bias, T* out) const {
    const Parts parts = split_paths(read_paths(fixed.paths), in.ld_weight == 0);
    const int64_t dim = fixed.dims[2], size = Z * dim;
    const bool start = !reaches_all<Role::forward>(parts, dim) || (bias && parts.dense.empty());
    if (start)
      stream.launch("start_kernel", start_kernel<T>, grid(ceil_div(size, kThreads)), kThreads, 0,
                    read_slots(fixed.slots), bias, out, size, static_cast<int>(dim));
    run_general(parts.others, false, [&](const Paths& some, size_t shared) {
      stream.launch("general_fwd_kernel", general_fwd_kernel<T>, grid(Z), kPairs, shared, some, in, out, dim);
    });
    run_channels<Role::forward>(parts.channels, start, channel_rows(), [&]<int G>(const ChannelLaunch& plan, dim3 grid,
                                                                                  int rows) {
      stream.launch("channel_fwd_kernel", channel_fwd_kernel<T, G>, grid, 32 * kWarps, plan.template shared<T>(),
                    plan.paths, in, out, dim, Z, rows, plan.space);
    });
    run_dense<Role::forward>(parts.dense, in.x1, in.ld_x1, start ? nullptr : bias, out, dim, start);
  }

  // Gradients in x1 and x2, and in weights of every row; those of `to` that are not null.
  void backward(const Gradients<T>& to) const {
    if (!to.x1 && !to.x2 && !to.weight) return;
    const Parts parts = split_paths(read_paths(fixed.paths), in.ld_weight == 0);
    const bool start = !reaches_all<Role::gradient>(parts, to.ld_x1);
    if (to.x1 && start) stream.zero(to.x1, Z * to.ld_x1 * sizeof(T));
    const bool whole = Z >= kWholeRows && to.ld_x2 <= kX2Whole;  // blocks have whole rows of x2
    const bool start2 = !parts.others.empty() || !parts.channels.empty() || !writes_x2(parts.dense, to.ld_x2, whole);
    if (to.x2 && start2) stream.zero(to.x2, Z * to.ld_x2 * sizeof(T));
    if (to.weight && weights_of({}, parts.channels) != to.ld_weight)
      stream.zero(to.weight, Z * to.ld_weight * sizeof(T));
    run_general_gradients(parts.others, to, Z, 1);
    run_channel_gradients(parts.channels, to, start, channel_rows());
    if (to.x1) run_dense<Role::gradient>(parts.dense, in.g, in.ld_g, nullptr, to.x1, to.ld_x1, start);
    if (to.x2) run_dense_x2(parts.dense, to.x2, to.ld_x2, whole, start2);
  }

  // Gradient of shared weights [n]: stretches of rows, then their sum.
  void backward_shared(T* g_weight, int64_t n, const Tensor& like) const {
    const Parts parts = split_paths(weighted(read_paths(fixed.paths)), true);
    const bool general_alone = parts.dense.empty() && parts.channels.empty();
    const int64_t rows = general_alone ? general_stretch_rows(Z, n) : stretch_rows(Z, !parts.channels.empty());
    const int64_t stretches = ceil_div(Z, rows);
    const Tensor part = empty(like, {stretches * n});
    const bool start = !parts.channels.empty() || weights_of(parts.dense, {}) != n;
    if (start) stream.zero(out<T>(part), stretches * n * sizeof(T));
    const Gradients<T> to{nullptr, nullptr, out<T>(part), 0, 0, n};
    run_general_gradients(parts.others, to, stretches, rows);
    run_channel_gradients(parts.channels, to, false, rows);
    run_dense_weight(parts.dense, out<T>(part), n, rows, stretches);
    reduce(ace::in<T>(part), g_weight, n, stretches);
  }

  void bias_gradient(T* g_bias, const Tensor& like) const {
    const int64_t rows = stretch_rows(Z), stretches = ceil_div(Z, rows), n = fixed.biases();
    const Tensor part = empty(like, {stretches * n});
    stream.launch("bias_bwd_kernel", bias_bwd_kernel<T>, grid(stretches, ceil_div(n, 32)), kThreads, 0,
                  read_slots(fixed.slots), in.g, in.ld_g, Z, rows, out<T>(part), static_cast<int>(n));
    reduce(ace::in<T>(part), g_bias, n, stretches);
  }

 private:
  // Rows of a warp of the channel-wise kernels, which loads the coefficients once for them: as many as leave every
  // multiprocessor busy.
  int64_t channel_rows() const {
    return std::clamp<int64_t>(Z / (stream.multiprocessors() * 16 * kWarps), 1, 8);
  }

  // f(paths, bytes of shared memory) for each launch of the general kernels.
  template <class F>
  static void run_general(const std::vector<Path>& paths, bool backward, F&& f) {
    for_launches(paths, [&](const Paths& some) {
      int most = 0;
      for (int n = 0; n < some.count; ++n) {
        const Path& p = some.path[n];
        most = std::max(most, backward ? 2 * p.d3 + p.d1 + p.d2 : p.d3);
      }
      f(some, most * kPairs * sizeof(T));
    });
  }

  void run_general_gradients(const std::vector<Path>& paths, const Gradients<T>& to, int64_t blocks,
                             int64_t rows) const {
    if (!to.x1 && !to.x2 && !to.weight) return;
    const bool weights_alone = !to.x1 && !to.x2;  // every path has columns of its own, so blocks of its own
    run_general(paths, true, [&](const Paths& some, size_t shared) {
      stream.launch("general_bwd_kernel", general_bwd_kernel<T>, grid(blocks, weights_alone ? some.count : 1), kPairs,
                    shared, some, in, to, Z, static_cast<int>(rows));
    });
  }

  // f.operator()<G>(launch, grid, rows)
  template <Role role, class F>
  void run_channels(const std::vector<Path>& paths, bool add, int64_t rows, F&& f) const {
    for (const ChannelLaunch& plan : plan_channels<role>(paths, add, sizeof(T) == 8)) {
      const dim3 blocks = grid(ceil_div(Z, rows * kWarps));
      if (plan.groups == 1) f.template operator()<1>(plan, blocks, static_cast<int>(rows));
      else if (sizeof(T) == 8 || plan.groups == 2) f.template operator()<2>(plan, blocks, static_cast<int>(rows));
      else if constexpr (sizeof(T) == 4) f.template operator()<4>(plan, blocks, static_cast<int>(rows));
    }
  }

  void run_channel_gradients(const std::vector<Path>& paths, const Gradients<T>& to, bool add, int64_t rows) const {
    run_channels<Role::gradient>(paths, add, rows, [&]<int G>(const ChannelLaunch& plan, dim3 grid, int rows) {
      stream.launch("channel_bwd_kernel", channel_bwd_kernel<T, G>, grid, 32 * kWarps, plan.template shared<T>(),
                    plan.paths, in, to, Z, rows, plan.space);
    });
  }

  void run_dense_weight(const std::vector<Path>& paths, T* part, int64_t n, int64_t rows, int64_t stretches) const {
    WeightOperands<T> operands{in.g, in.x1, in.x2, in.ld_g, in.ld_x1, in.ld_x2, Z, rows, in.table, part, n, in.ir_mul,
                               fixed.precision, 0, 0};
    for_launches(paths, [&](const Paths& some) {
      int64_t tiles = 0;
      for (int i = 0; i < some.count; ++i) {
        const Path& p = some.path[i];
        tiles += p.V * ceil_div(p.U, kHigh) * ceil_div(p.W, kWide);
        operands.space = std::max(operands.space, dense_size(p));
        operands.rows_of_m = std::max(operands.rows_of_m, p.d1 * kAtOnce);
      }
      const size_t shared = (operands.space + operands.rows_of_m * kRows + kWeightTile) * sizeof(T);
      stream.launch("dense_weight_kernel", dense_weight_kernel<T>, grid(stretches, tiles), kTeam, shared, some,
                    operands);
    });
  }

  void run_dense_x2(const std::vector<Path>& paths, T* to, int64_t ld, bool whole, bool add) const {
    X2Operands<T> operands{in.g, in.x1, in.weight, in.ld_g, in.ld_x1, ld, Z, in.table, to, fixed.precision, in.ir_mul,
                           whole, add, 0, 0, 0};
    for (const X2Launch& plan : plan_x2(paths, whole)) {
      operands.space = plan.space;
      operands.row_of_n = plan.row_of_n;
      operands.components = plan.components;
      const bool two = ceil_div(Z, 2 * kRows) * plan.jobs >= 2 * stream.multiprocessors() &&
                       operands.shared(2) <= stream.max_shared();
      const int teams = two ? 2 : 1;
      stream.launch("dense_x2_kernel", dense_x2_kernel<T>, grid(ceil_div(Z, teams * kRows), plan.jobs), teams * kTeam,
                    operands.shared(teams), plan.paths, operands);
      operands.add = true;  // whole rows: the next paths add to them
    }
  }

  template <Role role>
  void run_dense(const std::vector<Path>& paths, const T* left, int64_t ld_left, const T* bias, T* to, int64_t ld_out,
                 bool add) const {
    DenseOperands<T> operands{left, in.x2, in.weight, bias, ld_left, in.ld_x2, ld_out, Z, in.table, to, in.ir_mul,
                              fixed.precision, 0, 0};
    for (const DenseLaunch& plan : plan_dense<role>(paths, bias ? fixed.slots : Ints{}, add)) {
      operands.space = plan.space;
      operands.rows_of_m = plan.rows_of_m;
      const bool two = ceil_div(Z, 2 * kRows) * plan.jobs.count >= 2 * stream.multiprocessors() &&
                       plan.template shared<T>(2) <= stream.max_shared();
      const int teams = two ? 2 : 1;
      const auto launch = [&](auto kernel) {
        stream.launch("dense_kernel", kernel, grid(ceil_div(Z, teams * kRows), plan.jobs.count), teams * kTeam,
                      plan.template shared<T>(teams), plan.jobs, operands);
      };
      if (plan.components <= 5) launch(dense_kernel<T, role, false>);
      else launch(dense_kernel<T, role, true>);
    }
  }

  void reduce(const T* part, T* to, int64_t n, int64_t stretches) const {
    stream.launch("reduce_kernel", reduce_kernel<T>, grid(ceil_div(n, kThreads)), kThreads, 0, part, to, n,
                  static_cast<int>(stretches));
  }
};

template <class T>
Operands<T> operands(const Tensor* g, const Tensor& x1, const Tensor& x2, const Tensor& weight, const Tensor& index,
                     const Tensor& value, const Static& fixed) {
  return {g ? in<T>(*g) : nullptr, in<T>(x1), in<T>(x2), in<T>(weight), g ? g->stride(0) : 0, x1.stride(0),
          x2.stride(0), weight.dim() == 2 ? weight.size(1) : 0, {in<int64_t>(index), in<double>(value)},
          fixed.ir_mul()};
}

Tensor forward(const Tensor& x1_, const Tensor& x2_, const Tensor& weight_, const std::optional<Tensor>& bias_,
               const Tensor& index_, const Tensor& value_, const Static& fixed) {
  const Tensor x1 = dense_rows(x1_), x2 = dense_rows(x2_), weight = dense(weight_);
  const Tensor index = dense(index_), value = dense(value_), bias = bias_ ? dense(*bias_) : weight;
  const int64_t Z = x1.size(0);
  Tensor y = empty(x1, {Z, fixed.dims[2]});  // [Z, dim_out]
  const Stream stream(x1);
  dispatch(x1, [&]<class T>() {
    const Call<T> call{fixed, operands<T>(nullptr, x1, x2, weight, index, value, fixed), Z, stream};
    call.forward(bias_ ? in<T>(bias) : nullptr, out<T>(y));
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
  Tensor g_x1 = like(need_x1, {Z, fixed.dims[0]}), g_x2 = like(need_x2, {Z, fixed.dims[1]});
  Tensor g_weight = like(need_weight, per_row ? Ints{Z, n} : Ints{n}), g_bias = like(need_bias, {fixed.biases()});
  const Stream stream(x1);
  dispatch(x1, [&]<class T>() {
    const Call<T> call{fixed, operands<T>(&g, x1, x2, weight, index, value, fixed), Z, stream};
    call.backward({need_x1 ? out<T>(g_x1) : nullptr, need_x2 ? out<T>(g_x2) : nullptr,
                   need_weight && per_row ? out<T>(g_weight) : nullptr, fixed.dims[0], fixed.dims[1], n});
    if (need_weight && !per_row) call.backward_shared(out<T>(g_weight), n, x1);
    if (need_bias) call.bias_gradient(out<T>(g_bias), x1);
  });
  return {g_x1, g_x2, g_weight, g_bias};
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias, Tensor index, Tensor value,
                      Ints dims, Ints paths, Ints slots, int64_t precision) {
  return forward(x1, x2, weight, bias, index, value, {dims, paths, slots, precision});
}

Four tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, Tensor index, Tensor value, Ints dims,
                        Ints paths, Ints slots, int64_t needs, int64_t precision) {
  return backward(g, x1, x2, weight, index, value, {dims, paths, slots, precision}, needs);
}

std::tuple<Tensor, Tensor> gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                Tensor index, Tensor value, Ints dims, Ints paths, Ints slots,
                                                Ints layout, double scalar_gain, double gate_gain, int64_t precision) {
  const Gate gate("gated_tensor_product", layout, scalar_gain, gate_gain, dims[3]);
  const Tensor pre = forward(x1, x2, weight, bias, index, value, {dims, paths, slots, precision});
  return {gate.forward(pre), pre};
}

Four gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, Tensor index, Tensor value,
                              Ints dims, Ints paths, Ints slots, Ints layout, double scalar_gain, double gate_gain,
                              int64_t needs, int64_t precision) {
  const Gate gate("gated_tensor_product_bwd", layout, scalar_gain, gate_gain, dims[3]);
  return backward(gate.backward(g, pre), x1, x2, weight, index, value, {dims, paths, slots, precision}, needs);
}

std::tuple<Tensor, Tensor> normed_tensor_product(Tensor x1, Tensor x2, Tensor weight, std::optional<Tensor> bias,
                                                 std::optional<Tensor> norm_bias, Tensor index, Tensor value, Ints dims,
                                                 Ints paths, Ints slots, Ints layout, int64_t activation,
                                                 double epsilon, int64_t precision) {
  const Tensor pre = forward(x1, x2, weight, bias, index, value, {dims, paths, slots, precision});
  return {Norm(layout, activation, epsilon, norm_bias, dims[3]).forward(pre), pre};
}

Five normed_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight,
                               std::optional<Tensor> norm_bias, Tensor index, Tensor value, Ints dims, Ints paths,
                               Ints slots, Ints layout, int64_t activation, double epsilon, int64_t needs,
                               int64_t precision) {
  const auto [g_pre, g_norm] = Norm(layout, activation, epsilon, norm_bias, dims[3]).backward(g, pre, needs & 16);
  const Static fixed(dims, paths, slots, precision);
  return std::tuple_cat(backward(g_pre, x1, x2, weight, index, value, fixed, needs), std::make_tuple(g_norm));
}

Tensor gate(Tensor pre, Ints layout, double scalar_gain, double gate_gain, bool ir_mul) {
  return Gate("gate", layout, scalar_gain, gate_gain, ir_mul).forward(pre);
}

Tensor gate_bwd(Tensor g, Tensor pre, Ints layout, double scalar_gain, double gate_gain, bool ir_mul) {
  return Gate("gate_bwd", layout, scalar_gain, gate_gain, ir_mul).backward(g, pre);
}

Tensor norm_activation(Tensor pre, std::optional<Tensor> norm_bias, Ints layout, int64_t activation, double epsilon,
                       bool ir_mul) {
  return Norm(layout, activation, epsilon, norm_bias, ir_mul).forward(pre);
}

std::tuple<Tensor, Tensor> norm_activation_bwd(Tensor g, Tensor pre, std::optional<Tensor> norm_bias, Ints layout,
                                               int64_t activation, double epsilon, bool ir_mul) {
  return Norm(layout, activation, epsilon, norm_bias, ir_mul).backward(g, pre);
}

}  // namespace

#define TABLES "Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, int[] bias_slots"
#define GATE "int[] layout, float scalar_gain, float gate_gain"

#define NORM "int[] layout, int activation, float epsilon"
#define FOUR " -> (Tensor, Tensor, Tensor, Tensor)"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ", int precision) -> Tensor");
  m.def("tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, " TABLES ", int needs, int precision)" FOUR);
  m.def("gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, " TABLES ", " GATE
        ", int precision) -> (Tensor, Tensor)");
  m.def("gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, " TABLES ", " GATE
        ", int needs, int precision)" FOUR);
  m.def("normed_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, Tensor? norm_bias, " TABLES ", " NORM
        ", int precision) -> (Tensor, Tensor)");
  m.def("normed_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, Tensor? norm_bias, "
        TABLES ", " NORM ", int needs, int precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gate(Tensor pre, " GATE ", bool ir_mul) -> Tensor");
  m.def("gate_bwd(Tensor g, Tensor pre, " GATE ", bool ir_mul) -> Tensor");
  m.def("norm_activation(Tensor pre, Tensor? norm_bias, " NORM ", bool ir_mul) -> Tensor");
  m.def("norm_activation_bwd(Tensor g, Tensor pre, Tensor? norm_bias, " NORM ", bool ir_mul) -> (Tensor, Tensor)");
}

ACE_CUDA_IMPL(m) {
  m.impl("tensor_product", TORCH_BOX(&tensor_product));
  m.impl("tensor_product_bwd", TORCH_BOX(&tensor_product_bwd));
  m.impl("gated_tensor_product", TORCH_BOX(&gated_tensor_product));
  m.impl("gated_tensor_product_bwd", TORCH_BOX(&gated_tensor_product_bwd));
  m.impl("normed_tensor_product", TORCH_BOX(&normed_tensor_product));
  m.impl("normed_tensor_product_bwd", TORCH_BOX(&normed_tensor_product_bwd));
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("gate_bwd", TORCH_BOX(&gate_bwd));
  m.impl("norm_activation", TORCH_BOX(&norm_activation));
  m.impl("norm_activation_bwd", TORCH_BOX(&norm_activation_bwd));
}
