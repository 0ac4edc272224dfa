// sphere_activation: blocks of elements as lanes go to the points of one group, through the function there, and back.
#include <array>

#include "pointwise.h"

namespace {

namespace sphere = ace::sphere_activation;
using ace::ceil_div, ace::in, ace::out, ace::Scratch, ace::Tensor;
using sphere::Layout, sphere::Points, sphere::Transform;
using Maybe = std::optional<Tensor>;

Maybe dense(const Maybe& x) { return x ? Maybe(ace::dense(*x)) : x; }

// A field that enters, by its coefficients; where there are none it is constant. One that leaves, null where not wanted.
template <class T>
struct Input { const Transform<T>* transform; const T* data; T constant; };
template <class T>
struct Output { const Transform<T>* transform; T* data; };

template <class T>
struct Call {
  Layout layout;
  std::vector<Input<T>> inputs;
  std::vector<Output<T>> outputs;
  const T *gate, *c_gate;  // [Z, C], null for 1 and for 0
  T* sum;                  // [Z, C], null where not wanted
  sphere::Visit<T> visit;

  static constexpr int64_t W = sphere::kLanes<T>;

  // Where everything of a block lies in the scratch of a thread.
  struct Block {
    std::vector<T*> x, work, even, odd;  // of inputs, then of outputs
    T *gate, *c_gate, *sum, *zeros, *ones;
  };

  int64_t fields() const { return inputs.size() + outputs.size(); }
  const Transform<T>& transform(int64_t n) const {
    const int64_t first = inputs.size();
    return n < first ? *inputs[n].transform : *outputs[n - first].transform;
  }

  // Lays the block out from `at` on, or only measures where that is null.
  int64_t lay(T* at, Block& block) const {
    int64_t used = 0;
    const auto take = [&](int64_t n) { return at + std::exchange(used, used + n); };
    for (int64_t n = 0; n < fields(); ++n) {
      const Transform<T>& t = transform(n);
      block.x.push_back(take(t.size() + ace::lanes<T>));
      block.work.push_back(take(t.work_size()));
      block.even.push_back(take(t.height() * W));
      block.odd.push_back(take(t.height() * W));
    }
    for (T** row : {&block.gate, &block.c_gate, &block.sum, &block.zeros, &block.ones}) *row = take(W);
    return used;
  }

  void run() const {
    const int64_t elements = layout.elements(), blocks = ceil_div(elements, W), each = 8;
    if (elements == 0) return;
    Block measured;
    const int64_t size = lay(nullptr, measured);
    ace::parallel(ceil_div(blocks, each), 1, [&](int64_t chunk) {
      const Scratch<T> scratch(size);
      Block block;
      lay(scratch, block);
      std::fill_n(block.zeros, W, T(0));
      std::fill_n(block.ones, W, T(1));
      for (int64_t b = chunk * each; b < std::min(blocks, (chunk + 1) * each); ++b)
        compute(block, b * W, std::min(W, elements - b * W));
    });
  }

  void compute(const Block& block, int64_t first, int64_t count) const {
    load(block, first, count);
    const int64_t entering = inputs.size(), leaving = outputs.size();
    Points<T> points{};
    const Transform<T>& any = transform(entering);
    points.opposite = any.opposite(), points.paired = any.paired();
    points.gate = block.gate, points.c_gate = block.c_gate, points.sum = block.sum;
    for (int64_t n = 0; n < entering; ++n) {
      const bool constant = !inputs[n].data;
      points.even[n] = !constant ? block.even[n] : inputs[n].constant ? block.ones : block.zeros;
      points.odd[n] = constant ? block.zeros : block.odd[n];
      points.step[n] = constant ? 0 : W;
    }
    for (int64_t n = 0; n < leaving; ++n)
      points.out_even[n] = block.even[entering + n], points.out_odd[n] = block.odd[entering + n];
    for (int64_t group = 0; group < any.groups(); ++group) {
      for (int64_t n = 0; n < entering; ++n)
        if (inputs[n].data) transform(n).to_points(group, block.x[n], block.work[n], block.even[n], block.odd[n]);
      points.count = any.count(group);
      visit(points);
      for (int64_t n = entering; n < fields(); ++n)
        if (outputs[n - entering].data)
          transform(n).from_points(group, block.even[n], block.odd[n], block.x[n], block.work[n]);
    }
    store(block, first, count);
  }

