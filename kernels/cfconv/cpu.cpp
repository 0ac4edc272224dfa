// cfconv and spline_conv: blocks of pairs whose filters are formed in the cache; a chunk of nodes has its own sums.
#include "network.h"
#include "spline.h"

namespace {

using namespace ace::cfconv;
using ace::lanes, ace::load, ace::parallel, ace::Scratch, ace::store, ace::Tensor, ace::Vec;

// x [N, F], pos [N, 3], and a filter that gives S(d): messages W x_j with W = c(d) S(d), c the cutoff.
template <class T, class Filter>
struct Convolution {
  const Adjacency& graph;
  const Filter& filter;
  const Rows<T> x;
  const T* pos;
  const T cutoff;
  const int64_t F, ld = x.ld;

  // f(chunk, pairs, work, S, g_S) for each block of pairs, begin(chunk) before those of a chunk
  template <class Begin, class F>
  void each(int jets, Begin&& begin_chunk, F&& f) const {
    torch::stable::parallel_for(0, graph.chunks.size(), 1, [&](int64_t begin, int64_t end) {
      const typename Filter::Work work(filter, jets);
      const Scratch<T> S(jets * kRows * ld), g_S(jets * kRows * ld);
      Pairs<T> pairs;
      for (int64_t c = begin; c < end; ++c) {
        begin_chunk(c);
        pairs.each(graph, graph.chunks[c], pos, cutoff,
                   [&] { f(c, pairs, work, static_cast<T*>(S), static_cast<T*>(g_S)); });
      }
    });
  }

  void forward(T* y) const {
    const NodeSums<T> sums(graph, ld);
    each(1, [&](int64_t c) { sums.clear(c); }, [&](int64_t c, Pairs<T>& p, const auto& work, T* S, T*) {
      filter.forward(work, p, 1, S);
      for (int64_t z = 0; z < p.n; ++z) {
        const bool both = p.both[z];
        const T cut = p.c0[z], *s = S + z * ld, *x_i = x[p.i[z]], *x_j = x[p.j[z]];
        T *at_i = sums.row(c, p.i[z]), *at_j = sums.row(c, p.j[z]);
        for (int64_t k = 0, n = ld; k < n; k += lanes<T>) {
          const Vec<T> W = cut * load(s + k);
          store(at_i + k, load(at_i + k) + W * load(x_j + k));
          if (both) store(at_j + k, load(at_j + k) + W * load(x_i + k));
        }
      }
    });
    sums.collect(F, y);
  }

  // g [N, F] of the result -> gradients of x, pos and the filter's parameters; null where not needed
  void backward(const Rows<T>& g, T* g_x, T* g_pos, T* const* g_filter, bool parameters, bool basis) const {
    const NodeSums<T> sums(graph, ld), moved(graph, g_pos ? 4 : 0);
    const int64_t chunks = graph.chunks.size(), size = parameters ? filter.sums() : 0;
    const Scratch<T> of_filter(chunks * size);
    const auto begin = [&](int64_t c) {
      sums.clear(c), moved.clear(c);
      std::fill_n(of_filter + c * size, size, T(0));
    };
    each(1, begin, [&](int64_t c, Pairs<T>& p, const auto& work, T* S, T* g_S) {
      filter.forward(work, p, 1, S);
      for (int64_t z = 0; z < p.n; ++z) p.g_d[z] = messages_backward(g, p, z, sums, c, S + z * ld, g_S + z * ld);
      if (g_pos || parameters)
        filter.backward(work, p, 1, g_S, g_pos, basis, parameters ? of_filter + c * size : nullptr);
      if (g_pos) p.add_to_positions(moved, c, false);
    });
    if (g_x) sums.collect(F, g_x);
    if (g_pos) collect_positions(moved, g_pos);
    if (parameters) filter.collect(of_filter, chunks, g_filter);
  }

