// One call of tensor_product_conv on CUDA: its tensors, and the launches for "uvu" products.
#pragma once

#include "backward.cuh"
#include "forward.cuh"
#include "rows.cuh"

#include <tuple>

namespace ace::conv {

using Ints = std::vector<int64_t>;

// The operator's tensors, dense.
struct Inputs {
  Tensor x1, x2, weight, source, source_order, source_ptr, target, target_order, target_ptr, index, value;
  Ints dims, paths;
  bool atomic;
  int64_t sources, targets, edges, n;
  bool shared;

  Inputs(const Tensor& x1, const Tensor& x2, const Tensor& weight, const Tensor& source, const Tensor& source_order,
         const Tensor& source_ptr, const Tensor& target, const Tensor& target_order, const Tensor& target_ptr,
         const Tensor& index, const Tensor& value, Ints dims, Ints paths, bool atomic)
      : x1(dense(x1)), x2(dense(x2)), weight(dense(weight)), source(dense(source)), source_order(dense(source_order)),
        source_ptr(dense(source_ptr)), target(dense(target)), target_order(dense(target_order)),
        target_ptr(dense(target_ptr)), index(dense(index)), value(dense(value)), dims(std::move(dims)),
        paths(std::move(paths)), atomic(atomic), sources(x1.size(0)), targets(target_ptr.size(0) - 1),
        edges(x2.size(0)), n(weight.size(weight.dim() - 1)), shared(weight.dim() == 1) {
    const int64_t most = std::max({edges, sources, targets});
    STD_TORCH_CHECK(most <= INT32_MAX, "tensor_product_conv: edges and nodes must be at most 2^31 - 1, got ", most);
  }

  Graph graph() const {
    return {in<int64_t>(target_order), in<int64_t>(source), in<int64_t>(target), edges, sources, targets};
  }
  Table table() const { return {in<int64_t>(index), in<double>(value)}; }
  template <class T>
  Operands<T> operands(const Tensor* g) const {
    return {in<T>(x1), in<T>(x2), in<T>(weight), g ? in<T>(*g) : nullptr, static_cast<int>(dims[0]),
            static_cast<int>(dims[1]), static_cast<int>(dims[2]), static_cast<int>(n), dims[3] != 0, shared, table()};
  }

  // Paths in which something is multiplied.
  std::vector<HostPath> host_paths() const {
    std::vector<HostPath> found;
    for (size_t first = 0; first + 13 <= paths.size(); first += 13) {
      int v[13];
      for (int i = 0; i < 13; ++i) {
        STD_TORCH_CHECK(paths[first + i] <= INT32_MAX, "tensor_product_conv: paths must be 32-bit, got ",
                        paths[first + i]);
        v[i] = static_cast<int>(paths[first + i]);
      }
      const HostPath p{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12],
                       static_cast<int>(found.size())};
      if (p.U && p.V && p.W && p.stop > p.start) found.push_back(p);
    }
    return found;
  }
};

// Device memory of a call beside its results.
inline Tensor bytes_like(const Tensor& x, int64_t bytes) { return empty(x, {ceil_div(bytes, x.element_size())}); }

// "uvu" products: which launches, and with how much of everything.
template <class T>
class ChannelCall {
 public:
  ChannelCall(const Inputs& inputs, const Stream& stream)
      : inputs_(inputs), stream_(stream), paths_(inputs.host_paths()),
        plans_(make_plans(paths_, inputs.dims[3] != 0, kStreams == 2)),
        most_(inputs.edges >= 16384 ? 64 : inputs.edges >= 4096 ? 32 : 16) {}

  // Whether the kernels take this: "uvu" alone, a quarter of the lanes at work, rows that fit.
  bool takes(bool backward) const {
    int64_t used = 0, taken = 0;
    for (const HostPath& p : paths_) {
      if (p.mode != 1 || p.number >= INT16_MAX || std::max({p.d1, p.d2, p.d3, p.V}) > INT16_MAX) return false;
      used += p.U;
      taken += ceil_div(p.U, 32) * 32;
    }
    return !plans_.empty() && 4 * used >= taken && sizes(backward).chunk > 0;
  }

