// steerable_message: blocks of edges in the order of their targets go through both products without leaving the cache,
// and their messages are added to the targets' rows. The backward pass recomputes a block and goes back through it. A
// thread owns whole target nodes; sums run in the order of the edges, then over chunks that the graph alone decides.
#include "factored.h"
#include "plain.h"

namespace {

using namespace ace;
using namespace ace::message;
using Ints = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

template <class T, class Form>
void forward(const Arguments<T>& a, T* out) {
  Form form(a);
  form.prepare();
  Chunks(a.target).run([&](auto&& each_chunk) {
    typename Form::Worker worker(form);
    each_chunk([&](int64_t, auto&& each_tile) {
      each_tile([&](const Tile& tile) {
        std::fill_n(out + tile.node * a.two.width(), tile.nodes * a.two.width(), T(0));
        worker.open(tile, nullptr);
        Taken::each(a.target, tile, [&](const Taken& taken) {
          worker.block.take(taken);
          worker.forward();
          worker.block.second_product();
          worker.block.add_messages(out);
        });
      });
    });
  });
}

// Gradients of the weights and biases; null where nobody asks.
template <class T>
struct Parameters { T *weight1, *bias1, *weight2, *bias2; };

template <class T, class Form>
void backward(const Arguments<T>& a, const T* g, Gradients<T> to, const Parameters<T>& out) {
  Form form(a);
  form.prepare();
  const Chunks chunks(a.target);
  const bool first = to.h || to.extra || to.attr || out.weight1 || out.bias1;
  const bool sent = to.h || (out.weight1 && std::is_same_v<Form, Factored<T>>);
  Scratch<T> rows(sent ? a.target.edges * form.sent_width : 0);
  to.sent = sent ? static_cast<T*>(rows) : nullptr;
  // a chunk's sums: first weights, second weights, first biases, second biases
  const int64_t at2 = round_up<T>(form.sums), at_bias1 = at2 + a.two.padded, at_bias2 = at_bias1 + a.one.biases;
  const int64_t stride = round_up<T>(at_bias2 + a.two.biases);
  Scratch<T> sums(chunks.count * stride);
  chunks.run([&](auto&& each_chunk) {
    typename Form::Worker worker(form);
    each_chunk([&](int64_t chunk, auto&& each_tile) {
      T* mine = sums + chunk * stride;
      std::fill_n(mine, stride, T(0));
      const auto part = [&](const T* wanted, int64_t at) { return wanted ? mine + at : nullptr; };
      each_tile([&](const Tile& tile) {
        worker.open(tile, &to);
        Taken::each(a.target, tile, [&](const Taken& taken) {
          worker.block.take(taken);
          worker.forward();
          worker.block.second_product();
          worker.block.second_backward(g, first, to.attr, part(out.weight2, at2), part(out.bias2, at_bias2),
                                       part(out.bias1, at_bias1));
          if (first) worker.backward(to, part(out.weight1, 0));
        });
        worker.close(tile, to, part(out.weight1, 0));
      });
    });
  });
  if (out.weight1) form.weight_gradient(sums, chunks.count, stride, out.weight1);
  form.receive(to, out.weight1);
  if (out.weight2) sum_weights<T>(a.two.paths, sums + at2, chunks.count, stride, out.weight2);
  if (out.bias1) sum_chunks<T>(sums + at_bias1, chunks.count, stride, 1, a.one.biases, a.one.biases, out.bias1);
  if (out.bias2) sum_chunks<T>(sums + at_bias2, chunks.count, stride, 1, a.two.biases, a.two.biases, out.bias2);
}

int64_t biases_of(const Ints& slots) {
  int64_t found = 0;
  for (size_t s = 1; s < slots.size(); s += 2) found += slots[s];
  return found;
}

// The tensors of one product as the operator takes them, with contiguous weights.
struct Tables {
  Tensor weight;
  Maybe bias;
  Tensor index, value;
  Ints dims, paths, slots, layout;
  double scalar_gain, gate_gain;

  template <class T>
  Product<T> read() const {
    Product<T> p{dims[0], dims[1], dims[2], product::read_paths<T>(paths, index, value), slots, std::nullopt,
                 in<T>(weight), bias ? in<T>(*bias) : nullptr, 0, biases_of(slots)};
    if (!layout.empty()) p.gate.emplace(layout, scalar_gain, gate_gain);
    p.padded = product::padded_weights<T>(p.paths);
    return p;
  }
};

Maybe dense(const Maybe& x) { return x ? Maybe(ace::dense(*x)) : std::nullopt; }

// Everything the operator takes, contiguous.
struct Inputs {
  Tensor h;
  Maybe extra;
  Tensor attr, source_index, source_order, source_ptr, target_index, target_order, target_ptr;
  Tables one, two;