  // Along c_x [N, F] and c_pos [N, 3]: the gradients of <c_x, g_x> + <c_pos, g_pos> in g, x, pos and the parameters.
  void second(const Rows<T>& c_x, const T* c_pos, const Rows<T>& g, T* gg, T* g_x, T* g_pos, T* const* g_filter,
              bool parameters, bool basis) const {
    const NodeSums<T> of_g(graph, ld), of_x(graph, ld), moved(graph, g_pos ? 4 : 0);
    const int64_t chunks = graph.chunks.size(), size = parameters ? filter.sums() : 0;
    const Scratch<T> of_filter(chunks * size);
    const auto begin = [&](int64_t c) {
      of_g.clear(c), of_x.clear(c), moved.clear(c);
      std::fill_n(of_filter + c * size, size, T(0));
    };
    each(2, begin, [&](int64_t c, Pairs<T>& p, const auto& work, T* S, T* g_S) {
      p.along(c_pos);
      filter.forward(work, p, 2, S);
      for (int64_t z = 0; z < p.n; ++z) messages_second(c_x, g, p, z, of_g, of_x, c, S, g_S);
      if (g_pos || parameters)
        filter.backward(work, p, 2, g_S, g_pos, basis, parameters ? of_filter + c * size : nullptr);
      if (g_pos) p.add_to_positions(moved, c, true);
    });
    if (gg) of_g.collect(F, gg);
    if (g_x) of_x.collect(F, g_x);
    if (g_pos) collect_positions(moved, g_pos);
    if (parameters) filter.collect(of_filter, chunks, g_filter);
  }

 private:
  // S of pair z -> its gradient; g_x += W g; returns the cutoff's part of the gradient of d.
  T messages_backward(const Rows<T>& g, const Pairs<T>& p, int64_t z, const NodeSums<T>& sums, int64_t chunk,
                      const T* S, T* g_S) const {
    const bool both = p.both[z];
    const T cut = p.c0[z], *x_i = x[p.i[z]], *x_j = x[p.j[z]], *g_i = g[p.i[z]], *g_j = g[p.j[z]];
    T *at_i = sums.row(chunk, p.i[z]), *at_j = sums.row(chunk, p.j[z]);
    Vec<T> dot{};
    for (int64_t k = 0, n = ld; k < n; k += lanes<T>) {
      const Vec<T> s = load(S + k), W = cut * s, a = load(g_i + k);
      Vec<T> m = a * load(x_j + k);
      store(at_j + k, load(at_j + k) + W * a);
      if (both) {
        const Vec<T> b = load(g_j + k);
        store(at_i + k, load(at_i + k) + W * b);
        m += b * load(x_i + k);
      }
      store(g_S + k, cut * m);
      dot += s * m;
    }
    return p.c1[z] * lane_sum<T>(dot);
  }

  // L = sum over edges of <W, c_x_j g_i> + <W', x_j g_i> with W' the change of W: the gradients of L.
  void messages_second(const Rows<T>& c_x, const Rows<T>& g, Pairs<T>& p, int64_t z, const NodeSums<T>& of_g,
                       const NodeSums<T>& of_x, int64_t chunk, const T* S, T* g_S) const {
    const int64_t i = p.i[z], j = p.j[z], change = p.n * ld;
    const bool both = p.both[z];
    const T *x_i = x[i], *x_j = x[j], *g_i = g[i], *g_j = g[j], *c_i = c_x[i], *c_j = c_x[j];
    T *to_g_i = of_g.row(chunk, i), *to_g_j = of_g.row(chunk, j);
    T *to_x_i = of_x.row(chunk, i), *to_x_j = of_x.row(chunk, j);
    const T cut = p.c0[z], slope = p.c1[z], t = p.t[z];
    Vec<T> with_c{}, with_m{}, moved{};
    for (int64_t k = 0, n = ld, at = z * ld; k < n; k += lanes<T>, at += lanes<T>) {
      const Vec<T> s = load(S + at), s1 = load(S + change + at), W = cut * s, W1 = cut * s1 + (t * slope) * s;
      const Vec<T> a = load(g_i + k), b = load(x_j + k), c = load(c_j + k);
      Vec<T> m = a * b, m_c = a * c;
      store(to_g_i + k, load(to_g_i + k) + (W * c + W1 * b));
      store(to_x_j + k, load(to_x_j + k) + W1 * a);
      if (both) {
        const Vec<T> a = load(g_j + k), b = load(x_i + k), c = load(c_i + k);
        m += a * b, m_c += a * c;
        store(to_g_j + k, load(to_g_j + k) + (W * c + W1 * b));
        store(to_x_i + k, load(to_x_i + k) + W1 * a);
      }
      store(g_S + at, cut * m_c + (t * slope) * m);
      store(g_S + change + at, cut * m);
      with_c += s * m_c, with_m += s * m, moved += s1 * m;
    }
    const T along = lane_sum<T>(with_m);
    p.g_d[z] = slope * lane_sum<T>(with_c + moved) + t * p.c2[z] * along;
    p.g_t[z] = slope * along;
  }