  void forward(T* y) const {
    const Operands<T> in = inputs_.operands<T>(nullptr);
    const int64_t blocks = ceil_div(inputs_.edges, most_);
    const Tensor info = check(y, inputs_.targets * in.dim3);
    const Tensor part = empty(inputs_.x1, {inputs_.atomic ? 0 : blocks * in.dim3});
    const Sizes s = sizes(false);
    for (const Plan& plan : plans_)
      stream_.launch("conv_fwd_kernel", conv_fwd_kernel<T, kStreams>, grid(blocks), kThreads<T>, bytes(s, false, 0),
                     plan, in, inputs_.graph(), infos(info),
                     Target<T>{y, out<T>(part), &plan != plans_.data(), inputs_.atomic}, most_, s);
    if (!inputs_.atomic)
      stream_.launch("sum_parts_kernel", sum_parts_kernel<T>, grid(blocks), kBlock, 0, inputs_.graph(),
                     ace::in<T>(part), y, in.dim3, most_, blocks);
  }

  // Null for what nobody asked for.
  void backward(const Tensor& g, T* g_x1, T* g_x2, T* g_weight) const {
    const Operands<T> in = inputs_.operands<T>(&g);
    const int64_t edges = inputs_.edges, step = positions(g_x1 != nullptr, in.dim1), weights = weights_of_paths();
    const bool shared = g_weight && inputs_.shared, apart = g_x1 && !inputs_.atomic;
    const Tensor info = check(nullptr, 0), rows = empty(inputs_.x1, {apart ? std::min(step, edges) * in.dim1 : 0});
    const Tensor part = empty(inputs_.x1, {shared ? ceil_div(std::min(step, edges), most_) * inputs_.n : 0});
    const Tensor where = bytes_like(inputs_.x1, apart ? edges * sizeof(int) : 0);
    if (g_x1 && (inputs_.atomic || edges == 0)) stream_.zero(g_x1, inputs_.sources * in.dim1 * sizeof(T));
    if (g_weight && !inputs_.shared && weights < inputs_.n) stream_.zero(g_weight, edges * inputs_.n * sizeof(T));
    if (shared && edges == 0) stream_.zero(g_weight, inputs_.n * sizeof(T));
    int* const positions = reinterpret_cast<int*>(out<T>(where));
    if (apart)
      stream_.launch("invert_kernel", invert_kernel, grid(ceil_div(edges, kBlock)), kBlock, 0,
                     ace::in<int64_t>(inputs_.target_order), positions, edges);
    const Sizes s = sizes(true);
    for (int64_t begin = 0; begin < edges; begin += step) {
      const int64_t stop = std::min(edges, begin + step), blocks = ceil_div(stop - begin, most_);
      for (const Plan& plan : plans_)
        stream_.launch("conv_bwd_kernel", conv_bwd_kernel<T, kStreams>, grid(blocks), kThreads<T>,
                       bytes(s, true, plan.units), plan, in, inputs_.graph(), infos(info),
                       Gradients<T>{apart ? out<T>(rows) : g_x1, g_x2, shared ? out<T>(part) : g_weight, begin,
                                    &plan != plans_.data(), inputs_.atomic},
                       stop, most_, s);
      if (apart) sum_at_sources(ace::in<T>(rows), positions, g_x1, in.dim1, begin, stop - begin);
      if (shared)
        stream_.launch("sum_blocks_kernel", sum_blocks_kernel<T>, grid(ceil_div(inputs_.n, kBlock)), kBlock, 0,
                       ace::in<T>(part), g_weight, inputs_.n, blocks, begin > 0);
    }
  }

 private:
  static constexpr int kStreams = sizeof(T) == 4 ? 2 : 1;  // of a unit: as registers allow

  static PathInfo<T>* infos(const Tensor& info) { return reinterpret_cast<PathInfo<T>*>(out<T>(info)); }

