// steerable_message on CUDA: what a launch is given, and whether a message fits into one.
#include "message.cuh"

#include <algorithm>
#include <optional>
#include <tuple>

namespace {

using namespace ace;
using namespace ace::message;
using Ints = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

constexpr int kFewest = 32;                 // columns of t that must fit
constexpr int kFew = 4096, kMany = 8192;    // values of t: enough for two blocks to share, and all that a block takes
constexpr int kForwardBlocks = 2048, kBackwardBlocks = 256;  // at most; a block of the backward has sums of its own

// One product as the operator takes it.
struct Integers { const Ints &dims, &paths, &slots, &layout; double scalar_gain, gate_gain; };

int64_t biases_of(const Ints& slots) {
  int64_t found = 0;
  for (size_t s = 1; s < slots.size(); s += 2) found += slots[s];
  return found;
}

int gates_of(const Integers& p) { return p.layout.empty() ? 0 : static_cast<int>(p.layout[1]); }

bool fill(const Integers& p, int most, Path* path, unsigned char* by_in, int& count, Slots& slots, Gate& gate) {
  std::vector<Path> found = product::read_paths(p.paths);
  if (static_cast<int>(found.size()) > most || p.slots.size() > 2 * kSlices || p.layout.size() > 2 + 2 * kSlices)
    return false;
  std::stable_sort(found.begin(), found.end(), [](const Path& a, const Path& b) { return a.o3 < b.o3; });
  std::copy(found.begin(), found.end(), path);
  count = static_cast<int>(found.size());
  for (int n = 0; n < count; ++n) by_in[n] = static_cast<unsigned char>(n);
  std::stable_sort(by_in, by_in + count, [&](int a, int b) { return path[a].o1 < path[b].o1; });
  slots.count = static_cast<int>(p.slots.size() / 2);
  for (int s = 0; s < slots.count; ++s) {
    slots.offset[s] = static_cast<int>(p.slots[2 * s]);
    slots.length[s] = static_cast<int>(p.slots[2 * s + 1]);
  }
  gate = Gate{-1, 0, 0, {}, {}, p.scalar_gain, p.gate_gain};
  if (p.layout.empty()) return true;
  gate.scalars = static_cast<int>(p.layout[0]);
  gate.gates = static_cast<int>(p.layout[1]);
  for (size_t n = 2; n + 1 < p.layout.size(); n += 2) {
    gate.mul[gate.count] = static_cast<int>(p.layout[n]);
    gate.d[gate.count++] = static_cast<int>(p.layout[n + 1]);
  }
  return true;
}

// The cells of M that the largest slice in a role needs.
template <Role role>
int most_cells(const Path* path, int count) {
  int most = 0;
  for (int n = 0; n < count; ++n) {
    int cells = 0;
    const Ends<role> slice(path[n]);
    for (int q = 0; q < count; ++q) {
      const Ends<role> ends(path[q]);
      if (ends.b_offset == slice.b_offset) cells += path[q].V * ends.a_d * (ends.b_d == 1 ? 1 : ends.b_d == 3 ? 3 : 5);
    }
    most = std::max(most, cells);
  }
  return most;
}

// A message's tables and shared memory; `fits` says whether one block can take it.
template <class T>
struct Plan {
  Tables tables{};
  Layout at{};
  size_t bytes = 0;
  bool fits = false, complete = true;  // complete: every weight belongs to a path that multiplies something