  // [N, 3] from rows of four
  void collect_positions(const NodeSums<T>& sums, T* to) const {
    const Scratch<T> wide(graph.nodes * 4);
    sums.collect(4, wide);
    for (int64_t n = 0; n < graph.nodes; ++n) std::copy_n(wide + 4 * n, 3, to + 3 * n);
  }
};

using Tensors = std::vector<Tensor>;

// Which gradients are asked for, and room for them: bit n of `needs` for the n-th tensor.
struct Wanted {
  Wanted(const Tensors& like, int64_t needs) : needs(needs) {
    for (size_t n = 0; n < like.size(); ++n) {
      std::vector<int64_t> size{0};
      if (needs >> n & 1) size.assign(like[n].sizes().begin(), like[n].sizes().end());
      found.push_back(ace::empty(like[n], size));
    }
  }
  template <class T>
  T* at(size_t n) const { return needs >> n & 1 ? ace::out<T>(found[n]) : nullptr; }
  template <class T>
  std::vector<T*> from(size_t first) const {
    std::vector<T*> all;
    for (size_t n = first; n < found.size(); ++n) all.push_back(at<T>(n));
    return all;
  }
  int64_t needs;
  Tensors found;
};

struct Graph {
  Tensor neighbour, ptr, chunks;
  bool symmetric;
};

// x, pos and the parameters, with a filter made of them.
template <class Make>
struct Operator {
  const Tensors tensors;  // x [N, F], pos [N, 3], parameters
  const Graph graph;
  const double cutoff;
  const Make make;
  const int64_t basis;  // the first parameter of the basis

  template <class T, class F>
  void with(F&& f) const {
    const Adjacency adjacency(graph.neighbour, graph.ptr, graph.chunks, graph.symmetric);
    const auto filter = make.template operator()<T>(Tensors(tensors.begin() + 2, tensors.end()));
    f(Convolution<T, std::decay_t<decltype(filter)>>{adjacency, filter, rows<T>(tensors[0]), ace::in<T>(tensors[1]),
                                                     static_cast<T>(cutoff), tensors[0].size(1)});
  }
  template <class T>
  static Rows<T> rows(const Tensor& x) { return Rows<T>(ace::in<T>(x), x.size(0), x.size(1)); }

  Tensor forward() const {
    Tensor y = ace::empty(tensors[0], {tensors[0].size(0), tensors[0].size(1)});
    ace::dispatch(y, [&]<class T>() { with<T>([&](const auto& of) { of.forward(ace::out<T>(y)); }); });
    return y;
  }

  Tensors backward(const Tensor& g, int64_t needs) const {
    const Wanted wanted(tensors, needs);
    ace::dispatch(g, [&]<class T>() {
      with<T>([&](const auto& of) {
        of.backward(rows<T>(g), wanted.at<T>(0), wanted.at<T>(1), wanted.from<T>(2).data(), needs >> 2,
                    needs >> basis);
      });
    });
    return wanted.found;
  }

  Tensors second(const Tensor& c_x, const Tensor& c_pos, const Tensor& g, int64_t needs) const {
    Tensors like{g};
    like.insert(like.end(), tensors.begin(), tensors.end());
    const Wanted wanted(like, needs);
    ace::dispatch(g, [&]<class T>() {
      with<T>([&](const auto& of) {
        of.second(rows<T>(c_x), ace::in<T>(c_pos), rows<T>(g), wanted.at<T>(0), wanted.at<T>(1), wanted.at<T>(2),
                  wanted.from<T>(3).data(), needs >> 3, needs >> (basis + 1));
      });
    });
    return wanted.found;
  }
};

Tensors dense(Tensors all) {
  for (Tensor& x : all) x = ace::dense(x);
  return all;
}

Graph dense(const Tensor& neighbour, const Tensor& ptr, const Tensor& chunks, bool symmetric) {
  return {ace::dense(neighbour), ace::dense(ptr), ace::dense(chunks), symmetric};
}

auto network(Tensors all, Graph graph, int64_t kind, int64_t activation, double alpha, double cutoff) {
  const auto make = [=]<class T>(Tensors of) { return Network<T>(of, kind, activation, alpha); };
  return Operator<decltype(make)>{dense(all), graph, cutoff, make, 6};
}

auto spline(Tensors all, Graph graph, double cutoff) {
  const auto make = [=]<class T>(Tensors of) { return Spline<T>(of[0], static_cast<T>(cutoff)); };
  return Operator<decltype(make)>{dense(all), graph, cutoff, make, 3};
}

}  // namespace