  // What is known of each path's coefficients, on the device; and zeroes `size` values.
  Tensor check(T* zero, int64_t size) const {
    const Tensor info = bytes_like(inputs_.x1, std::max<size_t>(paths_.size(), 1) * sizeof(PathInfo<T>));
    for (size_t first = 0; first == 0 || first < paths_.size(); first += kChecks) {
      Checks checks{static_cast<int>(std::min<size_t>(kChecks, paths_.size() - first)), {}};
      for (int n = 0; n < checks.count; ++n) {
        const HostPath& p = paths_[first + n];
        const auto degree = [](int d) { return static_cast<signed char>(std::min(d / 2, kMaxDegree + 1)); };
        const int l1 = degree(p.d1), l2 = degree(p.d2), l3 = degree(p.d3);
        const bool candidate =
            std::max({l1, l2, l3}) <= kMaxDegree && triangle(l1, l2, l3) && p.V == 1 && p.weight >= 0;
        checks.check[n] = {p.start, p.stop, static_cast<short>(p.number), degree(p.d1), degree(p.d2), degree(p.d3),
                           candidate};
      }
      const int64_t zeroing = first == 0 ? size : 0;
      const int64_t blocks = std::max(ceil_div(checks.count, kBlock / 32),
                                      std::min<int64_t>(ceil_div(zeroing, kBlock), 4096));
      stream_.launch("check_kernel", check_kernel<T>, grid(blocks), kBlock, 0, checks, inputs_.table(), infos(info),
                     zero, zeroing);
    }
    return info;
  }

  void sum_at_sources(const T* rows, const int* where, T* g_x1, int dim, int64_t begin, int64_t count) const {
    stream_.launch("sum_rows_kernel", sum_rows_kernel<T>, grid(inputs_.sources, ceil_div(dim, kBlock)), kBlock, 0,
                   ace::in<int64_t>(inputs_.source_order), ace::in<int64_t>(inputs_.source_ptr), where,
                   ace::in<int64_t>(inputs_.target), inputs_.targets, rows, g_x1, dim, inputs_.edges, begin, count,
                   begin > 0);
  }

  // Positions whose rows of gradients are kept at once: they stay in the GPU's cache, whatever the number of edges, and
  // keep all multiprocessors busy.
  int64_t positions(bool need_x1, int64_t dim1) const {
    const int64_t busy = stream_.multiprocessors(), block = most_ * std::max<int64_t>(dim1, 1) * sizeof(T);
    int64_t blocks = inputs_.shared ? 1024 : INT32_MAX / most_;
    if (need_x1 && !inputs_.atomic) blocks = std::min<int64_t>(blocks, (48 << 20) / block);
    return std::max<int64_t>(1, blocks / busy) * busy * most_;
  }

  int64_t weights_of_paths() const {
    int64_t n = 0;
    for (const HostPath& p : paths_) n += p.weight < 0 ? 0 : int64_t(p.U) * p.V;
    return n;
  }

  static int64_t rounded(int64_t n) { return ceil_div(n, 4) * 4; }

  size_t bytes(const Sizes& s, bool backward, int units) const {
    const int64_t dim1 = inputs_.dims[0], dim2 = inputs_.dims[1], rows = 2 * s.chunk;
    int64_t values = rounded(inputs_.dims[2]) + rows * (s.ld_x1 + s.ld_x2) + (inputs_.shared ? 1 : rows) * s.ld_weight;
    if (backward) values += s.chunk * (dim1 + units * dim2) + (inputs_.shared ? inputs_.n : 0) + 4;
    return values * sizeof(T) + 4 * most_ * sizeof(int) + Facts<T>::kBytes;
  }

  // Rows of the most edges at once that fit; chunk 0 where not even one does.
  Sizes sizes(bool backward) const {
    const auto rows = [](const Tensor& x, int64_t width) { return vector_width<T>(width, width, in<T>(x)); };
    const int64_t dim1 = inputs_.dims[0], dim2 = inputs_.dims[1];
    Sizes s{static_cast<int>(rounded(dim1)), static_cast<int>(rounded(dim2)), static_cast<int>(rounded(inputs_.n)),
            rows(inputs_.x1, dim1), rows(inputs_.x2, dim2), rows(inputs_.weight, inputs_.n), 8};
    while (s.chunk > 0 && bytes(s, backward, kUnits) > stream_.max_shared()) --s.chunk;
    return s;
  }

  const Inputs& inputs_;
  const Stream& stream_;
  std::vector<HostPath> paths_;
  std::vector<Plan> plans_;
  int most_;  // edges of a block; it depends on their number alone
};

}  // namespace ace::conv
