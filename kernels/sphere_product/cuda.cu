// sphere_product on CUDA: what a launch is given, and how its block is divided.
#include "equal.cuh"
#include "points.cuh"
#include "rings.cuh"

#include <algorithm>
#include <optional>

namespace {

using namespace ace;
using namespace ace::sphere;
using Ints = std::vector<int64_t>;

// Where a slot's matrix is among those that are kept; equal ones are kept once.
int matrix_of(Problem& p, const Slot& slot) {
  const int dim = static_cast<int>(slot.dim());
  for (int q = 0; q < p.matrices; ++q)
    if (p.from[q].from == slot.offset && p.from[q].dim == dim && p.from[q].parts == slot.parts) return q;
  p.from[p.matrices] = {slot.offset, dim, static_cast<int>(slot.parts), 0};
  return p.matrices++;
}

int64_t aligned(int64_t words) { return ceil_div(words, 4) * 4; }

// Places the matrices one after the other, each of size(matrix) values; `step` for all.
template <class Size>
void place_matrices(Problem& p, Size&& size) {
  p.step = 0;
  for (int q = 0; q < p.matrices; ++q) {
    p.from[q].at = p.step;
    p.step += static_cast<int>(aligned(size(p.from[q])));
  }
  for (int n = 0; n < p.factors; ++n) p.factor[n].matrix = p.from[p.factor[n].matrix].at;
  for (Result& result : p.result) result.matrix = p.from[result.matrix].at;
}

// Those of a block of points, `at_once` values a component.
void place_blocks(Problem& p, int at_once) {
  place_matrices(p, [&](const Matrix& m) { return m.dim * at_once; });
  p.blocks = static_cast<int>(ceil_div(p.points, at_once)) * p.parts;
}

// Places the columns of the factors behind `at`, and those of the results behind them or, with `over`, in their place.
void place_columns(Problem& p, int64_t at, int results, bool over) {
  const int64_t first = at;
  for (int n = 0; n < p.factors; at += p.width * p.factor[n++].dim) p.factor[n].at = static_cast<int>(at);
  if (over) at = first;
  for (int r = 0; r < results; at += p.width * p.result[r++].dim) p.result[r].at = static_cast<int>(at);
  const int64_t tiles = ceil_div(p.columns, p.width);
  STD_TORCH_CHECK(tiles < (int64_t(1) << 30), "sphere_product: too many rows and channels; split the input");
  p.tiles = static_cast<int>(tiles);
}

// The widest tile with which as many blocks run as registers allow, but of few columns a narrower one, for more blocks.
// Matrices that do not fit come a few points at a time.
template <int L>
void launch(Problem& p, const Stream& stream) {
  place_blocks(p, kAtOnce);
  int64_t columns = 0;
  for (int n = 0; n < p.factors; ++n) columns += p.factor[n].dim;
  columns = std::max<int64_t>(columns, p.result[0].dim);
  const int64_t most = stream.max_shared() / sizeof(float) - 256, processors = stream.multiprocessors();
  int64_t width = kThreads, resident = kBlocks<L>;
  const auto fits = [&] { return p.blocks * p.step + width * columns <= most / resident - 256; };
  while (!fits() && (width > 32 || resident > 1)) width > 32 ? width /= 2 : (width = kThreads, --resident);
  while (width > 32 && ceil_div(p.columns, width) < processors * kBlocks<L>) width /= 2;
  p.width = static_cast<int>(width);
  p.chunk = static_cast<int>(std::min<int64_t>(p.blocks, (most - width * columns) / p.step));
  STD_TORCH_CHECK(p.chunk > 0, "sphere_product: too large for one block of this GPU; use another backend");
  place_columns(p, p.chunk * p.step, 1, true);
  const int64_t blocks = std::min<int64_t>(p.tiles, processors * resident);
  stream.launch("point_product_kernel", point_product_kernel<L>, grid(blocks), kThreads,
                (p.chunk * p.step + width * columns) * sizeof(float), p);
}

void launch(Problem& p, int64_t degree, const Stream& stream) {
  if (degree <= 2) return launch<2>(p, stream);
  if (degree <= 4) return launch<4>(p, stream);
  if (degree <= 6) return launch<6>(p, stream);
  if (degree <= 8) return launch<8>(p, stream);
  STD_TORCH_CHECK(degree <= kDegrees, "sphere_product: degrees must be at most ", kDegrees, ", got ", degree);
  launch<10>(p, stream);
}

// Launches a kernel whose matrices all fit beside `columns` values a column, `most` blocks of kThreads at once on a
// multiprocessor. A tile is a row where as many threads run so; of few columns it is narrow, and several threads share
// one. Returns whether it fits. `over`: results lie in the place of the columns.
template <class Kernel>
bool launch_whole(Problem& p, const Stream& stream, const char* name, Kernel* kernel, int64_t matrices, int64_t columns,
                  int64_t most, int results, bool over) {
  const int64_t memory = stream.max_shared(), processors = stream.multiprocessors();
  const auto bytes = [&](int64_t width) { return (matrices + width * columns) * int64_t(sizeof(float)); };
  const auto resident = [&](int64_t width, int64_t threads) {
    return std::min(most * kThreads / threads, memory / (bytes(width) + 2048));
  };
  const bool many = p.columns >= kThreads * processors * most, rows = p.channels == 32 || p.channels == 64;
  int64_t width = kThreads, threads = kThreads;
  if (many && rows && resident(p.channels, p.channels) * p.channels >= resident(width, width) * width)
    width = threads = p.channels;
  while (width > 32 && (ceil_div(p.columns, width) < processors * most || bytes(width) > memory - 1024)) width /= 2;
  if (bytes(width) > memory - 1024) return false;
  p.width = static_cast<int>(width);
  place_columns(p, matrices, results, over);
  const int64_t blocks = std::min(int64_t(p.tiles), processors * std::max<int64_t>(resident(width, threads), 1));
  stream.launch(name, kernel, grid(blocks), dim3(threads), bytes(width), p);
  return true;
}

template <int L, int F>
bool launch_equal(Problem p, const Stream& stream) {
  place_blocks(p, 1);
  return launch_whole(p, stream, "equal_product_kernel", equal_product_kernel<L, F>, p.points * p.step,
                      (L + 1) * (L + 1) * (kAhead<L> ? 2 * F - 1 : F), kEqualBlocks<L, F>, F - 1, !kAhead<L>);
}

template <int L>
bool launch_rings(Problem p, const Stream& stream) {
  const int around = p.points / p.rings;
  place_matrices(p, [&](const Matrix&) { return p.rings * kLegendreRow<L> + around * kFourierRow<L>; });
  const auto kernel = p.planes ? ring_product_kernel<L, true> : ring_product_kernel<L, false>;
  return launch_whole(p, stream, "ring_product_kernel", kernel, p.step, 2 * (L + 1) * (L + 1), kRingBlocks<L>, 1, true);
}

bool launch_rings(const Problem& p, int64_t degree, const Stream& stream) {
  switch (degree) {
    case 6: return launch_rings<6>(p, stream);
    case 7: return launch_rings<7>(p, stream);
    case 8: return launch_rings<8>(p, stream);
    case 9: return launch_rings<9>(p, stream);
    default: return false;
  }
}

template <int F>
bool launch_equal(const Problem& p, int64_t degree, const Stream& stream) {
  switch (degree) {
    case 1: return launch_equal<1, F>(p, stream);
    case 2: return launch_equal<2, F>(p, stream);
    case 3: return launch_equal<3, F>(p, stream);
    case 4: return launch_equal<4, F>(p, stream);
    case 5: return launch_equal<5, F>(p, stream);
    case 6: if constexpr (F == 2) return launch_equal<6, F>(p, stream); else return false;
    case 7: if constexpr (F == 2) return launch_equal<7, F>(p, stream); else return false;
    default: return false;
  }
}

// A product as the operator takes it, with the tensors of its slots.
struct Product {
  std::vector<Slot> slots;
  std::vector<Tensor> given;  // [Z or 1, C or 1 channels of d]; of slot 0 g, where there is one
  bool has_g;
  Tensor table;
  Ints grid;
  int64_t rows, channels;
  bool ir_mul;

