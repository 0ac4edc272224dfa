// vn_edge_conv: a thread takes one cloud and one vector of channels, whose neighbour parts stay in the cache, and forms
// each edge in registers. What a node, a block of nodes or a cloud sums up does not depend on the threads.
#include "statistics.h"

namespace {

using namespace ace::edge;
using ace::ceil_div, ace::lanes, ace::Scratch, ace::Tensor, ace::Vec;

// ---- convolution ---------------------------------------------------------------------------------------------------

template <class T>
struct Parameters {
  const T *mean, *var, *weight, *bias;  // [C]
  double eps, slope;

  // Batch norm of r, a r + b, for `count` channels from `first` on; zero beyond.
  Norm<T> norm(int64_t first, int64_t count) const {
    Norm<T> f{{}, {}, static_cast<T>(1 - slope)};
    for (int64_t l = 0; l < count; ++l) {
      const int64_t c = first + l;
      f.a[l] = weight[c] * (T(1) / std::sqrt(var[c] + static_cast<T>(eps)));
      f.b[l] = bias[c] - mean[c] * f.a[l];
    }
    return f;
  }
};

template <class T>
struct Forward {
  Inputs<T> in;
  Parameters<T> of;
  const int64_t* selected;  // [B, N, C] or null: the mean
  T* y;                     // [B, N, 3, C]

  void run() const {
    for_blocks(in, [&](const Chunk<T>& chunk, int64_t begin, int64_t end, int64_t part) {
      const int64_t row = part / ceil_div(in.N, kBlock) * in.N;
      const Norm<T> f = of.norm(chunk.first(), chunk.count());
      for (int64_t n = begin; n < end; ++n) {
        const Three<T> o = selected ? one(chunk, n, selected + (row + n) * in.C + chunk.first(), f) : mean(chunk, n, f);
        o.to_some(y + (row + n) * 3 * in.C + chunk.first(), in.C, chunk.count());
      }
    });
  }

  Three<T> mean(const Chunk<T>& chunk, int64_t n, const Norm<T>& f) const {
    const Three<T> q = chunk.centre_p(n), e = chunk.centre_d(n);
    const int64_t* neighbours = chunk.neighbours(n);
    Three<T> sum{};
    for (int64_t k = 0; k < in.K; ++k) {
      const int64_t j = neighbours[k];
      if (chunk.real(j)) sum = add_edge(sum, chunk.neighbour_p(j) + q, chunk.neighbour_d(j) + e, f);
    }
    return (Vec<T>{} + T(1) / std::max<int64_t>(in.K, 1)) * sum;
  }

  Three<T> one(const Chunk<T>& chunk, int64_t n, const int64_t* chosen, const Norm<T>& f) const {
    const Selected<T> of(chunk, chosen, n, in.K);
    return of.mask(add_edge({}, of.p + chunk.centre_p(n), of.d + chunk.centre_d(n), f));
  }
};

template <class T>
struct Backward {
  Inputs<T> in;
  Parameters<T> of;
  const int64_t* selected;
  const T* g;        // [B, N, 3, C]
  T *g_p, *g_d;      // [B, N, 3, 2C], [B, N, 3, 2C or 2]; null where not needed
  T* rest[4];        // of mean, var, weight, bias [C], likewise

  void run() const {
    const Scratch<double> g_a(in.B * in.C), g_b(in.B * in.C);  // [B][C]
    const Scratch<T> parts(in.shared ? in.chunks() * in.B * in.N * 6 : 0);  // [chunks][B, N, 3, 2]
    for_clouds(in, [&](const Chunk<T>& chunk, int64_t cloud, T* targets) {
      const int64_t at = cloud * in.C + chunk.first(), i = chunk.first() / lanes<T>;
      const auto write_d = [&](int64_t n, int64_t part, const Three<T>& v) {
        const int64_t row = cloud * in.N + n;
        if (in.shared) sum_lanes(v, parts + (i * in.B * in.N + row) * 6 + part);
        else if (g_d) v.to_some(g_d + row * 6 * in.C + part * in.C + chunk.first(), 2 * in.C, chunk.count());
      };
      one_cloud(chunk, cloud, targets, g_a + at, g_b + at, write_d);
    });
    if (in.shared && g_d) {
      const int64_t size = in.B * in.N * 6;
      std::fill_n(g_d, size, T(0));
      for (int64_t i = 0; i < in.chunks(); ++i)
        for (int64_t x = 0; x < size; ++x) g_d[x] += parts[i * size + x];
    }
    parameters(g_a, g_b);
  }

