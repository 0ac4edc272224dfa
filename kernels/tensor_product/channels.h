// Products of channel u with one channel alone (uvu with V = 1, uvv with U = 1): a row at a time, channels as the vector
// lanes. The coupling sum_j C_ijk x2_j is the same for all channels of a row: it is formed for a vector of rows at once and
// then broadcast. Weights and gradients of a row stream through once, as they lie in memory.
#pragma once

#include "interleave.h"
#include "paths.h"

namespace ace::product {

// A row in memory and in padded form, where each slice is [d][channels in whole vectors].
template <class T>
struct Wide {
  std::vector<Slice> slices;
  std::vector<int64_t> at;  // where each slice begins in the padded row
  int64_t size = 0;
  bool ir_mul;

  Wide(const std::vector<Slice>& given, int64_t dim, bool ir_mul) : slices(fill_slices(given, dim, true)), ir_mul(ir_mul) {
    for (const Slice& s : slices) {
      at.push_back(size);
      size += s.d * round_up<T>(s.mul);
    }
  }
  int64_t find(int64_t offset) const {
    const auto before = [](const Slice& s, int64_t o) { return s.o < o; };
    auto n = std::lower_bound(slices.begin(), slices.end(), offset, before);
    while (!n->mul) ++n;
    return at[n - slices.begin()];
  }
  void load(const T* row, T* to) const {
    for (size_t n = 0; n < slices.size(); ++n) {
      const Slice& s = slices[n];
      with_degree(s.d, [&]<int D>() { widen<T, D>(row + s.o, s.mul, s.d, ir_mul, to + at[n]); });
    }
  }
  void store(const T* from, T* row) const {
    for (size_t n = 0; n < slices.size(); ++n) {
      const Slice& s = slices[n];
      with_degree(s.d, [&]<int D>() { narrow<T, D>(from + at[n], s.mul, s.d, ir_mul, row + s.o); });
    }
  }
};

// One path: channels of side 1, which is input `side`, times one channel of the other.
struct ChannelPath {
  int64_t U, d1, d3, x, y, m, weight, sums;  // x, y: padded rows; m: its coupling, dense [d1, d3]; sums: padded weights
  int64_t out;                               // where its slice begins in a row of out
  int side;
  bool first, last;  // of the paths that reach this slice of out
};

// What one number of the coupling is summed from: columns, from `column` on, of input `side`.
struct Coupling { int64_t m, column; int side; std::span<const Term> terms; };

template <class T>
struct ChannelPlan {
  int64_t dim[2];
  Wide<T> in[2], out;
  std::vector<ChannelPath> paths;
  std::vector<Coupling> couplings;
  std::vector<Slice> unreached;                             // columns of out that no path writes
  bool wide[2] = {false, false}, single[2] = {false, false};  // which inputs take part with all channels, with one
  int64_t coupled = 0, sums = 0;   // numbers in a coupling, in padded sums
  int64_t most = 1, widest = 1;    // in the largest slice of out, of an input, padded

  // Whether the plan fits: nothing but channel by channel, and vectors at least half full.
  static bool takes(const std::vector<Path>& paths) {
    int64_t used = 0, all = 0;
    for (const Path& p : paths) {
      if (p.meet != Meet::all || p.mixes || p.V != 1 || std::max(p.d1, p.d3) > kMost) return false;
      used += p.U * p.d3;
      all += round_up<T>(p.U) * p.d3;
    }
    return 2 * used >= all && all > 0;
  }
  static constexpr int64_t kMost = 23;  // components: degrees up to 11