#define ACE_NETWORK                                                                                                  \
  Tensor x, Tensor pos, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor centre, Tensor scale,      \
      Tensor neighbour, Tensor ptr, Tensor chunks, bool symmetric, int64_t basis, int64_t activation, double alpha,  \
      double cutoff
#define ACE_NETWORK_CALL                                                                              \
  network({x, pos, weight1, bias1, weight2, bias2, centre, scale}, dense(neighbour, ptr, chunks, symmetric), basis, \
          activation, alpha, cutoff)
#define ACE_SPLINE \
  Tensor x, Tensor pos, Tensor table, Tensor neighbour, Tensor ptr, Tensor chunks, bool symmetric, double cutoff
#define ACE_SPLINE_CALL spline({x, pos, table}, dense(neighbour, ptr, chunks, symmetric), cutoff)

static Tensor cfconv(ACE_NETWORK) { return ACE_NETWORK_CALL.forward(); }
static Tensors cfconv_bwd(Tensor g, ACE_NETWORK, int64_t needs) {
  return ACE_NETWORK_CALL.backward(ace::dense(g), needs);
}
static Tensors cfconv_bwd_bwd(Tensor c_x, Tensor c_pos, Tensor g, ACE_NETWORK, int64_t needs) {
  return ACE_NETWORK_CALL.second(ace::dense(c_x), ace::dense(c_pos), ace::dense(g), needs);
}
static Tensor spline_conv(ACE_SPLINE) { return ACE_SPLINE_CALL.forward(); }
static Tensors spline_conv_bwd(Tensor g, ACE_SPLINE, int64_t needs) {
  return ACE_SPLINE_CALL.backward(ace::dense(g), needs);
}
static Tensors spline_conv_bwd_bwd(Tensor c_x, Tensor c_pos, Tensor g, ACE_SPLINE, int64_t needs) {
  return ACE_SPLINE_CALL.second(ace::dense(c_x), ace::dense(c_pos), ace::dense(g), needs);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
#define ACE_NETWORK_SCHEMA                                                                                         \
  "Tensor x, Tensor pos, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor centre, Tensor scale, " \
  "Tensor neighbour, Tensor ptr, Tensor chunks, bool symmetric, int basis, int activation, float alpha, float cutoff"
#define ACE_SPLINE_SCHEMA \
  "Tensor x, Tensor pos, Tensor table, Tensor neighbour, Tensor ptr, Tensor chunks, bool symmetric, float cutoff"
  m.def("cfconv(" ACE_NETWORK_SCHEMA ") -> Tensor");
  m.def("cfconv_bwd(Tensor g, " ACE_NETWORK_SCHEMA ", int needs) -> Tensor[]");
  m.def("cfconv_bwd_bwd(Tensor c_x, Tensor c_pos, Tensor g, " ACE_NETWORK_SCHEMA ", int needs) -> Tensor[]");
  m.def("spline_conv(" ACE_SPLINE_SCHEMA ") -> Tensor");
  m.def("spline_conv_bwd(Tensor g, " ACE_SPLINE_SCHEMA ", int needs) -> Tensor[]");
  m.def("spline_conv_bwd_bwd(Tensor c_x, Tensor c_pos, Tensor g, " ACE_SPLINE_SCHEMA ", int needs) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("cfconv", TORCH_BOX(&cfconv));
  m.impl("cfconv_bwd", TORCH_BOX(&cfconv_bwd));
  m.impl("cfconv_bwd_bwd", TORCH_BOX(&cfconv_bwd_bwd));
  m.impl("spline_conv", TORCH_BOX(&spline_conv));
  m.impl("spline_conv_bwd", TORCH_BOX(&spline_conv_bwd));
  m.impl("spline_conv_bwd_bwd", TORCH_BOX(&spline_conv_bwd_bwd));
}
