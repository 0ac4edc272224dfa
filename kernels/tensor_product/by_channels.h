// The product by rows, channels as vector lanes (channels.h): products of many channels with one channel.
#pragma once

#include "call.h"
#include "channels.h"

namespace ace::product {

template <class T>
class ByChannels {
 public:
  ByChannels(const Call& call, const std::vector<Path>& paths, const Layout& layout)
      : call(call), plan(paths, call.dims, layout), chunks(call.rows()), ld(call.shared() ? 0 : call.weight.size(1)) {}

  void forward(const T* bias, Tensor& pre) const {
    chunks.run([&](int64_t, auto&& visit) {
      Channels<T> channels(plan);
      each_row(visit, channels, [&](int64_t z, int64_t lane, int64_t) {
        T* row = out<T>(pre) + z * call.dims[2];
        channels.load_row(row_of(call.x1, z), row_of(call.x2, z));
        channels.forward(lane, in<T>(call.weight) + z * ld, [&](const ChannelPath& p, auto&& into) {
          into(channels.slice, !p.first);
          if (p.last) plan.store_slice(p, channels.slice, row);
        });
        for (const Slice& s : plan.unreached) std::fill_n(row + s.o, s.mul, T(0));
        const T* b = bias;
        for (size_t s = 0; b && s < call.slots.size(); s += 2)
          for (int64_t m = 0; m < call.slots[s + 1]; ++m) row[call.slots[s] + m] += *b++;
      });
    });
  }

  void backward(const Tensor& g, Gradients& to) const {
    const bool need[2] = {to.need_x1, to.need_x2};
    const int64_t weights = to.need_weight && !ld ? plan.sums : 0, biases = to.need_bias ? call.biases() : 0;
    const Partial<T> partial(chunks.count, weights + biases);
    chunks.run([&](int64_t chunk, auto&& visit) {
      Channels<T> channels(plan);
      T* sums = partial.start(chunk);
      each_row(visit, channels, [&](int64_t z, int64_t lane, int64_t left) {
        const T* row = in<T>(g) + z * call.dims[2];
        channels.load_row(row_of(call.x1, z), row_of(call.x2, z));
        channels.clear(need);
        channels.backward(lane, in<T>(call.weight) + z * ld, need, weight_row(to, z), weights ? sums : nullptr,
                          [&](const ChannelPath& p) {
                            if (p.first) plan.load_slice(p, row, channels.slice);
                            return static_cast<const T*>(channels.slice);
                          });
        store_inputs(channels, to, z, lane, left);
        T* b = sums + weights;
        for (size_t s = 0; to.need_bias && s < call.slots.size(); s += 2)
          for (int64_t m = 0; m < call.slots[s + 1]; ++m) *b++ += row[call.slots[s] + m];
      });
    });
    if (weights) sum_weights(partial, out<T>(to.weight));
    if (biases) partial.add(weights, biases, out<T>(to.bias));
  }

  // As ByBlocks::second.
  void second(const Tensor& g, const Cotangents& c, Tensor* g_g, Gradients& to) const {
    const bool need[2] = {to.need_x1, to.need_x2};
    const int64_t weights = to.need_weight && !ld ? plan.sums : 0;
    const Partial<T> partial(chunks.count, weights);
    const Rows<const T*> none{{}, 0};
    chunks.run([&](int64_t chunk, auto&& visit) {
      Channels<T> channels(plan);
      Second scratch(plan);
      T* sums = partial.start(chunk);
      each_row(visit, channels, [&](int64_t z, int64_t lane, int64_t left) {
        const int64_t some = std::min<int64_t>(lanes<T>, left);
        if (lane == 0)
          channels.couple(c.x1 ? rows_of(*c.x1, z, some) : none, c.x2 ? rows_of(*c.x2, z, some) : none, scratch.m);
        channels.load_row(row_of(call.x1, z), row_of(call.x2, z));
        if (c.x1) plan.in[0].load(row_of(*c.x1, z), scratch.x[0]);
        if (c.x2) plan.in[1].load(row_of(*c.x2, z), scratch.x[1]);
        channels.clear(need);
        for (const ChannelPath& p : plan.paths) {
          if (p.first) plan.load_slice(p, row_of(g, z), channels.slice);
          const T* gg_weight = c.weight && p.weight >= 0 ? in<T>(*c.weight) + z * ld + p.weight : nullptr;
          const Term term{channels.of(p, in<T>(call.weight) + z * ld), gg_weight, (p.side ? c.x2 : c.x1).has_value(),
                          (p.side ? c.x1 : c.x2).has_value(), lane};
          path(channels, scratch, p, term, need, weight_row(to, z), weights ? sums : nullptr, g_g);
          if (g_g && p.last) plan.store_slice(p, scratch.slice, out<T>(*g_g) + z * call.dims[2]);
        }
        for (const Slice& s : plan.unreached)
          if (g_g) std::fill_n(out<T>(*g_g) + z * call.dims[2] + s.o, s.mul, T(0));
        store_inputs(channels, to, z, lane, left);
      });
    });
    if (weights) sum_weights(partial, out<T>(to.weight));
  }