  static void sum_lanes(const Three<T>& v, T* to) {
    to[0] = to[2] = to[4] = T(0);
    for (int l = 0; l < lanes<T>; ++l) to[0] += v.x[l], to[2] += v.y[l], to[4] += v.z[l];
  }

  template <class WriteD>
  void one_cloud(const Chunk<T>& chunk, int64_t cloud, T* targets, double* g_a, double* g_b, WriteD&& write_d) const {
    constexpr int L = lanes<T>;
    const int64_t width = 2 * in.C, count = chunk.count();
    const Norm<T> f = of.norm(chunk.first(), count);
    const auto write_p = [&](int64_t n, int64_t offset, const Three<T>& u) {
      if (g_p) u.to_some(g_p + (cloud * in.N + n) * 3 * width + offset + chunk.first(), width, count);
    };
    Total<T> a, b;
    for (int64_t n = 0; n < in.N; ++n) {
      const int64_t row = cloud * in.N + n;
      const Three<T> g_y = Three<T>::some(g + row * 3 * in.C + chunk.first(), in.C, count);
      const Gradient<T> sum = selected ? one(chunk, n, g_y, selected + row * in.C + chunk.first(), f, targets)
                                       : mean(chunk, n, g_y, f, targets);
      write_p(n, in.C, sum.u);
      write_d(n, 1, sum.v);
      a.add(sum.a), b.add(sum.b);
    }
    for (int64_t n = 0; n < in.N; ++n) {
      write_p(n, 0, Three<T>::from(targets + n * 6 * L, L));
      write_d(n, 0, Three<T>::from(targets + (n * 6 + 3) * L, L));
    }
    std::copy_n(a.lane, count, g_a);
    std::copy_n(b.lane, count, g_b);
  }

  Gradient<T> mean(const Chunk<T>& chunk, int64_t n, const Three<T>& g_y, const Norm<T>& f, T* targets) const {
    constexpr int L = lanes<T>;
    const Three<T> q = chunk.centre_p(n), e = chunk.centre_d(n);
    const Three<T> g_o = (Vec<T>{} + T(1) / std::max<int64_t>(in.K, 1)) * g_y;
    const int64_t* neighbours = chunk.neighbours(n);
    Gradient<T> sum{};
    for (int64_t k = 0; k < in.K; ++k) {
      const int64_t j = neighbours[k];
      if (!chunk.real(j)) continue;
      const Gradient<T> part = activate_backward(g_o, chunk.neighbour_p(j) + q, chunk.neighbour_d(j) + e, f);
      part.u.add_to(targets + j * 6 * L, L);
      part.v.add_to(targets + (j * 6 + 3) * L, L);
      sum = {sum.u + part.u, sum.v + part.v, sum.a + part.a, sum.b + part.b};
    }
    return sum;
  }

  Gradient<T> one(const Chunk<T>& chunk, int64_t n, const Three<T>& g_y, const int64_t* chosen, const Norm<T>& f,
                  T* targets) const {
    const Selected<T> of(chunk, chosen, n, in.K);
    const Gradient<T> found =
        activate_backward(of.mask(g_y), of.p + chunk.centre_p(n), of.d + chunk.centre_d(n), f);
    of.scatter(found.u, found.v, targets);
    return found;
  }

