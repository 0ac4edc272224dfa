// knn: a few queries against a few vectors of candidates in registers; what beats a query's k-th best distance is
// inserted into its sorted list. Each query's list depends on its cloud alone, so threads do not change the result.
#include "native.h"

#include <limits>

namespace {

using namespace ace;

template <class T> struct IndexOf { using type = int32_t; };  // as wide as the distance, so that they share masks
template <> struct IndexOf<double> { using type = int64_t; };
template <class T> using Index = typename IndexOf<T>::type;

constexpr int kQueries = kTileVectors == 3 ? 8 : 4;  // with the vectors below: 24 of 32 or 8 of 16 registers
template <class T> constexpr int kCandidates = kTileVectors * lanes<T>;  // candidates; a multiple of kQueries
constexpr int64_t kBlock = 48;  // queries that share a panel while it is in the cache; a multiple of every panel
template <class T> constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The last lane of a, then all but the last of b.
template <class V, int... I>
inline V shift_in(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (static_cast<int>(sizeof...(I)) - 1 + I)...);
}

// Inserts row[i], of index base + i, for each bit i into the ascending list, behind its equals; the last falls out.
template <class T, int N>
void insert(const T* row, uint64_t bits, int64_t base, T* distance, Index<T>* index) {
  using Lanes = std::make_integer_sequence<int, lanes<T>>;
  Vec<T> d[N];
  Vec<Index<T>> x[N];
  for (int n = 0; n < N; ++n) d[n] = load(distance + n * lanes<T>), x[n] = load(index + n * lanes<T>);
  for (; bits; bits &= bits - 1) {
    const int lane = __builtin_ctzll(bits);
    const Vec<T> value = Vec<T>{} + row[lane];
    const Vec<Index<T>> place = Vec<Index<T>>{} + static_cast<Index<T>>(base + lane);
#pragma GCC unroll 8
    for (int n = N - 1; n >= 0; --n) {
      const Vec<T> before = shift_in(n ? d[n - 1] : Vec<T>{} - T(1), d[n], Lanes{});  // -1 is below every distance
      const Vec<Index<T>> x_before = shift_in(n ? x[n - 1] : x[0], x[n], Lanes{});
      const auto stays = d[n] <= value, lands = before <= value;
      x[n] = stays ? x[n] : lands ? place : x_before;
      d[n] = stays ? d[n] : lands ? value : before;
    }
  }
  for (int n = 0; n < N; ++n) store(distance + n * lanes<T>, d[n]), store(index + n * lanes<T>, x[n]);
}

template <class T> using Insert = void (*)(const T*, uint64_t, int64_t, T*, Index<T>*);

// The insertion into lists of at least k <= 64 places, and how many they have.
template <class T, int N = 1>
std::pair<Insert<T>, int64_t> insertion(int64_t k) {
  if constexpr (N * lanes<T> < 64) {
    if (k > N * lanes<T>) return insertion<T, 2 * N>(k);
  }
  return {&insert<T, N>, N * lanes<T>};
}

