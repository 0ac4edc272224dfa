// segment_rank: each segment is sorted once, short ones by insertion, long ones by radix; then every draw orders the
// groups of tied scores by their keys. rank_concat: rows of features and of the table, one after the other.
#include "native.h"
#include "philox.h"

#include <limits>
#include <type_traits>

namespace {

using namespace ace;

constexpr int64_t kShort = 48;  // nodes of a segment that is sorted by insertion, on the stack

template <class K>
struct Item {
  K key;
  uint32_t place;  // in the segment
};

template <class T> using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
template <class T> constexpr Bits<T> kSign = Bits<T>(1) << (8 * sizeof(T) - 1);

// A number whose order is that of the scores: -0 equals 0, every NaN is last.
template <class T>
Bits<T> sortable(T score) {
  if (score != score) return ~Bits<T>(0);
  Bits<T> bits = 0;
  if (score != T(0)) std::memcpy(&bits, &score, sizeof(T));
  return bits & kSign<T> ? ~bits : bits | kSign<T>;
}

template <class T>
T score_of(Bits<T> key) {
  const Bits<T> bits = key & kSign<T> ? key ^ kSign<T> : ~key;
  T score;
  std::memcpy(&score, &bits, sizeof(T));
  return score;
}

template <class K>
void insert_each(Item<K>* items, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    const Item<K> item = items[i];
    int64_t j = i;
    for (; j > 0 && items[j - 1].key > item.key; --j) items[j] = items[j - 1];
    items[j] = item;
  }
}

// Ascending and stable; `spare` is as long as `items`. Random keys are almost in order once their upper half is.
template <class K>
void sort(Item<K>* items, Item<K>* spare, int64_t n, bool random = false) {
  if (n <= kShort) return insert_each(items, n);
  constexpr int digits = sizeof(K);
  const int lowest = random ? digits / 2 : 0;
  std::vector<uint32_t> count(digits * 256);
  for (int64_t i = 0; i < n; ++i)
    for (int d = lowest; d < digits; ++d) ++count[d * 256 + (items[i].key >> (8 * d) & 255)];
  Item<K>* from = items;
  Item<K>* to = spare;
  for (int d = lowest; d < digits; ++d) {
    uint32_t* next = count.data() + d * 256;
    if (next[from[0].key >> (8 * d) & 255] == n) continue;  // all have this digit
    uint32_t sum = 0;
    for (int v = 0; v < 256; ++v) sum += std::exchange(next[v], sum);
    for (int64_t i = 0; i < n; ++i) to[next[from[i].key >> (8 * d) & 255]++] = from[i];
    std::swap(from, to);
  }
  if (from != items) std::copy_n(from, n, items);
  if (random) insert_each(items, n);
}

// What orders tied rows: the first two words as one number, in the order of int64.
inline uint64_t draw(uint64_t seed, uint64_t row) {
  const auto words = philox(seed, row);
  return (uint64_t(words[1]) << 32 | words[0]) ^ (uint64_t(1) << 63);
}

template <class T>
bool tied(T below, T above, T tolerance) {
  return above - below <= tolerance || above == below || (above != above && below != below);
}

// A segment's working memory, on the stack where it is short.
template <class K>
class Items {
 public:
  explicit Items(int64_t n) : n_(n) {
    if (n > kShort) heap_.emplace(2 * n);
  }
  Item<K>* items() { return heap_ ? *heap_ : stack_; }
  Item<K>* spare() { return heap_ ? *heap_ + n_ : nullptr; }  // insertion needs none
 private:
  Item<K> stack_[kShort];
  std::optional<Scratch<Item<K>>> heap_;
  int64_t n_;
};

// The rows start .. start + n - 1: rank [K, N] and order [K, N] of each draw.
template <class T>
void rank_segment(const T* score, int64_t start, int64_t n, const int64_t* seed, int64_t draws, int64_t rows,
                  T tolerance, int64_t* rank, int64_t* order) {
  Items<Bits<T>> memory(n);
  Item<Bits<T>>* items = memory.items();
  for (int64_t i = 0; i < n; ++i) items[i] = {sortable(score[start + i]), static_cast<uint32_t>(i)};
  sort(items, memory.spare(), n);
  Items<uint64_t> more(n);
  for (int64_t k = 0; k < draws; ++k) {
    int64_t *ranks = rank + k * rows, *sorted = order + k * rows + start;
    for (int64_t first = 0, last; first < n; first = last) {
      T below = score_of<T>(items[first].key);
      const bool scored = below == below;
      for (last = first + 1; last < n; ++last) {
        const T above = score_of<T>(items[last].key);
        if (!tied(below, above, tolerance)) break;
        below = above;
      }
      const auto put = [&](int64_t i, int64_t row) { sorted[i] = row, ranks[row] = scored ? i : -1; };
      if (last - first == 1) {
        put(first, start + items[first].place);
        continue;
      }
      Item<uint64_t>* group = more.items();
      for (int64_t i = first; i < last; ++i)
        group[i - first] = {draw(seed[k], start + items[i].place), items[i].place};
      sort(group, more.spare(), last - first, true);
      for (int64_t i = first; i < last; ++i) put(i, start + group[i - first].place);
    }
  }
}

