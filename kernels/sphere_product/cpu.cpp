// Products at points, z = M_0^T prod_n (M_n x_n)^p_n, and their gradients: a block of columns goes to the points, is
// multiplied there and returns, all in the second cache.
#include "columns.h"
#include "gaunt.h"
#include "sparse.h"

namespace {

using namespace ace;
using sphere::at_point, sphere::Columns, sphere::Field, sphere::Gaunt, sphere::kMirrors, sphere::Points,
    sphere::read_slots, sphere::Slot, sphere::Sparse, sphere::Transform;

constexpr int kSlots = 7;
constexpr int64_t kBlockBytes = 512 << 10, kSparseBytes = 64 << 10, kGauntBytes = 16 << 10, kChunks = 64;

// What is given and wanted of every slot, at the points of a block.
template <class T>
struct AtPoints {
  Points points;
  int slots;
  int64_t n;
  bool given[kSlots], wanted[kSlots];
  int64_t power[kSlots], parts[kSlots];
  T* values[kSlots];  // [parts][points][n], of what is given; then of what is wanted

  template <int R>
  void read(Vec<T> (&v)[R], int slot, int64_t part, int64_t s, int64_t column) const {
    const T* from = values[slot] + part * points.total() * n + column;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) v[r] = load(from + at_point(points, n, s, r));
    if constexpr (R == kMirrors) sphere::mirror<T>(v);
  }

  template <int R>
  void write(Vec<T> (&v)[R], int slot, int64_t part, int64_t s, int64_t column) const {
    T* to = values[slot] + part * points.total() * n + column;
    if constexpr (R == kMirrors) sphere::mirror<T>(v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store(to + at_point(points, n, s, r), v[r]);
  }

  // z = x y, with every power and part 1.
  template <int R>
  void product_of_two() const {
    for (int64_t s = 0; s < points.size(); ++s)
      for (int64_t c = 0; c < n; c += lanes<T>) {
        Vec<T> x[R], y[R];
        read<R>(x, 1, 0, s, c), read<R>(y, 2, 0, s, c);
        for (int r = 0; r < R; ++r) x[r] *= y[r];
        write<R>(x, 0, 0, s, c);
      }
  }

  // Gradients of x y: g y and g x; and x y itself where the gradient of its weights wants it.
  template <int R>
  void gradients_of_two() const {
    for (int64_t s = 0; s < points.size(); ++s)
      for (int64_t c = 0; c < n; c += lanes<T>) {
        Vec<T> g[R], v[R], w[R];
        read<R>(g, 0, 0, s, c), read<R>(v, 2, 0, s, c), read<R>(w, 1, 0, s, c);
        if (wanted[0]) {
          Vec<T> z[R];
          for (int r = 0; r < R; ++r) z[r] = v[r] * w[r];
          write<R>(z, 0, 0, s, c);
        }
        if (wanted[1]) {
          for (int r = 0; r < R; ++r) v[r] *= g[r];
          write<R>(v, 1, 0, s, c);
        }
        if (wanted[2]) {
          for (int r = 0; r < R; ++r) w[r] *= g[r];
          write<R>(w, 2, 0, s, c);
        }
      }
  }

  // Any number of slots, powers and parts. A slot with fewer parts than the points has the same in all; what it wants
  // is the sum over them.
  template <int R>
  void any() const {
    Vec<T> v[kSlots][2][R], sums[kSlots][2][R], one[R];
    for (int64_t s = 0; s < points.size(); ++s)
      for (int64_t c = 0; c < n; c += lanes<T>) {
        for (int i = 0; i < slots; ++i)
          for (int64_t p = 0; given[i] && p < parts[i]; ++p) read<R>(v[i][p], i, p, s, c);
        for (int k = 0; k < slots; ++k)
          for (int64_t p = 0; wanted[k] && p < points.parts; ++p) {
            for (int r = 0; r < R; ++r) one[r] = Vec<T>{} + T(power[k]);
            for (int i = 0; i < slots; ++i)
              for (int64_t f = i == k; given[i] && f < power[i]; ++f)
                for (int r = 0; r < R; ++r) one[r] *= v[i][parts[i] == 1 ? 0 : p][r];
            const int64_t to = parts[k] == 1 ? 0 : p;
            for (int r = 0; r < R; ++r) sums[k][to][r] = to < p ? sums[k][to][r] + one[r] : one[r];
          }
        for (int k = 0; k < slots; ++k)
          for (int64_t p = 0; wanted[k] && p < parts[k]; ++p) write<R>(sums[k][p], k, p, s, c);
      }
  }

  template <int R>
  void run() const {
    bool plain = slots == 3 && points.parts == 1;
    for (int i = 0; i < slots; ++i) plain = plain && power[i] == 1;
    if (!plain) return any<R>();
    if (!given[0]) return product_of_two<R>();
    gradients_of_two<R>();
  }
};

// One side of the product: its tensor where it is given, what is written where it is wanted.
template <class T>
struct Side {
  std::vector<Transform<T>> transforms;  // of its parts, or
  std::optional<Sparse<T>> sparse;       // what is wanted, by terms
  std::optional<Field<T>> field;
  const T* given = nullptr;
  T* wanted = nullptr;
  T* wanted_weights = nullptr;
  std::vector<T> weights;   // factors of a unit's columns, empty for ones
  int64_t sums = 0;         // values of its sums over rows, 0 where it has all rows
  int64_t weight_sums = 0;  // those of its weights' gradient, 0 where it is not wanted