  ChannelPlan(const std::vector<Path>& found, const std::vector<int64_t>& dims, const Layout& layout)
      : dim{dims[0], dims[1]}, in{Wide<T>(layout.parts[0], dims[0], dims[3]), Wide<T>(layout.parts[1], dims[1], dims[3])},
        out(layout.parts[2], dims[2], dims[3]) {
    std::vector<const Path*> order;
    for (const Path& p : found)
      if (p.U) order.push_back(&p);
    std::stable_sort(order.begin(), order.end(), [](const Path* a, const Path* b) { return a->o3 < b->o3; });
    int64_t end = 0;
    for (size_t n = 0; n < order.size(); ++n) {
      const Path& p = *order[n];
      const bool first = n == 0 || order[n - 1]->o3 != p.o3, last = n + 1 == order.size() || order[n + 1]->o3 != p.o3;
      paths.push_back({p.U, p.d1, p.d3, in[p.swapped].find(p.o1), out.find(p.o3), coupled, p.weight, sums, p.o3,
                       p.swapped, first, last});
      wide[p.swapped] = single[!p.swapped] = true;
      for (const Pair& pair : p.pairs)
        couplings.push_back({coupled + pair.i * p.d3 + pair.k, p.o2, !p.swapped, pair.terms});
      coupled += p.d1 * p.d3;
      if (p.weight >= 0) sums += round_up<T>(p.U);
      most = std::max(most, round_up<T>(p.U) * p.d3);
      widest = std::max(widest, round_up<T>(p.U) * p.d1);
      if (first && p.o3 > end) unreached.push_back({end, p.o3 - end, 1});
      end = p.o3 + p.U * p.d3;
    }
    if (end < dims[2]) unreached.push_back({end, dims[2] - end, 1});
  }

  // The slice of out that a path reaches, in its row and padded.
  void load_slice(const ChannelPath& p, const T* row, T* to) const {
    with_degree(p.d3, [&]<int D>() { widen<T, D>(row + p.out, p.U, p.d3, out.ir_mul, to); });
  }
  void store_slice(const ChannelPath& p, const T* from, T* row) const {
    with_degree(p.d3, [&]<int D>() { narrow<T, D>(from, p.U, p.d3, out.ir_mul, row + p.out); });
  }
};

// y (+)= w sum_i x_i m_ik for the channels of a path, in padded rows; m: of this row, w: this path's or null.
template <class T, int D1, int D3>
void channels_forward(const ChannelPath& p, const T* x, const T* m, const T* w, T* y, bool add) {
  constexpr int L = lanes<T>;
  const int64_t d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3, width = round_up<T>(p.U);
  for (int64_t u = 0; u < p.U; u += L) {
    Vec<T> sum[D3 ? D3 : ChannelPlan<T>::kMost];
    for (int64_t k = 0; k < d3; ++k) sum[k] = Vec<T>{};
    for (int64_t i = 0; i < d1; ++i) {
      const Vec<T> a = load(x + i * width + u);
      for (int64_t k = 0; k < d3; ++k) sum[k] += a * m[(i * d3 + k) * L];
    }
    const Vec<T> scale = w ? load_first(w + u, p.U - u) : splat<T>(1);
    for (int64_t k = 0; k < d3; ++k)
      store(y + k * width + u, add ? load(y + k * width + u) + scale * sum[k] : scale * sum[k]);
  }
}

// With h_i = sum_k m_ik g_k: g_x += w h, and f(u, sum_i x_i h_i), the gradient of the weights, where it is asked for.
template <class T, int D1, int D3, class F>
void channels_backward(const ChannelPath& p, const T* x, const T* m, const T* w, const T* g, T* g_x, bool need_weight,
                       F&& f) {
  constexpr int L = lanes<T>;
  const int64_t d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3, width = round_up<T>(p.U);
  for (int64_t u = 0; u < p.U; u += L) {
    Vec<T> gradient[D3 ? D3 : ChannelPlan<T>::kMost], sum{};
    for (int64_t k = 0; k < d3; ++k) gradient[k] = load(g + k * width + u);
    const Vec<T> scale = w ? load_first(w + u, p.U - u) : splat<T>(1);
    for (int64_t i = 0; i < d1; ++i) {
      Vec<T> h{};
      for (int64_t k = 0; k < d3; ++k) h += gradient[k] * m[(i * d3 + k) * L];
      if (need_weight) sum += load(x + i * width + u) * h;
      if (g_x) store(g_x + i * width + u, load(g_x + i * width + u) + scale * h);
    }
    if (need_weight) f(u, sum);
  }
}

// to[i, k] = sum over channels of w x_i g_k, the gradient of the coupling; written in whole vectors.
template <class T, int D1, int D3>
void channels_couplings(const ChannelPath& p, const T* x, const T* w, const T* g, T* part, T* to) {
  constexpr int L = lanes<T>, block = D3 ? std::max(1, (kTileRows * kTileVectors) / D3) : 1;  // accumulators in registers
  const int64_t d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3, width = round_up<T>(p.U);
  const auto rows = [&]<int Rows>(int64_t i) {
    Vec<T> sum[Rows][D3 ? D3 : ChannelPlan<T>::kMost];
    for (int r = 0; r < Rows; ++r)
      for (int64_t k = 0; k < d3; ++k) sum[r][k] = Vec<T>{};
    for (int64_t u = 0; u < p.U; u += L) {
      const Vec<T> scale = w ? load_first(w + u, p.U - u) : splat<T>(1);
      Vec<T> a[Rows];
      for (int r = 0; r < Rows; ++r) a[r] = scale * load(x + (i + r) * width + u);
      for (int64_t k = 0; k < d3; ++k) {
        const Vec<T> b = load(g + k * width + u);
        for (int r = 0; r < Rows; ++r) sum[r][k] += a[r] * b;
      }
    }
    for (int r = 0; r < Rows; ++r)
      for (int64_t k = 0; k < d3; ++k) store(part + ((i + r) * d3 + k) * L, sum[r][k]);
  };
  int64_t i = 0;
  if constexpr (D1 != 0 && block > 1) {
    for (; i + std::min(block, D1) <= d1; i += std::min(block, D1)) rows.template operator()<std::min(block, D1)>(i);
  }
  for (; i < d1; ++i) rows.template operator()<1>(i);
  for (int64_t n = 0; n < d1 * d3; n += L) {
    Vec<T> sums[L];
    for (int l = 0; l < L; ++l) sums[l] = n + l < d1 * d3 ? load(part + (n + l) * L) : Vec<T>{};
    store(to + n, sum_each<T>(sums));
  }
}

// f<D1, D3>() with the degrees of a path where both are compiled for, f<0, 0>() otherwise.
template <class F>
inline void with_degrees(const ChannelPath& p, F&& f) {
  with_degree(p.d1, [&]<int D1>() {
    with_degree(p.d3, [&]<int D3>() { f.template operator()<D1 && D3 ? D1 : 0, D1 && D3 ? D3 : 0>(); });
  });
}

// What one thread needs for a vector of rows; lane: which of them.
template <class T>
class Channels {
 public:
  static constexpr int L = lanes<T>;