  template <class T>
  Arguments<T> read() const {
    const int64_t nodes = h.size(0), edges = attr.size(0);
    return {h.size(1), extra ? extra->size(1) : 0, attr.size(1), in<T>(h), extra ? in<T>(*extra) : nullptr, in<T>(attr),
            {in<int64_t>(source_index), in<int64_t>(source_order), in<int64_t>(source_ptr), nodes, edges},
            {in<int64_t>(target_index), in<int64_t>(target_order), in<int64_t>(target_ptr), nodes, edges},
            one.read<T>(), two.read<T>()};
  }
};

#define ARGUMENTS                                                                                                     \
  Tensor h, Maybe extra, Tensor attr, Tensor weight1, Maybe bias1, Tensor weight2, Maybe bias2, Tensor source_index,  \
      Tensor source_order, Tensor source_ptr, Tensor target_index, Tensor target_order, Tensor target_ptr,            \
      Tensor cg_index1, Tensor cg_value1, Ints dims1, Ints paths1, Ints slots1, Ints layout1, double scalar_gain1,    \
      double gate_gain1, Tensor cg_index2, Tensor cg_value2, Ints dims2, Ints paths2, Ints slots2, Ints layout2,      \
      double scalar_gain2, double gate_gain2, bool factor
#define INPUTS                                                                                                        \
  Inputs{ace::dense(h), dense(extra), ace::dense(attr), ace::dense(source_index), ace::dense(source_order),           \
         ace::dense(source_ptr), ace::dense(target_index), ace::dense(target_order), ace::dense(target_ptr),          \
         {ace::dense(weight1), dense(bias1), cg_index1, cg_value1, dims1, paths1, slots1, layout1, scalar_gain1,      \
          gate_gain1},                                                                                                \
         {ace::dense(weight2), dense(bias2), cg_index2, cg_value2, dims2, paths2, slots2, layout2, scalar_gain2,      \
          gate_gain2}}

Tensor steerable_message(ARGUMENTS) {
  const Inputs inputs = INPUTS;
  const int64_t gates = layout2.empty() ? 0 : layout2[1];
  Tensor out = empty(h, {h.size(0), dims2[2] - gates});
  dispatch(h, [&]<class T>() {
    const Arguments<T> a = inputs.read<T>();
    T* to = ace::out<T>(out);
    factor ? forward<T, Factored<T>>(a, to) : forward<T, Plain<T>>(a, to);
  });
  return out;
}

// Gradients of h, extra, attr, weight1, bias1, weight2, bias2; bit n of `needs` asks for the n-th, the others are empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> steerable_message_bwd(Tensor g_, ARGUMENTS,
                                                                                         int64_t needs) {
  const Inputs inputs = INPUTS;
  const Tensor g = ace::dense(g_);
  const auto grad = [&](int n, Ints size) { return empty(h, needs >> n & 1 ? size : Ints{0}); };
  Tensor found[7] = {grad(0, {h.size(0), h.size(1)}), grad(1, {attr.size(0), extra ? extra->size(1) : 0}),
                     grad(2, {attr.size(0), attr.size(1)}), grad(3, {weight1.size(0)}), grad(4, {biases_of(slots1)}),
                     grad(5, {weight2.size(0)}), grad(6, {biases_of(slots2)})};
  dispatch(h, [&]<class T>() {
    const Arguments<T> a = inputs.read<T>();
    const auto at = [&](int n) { return needs >> n & 1 ? ace::out<T>(found[n]) : nullptr; };
    const Gradients<T> to{at(0), at(1), at(2), nullptr};
    const Parameters<T> parameters{at(3), at(4), at(5), at(6)};
    // the attributes' gradient needs each edge's products, which the factored form sums away
    factor && !to.attr ? backward<T, Factored<T>>(a, in<T>(g), to, parameters)
                       : backward<T, Plain<T>>(a, in<T>(g), to, parameters);
  });
  return {found[0], found[1], found[2], found[3], found[4], found[5], found[6]};
}

}  // namespace

#define PRODUCT(n)                                                                                            \
  "Tensor cg_index" n ", Tensor cg_value" n ", int[] dims" n ", int[] paths" n ", int[] bias_slots" n         \
  ", int[] layout" n ", float scalar_gain" n ", float gate_gain" n
#define SCHEMA                                                                                                \
  "Tensor h, Tensor? extra, Tensor attr, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "      \
  "Tensor source_index, Tensor source_order, Tensor source_ptr, Tensor target_index, Tensor target_order, "   \
  "Tensor target_ptr, " PRODUCT("1") ", " PRODUCT("2") ", bool factor"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("steerable_message(" SCHEMA ") -> Tensor");
  m.def("steerable_message_bwd(Tensor g, " SCHEMA
        ", int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("steerable_message", TORCH_BOX(&steerable_message));
  m.impl("steerable_message_bwd", TORCH_BOX(&steerable_message_bwd));
}