  Plan(const Integers& one, const Integers& two, int D, int A, bool backward, size_t available) {
    if (!fill(one, kPaths1, tables.path1, tables.by_in1, tables.count1, tables.slots1, tables.gate1) ||
        !fill(two, kPaths2, tables.path2, tables.by_in2, tables.count2, tables.slots2, tables.gate2))
      return;
    tables.in1 = static_cast<int>(one.dims[0]);
    tables.out1 = static_cast<int>(one.dims[2]);
    tables.in2 = static_cast<int>(two.dims[0]);
    tables.out2 = static_cast<int>(two.dims[2]);
    const int width = tables.out2 - gates_of(two), deepest = 5;
    const int cells = std::max({most_cells<Role::forward>(tables.path1, tables.count1),
                                most_cells<Role::forward>(tables.path2, tables.count2),
                                backward ? most_cells<Role::gradient>(tables.path1, tables.count1) : 0,
                                backward ? most_cells<Role::gradient>(tables.path2, tables.count2) : 0});
    int dense1 = 0, dense2 = 0, end = 0;
    for (int n = 0; n < tables.count1; ++n) dense1 += product::dense_size(tables.path1[n]);
    for (int n = 0; n < tables.count2; ++n) dense2 += product::dense_size(tables.path2[n]);
    constexpr size_t fields = sizeof(Path) / sizeof(int);
    complete = one.paths.size() == fields * tables.count1 && two.paths.size() == fields * tables.count2;
    const auto take = [&](int count) { return std::exchange(end, end + (count + 3) / 4 * 4); };
    const auto odd = [](int n) { return n % 2 ? n : n + 1; };  // rows apart in the banks
    at.ld_x = odd(tables.in1);
    at.ld_y = odd(std::max({tables.out1, tables.out2, width}));
    at.ld_m = odd(tables.in2);
    at.ld_attr = odd(A);
    at.x = take(kEdges * at.ld_x);
    at.y1 = take(kEdges * at.ld_y);
    at.m1 = backward ? take(kEdges * at.ld_m) : at.x;  // forward, the rows of h are not read again
    at.y2 = backward ? take(kEdges * at.ld_y) : at.y1;
    at.g = take(kEdges * at.ld_y);
    at.attr = take(kEdges * at.ld_attr);
    at.dense1 = take(dense1);
    at.dense2 = take(dense2);
    at.m = take(kEdges * cells);
    at.carry = take(std::max(width, D));
    at.most = 192;
    at.columns = take(static_cast<int>(ceil_div(2 * at.most * sizeof(Column), sizeof(T))));
    const int least = std::max(deepest * kEdges * (kFewest + 4), backward ? kEdges * at.ld_y : 0);
    const auto room_in = [&](size_t bytes) { return static_cast<int>(bytes / sizeof(T)) - end - 128; };
    const int room = room_in(available), shared = room_in(available / 2 - 1024);  // where two blocks share a multiprocessor
    at.t_size = std::min(shared >= std::max(least, kFew) ? shared : room, std::max(least, kMany));
    at.t = take(at.t_size);
    bytes = end * sizeof(T);
    fits = room >= least && at.ld_m <= at.ld_x && std::max(cells, end) < (1 << 24);
  }
};

#define ARGUMENTS                                                                                                     \
  Tensor h_, Maybe extra_, Tensor attr_, Tensor weight1_, Maybe bias1_, Tensor weight2_, Maybe bias2_,                \
      Tensor source_index_, Tensor source_order_, Tensor source_ptr_, Tensor target_index_, Tensor target_order_,     \
      Tensor target_ptr_, Tensor cg_index1_, Tensor cg_value1_, Ints dims1, Ints paths1, Ints slots1, Ints layout1,   \
      double scalar_gain1, double gate_gain1, Tensor cg_index2_, Tensor cg_value2_, Ints dims2, Ints paths2,          \
      Ints slots2, Ints layout2, double scalar_gain2, double gate_gain2, bool factor
#define INPUTS                                                                                                        \
  Inputs {                                                                                                            \
    dense(h_), dense(extra_), dense(attr_), dense(weight1_), dense(bias1_), dense(weight2_), dense(bias2_),           \
        dense(source_index_), dense(source_order_), dense(source_ptr_), dense(target_index_), dense(target_order_),   \
        dense(target_ptr_), dense(cg_index1_), dense(cg_value1_), dense(cg_index2_), dense(cg_value2_),               \
        {dims1, paths1, slots1, layout1, scalar_gain1, gate_gain1},                                                   \
        {dims2, paths2, slots2, layout2, scalar_gain2, gate_gain2}                                                    \
  }

Tensor dense(const Tensor& x) { return ace::dense(x); }
Maybe dense(const Maybe& x) { return x ? Maybe(ace::dense(*x)) : std::nullopt; }

// Everything the operator takes, contiguous.
struct Inputs {
  Tensor h;
  Maybe extra;
  Tensor attr, weight1;
  Maybe bias1;
  Tensor weight2;
  Maybe bias2;
  Tensor source_index, source_order, source_ptr, target_index, target_order, target_ptr, cg_index1, cg_value1, cg_index2,
      cg_value2;
  Integers one, two;