  bool returns() const { return wanted || wanted_weights; }
  int64_t weight_count() const { return (field->degree + 1) * field->channels; }
};

template <class T>
struct Product {
  Points points;
  std::vector<Slot> slots;
  Columns<T> columns;
  std::vector<Side<T>> sides;
  std::optional<Gaunt<T>> gaunt;  // in place of every side's terms
  int64_t block;  // units
  int64_t n;      // columns of a block

  // keeps: what is given is kept until it meets its gradient, for that of its weights.
  Product(const Points& points, std::vector<Slot> slots_, const Columns<T>& columns, const double* table, bool keeps)
      : points(points), slots(std::move(slots_)), columns(columns), sides(slots.size()), table_(table) {
    if (sparse()) gaunt = Gaunt<T>::of(table, slots, points.size());
    int64_t values = 0, work = 0, dim = 0, kept = 0;  // a column
    for (size_t i = 0; i < slots.size(); ++i) {
      for (int64_t p = 0; p < slots[i].parts && !sparse(); ++p)
        sides[i].transforms.emplace_back(points, slots[i], p, table);
      values += rows(i);
      if (!sparse()) work = std::max(work, sides[i].transforms[0].work());
      dim = std::max(dim, slots[i].dim());
      if (keeps) kept += slots[i].dim();
    }
    const int64_t bytes = (values + work + dim + kept) * static_cast<int64_t>(sizeof(T)) * columns.width();
    const int64_t most = ceil_div(std::max<int64_t>(1, columns.units()), 16);  // shared out in any case
    const int64_t fits = gaunt ? kGauntBytes : sparse() ? kSparseBytes : kBlockBytes;
    block = std::clamp<int64_t>(fits / std::max<int64_t>(1, bytes), 1, most);
    n = block * columns.width();
    values_ = values * n, work_ = work * n, dim_ = dim * n, kept_ = kept * n;
  }

  void side(int i, int64_t rows, int64_t channels, const T* given, T* wanted, const T* weights, T* wanted_weights) {
    Side<T>& s = sides[i];
    if (sparse() && !gaunt && (wanted || wanted_weights)) s.sparse.emplace(table_, slots, points.size(), i);
    const int64_t row = gaunt ? lanes<T> : n;  // a component of the block's columns, or of one vector of them
    std::vector<int64_t> at(slots[i].dim());
    for (size_t k = 0; k < at.size(); ++k) at[k] = row * (sparse() ? k : s.transforms[0].place[k]);
    s.field.emplace(columns, rows, channels, slots[i].degree, std::move(at), gaunt ? slots[i].dim() * row : lanes<T>);
    s.given = given, s.wanted = wanted, s.wanted_weights = wanted_weights;
    if (weights) {
      s.weights.resize((slots[i].degree + 1) * columns.width());
      s.field->spread_weights(weights, s.weights.data());
    }
    s.sums = wanted && s.field->shares_rows() ? slots[i].dim() * columns.width() : 0;
    s.weight_sums = wanted_weights ? s.weights.size() : 0;
  }