  // From the clouds' gradients of a and b, added in order, to those of the batch norm's arguments.
  void parameters(const double* part_a, const double* part_b) const {
    for (int64_t c = 0; c < in.C; ++c) {
      double g_a = 0, g_b = 0;
      for (int64_t i = 0; i < in.B; ++i) g_a += part_a[i * in.C + c], g_b += part_b[i * in.C + c];
      const double inverse = 1 / std::sqrt(static_cast<double>(of.var[c]) + of.eps), weight = of.weight[c];
      const double g_scale = g_a - of.mean[c] * g_b;
      const double found[] = {-weight * inverse * g_b, -0.5 * weight * inverse * inverse * inverse * g_scale,
                              inverse * g_scale, g_b};
      for (int x = 0; x < 4; ++x)
        if (rest[x]) rest[x][c] = static_cast<T>(found[x]);
    }
  }
};

// ---- choice --------------------------------------------------------------------------------------------------------

// VNMaxPool: a block of nodes is taken by one thread, and a node's edges o [K][3][C] are all that exists of them.
template <class T>
struct Select {
  Inputs<T> in;
  Parameters<T> of;
  const T* pool_weight;  // [C, C]
  int64_t* selected;     // [B, N, C]

  void run() const {
    const int64_t width = in.chunks() * lanes<T>;
    const Scratch<T> packed(in.C * width);  // U^T
    ace::transpose<T>(pool_weight, in.C, in.C, in.C, packed, width);
    const int64_t grain = std::max<int64_t>(1, 400000 / (6 * in.K * in.C * in.C + 1));
    torch::stable::parallel_for(0, in.B * in.N, grain, [&](int64_t begin, int64_t end) {
      const Scratch<T> o(in.K * 3 * width), pooled(in.K * 3 * width);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t* neighbours = in.neighbours + row * in.K;
        const int64_t cloud = row / in.N * in.N;
        for (int64_t i = 0; i < in.chunks(); ++i) edges(row, cloud, neighbours, i, o);
        ace::matmul<T>(in.K * 3, in.C, in.C, o, width, 1, packed, width, pooled, width, false);
        for (int64_t c = 0; c < in.C; ++c) selected[row * in.C + c] = best(neighbours, o + c, pooled + c, width);
      }
    });
  }

  void edges(int64_t row, int64_t cloud, const int64_t* neighbours, int64_t chunk, T* o) const {
    const int64_t first = chunk * lanes<T>, count = std::min<int64_t>(lanes<T>, in.C - first), wide = 2 * in.C;
    const auto p = [&](int64_t n, int64_t part) {
      return Three<T>::some(in.p + n * 3 * wide + part * in.C + first, wide, count);
    };
    const auto d = [&](int64_t n, int64_t part) {
      return in.shared ? Three<T>::splat(in.d + n * 6 + part, 2)
                       : Three<T>::some(in.d + n * 3 * wide + part * in.C + first, wide, count);
    };
    const Norm<T> f = of.norm(first, count);
    const Three<T> q = p(row, 1), e = d(row, 1);
    const int64_t width = in.chunks() * lanes<T>;
    for (int64_t k = 0; k < in.K; ++k) {
      const int64_t j = neighbours[k];
      const bool real = j >= 0 && j < in.N;
      const Three<T> value = real ? add_edge({}, p(cloud + j, 0) + q, d(cloud + j, 0) + e, f) : Three<T>{};
      value.to(o + k * 3 * width + first, width);
    }
  }

  // The first of the largest; as in torch, NaN is larger than all, and a neighbour that does not exist is -infinity.
  int64_t best(const int64_t* neighbours, const T* o, const T* pooled, int64_t width) const {
    int64_t found = 0;
    T highest = -INFINITY;
    for (int64_t k = 0; k < in.K; ++k) {
      if (neighbours[k] < 0 || neighbours[k] >= in.N) continue;
      T score = T(0);
      for (int64_t x = 0; x < 3; ++x) score += o[(k * 3 + x) * width] * pooled[(k * 3 + x) * width];
      if (score > highest || (score != score && highest == highest)) highest = score, found = k;
    }
    return found;
  }
};