  template <class T>
  Plan<T> plan(const Stream& stream, bool backward) const {
    Plan<T> found(one, two, static_cast<int>(h.size(1)), static_cast<int>(attr.size(1)), backward, stream.max_shared());
    STD_TORCH_CHECK(found.fits, "steerable_message: too large for one block of this GPU; use another backend");
    return found;
  }

  // Blocks of whole windows, at most `most` of them.
  template <class T>
  Problem<T> problem(const Plan<T>& plan, int64_t most, int64_t precision) const {
    const int64_t E = attr.size(0), window = std::max<int64_t>(1, ceil_div(ceil_div(E, most), kEdges)) * kEdges;
    const auto maybe = [](const Maybe& x) { return x ? in<T>(*x) : nullptr; };
    return {h.size(0), E, static_cast<int>(h.size(1)), extra ? static_cast<int>(extra->size(1)) : 0,
            static_cast<int>(attr.size(1)), static_cast<int>(two.dims[2]) - gates_of(two), static_cast<int>(window),
            in<T>(h), maybe(extra), in<T>(attr), in<T>(weight1), maybe(bias1), in<T>(weight2), maybe(bias2),
            in<int64_t>(source_index), in<int64_t>(target_index), in<int64_t>(target_order), in<int64_t>(target_ptr),
            {in<int64_t>(cg_index1), in<double>(cg_value1)}, {in<int64_t>(cg_index2), in<double>(cg_value2)},
            static_cast<Precision>(precision), plan.at};
  }
};

Tensor steerable_message(ARGUMENTS, int64_t precision) {
  (void)factor;  // the weights are on tensor cores, where products are cheaper than a second pass over rows
  const Inputs inputs = INPUTS;
  const int64_t N = inputs.h.size(0);
  Tensor y = empty(inputs.h, {N, dims2[2] - gates_of(inputs.two)});  // [N, D_out]
  if (N == 0) return y;
  const Stream stream(inputs.h);
  dispatch(inputs.h, [&]<class T>() {
    const Plan<T> plan = inputs.plan<T>(stream, false);
    const Problem<T> problem = inputs.problem(plan, kForwardBlocks, precision);
    stream.launch("message_fwd_kernel", message_fwd_kernel<T>,
                  grid(std::max<int64_t>(1, ceil_div(problem.E, problem.window))), kThreads, plan.bytes, plan.tables,
                  problem, out<T>(y));
  });
  return y;
}

// Gradients of h, extra, attr (always empty here), weight1, bias1, weight2, bias2; bit n of `needs` asks for the n-th.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> steerable_message_bwd(Tensor g_, ARGUMENTS,
                                                                                         int64_t needs,
                                                                                         int64_t precision) {
  (void)factor;
  STD_TORCH_CHECK(!(needs & 4), "steerable_message: this kernel has no gradient of attributes");
  const Inputs inputs = INPUTS;
  const Tensor g = dense(g_);
  const int64_t N = inputs.h.size(0), E = inputs.attr.size(0), D = inputs.h.size(1), X = inputs.extra ? inputs.extra->size(1) : 0;
  const int64_t sizes[4] = {inputs.weight1.size(0), inputs.weight2.size(0), biases_of(slots1), biases_of(slots2)};
  const auto grad = [&](int n, Ints size) { return empty(inputs.h, needs >> n & 1 ? size : Ints{0}); };
  Tensor found[7] = {grad(0, {N, D}), grad(1, {E, X}), grad(2, {0}), grad(3, {sizes[0]}), grad(4, {sizes[2]}),
                     grad(5, {sizes[1]}), grad(6, {sizes[3]})};
  const Stream stream(inputs.h);
  dispatch(inputs.h, [&]<class T>() {
    const Plan<T> plan = inputs.plan<T>(stream, true);
    const Problem<T> problem = inputs.problem(plan, kBackwardBlocks, precision);
    const auto at = [&](int n) { return needs >> n & 1 ? out<T>(found[n]) : nullptr; };
    const int64_t blocks = std::max<int64_t>(1, ceil_div(E, problem.window));
    const bool sums = needs & (8 + 16 + 32 + 64);
    Outputs<T> outputs{{at(3), at(5), at(4), at(6)}, {}};
    for (int o = 0; o < 4; ++o) outputs.begin[o + 1] = outputs.begin[o] + sizes[o];
    const int64_t n = outputs.begin[4];
    const Tensor part = empty(inputs.h, {sums ? blocks * n : 0}), sent = empty(inputs.h, {at(0) ? E : 0, D});
    if (sums && (!plan.complete || N == 0)) stream.zero(out<T>(part), blocks * n * sizeof(T));
    const Gradients<T> to{in<T>(g), at(0), out<T>(sent), at(1), sums ? out<T>(part) : nullptr, n, outputs.begin[1],
                          outputs.begin[2], outputs.begin[3], static_cast<int>(sizes[2]), static_cast<int>(sizes[3])};
    if (N > 0)
      stream.launch("message_bwd_kernel", message_bwd_kernel<T>, grid(blocks), kThreads, plan.bytes, plan.tables, problem,
                    to);
    if (to.h)
      stream.launch("sources_kernel", sources_kernel<T>, grid(ceil_div(N * D, kThreads)), kThreads, 0, in<T>(sent),
                    in<int64_t>(inputs.source_order), in<int64_t>(inputs.source_ptr), to.h, N, E, static_cast<int>(D));
    if (sums)
      stream.launch("parts_kernel", parts_kernel<T>, grid(ceil_div(n, 32)), kThreads, 0, in<T>(part), n,
                    static_cast<int>(blocks), outputs);
  });
  return {found[0], found[1], found[2], found[3], found[4], found[5], found[6]};
}