// Distances of kQueries queries to V vectors of a panel [F][kCandidates]. Bit i of bits[q]: candidate i beats worst[q];
// rows [kQueries][kCandidates] are written where any does.
template <class T, int V>
inline void measure(int64_t features, const T* query, const T* panel, const T* worst, int64_t ld_worst, T* rows,
                    uint64_t* bits) {
  constexpr int L = lanes<T>;
  Vec<T> acc[kQueries][V] = {};
  for (int64_t f = 0; f < features; ++f) {
    Vec<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(panel + f * kCandidates<T> + v * L);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const T x = query[f * kCandidates<T> + q];
      for (int v = 0; v < V; ++v) {
        const Vec<T> difference = row[v] - x;
        acc[q][v] += difference * difference;
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
    const Vec<T> limit = Vec<T>{} + worst[q * ld_worst];
    bits[q] = 0;
    for (int v = 0; v < V; ++v) bits[q] |= less_bits<T>(acc[q][v], limit) << (v * L);
    if (bits[q])
      for (int v = 0; v < V; ++v) store(rows + q * kCandidates<T> + v * L, acc[q][v]);
  }
}

template <class T>
struct Cloud {
  const T* panels;  // [panel][F][kCandidates], infinite behind the last point
  int64_t points, features, k;
  bool include_self;
  Insert<T> insert;
  int64_t places;  // of a list

  int64_t stride() const { return features * kCandidates<T>; }

  // The lists of the queries first..first + kBlock - 1.
  void search(int64_t first, T* distance, Index<T>* index) const {
    std::fill(distance, distance + kBlock * places, kInfinity<T>);
    std::fill(index, index + kBlock * places, Index<T>(0));
    const int64_t last = std::min(first + kBlock, points);
    for (int64_t base = 0; base < points; base += kCandidates<T>) {
      const T* panel = panels + base / kCandidates<T> * stride();
      const int64_t vectors = std::min<int64_t>(kTileVectors, ceil_div(points - base, lanes<T>));
      for (int64_t q = first; q < last; q += kQueries)
        compare(q, base, panel, vectors, distance + (q - first) * places, index + (q - first) * places);
    }
  }

  void compare(int64_t query, int64_t base, const T* panel, int64_t vectors, T* distance, Index<T>* index) const {
    alignas(64) T rows[kQueries * kCandidates<T>];
    uint64_t bits[kQueries];
    const T* x = panels + query / kCandidates<T> * stride() + query % kCandidates<T>;
    const T* worst = distance + k - 1;
    if (vectors == kTileVectors) measure<T, kTileVectors>(features, x, panel, worst, places, rows, bits);
    else if (vectors == 2) measure<T, 2>(features, x, panel, worst, places, rows, bits);
    else measure<T, 1>(features, x, panel, worst, places, rows, bits);
    for (int q = 0; q < kQueries; ++q) {
      const int64_t self = query + q - base;
      if (!include_self && self >= 0 && self < kCandidates<T>) bits[q] &= ~(uint64_t(1) << self);
      if (bits[q]) insert(rows + q * kCandidates<T>, bits[q], base, distance + q * places, index + q * places);
    }
  }

  // The list of query `self` into y [k]; infinite distances are in no list and follow by index, then zeros.
  void write(int64_t self, const T* distance, const Index<T>* index, int64_t* y) const {
    int64_t finite = 0;
    for (; finite < k && distance[finite] < kInfinity<T>; ++finite) y[finite] = index[finite];
    int64_t found = finite;
    for (int64_t c = 0; found < k && c < points; ++c)
      if ((include_self || c != self) && std::find(y, y + finite, c) == y + finite) y[found++] = c;
    std::fill(y + found, y + k, int64_t(0));
  }
};

struct Part {  // rows start..start + size - 1 of x, `count` of them from `first` on
  int64_t start, size, panel, first;
};

}  // namespace

static ace::Tensor knn(ace::Tensor x_, ace::Tensor ptr_, int64_t longest, int64_t k, bool include_self) {
  (void)longest;
  using namespace ace;
  const Tensor x = dense_rows(x_), ptr = dense(ptr_);
  const int64_t rows = x.size(0), features = x.size(1), stride = x.stride(0), clouds = ptr.size(0) - 1;  // x [M, F]
  Tensor result = torch::stable::new_empty(x, {rows, k}, ScalarType::Long);
  dispatch(x, [&]<class T>() {
    const T* source = in<T>(x);
    const int64_t* bounds = in<int64_t>(ptr);
    int64_t* target = out<int64_t>(result);
    std::vector<Part> panels, blocks;
    int64_t covered = 0;  // rows of no cloud, which a wrong ptr leaves, become zeros
    for (int64_t b = 0; b < clouds; ++b) {
      const int64_t start = std::clamp(bounds[b], covered, rows), stop = std::clamp(bounds[b + 1], start, rows);
      const int64_t size = stop - start, panel = panels.size();
      std::fill(target + covered * k, target + start * k, int64_t(0));
      for (int64_t i = 0; i < size; i += kCandidates<T>) panels.push_back({start, size, panel, i});
      for (int64_t i = 0; i < size; i += kBlock) blocks.push_back({start, size, panel, i});
      covered = stop;
    }
    std::fill(target + covered * k, target + rows * k, int64_t(0));

    const int64_t panel_size = features * kCandidates<T>;
    Scratch<T> packed(static_cast<int64_t>(panels.size()) * panel_size);
    parallel(panels.size(), std::max<int64_t>(1, 16384 / panel_size), [&](int64_t i) {
      const Part& p = panels[i];
      const int64_t count = std::min<int64_t>(kCandidates<T>, p.size - p.first);
      T* to = packed + i * panel_size;
      transpose(source + (p.start + p.first) * stride, count, features, stride, to, kCandidates<T>);
      for (int64_t f = 0; f < features; ++f)
        std::fill(to + f * kCandidates<T> + count, to + (f + 1) * kCandidates<T>, kInfinity<T>);
    });
    const auto [insert, places] = insertion<T>(k);
    parallel(blocks.size(), 1, [&, insert = insert, places = places](int64_t i) {
      const Part& p = blocks[i];
      const Cloud<T> cloud{packed + p.panel * panel_size, p.size, features, k, include_self, insert, places};
      const Scratch<T> distance(kBlock * places);
      const Scratch<Index<T>> index(kBlock * places);
      cloud.search(p.first, distance, index);
      for (int64_t q = p.first; q < std::min(p.first + kBlock, p.size); ++q)
        cloud.write(q, distance + (q - p.first) * places, index + (q - p.first) * places, target + (p.start + q) * k);
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("knn(Tensor x, Tensor ptr, int longest, int k, bool include_self) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("knn", TORCH_BOX(&knn));
}