template <class T>
void rank_all(const Tensor& score, const Tensor& ptr, const Tensor& seed, double tolerance, const Tensor& rank,
              const Tensor& order) {
  const int64_t rows = score.size(0), draws = seed.size(0), segments = ptr.size(0) - 1;
  const int64_t* begin = in<int64_t>(ptr);
  int64_t *ranks = out<int64_t>(rank), *orders = out<int64_t>(order);
  const auto bound = [&](int64_t b) { return std::clamp<int64_t>(begin[b], 0, rows); };
  const auto none = [&](int64_t from, int64_t to) {  // rows of no segment
    for (int64_t k = 0; k < draws; ++k)
      for (int64_t i = from; i < to; ++i) ranks[k * rows + i] = -1, orders[k * rows + i] = i;
  };
  none(0, segments > 0 ? bound(0) : rows);
  if (segments > 0) none(bound(segments), rows);
  const int64_t grain = std::max<int64_t>(1, 4096 * segments / std::max<int64_t>(1, rows * draws));
  parallel(segments, grain, [&](int64_t b) {
    const int64_t start = bound(b), n = bound(b + 1) - start;
    if (n > 0)
      rank_segment<T>(in<T>(score), start, n, in<int64_t>(seed), draws, rows, static_cast<T>(tolerance), ranks, orders);
  });
}

}  // namespace

static std::tuple<ace::Tensor, ace::Tensor> segment_rank(ace::Tensor score_, ace::Tensor ptr_, ace::Tensor seed_,
                                                         double tolerance) {
  const Tensor score = dense(score_), ptr = dense(ptr_), seed = dense(seed_);
  const std::vector<int64_t> shape{seed.size(0), score.size(0)};  // score [N], ptr [B + 1], seed [K] -> two of [K, N]
  Tensor rank = torch::stable::new_empty(ptr, shape), order = torch::stable::new_empty(ptr, shape);
  dispatch(score, [&]<class T>() { rank_all<T>(score, ptr, seed, tolerance, rank, order); });
  return {rank, order};
}

static ace::Tensor rank_concat(ace::Tensor x_, ace::Tensor table_, ace::Tensor rank_) {
  const Tensor x = dense_rows(x_), table = dense_rows(table_), rank = dense(rank_);
  const int64_t draws = rank.size(0), n = rank.size(1), features = x.size(1);  // x [N, F], table [T, C], rank [K, N]
  const int64_t vectors = table.size(0), channels = table.size(1), width = features + channels;
  const Tensor result = in_huge_pages(empty(x, {draws, n, width}));
  dispatch(x, [&]<class T>() {
    const int64_t* place = in<int64_t>(rank);
    parallel(draws * n, std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1)), [&](int64_t i) {
      T* row = out<T>(result) + i * width;
      std::copy_n(in<T>(x) + i % n * x.stride(0), features, row);
      const int64_t r = place[i];
      if (r >= 0 && r < vectors) std::copy_n(in<T>(table) + r * table.stride(0), channels, row + features);
      else std::fill_n(row + features, channels, std::numeric_limits<T>::quiet_NaN());
    });
  });
  return result;
}

static ace::Tensor rank_concat_bwd(ace::Tensor g_, ace::Tensor rank_, ace::Tensor order_, ace::Tensor ptr_,
                                   int64_t vectors) {
  const Tensor g = g_.stride(2) == 1 ? g_ : dense(g_), rank = dense(rank_), order = dense(order_), ptr = dense(ptr_);
  const int64_t draws = rank.size(0), n = rank.size(1), channels = g.size(2);  // g [K, N, C] -> out [T, C]
  const int64_t segments = ptr.size(0) - 1;
  Tensor result = empty(g, {vectors, channels});
  dispatch(g, [&]<class T>() {
    const int64_t* begin = in<int64_t>(ptr);
    const int64_t work = draws * std::max<int64_t>(1, n / std::max<int64_t>(1, vectors)) * channels;
    parallel(vectors, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work)), [&](int64_t r) {
      T* sum = out<T>(result) + r * channels;
      std::fill_n(sum, channels, T(0));
      for (int64_t k = 0; k < draws; ++k)
        for (int64_t b = 0; b < segments; ++b) {
          const int64_t place = std::clamp<int64_t>(begin[b], 0, n) + r;
          if (place >= std::min(begin[b + 1], n)) continue;
          const int64_t row = in<int64_t>(order)[k * n + place];
          if (row < 0 || row >= n || in<int64_t>(rank)[k * n + row] != r) continue;
          const T* from = in<T>(g) + k * g.stride(0) + row * g.stride(1);
          for (int64_t c = 0; c < channels; ++c) sum[c] += from[c];
        }
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("segment_rank(Tensor score, Tensor ptr, Tensor seed, float tolerance) -> (Tensor, Tensor)");
  m.def("rank_concat(Tensor x, Tensor table, Tensor rank) -> Tensor");
  m.def("rank_concat_bwd(Tensor g, Tensor rank, Tensor order, Tensor ptr, int rows) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("segment_rank", TORCH_BOX(&segment_rank));
  m.impl("rank_concat", TORCH_BOX(&rank_concat));
  m.impl("rank_concat_bwd", TORCH_BOX(&rank_concat_bwd));
}