  void run() const {
    if (!columns.units()) return nothing();
    const int64_t blocks = ceil_div(columns.units(), block), chunk = ceil_div(blocks, kChunks);
    const int64_t chunks = ceil_div(blocks, chunk);
    int64_t sums = 0, row = 0, products = 0;
    for (const Side<T>& s : sides) {
      sums += s.sums + s.weight_sums;
      if (s.sums) row += s.field->dim() * s.field->channels;
      if (s.weight_sums) row += s.weight_count();
      products += sparse() ? points.size() : s.transforms.size() * s.transforms[0].products();
    }
    const Scratch<T> partial(chunks * row);
    const int64_t grain = std::max<int64_t>(1, 100000 / std::max<int64_t>(1, chunk * n * products));
    torch::stable::parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
      const int64_t before = values_ + work_ + dim_ + kept_;
      const Scratch<T> scratch(before + sums);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t b = c * chunk; b < std::min(blocks, (c + 1) * chunk); ++b)
          one_block(b * block, std::min(block, columns.units() - b * block), scratch, b == c * chunk);
        finish(scratch + before, partial + c * row);
      }
      sphere::settle();
    });
    reduce(partial, chunks, row);
  }

 private:
  const double* table_;
  int64_t values_, work_, dim_, kept_;

  bool sparse() const { return points.form == sphere::kSparse; }
  // What is kept of slot i in a block: its values at the points, or its components.
  int64_t rows(size_t i) const { return sparse() ? slots[i].dim() : slots[i].parts * points.total(); }

  // Without rows or channels, what one row or channel has for all is zero.
  void nothing() const {
    for (const Side<T>& s : sides) {
      if (s.wanted) std::fill_n(s.wanted, s.field->rows * s.field->channels * s.field->dim(), T(0));
      if (s.wanted_weights) std::fill_n(s.wanted_weights, s.weight_count(), T(0));
    }
  }

  void one_block(int64_t first, int64_t units, T* scratch, bool begins) const {
    T *values = scratch, *work = scratch + values_, *x = work + work_, *kept = x + dim_, *sums = kept + kept_;
    T* given[kSlots];  // components of what is given, without weights
    AtPoints<T> at{points, static_cast<int>(sides.size()), n, {}, {}, {}, {}, {}};
    const int64_t part = points.total() * n, unit = columns.vectors();
    for (size_t i = 0; i < sides.size(); ++i) {
      const Side<T>& s = sides[i];
      at.given[i] = s.given, at.wanted[i] = s.returns(), at.values[i] = values;
      at.power[i] = slots[i].power, at.parts[i] = slots[i].parts;
      values += rows(i) * n;
      if (!s.given) continue;
      T* to = sparse() ? at.values[i] : x;
      given[i] = s.wanted_weights ? std::exchange(kept, kept + slots[i].dim() * n) : to;
      s.field->pack(s.given, first, units, given[i]);
      if (!s.weights.empty()) scale(s, given[i], units, to);
      for (size_t p = 0; p < s.transforms.size(); ++p) s.transforms[p].to_points(x, n, at.values[i] + p * part, work);
    }
    if (points.images() == kMirrors) at.template run<kMirrors>();
    else if (!sparse()) at.template run<1>();
    for (size_t i = 0; i < sides.size(); ++i) {
      const Side<T>& s = sides[i];
      if (!s.returns()) continue;
      const T *a = at.values[i == 0], *b = at.values[i == 2 ? 1 : 2];  // of terms
      if (gaunt) gaunt->run(a, b, units * unit, x);
      else if (s.sparse) s.sparse->run(a, b, n, x);
      for (size_t p = 0; p < s.transforms.size(); ++p)
        s.transforms[p].from_points(at.values[i] + p * part, n, x, work, p > 0);
      if (s.wanted_weights) {
        if (begins) std::fill_n(sums, s.weight_sums, T(0));
        if (s.wanted) s.field->template weigh<true, true>(x, units, s.weights.data(), x, given[i], sums);
        else s.field->template weigh<false, true>(x, units, nullptr, nullptr, given[i], sums);
        sums += s.weight_sums;
      } else if (!s.weights.empty()) {
        scale(s, x, units, x);
      }
      if (!s.wanted) continue;
      for (int64_t u = 0; s.sums && u < units; ++u)
        s.field->accumulate(x + u * unit * s.field->step, sums, !begins || u > 0);
      if (!s.sums) s.field->unpack(x, first, units, s.wanted);
      sums += s.sums;
    }
  }

  void scale(const Side<T>& s, const T* from, int64_t units, T* to) const {
    s.field->template weigh<true, false>(from, units, s.weights.data(), to, nullptr, nullptr);
  }

  void finish(const T* sums, T* partial) const {
    for (const Side<T>& s : sides) {
      if (s.weight_sums) {
        s.field->finish_weights(sums, partial);
        sums += s.weight_sums;
        partial += s.weight_count();
      }
      if (!s.sums) continue;
      s.field->finish(sums, partial);
      sums += s.sums;
      partial += s.field->dim() * s.field->channels;
    }
  }

  // Sums over the chunks, in their order.
  void reduce(const T* partial, int64_t chunks, int64_t row) const {
    const auto add = [&](int64_t size, T* to) {
      for (int64_t j = 0; j < size; ++j) {
        T total = 0;
        for (int64_t c = 0; c < chunks; ++c) total += partial[c * row + j];
        to[j] = total;
      }
      partial += size;
    };
    for (const Side<T>& s : sides) {
      if (s.weight_sums) add(s.weight_count(), s.wanted_weights);
      if (s.sums) add(s.field->dim() * s.field->channels, s.wanted);
    }
  }
};