// ---- operators -----------------------------------------------------------------------------------------------------

std::optional<Tensor> dense(const std::optional<Tensor>& x) { return x ? std::optional(ace::dense(*x)) : x; }

template <class T>
Inputs<T> inputs(const Tensor& p, const Tensor* d, const Tensor& neighbours) {
  return {ace::in<T>(p), d ? ace::in<T>(*d) : nullptr, ace::in<int64_t>(neighbours), p.size(0), p.size(1),
          neighbours.size(2), p.size(3) / 2, d && d->size(3) != p.size(3)};
}

}  // namespace

static std::tuple<Tensor, Tensor> vn_edge_stats(Tensor p_, Tensor neighbours_) {
  const Tensor p = ace::dense(p_), neighbours = ace::dense(neighbours_);
  Tensor mean = ace::empty(p, {p.size(3) / 2}), var = ace::empty(p, {p.size(3) / 2});
  ace::dispatch(p, [&]<class T>() {
    Statistics<T>{inputs<T>(p, nullptr, neighbours), ace::out<T>(mean), ace::out<T>(var)}.run();
  });
  return {mean, var};
}

static Tensor vn_edge_stats_bwd(Tensor g_mean_, Tensor g_var_, Tensor p_, Tensor neighbours_, Tensor mean_) {
  const Tensor g_mean = ace::dense(g_mean_), g_var = ace::dense(g_var_), p = ace::dense(p_);
  const Tensor neighbours = ace::dense(neighbours_), mean = ace::dense(mean_);
  Tensor g_p = ace::empty(p, {p.size(0), p.size(1), 3, p.size(3)});
  ace::dispatch(p, [&]<class T>() {
    StatisticsBackward<T>{inputs<T>(p, nullptr, neighbours), ace::in<T>(g_mean), ace::in<T>(g_var), ace::in<T>(mean),
                          ace::out<T>(g_p)}.run();
  });
  return g_p;
}