  Problem problem() const {
    Problem p{};
    p.table = in<double>(table);
    p.columns = rows * channels, p.channels = static_cast<int>(channels);
    p.points = static_cast<int>(grid[1] * grid[2]), p.rings = static_cast<int>(grid[1]);
    p.parts = static_cast<int>(grid[3]);
    p.ir_mul = ir_mul, p.planes = ir_mul && channels >= kFewChannels;
    p.half = given[0].scalar_type() == ScalarType::BFloat16;
    return p;
  }

  void add_factor(Problem& p, size_t n, int64_t power) const {
    const Slot& slot = slots[n];
    const int64_t own = given[n].size(1) / slot.dim();
    p.factor[p.factors++] = {given[n].const_data_ptr(), given[n].size(0) == rows ? own * slot.dim() : 0,
                             static_cast<int>(own), static_cast<int>(slot.dim()), static_cast<int>(power), 0,
                             matrix_of(p, slot)};
    p.signs ^= static_cast<int>(power % 2 ? slot.twist : 0);
  }

  Tensor add_result(Problem& p, int r, size_t k) const {
    const Slot& slot = slots[k];
    const Tensor y = empty(given[0], {rows, channels * slot.dim()});
    p.result[r] = {y.mutable_data_ptr(), static_cast<float>(slot.power), static_cast<int>(slot.dim()), 0,
                   matrix_of(p, slot)};
    return y;
  }