// Whether the kernels take these tables on h's device; what they do not take runs as separate products.
bool steerable_message_fits(Tensor h, int64_t A, Ints dims1, Ints paths1, Ints slots1, Ints layout1, Ints dims2,
                            Ints paths2, Ints slots2, Ints layout2, bool backward) {
  const Stream stream(h);
  bool fits = false;
  dispatch(h, [&]<class T>() {
    fits = Plan<T>({dims1, paths1, slots1, layout1, 1, 1}, {dims2, paths2, slots2, layout2, 1, 1},
                   static_cast<int>(h.size(1)), static_cast<int>(A), backward, stream.max_shared())
               .fits;
  });
  return fits;
}

}  // namespace

#define PRODUCT(n)                                                                                            \
  "Tensor cg_index" n ", Tensor cg_value" n ", int[] dims" n ", int[] paths" n ", int[] bias_slots" n         \
  ", int[] layout" n ", float scalar_gain" n ", float gate_gain" n
#define SCHEMA                                                                                                \
  "Tensor h, Tensor? extra, Tensor attr, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "      \
  "Tensor source_index, Tensor source_order, Tensor source_ptr, Tensor target_index, Tensor target_order, "   \
  "Tensor target_ptr, " PRODUCT("1") ", " PRODUCT("2") ", bool factor"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("steerable_message(" SCHEMA ", int precision) -> Tensor");
  m.def("steerable_message_bwd(Tensor g, " SCHEMA
        ", int needs, int precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("steerable_message_fits(Tensor h, int attributes, int[] dims1, int[] paths1, int[] slots1, int[] layout1, "
        "int[] dims2, int[] paths2, int[] slots2, int[] layout2, bool backward) -> bool");
}

ACE_CUDA_IMPL(m) {
  m.impl("steerable_message", TORCH_BOX(&steerable_message));
  m.impl("steerable_message_bwd", TORCH_BOX(&steerable_message_bwd));
  m.impl("steerable_message_fits", TORCH_BOX(&steerable_message_fits));
}