  void load(const Block& block, int64_t first, int64_t count) const {
    for (size_t n = 0; n < inputs.size(); ++n) {
      if (!inputs[n].data) continue;
      sphere::load_block(inputs[n].data, layout, first, count, transform(n).place, block.x[n]);
      transform(n).begin(block.x[n], block.work[n]);
    }
    const auto row = [&](const T* from, T otherwise, T* to) {
      std::fill_n(to, W, otherwise);
      if (from) std::copy_n(from + first, count, to);
    };
    row(gate, T(1), block.gate);
    row(c_gate, T(0), block.c_gate);
    std::fill_n(block.sum, W, T(0));
  }

  void store(const Block& block, int64_t first, int64_t count) const {
    for (size_t n = 0, slot = inputs.size(); n < outputs.size(); ++n, ++slot) {
      if (!outputs[n].data) continue;
      transform(slot).end(block.work[slot], block.x[slot]);
      sphere::store_block(static_cast<const T*>(block.x[slot]), layout, first, count, transform(slot).place,
                          outputs[n].data);
    }
    if (sum) std::copy_n(block.sum, count, sum + first);
  }
};

// The arguments that all three operators share.
struct Arguments {
  Tensor x;
  Maybe x2, gate;
  Tensor into, back;
  int64_t ring;  // 0 where the tables are used as they are
  bool ir_mul;

  Arguments(const Tensor& x, const Maybe& x2, const Maybe& gate, const Tensor& into, const Tensor& back, int64_t ring,
            bool ir_mul)
      : x(ace::dense(x)), x2(dense(x2)), gate(dense(gate)), into(ace::dense(into)), back(ace::dense(back)),
        ring(sphere::rings_pay(into.size(0), std::max(into.size(1), back.size(1)), ring) ? ring : 0), ir_mul(ir_mul) {}