 private:
  // Cotangents of a row: the inputs in padded form, couplings; w c + c_w x and w x of a path; the product's slice.
  struct Second {
    Scratch<T> x[2], m, a, b, slice;
    explicit Second(const ChannelPlan<T>& plan)
        : x{Scratch<T>(plan.in[0].size), Scratch<T>(plan.in[1].size)}, m(plan.coupled * lanes<T>), a(plan.widest),
          b(plan.widest), slice(plan.most) {
      std::fill_n(static_cast<T*>(m), plan.coupled * lanes<T>, T(0));
    }
  };
  struct Term {
    const T *weight, *gg_weight;
    bool of_channels, of_coupling;  // cotangents of side 1, of side 2
    int64_t lane;
  };

  // One path of `second`: with couplings m and m' (of the cotangent), h = m g and h' = m' g,
  // g_g += (w c + c_w x) m + w x m', g_x += c_w h + w h', g_w = c h + x h', g_m = (w c + c_w x) g.
  void path(Channels<T>& channels, Second& s, const ChannelPath& p, const Term& term, const bool (&need)[2], T* g_weight,
            T* sums, bool product) const {
    constexpr int L = lanes<T>;
    const T *x = channels.x[p.side] + p.x, *c = term.of_channels ? s.x[p.side] + p.x : nullptr, *g = channels.slice;
    const T *m = channels.m + p.m * L + term.lane, *m_c = s.m + p.m * L + term.lane;
    const int64_t width = round_up<T>(p.U);
    for (int64_t u = 0; u < p.U; u += L) {
      const Vec<T> w = term.weight ? load_first(term.weight + u, p.U - u) : splat<T>(1);
      const Vec<T> gg_w = term.gg_weight ? load_first(term.gg_weight + u, p.U - u) : Vec<T>{};
      for (int64_t i = u; i < p.d1 * width; i += width) {
        store(s.a + i, (c ? w * load(c + i) : Vec<T>{}) + gg_w * load(x + i));
        store(s.b + i, w * load(x + i));
      }
    }
    const bool need_weight = p.weight >= 0 && (g_weight || sums);
    bool add = false;
    const auto into_weight = [&](int64_t u, Vec<T> sum) {
      if (sums) store(sums + p.sums + u, load(sums + p.sums + u) + sum);
      else store_first(g_weight + p.weight + u, add ? load_first(g_weight + p.weight + u, p.U - u) + sum : sum, p.U - u);
    };
    T* g_x = need[p.side] ? channels.g_x[p.side] + p.x : nullptr;
    with_degrees(p, [&]<int D1, int D3>() {
      if (product) channels_forward<T, D1, D3>(p, s.a, m, nullptr, s.slice, !p.first);
      if (product && term.of_coupling) channels_forward<T, D1, D3>(p, s.b, m_c, nullptr, s.slice, true);
      if (term.gg_weight || c)
        channels_backward<T, D1, D3>(p, c ? c : x, m, term.gg_weight, g, term.gg_weight ? g_x : nullptr,
                                     need_weight && c, into_weight);
      add = c;
      if (term.of_coupling)
        channels_backward<T, D1, D3>(p, x, m_c, term.weight, g, g_x, need_weight, into_weight);
    });
    if (need_weight && g_weight && !c && !term.of_coupling) std::fill_n(g_weight + p.weight, p.U, T(0));
    if (need[!p.side]) channels.g_coupling(p, term.lane, s.a, nullptr, g);
  }

  // f(row, its lane in a vector of rows, rows left) with the couplings of the vector formed.
  template <class Visit, class F>
  void each_row(Visit&& visit, Channels<T>& channels, F&& f) const {
    visit([&](int64_t first, int64_t count) {
      for (int64_t z = first; z < first + count; ++z) {
        const int64_t lane = (z - first) % lanes<T>, left = first + count - z;
        if (lane == 0) {
          const int64_t some = std::min<int64_t>(lanes<T>, left);
          channels.couple(rows_of(call.x1, z, some), rows_of(call.x2, z, some), channels.m);
        }
        f(z, lane, left);
      }
    });
  }

  static const T* row_of(const Tensor& x, int64_t z) { return in<T>(x) + z * x.size(1); }
  static Rows<const T*> rows_of(const Tensor& x, int64_t z, int64_t count) {
    return rows_from(in<T>(x), z, count, x.size(1));
  }
  T* weight_row(Gradients& to, int64_t z) const { return to.need_weight && ld ? out<T>(to.weight) + z * ld : nullptr; }

  // The gradients of the inputs: of a row, or, where they come through the couplings, of its vector of rows at the last.
  void store_inputs(Channels<T>& channels, Gradients& to, int64_t z, int64_t lane, int64_t left) const {
    const bool last = lane + 1 == lanes<T> || left == 1;
    for (int side = 0; side < 2; ++side) {
      if (!(side ? to.need_x2 : to.need_x1)) continue;
      T* rows = out<T>(side ? to.x2 : to.x1);
      const bool wide = plan.wide[side] || !plan.single[side];
      if (wide) plan.in[side].store(channels.g_x[side], rows + z * plan.dim[side]);
      if (plan.single[side] && last) channels.uncouple(rows_from(rows, z - lane, lane + 1, plan.dim[side]), side, wide);
    }
  }

  void sum_weights(const Partial<T>& partial, T* to) const {
    for (const ChannelPath& p : plan.paths)
      if (p.weight >= 0) partial.add(p.sums, p.U, to + p.weight);
  }

  const Call& call;
  const ChannelPlan<T> plan;
  const Chunks chunks;
  const int64_t ld;  // from one row's weights to the next, 0 where they are shared
};

}  // namespace ace::product