  explicit Channels(const ChannelPlan<T>& plan)
      : x{Scratch<T>(plan.in[0].size), Scratch<T>(plan.in[1].size)},
        g_x{Scratch<T>(plan.in[0].size), Scratch<T>(plan.in[1].size)}, slice(plan.most),
        m(plan.coupled * L), plan(plan), columns{Scratch<T>(plan.dim[0] * L), Scratch<T>(plan.dim[1] * L)},
        part(ChannelPlan<T>::kMost * ChannelPlan<T>::kMost * L), g_m(L * ld_m()), turned(plan.coupled * L) {
    std::fill_n(static_cast<T*>(m), plan.coupled * L, T(0));
    std::fill_n(static_cast<T*>(g_m), L * ld_m(), T(0));
  }

  // Forms the couplings `to` of up to L rows; without rows of an input, those with it are left as they are.
  void couple(const Rows<const T*>& in1, const Rows<const T*>& in2, T* to) {
    for (int side = 0; side < 2; ++side) {
      const Rows<const T*>& rows = side ? in2 : in1;
      if (!plan.single[side] || !rows.count) continue;
      T* x = columns[side];
      if (rows.count < L) std::fill_n(x, plan.dim[side] * L, T(0));
      transpose_rows<T>([&](int64_t r) { return rows.at[r]; }, rows.count, plan.dim[side],
                        [&](int64_t c) { return x + c * L; });
    }
    for (const Coupling& c : plan.couplings) {
      if (!(c.side ? in2 : in1).count) continue;
      Vec<T> sum{};
      const T* x = columns[c.side] + c.column * L;
      for (const Term& term : c.terms) sum += static_cast<T>(term.c) * load(x + term.j * L);
      store(to + c.m * L, sum);
    }
  }