  // Two fields of a degree kept to it, and nothing else: what takes planes.
  bool equal() const {
    const auto same = [&](const Slot& s) { return s.degree == slots[0].degree && s.power == 1 && s.twist == 0; };
    return slots.size() == 3 && grid[3] == 1 && std::all_of(slots.begin(), slots.end(), same);
  }

  // The gradient of slot k, which is the product for k = 0.
  Tensor one(size_t k, const Stream& stream) const {
    Problem p = problem();
    const Tensor y = add_result(p, 0, k);
    if (p.columns == 0) return y;
    p.signs = static_cast<int>(slots[k].twist);
    int64_t degree = slots[k].degree;
    for (size_t n = has_g ? 0 : 1; n < slots.size(); ++n) {
      if (slots[n].power <= (n == k)) continue;
      add_factor(p, n, slots[n].power - (n == k));
      degree = std::max(degree, slots[n].degree);
    }
    if (grid[0] == kSeparable) {
      STD_TORCH_CHECK(equal() && launch_rings(p, degree, stream), "sphere_product: no separable points of this kind");
      return y;
    }
    if (equal() && launch_equal<2>(p, degree, stream)) return y;
    p.planes = false;
    launch(p, degree, stream);
    return y;
  }

  // The gradients of both inputs; none where that is no work of one launch.
  std::vector<Tensor> both(const Stream& stream) const {
    if (grid[0] != kMirrored || !equal() || slots[0].degree < 1 || slots[0].degree > kEqualDegrees<3>) return {};
    Problem p = problem();
    std::vector<Tensor> found{add_result(p, 0, 1), add_result(p, 1, 2)};
    for (size_t n = 0; n < 3; ++n) add_factor(p, n, 1);
    if (p.columns > 0 && !launch_equal<3>(p, slots[0].degree, stream)) return {};
    return found;
  }
};

}  // namespace

// Bit k of `wanted`: slot 0 is the product of the inputs, slot k > 0 the gradient of the k-th, where g is the
// product's. Returns what is wanted for all rows [Z] and channels [C], whether an input shares them or not.
static std::vector<Tensor> point_product(std::optional<Tensor> g, std::vector<Tensor> xs, Tensor table, Ints grid,
                                         Ints flat, bool ir_mul, int64_t wanted, int64_t channels) {
  const bool known = grid[0] == kMirrored || grid[0] == kSeparable;
  STD_TORCH_CHECK(known && xs.size() < kFactors, "sphere_product: a table of another form");
  std::vector<Tensor> given(1, g ? dense(*g) : xs[0]);
  for (const Tensor& x : xs) given.push_back(dense(x));
  const Product product{read_slots(flat.data(), xs.size() + 1), given, g.has_value(), dense(table), grid,
                        xs[0].size(0), channels, ir_mul};
  const Stream stream(xs[0]);
  std::vector<Tensor> found;
  if (wanted == 6) found = product.both(stream);
  if (!found.empty()) return found;
  for (size_t k = 0; k < product.slots.size(); ++k)
    if (wanted >> k & 1) found.push_back(product.one(k, stream));
  return found;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("point_product(Tensor? g, Tensor[] xs, Tensor table, int[] grid, int[] slots, bool ir_mul, int wanted, "
        "int channels) -> Tensor[]");
}

ACE_CUDA_IMPL(m) { m.impl("point_product", TORCH_BOX(&point_product)); }