static Tensor vn_edge_conv(Tensor p_, Tensor d_, Tensor neighbours_, Tensor mean_, Tensor var_, Tensor weight_,
                           Tensor bias_, std::optional<Tensor> selected_, double eps, double slope) {
  const Tensor p = ace::dense(p_), d = ace::dense(d_), neighbours = ace::dense(neighbours_), mean = ace::dense(mean_);
  const Tensor var = ace::dense(var_), weight = ace::dense(weight_), bias = ace::dense(bias_);
  const auto selected = dense(selected_);
  Tensor y = ace::empty(p, {p.size(0), p.size(1), 3, p.size(3) / 2});
  ace::dispatch(p, [&]<class T>() {
    const Parameters<T> of{ace::in<T>(mean), ace::in<T>(var), ace::in<T>(weight), ace::in<T>(bias), eps, slope};
    const int64_t* chosen = selected ? ace::in<int64_t>(*selected) : nullptr;
    Forward<T>{inputs<T>(p, &d, neighbours), of, chosen, ace::out<T>(y)}.run();
  });
  return y;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> vn_edge_conv_bwd(
    Tensor g_, Tensor p_, Tensor d_, Tensor neighbours_, Tensor mean_, Tensor var_, Tensor weight_, Tensor bias_,
    std::optional<Tensor> selected_, double eps, double slope, bool need_p, bool need_d, bool need_mean, bool need_var,
    bool need_weight, bool need_bias) {
  const Tensor g = ace::dense(g_), p = ace::dense(p_), d = ace::dense(d_), neighbours = ace::dense(neighbours_);
  const Tensor mean = ace::dense(mean_), var = ace::dense(var_), weight = ace::dense(weight_), bias = ace::dense(bias_);
  const auto selected = dense(selected_);
  const int64_t C = p.size(3) / 2;
  const auto make = [&](bool need, std::vector<int64_t> size) {
    return ace::empty(p, need ? std::move(size) : std::vector<int64_t>{0});
  };
  Tensor g_p = make(need_p, {p.size(0), p.size(1), 3, 2 * C});
  Tensor g_d = make(need_d, {p.size(0), p.size(1), 3, d.size(3)});
  Tensor g_mean = make(need_mean, {C}), g_var = make(need_var, {C}), g_weight = make(need_weight, {C});
  Tensor g_bias = make(need_bias, {C});
  ace::dispatch(p, [&]<class T>() {
    const auto target = [](bool need, const Tensor& t) { return need ? ace::out<T>(t) : nullptr; };
    const Parameters<T> of{ace::in<T>(mean), ace::in<T>(var), ace::in<T>(weight), ace::in<T>(bias), eps, slope};
    Backward<T>{inputs<T>(p, &d, neighbours), of, selected ? ace::in<int64_t>(*selected) : nullptr, ace::in<T>(g),
                target(need_p, g_p), target(need_d, g_d),
                {target(need_mean, g_mean), target(need_var, g_var), target(need_weight, g_weight),
                 target(need_bias, g_bias)}}.run();
  });
  return {g_p, g_d, g_mean, g_var, g_weight, g_bias};
}

static Tensor vn_edge_select(Tensor p_, Tensor d_, Tensor neighbours_, Tensor mean_, Tensor var_, Tensor weight_,
                             Tensor bias_, Tensor pool_weight_, double eps, double slope) {
  const Tensor p = ace::dense(p_), d = ace::dense(d_), neighbours = ace::dense(neighbours_), mean = ace::dense(mean_);
  const Tensor var = ace::dense(var_), weight = ace::dense(weight_), bias = ace::dense(bias_);
  const Tensor pool_weight = ace::dense(pool_weight_);
  Tensor selected = torch::stable::new_empty(p, {p.size(0), p.size(1), p.size(3) / 2}, ace::ScalarType::Long);
  ace::dispatch(p, [&]<class T>() {
    const Parameters<T> of{ace::in<T>(mean), ace::in<T>(var), ace::in<T>(weight), ace::in<T>(bias), eps, slope};
    Select<T>{inputs<T>(p, &d, neighbours), of, ace::in<T>(pool_weight), ace::out<int64_t>(selected)}.run();
  });
  return selected;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("vn_edge_stats(Tensor p, Tensor neighbours) -> (Tensor, Tensor)");
  m.def("vn_edge_stats_bwd(Tensor g_mean, Tensor g_var, Tensor p, Tensor neighbours, Tensor mean) -> Tensor");
  m.def("vn_edge_conv(Tensor p, Tensor d, Tensor neighbours, Tensor mean, Tensor var, Tensor weight, Tensor bias, "
        "Tensor? selected, float eps, float slope) -> Tensor");
  m.def("vn_edge_conv_bwd(Tensor g, Tensor p, Tensor d, Tensor neighbours, Tensor mean, Tensor var, Tensor weight, "
        "Tensor bias, Tensor? selected, float eps, float slope, bool need_p, bool need_d, bool need_mean, "
        "bool need_var, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("vn_edge_select(Tensor p, Tensor d, Tensor neighbours, Tensor mean, Tensor var, Tensor weight, Tensor bias, "
        "Tensor pool_weight, float eps, float slope) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("vn_edge_stats", TORCH_BOX(&vn_edge_stats));
  m.impl("vn_edge_stats_bwd", TORCH_BOX(&vn_edge_stats_bwd));
  m.impl("vn_edge_conv", TORCH_BOX(&vn_edge_conv));
  m.impl("vn_edge_conv_bwd", TORCH_BOX(&vn_edge_conv_bwd));
  m.impl("vn_edge_select", TORCH_BOX(&vn_edge_select));
}