  int64_t channels() const { return x.size(1) / into.size(1); }
  Layout layout() const { return {x.size(0), channels(), ir_mul}; }
  template <class T>
  Transform<T> transform(const Tensor& table) const { return {in<double>(table), table.size(0), table.size(1), ring}; }
};

template <class T>
const T* data(const Maybe& x) { return x ? in<T>(*x) : nullptr; }

Tensor make(const Tensor& like, bool need, int64_t rows, int64_t columns) {
  return ace::empty(like, need ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{0});
}

template <class T>
T* target(bool need, const Tensor& x) { return need ? out<T>(x) : nullptr; }

Tensor sphere_activation(Tensor x, Maybe x2, Maybe gate, Tensor into, Tensor back, int64_t ring, bool ir_mul,
                         int64_t act) {
  const Arguments a(x, x2, gate, into, back, ring, ir_mul);
  Tensor y = ace::empty(a.x, {x.size(0), a.channels() * back.size(1)});  // [Z, e C]
  ace::dispatch(x, [&]<class T>() {
    const Transform<T> to = a.transform<T>(a.into), from = a.transform<T>(a.back);
    Call<T> call{a.layout(), {{&to, in<T>(a.x), 0}}, {{&from, out<T>(y)}}, data<T>(a.gate), nullptr, nullptr,
                 sphere::visit_of<T, sphere::Forward<false>>(act)};
    if (a.x2) {
      call.inputs.push_back({&to, in<T>(*a.x2), 0});
      call.visit = sphere::visit_of<T, sphere::Forward<true>>(act);
    }
    call.run();
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> sphere_activation_bwd(Tensor g, Tensor x, Maybe x2, Maybe gate, Tensor into, Tensor back,
                                                         int64_t ring, bool ir_mul, int64_t act, int64_t needs) {
  const Arguments a(x, x2, gate, into, back, ring, ir_mul);
  const Tensor cotangent = ace::dense(g);  // [Z, e C]
  const bool need[3] = {(needs & 1) != 0, (needs & 2) != 0, (needs & 4) != 0};
  Tensor g_x = make(a.x, need[0], x.size(0), x.size(1)), g_x2 = make(a.x, need[1], x.size(0), x.size(1));
  Tensor g_gate = make(a.x, need[2], x.size(0), a.channels());
  ace::dispatch(x, [&]<class T>() {
    const Transform<T> to = a.transform<T>(a.into), from = a.transform<T>(a.back);
    Call<T> call{a.layout(), {{&to, in<T>(a.x), 0}, {&from, in<T>(cotangent), 0}}, {{&to, target<T>(need[0], g_x)}},
                 data<T>(a.gate), nullptr, target<T>(need[2], g_gate),
                 sphere::visit_of<T, sphere::Gradient<false>>(act)};
    if (a.x2) {
      call.inputs.push_back({&to, in<T>(*a.x2), 0});
      call.outputs.push_back({&to, target<T>(need[1], g_x2)});
      call.visit = sphere::visit_of<T, sphere::Gradient<true>>(act);
    }
    call.run();
  });
  return {g_x, g_x2, g_gate};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sphere_activation_bwd_bwd(
    Maybe c_x_, Maybe c_x2_, Maybe c_gate_, Tensor g, Tensor x, Maybe x2, Maybe gate, Tensor into, Tensor back, int64_t ring,
    bool ir_mul, int64_t act, int64_t needs) {
  const Arguments a(x, x2, gate, into, back, ring, ir_mul);
  const Tensor cotangent = ace::dense(g);
  const Maybe c_x = dense(c_x_), c_x2 = dense(c_x2_), c_gate = dense(c_gate_);
  const bool need[4] = {(needs & 1) != 0, (needs & 2) != 0, (needs & 4) != 0, (needs & 8) != 0};
  Tensor g_g = make(a.x, need[0], x.size(0), g.size(1)), g_x = make(a.x, need[1], x.size(0), x.size(1));
  Tensor g_x2 = make(a.x, need[2], x.size(0), x.size(1)), g_gate = make(a.x, need[3], x.size(0), a.channels());
  ace::dispatch(x, [&]<class T>() {
    const Transform<T> to = a.transform<T>(a.into), from = a.transform<T>(a.back);
    Call<T>{a.layout(),
            {{&to, in<T>(a.x), 0}, {&to, data<T>(a.x2), 1}, {&from, in<T>(cotangent), 0}, {&to, data<T>(c_x), 0},
             {&to, data<T>(c_x2), 0}},
            {{&from, target<T>(need[0], g_g)}, {&to, target<T>(need[1], g_x)}, {&to, target<T>(need[2], g_x2)}},
            data<T>(a.gate), data<T>(c_gate), target<T>(need[3], g_gate), sphere::visit_of<T, sphere::Second>(act)}.run();
  });
  return {g_g, g_x, g_x2, g_gate};
}

}  // namespace

#define FIELDS "Tensor x, Tensor? x2, Tensor? gate, Tensor into, Tensor back, int ring, bool ir_mul, int act"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("sphere_activation(" FIELDS ") -> Tensor");
  m.def("sphere_activation_bwd(Tensor g, " FIELDS ", int needs) -> (Tensor, Tensor, Tensor)");
  m.def("sphere_activation_bwd_bwd(Tensor? c_x, Tensor? c_x2, Tensor? c_gate, Tensor g, " FIELDS ", int needs) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("sphere_activation", TORCH_BOX(&sphere_activation));
  m.impl("sphere_activation_bwd", TORCH_BOX(&sphere_activation_bwd));
  m.impl("sphere_activation_bwd_bwd", TORCH_BOX(&sphere_activation_bwd_bwd));
}
