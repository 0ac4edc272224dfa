// sphere_product on CUDA: what a launch is given, and how its block is divided.
#include "points.cuh"

#include <algorithm>
#include <optional>

namespace {

using namespace ace;
using namespace ace::sphere;
using Ints = std::vector<int64_t>;

constexpr int64_t kMirroredForm = 1;  // in the table's integers

struct Slot {
  int64_t degree, power, offset, parts, twist;
  int dim() const { return static_cast<int>((degree + 1) * (degree + 1)); }
};

std::vector<Slot> read_slots(const Ints& values) {
  std::vector<Slot> slots;
  for (size_t i = 0; i + 5 <= values.size(); i += 5)
    slots.push_back({values[i], values[i + 1], values[i + 2], values[i + 3], values[i + 4]});
  return slots;
}

// Where a slot's matrix lies among those that are kept; equal ones are kept once.
int matrix_of(Problem& p, const Slot& slot) {
  for (int q = 0; q < p.matrices; ++q)
    if (p.from[q].from == slot.offset && p.from[q].dim == slot.dim() && p.from[q].parts == slot.parts) return q;
  p.from[p.matrices] = {slot.offset, slot.dim(), static_cast<int>(slot.parts), 0};
  return p.matrices++;
}

// Divides shared memory: the widest tile with which as many blocks run as registers allow, but of few columns narrower
// ones, for more blocks. Returns bytes, and what a multiprocessor takes.
template <int L>
std::pair<size_t, int> divide(Problem& p, const Stream& stream) {
  p.blocks = static_cast<int>(ceil_div(p.points, kAtOnce<L>)) * p.parts;
  int matrices[kMatrices], columns = 0;
  p.step = 0;
  for (int q = 0; q < p.matrices; ++q) matrices[q] = p.from[q].at = std::exchange(p.step, p.step + p.from[q].dim * kStride<L>);
  p.matrix = matrices[p.matrix];
  for (int n = 0; n < p.factors; ++n) p.factor[n].matrix = matrices[p.factor[n].matrix], columns += p.factor[n].dim;
  columns = std::max(columns, p.dim);
  const auto words = [&](int chunk, int width) { return ceil_div(chunk * p.step, 4) * 4 + int64_t(width) * columns; };
  const int64_t most = stream.max_shared() / sizeof(float), wanted = stream.multiprocessors() * kBlocks<L>;
  int resident = kBlocks<L>, width = kThreads;
  const auto fits = [&] { return words(p.blocks, width) <= most / resident - 256; };
  while (!fits() && (width > 32 || resident > 1)) width > 32 ? width /= 2 : (width = kThreads, --resident);
  while (width > 32 && ceil_div(p.columns, width) < wanted) width /= 2;
  p.width = width;
  p.chunk = static_cast<int>(std::min<int64_t>(p.blocks, (most - 256 - int64_t(width) * columns) / p.step));
  STD_TORCH_CHECK(p.chunk > 0, "sphere_product: too large for one block of this GPU; use another backend");
  p.stage = static_cast<int>(ceil_div(p.chunk * p.step, 4) * 4);
  for (int n = 0, at = 0; n < p.factors; at += width * p.factor[n++].dim) p.factor[n].at = p.stage + at;
  p.tiles = ceil_div(p.columns, width);
  return {words(p.chunk, width) * sizeof(float), resident};
}

template <int L>
void launch(Problem& p, const Stream& stream) {
  const auto [bytes, resident] = divide<L>(p, stream);
  const int64_t blocks = std::min<int64_t>(p.tiles, int64_t(stream.multiprocessors()) * resident);
  stream.launch("point_product_kernel", point_product_kernel<L>, grid(blocks), kThreads, bytes, p);
}

void launch(Problem& p, int64_t degree, const Stream& stream) {
  switch (degree) {
    case 0:
    case 1: return launch<1>(p, stream);
    case 2: return launch<2>(p, stream);
    case 3: return launch<3>(p, stream);
    case 4: return launch<4>(p, stream);
    case 5: return launch<5>(p, stream);
    case 6: return launch<6>(p, stream);
    case 7: return launch<7>(p, stream);
    case 8: return launch<8>(p, stream);
    case 9: return launch<9>(p, stream);
    case 10: return launch<10>(p, stream);
    default: STD_TORCH_CHECK(false, "sphere_product: degrees must be at most ", kDegrees, ", got ", degree);
  }
}

// Slot k's share of the parities' changes, `power` times.
int64_t twisted(const Slot& slot, int64_t power) { return power % 2 ? slot.twist : 0; }

}  // namespace

// Bit k of `wanted`: slot 0 is the product of the inputs, slot k > 0 the gradient of the k-th, where g is the
// product's. Returns what is wanted for all rows [Z] and channels [C], whether an input shares them or not.
static std::vector<Tensor> point_product(std::optional<Tensor> g, std::vector<Tensor> xs, Tensor table, Ints grid,
                                         Ints flat, bool ir_mul, int64_t wanted, int64_t channels) {
  const std::vector<Slot> slots = read_slots(flat);
  STD_TORCH_CHECK(grid[0] == kMirroredForm && xs.size() < kFactors, "sphere_product: a table of another form");
  const Tensor matrices = dense(table);
  const int64_t rows = xs[0].size(0);
  const bool half = xs[0].scalar_type() == ScalarType::BFloat16;
  std::vector<Tensor> given(1, g ? dense(*g) : xs[0]), found;  // of every slot
  for (const Tensor& x : xs) given.push_back(dense(x));
  const Stream stream(xs[0]);
  for (size_t k = 0; k < slots.size(); ++k) {
    if (!(wanted >> k & 1)) continue;
    const Slot& own = slots[k];
    found.push_back(empty(xs[0], {rows, channels * own.dim()}));
    if (rows * channels == 0) continue;
    Problem p{};
    p.rows = rows, p.columns = rows * channels, p.channels = static_cast<int>(channels);
    p.table = in<double>(matrices);
    p.y = found.back().mutable_data_ptr();
    p.dim = own.dim(), p.scale = static_cast<float>(own.power), p.matrix = matrix_of(p, own);
    p.points = static_cast<int>(grid[1] * grid[2]), p.parts = static_cast<int>(grid[3]);
    p.ir_mul = ir_mul, p.half = half;
    int64_t degree = own.degree, twist = twisted(own, 1);
    for (size_t n = g ? 0 : 1; n < slots.size(); ++n) {
      const Slot& slot = slots[n];
      const int64_t power = slot.power - (n == k);
      if (power <= 0) continue;
      const int64_t own_channels = given[n].size(1) / slot.dim();
      p.factor[p.factors++] = {given[n].const_data_ptr(), given[n].size(0) == rows ? own_channels * slot.dim() : 0,
                               static_cast<int>(own_channels), slot.dim(), static_cast<int>(power), 0, matrix_of(p, slot)};
      degree = std::max(degree, slot.degree);
      twist ^= twisted(slot, power);
    }
    p.signs = static_cast<int>(twist);
    launch(p, degree, stream);
  }
  return found;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("point_product(Tensor? g, Tensor[] xs, Tensor table, int[] grid, int[] slots, bool ir_mul, int wanted, "
        "int channels) -> Tensor[]");
}

ACE_CUDA_IMPL(m) { m.impl("point_product", TORCH_BOX(&point_product)); }