  // Takes the rows of the inputs whose channels are lanes.
  void load_row(const T* in1, const T* in2) {
    if (plan.wide[0]) plan.in[0].load(in1, x[0]);
    if (plan.wide[1]) plan.in[1].load(in2, x[1]);
  }

  // The gradients of the inputs whose channels are lanes begin at zero.
  void clear(const bool (&need)[2]) {
    for (int side = 0; side < 2; ++side)
      if (need[side]) std::fill_n(static_cast<T*>(g_x[side]), plan.in[side].size, T(0));
  }

  // visit(path, into) for every path; into(y, add) puts it at y, padded.
  template <class F>
  void forward(int64_t lane, const T* weight, F&& visit) {
    for (const ChannelPath& p : plan.paths)
      visit(p, [&](T* y, bool add) {
        with_degrees(p, [&]<int D1, int D3>() {
          channels_forward<T, D1, D3>(p, x[p.side] + p.x, m + p.m * L + lane, of(p, weight), y, add);
        });
      });
  }

  // g_of(path): the padded gradient of its slice. g_x is added to; gradients of the weights are written to g_weight, which
  // lies as the weights do, or added to padded sums.
  template <class F>
  void backward(int64_t lane, const T* weight, const bool (&need)[2], T* g_weight, T* sums, F&& g_of) {
    for (const ChannelPath& p : plan.paths) {
      const T* g = g_of(p);
      const bool need_weight = p.weight >= 0 && (g_weight || sums);
      with_degrees(p, [&]<int D1, int D3>() {
        const T* a = x[p.side] + p.x;
        if (need[p.side] || need_weight)
          channels_backward<T, D1, D3>(p, a, m + p.m * L + lane, of(p, weight), g,
                                       need[p.side] ? g_x[p.side] + p.x : nullptr, need_weight, [&](int64_t u, Vec<T> sum) {
            if (g_weight) store_first(g_weight + p.weight + u, sum, p.U - u);
            else store(sums + p.sums + u, load(sums + p.sums + u) + sum);
          });
      });
      if (need[!p.side]) g_coupling(p, lane, x[p.side] + p.x, of(p, weight), g);
    }
  }

  // The gradient of a path's coupling, for `uncouple`; x and w may be of other operands than those loaded.
  void g_coupling(const ChannelPath& p, int64_t lane, const T* a, const T* w, const T* g) {
    with_degrees(p, [&]<int D1, int D3>() {
      channels_couplings<T, D1, D3>(p, a, w, g, part, g_m + lane * ld_m() + p.m);
    });
  }

  // Gradients of the inputs whose single channels made the couplings, for the rows of `backward`; added where `add` says.
  void uncouple(const Rows<T*>& rows, int side, bool add) {
    T* to = columns[side];
    transpose<T>(g_m, L, plan.coupled, ld_m(), turned, L);
    std::fill_n(to, plan.dim[side] * L, T(0));
    for (const Coupling& c : plan.couplings) {
      if (c.side != side) continue;
      const Vec<T> g = load(turned + c.m * L);
      for (const Term& term : c.terms) {
        T* target = to + (c.column + term.j) * L;
        store(target, load(target) + static_cast<T>(term.c) * g);
      }
    }
    if (!add)
      return transpose_rows<T>([&](int64_t c) { return to + c * L; }, plan.dim[side], rows.count,
                               [&](int64_t r) { return rows.at[r]; });
    for (int64_t r = 0; r < rows.count; ++r)
      for (int64_t c = 0; c < plan.dim[side]; ++c) rows.at[r][c] += to[c * L + r];
  }

  static const T* of(const ChannelPath& p, const T* weight) { return p.weight < 0 ? nullptr : weight + p.weight; }

  Scratch<T> x[2], g_x[2];  // padded rows
  Scratch<T> slice;         // one slice of out, padded
  Scratch<T> m;             // couplings [coupled][L]

 private:
  int64_t ld_m() const { return plan.coupled + L; }

  const ChannelPlan<T>& plan;
  Scratch<T> columns[2], part, g_m, turned;  // columns [dim][L], g_m [L][coupled, a vector], turned [coupled][L]
};

}  // namespace ace::product