using Optional = std::optional<Tensor>;

// C, that of the widest input; 0 where one has none.
int64_t channels_of(const std::vector<Tensor>& xs, const std::vector<Slot>& slots) {
  int64_t most = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    const int64_t own = xs[i].size(1) / slots[i + 1].dim();
    if (!own) return 0;
    most = std::max(most, own);
  }
  return most;
}

}  // namespace

// read: the integers of grid and slots.
// Bit k of `wanted`: slot 0 is the product of the inputs, slot k > 0 the gradient of the k-th, where g is the
// product's; the bit behind the last slot: the gradient of the weights. Returns what is wanted.
static std::vector<Tensor> weighted_point_product(Optional g, std::vector<Tensor> xs, Optional weights, Tensor table,
                                                  Tensor read, bool ir_mul, int64_t wanted) {
  const int64_t* grid = in<int64_t>(read);
  const std::vector<Slot> slots = read_slots(grid + 4, xs.size() + 1);
  const Points points{grid[0], grid[1], grid[2], grid[3]};
  const Tensor matrices = dense(table);
  const int64_t rows = xs[0].size(0), channels = channels_of(xs, slots);
  if (g) g = dense(*g);                    // [Z, C channels of d_0]
  for (Tensor& x : xs) x = dense(x);       // [Z or 1, C or 1 channels of d]
  if (weights) weights = dense(*weights);  // L + 1 degrees by its channels of every input, and then of the product
  const bool of_weights = wanted >> slots.size() & 1;
  std::vector<Tensor> found;
  dispatch(xs[0], [&]<class T>() {
    Product<T> product(points, slots, {rows, channels, ir_mul}, in<double>(matrices), of_weights);
    const auto made = [&](std::vector<int64_t> size) {
      found.push_back(in_huge_pages(empty(xs[0], size)));
      return out<T>(found.back());
    };
    std::vector<T*> to(slots.size() + 1);
    if (wanted & 1) to[0] = made({rows, channels * slots[0].dim()});
    for (size_t i = 1; i < slots.size(); ++i)
      if (wanted >> i & 1) to[i] = made({xs[i - 1].size(0), xs[i - 1].size(1)});
    if (of_weights) to.back() = made({weights->size(0)});
    int64_t first = 0;  // of a slot's weights
    for (size_t k = 1; k <= slots.size(); ++k) {
      const int i = k % slots.size();  // the inputs, then the product
      const int64_t own = i ? xs[i - 1].size(1) / slots[i].dim() : channels;
      const T* given = i ? in<T>(xs[i - 1]) : g ? in<T>(*g) : nullptr;
      product.side(i, i ? xs[i - 1].size(0) : rows, own, given, to[i], weights ? in<T>(*weights) + first : nullptr,
                   of_weights ? to.back() + first : nullptr);
      first += (slots[i].degree + 1) * own;
    }
    product.run();
  });
  return found;
}

static std::vector<Tensor> point_product(Optional g, std::vector<Tensor> xs, Tensor table, Tensor read, bool ir_mul,
                                         int64_t wanted) {
  return weighted_point_product(g, xs, {}, table, read, ir_mul, wanted);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("point_product(Tensor? g, Tensor[] xs, Tensor table, Tensor read, bool ir_mul, int wanted) -> Tensor[]");
  m.def("weighted_point_product(Tensor? g, Tensor[] xs, Tensor? weights, Tensor table, Tensor read, bool ir_mul, "
        "int wanted) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("point_product", TORCH_BOX(&point_product));
  m.impl("weighted_point_product", TORCH_BOX(&weighted_point_product));
}
