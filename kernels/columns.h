// Rows of C channels of degrees 0..L as columns, one lane each, and back: lanes are channels where there are enough to
// fill a vector, rows where there are not.
#pragma once

#include "tensor_product/interleave.h"

namespace ace::sphere {

constexpr int64_t kCached = 4 << 20;  // bytes of a tensor that the next operator may find in a cache

// The columns of a call come in units: a row with its channels in whole vectors, or a vector of rows for each channel.
template <class T>
struct Columns {
  int64_t rows, channels;
  bool ir_mul;

  bool by_rows() const { return channels < lanes<T>; }
  int64_t height() const { return by_rows() ? lanes<T> : 1; }  // rows of a unit
  int64_t width() const { return by_rows() ? channels * lanes<T> : round_up<T>(channels); }  // columns of a unit
  int64_t vectors() const { return width() / lanes<T>; }
  int64_t units() const { return channels ? ceil_div(rows, height()) : 0; }
  // Where component m of degree l of channel c lies in a row of `of` channels.
  int64_t index(int64_t l, int64_t m, int64_t c, int64_t of) const {
    return ir_mul ? (l * (l + 1) + m) * of + c : l * l * of + c * (2 * l + 1) + l + m;
  }
};

// 16 bytes at p, p + ld, p + 2 ld, ... beside each other.
template <class T>
inline Vec<T> load_pieces(const T* p, [[maybe_unused]] int64_t ld) {
#if defined(__AVX512F__)
  const auto at = [&](int64_t i) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * ld)); };
  const __m512 two = _mm512_insertf32x4(_mm512_castps128_ps512(at(0)), at(1), 1);
  return reinterpret_cast<Vec<T>>(_mm512_insertf32x4(_mm512_insertf32x4(two, at(2), 2), at(3), 3));
#elif defined(__AVX2__)
  const auto at = [&](int64_t i) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * ld)); };
  return reinterpret_cast<Vec<T>>(_mm256_insertf128_ps(_mm256_castps128_ps256(at(0)), at(1), 1));
#else
  return load(p);
#endif
}

// The lower or upper halves of 16 bytes each, their elements in turn.
template <class T, bool Upper, int... I>
inline Vec<T> interleave_pieces(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int Q = 16 / sizeof(T);
  return __builtin_shufflevector(a, b, (I / Q * Q + Upper * Q / 2 + I % Q / 2 + I % 2 * lanes<T>)...);
}

// The first `count` lanes; past the caches where asked and the vector is whole and aligned: a line that is written whole
// need not be read before. `settle` must follow before another thread reads.
template <class T>
inline void put(T* p, Vec<T> v, int64_t count, [[maybe_unused]] bool past) {
#if defined(__x86_64__)
  if (past && count >= lanes<T> && !(reinterpret_cast<uintptr_t>(p) % kVectorBytes)) {
    float* to = reinterpret_cast<float*>(p);
#if defined(__AVX512F__)
    return _mm512_stream_ps(to, reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
    return _mm256_stream_ps(to, reinterpret_cast<__m256>(v));
#else
    return _mm_stream_ps(to, reinterpret_cast<__m128>(v));
#endif
  }
#endif
  store_first(p, v, count);
}

inline void settle() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// to(c) takes lane r from from[r ld + c], a vector of rows of `cols` components, at least 16 bytes. Components come in
// pieces of 16 bytes, the last of which may overlap the one before: a load for each row, and few shuffles.
template <class T, class To>
inline void turn_whole(const T* from, int64_t ld, int64_t cols, To&& to) {
  constexpr int Q = 16 / sizeof(T);
  using Sequence = std::make_integer_sequence<int, lanes<T>>;
  for (int64_t c = 0; c < cols; c += Q) {
    const int64_t first = std::min(c, cols - Q);
    Vec<T> a[Q], b[Q];
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) a[i] = load_pieces<T>(from + i * ld + first, Q * ld);
#pragma GCC unroll 2
    for (int round = 1; round < Q; round *= 2) {
#pragma GCC unroll 2
      for (int i = 0; i < Q / 2; ++i) {
        b[2 * i] = interleave_pieces<T, false>(a[i], a[i + Q / 2], Sequence{});
        b[2 * i + 1] = interleave_pieces<T, true>(a[i], a[i + Q / 2], Sequence{});
      }
#pragma GCC unroll 4
      for (int i = 0; i < Q; ++i) a[i] = b[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) store(to(first + i), a[i]);
  }
}

// The same of `count` items, at most a vector of them, of any components.
template <class T, class To>
inline void turn(const T* from, int64_t ld, int64_t count, int64_t cols, To&& to) {
  constexpr int L = lanes<T>;
  if (count == L && cols * static_cast<int64_t>(sizeof(T)) >= 16) return turn_whole(from, ld, cols, to);
  for (int64_t first = 0; first < cols; first += L) {
    const int64_t wide = std::min<int64_t>(L, cols - first);
    Vec<T> a[L];
    for (int i = 0; i < L; ++i) a[i] = i < count ? load_first(from + i * ld + first, wide) : Vec<T>{};
    transpose_vectors<T>(a);
    for (int64_t c = 0; c < wide; ++c) store(to(first + c), a[c]);
  }
}

template <class T, class From>
inline void turn_back(From&& from, T* to, int64_t ld, int64_t count, int64_t cols) {
  constexpr int L = lanes<T>;
  for (int64_t first = 0; first < cols; first += L) {
    const int64_t wide = std::min<int64_t>(L, cols - first);
    Vec<T> a[L];
    for (int64_t c = 0; c < L; ++c) a[c] = c < wide ? load<T>(from(first + c)) : Vec<T>{};
    transpose_vectors<T>(a);
    for (int64_t i = 0; i < count; ++i) store_first(to + i * ld + first, a[i], wide);
  }
}

// f<D>() for the D whose items are taken apart or put together by shuffles of two vectors, f<0>() for others.
template <class F>
inline void with_components(int64_t d, F&& f) {
  switch (d) {
    case 1: return f.template operator()<1>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    case 7: return f.template operator()<7>();
    case 9: return f.template operator()<9>();
    default: return f.template operator()<0>();
  }
}

// f<L>() for the degrees L whose components are unrolled, f<-1>() for others.
template <class F>
inline void with_degree(int64_t degree, F&& f) {
  switch (degree) {
    case 0: return f.template operator()<0>();
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    default: return f.template operator()<-1>();
  }
}

// As `turn`, where the items lie one after the other, of D components, or of `cols` where D is 0.
template <class T, int D, class To>
inline void spread(const T* from, int64_t count, int64_t cols, To&& to) {
  if constexpr (D == 1 || D == 3 || D == 5) {
    Vec<T> x[D], y[D];
    product::load_vectors<T, D>(from, count * D, x);
    product::deinterleave<T, D>(x, y);
    for (int c = 0; c < D; ++c) store(to(c), y[c]);
  } else {
    turn<T>(from, cols, count, cols, to);
  }
}

template <class T, int D, class From>
inline void collect(From&& from, T* to, int64_t count, int64_t cols, bool past) {
  if constexpr (D == 0) {
    turn_back<T>(from, to, cols, count, cols);
  } else {
    Vec<T> x[D], y[D];
    for (int c = 0; c < D; ++c) x[c] = load<T>(from(c));
    product::interleave_components<T, D>(x, y);
    for (int64_t v = 0, L = lanes<T>; v < D && v * L < count * D; ++v) put(to + v * L, y[v], count * D - v * L, past);
  }
}

// A tensor [Z or 1, C or 1 channels of degrees 0..L] and its columns in a block: component i of vector v of the columns
// lies at at[i] + v step.
template <class T>
struct Field {
  Columns<T> columns;
  int64_t rows, channels, degree, step;
  std::vector<int64_t> at;
  bool past;  // whether the tensor is too large for the caches

  Field(const Columns<T>& columns, int64_t rows, int64_t channels, int64_t degree, std::vector<int64_t> at,
        int64_t step)
      : columns(columns), rows(rows), channels(channels), degree(degree), step(step), at(std::move(at)),
        past(rows * channels * dim() * static_cast<int64_t>(sizeof(T)) > kCached) {
    if (columns.by_rows() && channels > 1) arrange();
  }

  int64_t dim() const { return at.size(); }
  bool shares_rows() const { return rows != columns.rows; }
  bool shares_channels() const { return channels != columns.channels; }

  // Units of x, from `first` on, into a block.
  [[gnu::noinline, gnu::flatten]] void pack(const T* x, int64_t first, int64_t units, T* block) const {
    const int64_t wide = columns.vectors() * step;
    if (shares_rows() || (shares_channels() && !columns.by_rows())) {
      for (int64_t u = 0; u < units; ++u) repeat(x + (shares_rows() ? 0 : (first + u) * dim() * channels), block + u * wide);
    } else if (!columns.by_rows()) {
      for (int64_t u = 0; u < units; ++u) pack_channels(x + (first + u) * dim() * channels, block + u * wide);
    } else {
      with_components(dim(), [&]<int D>() {
        for (int64_t u = 0; u < units; ++u) pack_rows<D>(x, (first + u) * lanes<T>, block + u * wide);
      });
    }
  }

  // A block's columns back to units of y, summed over the channels that y shares.
  [[gnu::noinline, gnu::flatten]] void unpack(T* block, int64_t first, int64_t units, T* y) const {
    const int64_t wide = columns.vectors() * step;
    if (!columns.by_rows()) {
      for (int64_t u = 0; u < units; ++u) unpack_channels(block + u * wide, y + (first + u) * dim() * channels);
    } else {
      with_components(dim(), [&]<int D>() {
        for (int64_t u = 0; u < units; ++u) unpack_rows<D>(block + u * wide, (first + u) * lanes<T>, y);
      });
    }
  }

  // Sums of a unit's columns over rows: sums [dim][width] (+)= those from `from` on.
  void accumulate(const T* from, T* sums, bool add) const {
    const int64_t vectors = columns.vectors();
    for (int64_t i = 0; i < dim(); ++i)
      for (int64_t v = 0; v < vectors; ++v, sums += lanes<T>) {
        const Vec<T> value = load(from + at[i] + v * step);
        store(sums, add ? load(sums) + value : value);
      }
  }

  // Factors of degrees and channels [L + 1, channels] as those of a unit's columns, [L + 1][width].
  void spread_weights(const T* weights, T* to) const {
    for (int64_t l = 0; l <= degree; ++l)
      for (int64_t j = 0; j < columns.width(); ++j) {
        const int64_t c = shares_channels() ? 0 : columns.by_rows() ? j / lanes<T> : j;
        *to++ = c < channels ? weights[l * channels + c] : T(0);
      }
  }

  // Of units of a block: to = y times such factors, where `to` is given; and the gradient of the factors, sums
  // [L + 1][width] += x y summed over the components of a degree and over units, where x is.
  template <bool kScale, bool kSum>
  [[gnu::noinline]] void weigh(const T* y, int64_t units, const T* weights, T* to, const T* x, T* sums) const {
    with_degree(degree, [&]<int L>() {
      const int64_t last = L < 0 ? degree : L, vectors = columns.vectors(), apart = step;
      const int64_t* place = at.data();
      for (int64_t u = 0; u < units; ++u)
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t column = (u * vectors + v) * apart;
#pragma GCC unroll 5
          for (int64_t l = 0; l <= last; ++l) {
            const int64_t w = (l * vectors + v) * lanes<T>;
            Vec<T> sum{}, weight{};
            if constexpr (kScale) weight = load(weights + w);
            if constexpr (kSum) sum = load(sums + w);
#pragma GCC unroll 9
            for (int64_t i = l * l; i < (l + 1) * (l + 1); ++i) {
              const Vec<T> value = load(y + place[i] + column);
              if constexpr (kSum) sum += load(x + place[i] + column) * value;
              if constexpr (kScale) store(to + place[i] + column, value * weight);
            }
            if constexpr (kSum) store(sums + w, sum);
          }
        }
    });
  }

  // Sums of a unit's columns over them to y [L + 1, channels].
  void finish_weights(const T* sums, T* y) const {
    for (int64_t l = 0; l <= degree; ++l)
      for (int64_t c = 0; c < channels; ++c) *y++ = total(sums + l * columns.width(), c);
  }

  // Sums over rows to y, a row that all share.
  void finish(const T* sums, T* y) const {
    const int64_t width = columns.width();
    for (int64_t l = 0, i = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i)
        for (int64_t c = 0; c < channels; ++c)
          y[columns.index(l, m, c, channels)] = total(sums + i * width, c);
  }

 private:
  std::vector<int64_t> order_;  // where the elements of a row go where lanes are rows

  // Of a unit's columns [width], those of channel c.
  T total(const T* x, int64_t c) const {
    if (shares_channels()) return sum(x, columns.vectors(), lanes<T>);
    return columns.by_rows() ? sum(x + c * lanes<T>, 1, lanes<T>) : x[c];
  }

  static T sum(const T* x, int64_t count, int64_t step) {  // of vectors
    Vec<T> lanewise{};
    for (int64_t v = 0; v < count; ++v) lanewise += load(x + v * step);
    T total = 0;
    for (int i = 0; i < lanes<T>; ++i) total += lanewise[i];
    return total;
  }

  // f<D>(element, components d, vector v, channels up to a vector's, places of the components).
  template <class F>
  void each(F&& f) const {
    for (int64_t l = 0; l <= degree; ++l)
      with_components(columns.ir_mul ? 0 : 2 * l + 1, [&]<int D>() {
        for (int64_t v = 0, c = 0; c < channels; ++v, c += lanes<T>)
          f.template operator()<D>(columns.index(l, -l, c, channels), 2 * l + 1, v,
                                   std::min<int64_t>(lanes<T>, channels - c), at.data() + l * l);
      });
  }

  void pack_channels(const T* row, T* to) const {
    each([&]<int D>(int64_t from, int64_t d, int64_t v, int64_t some, const int64_t* at) {
      if (columns.ir_mul)
        for (int64_t i = 0; i < d; ++i) store(to + at[i] + v * step, load_first(row + from + i * channels, some));
      else
        spread<T, D>(row + from, some, d, [&](int64_t i) { return to + at[i] + v * step; });
    });
  }

  void unpack_channels(const T* from, T* row) const {
    if (shares_channels()) {
      for (int64_t i = 0; i < dim(); ++i) row[i] = sum(from + at[i], columns.vectors(), step);
      return;
    }
    each([&]<int D>(int64_t to, int64_t d, int64_t v, int64_t some, const int64_t* at) {
      if (columns.ir_mul)
        for (int64_t i = 0; i < d; ++i) put(row + to + i * channels, load(from + at[i] + v * step), some, past);
      else
        collect<T, D>([&](int64_t i) { return from + at[i] + v * step; }, row + to, some, d, past);
    });
  }

  // D: components of one channel where that is compiled, else 0.
  template <int D>
  void pack_rows(const T* x, int64_t row, T* to) const {
    const int64_t count = std::min<int64_t>(lanes<T>, rows - row), size = dim() * channels;
    x += row * size;
    if (channels > 1) return turn<T>(x, size, count, size, [&](int64_t j) { return to + order_[j]; });
    spread<T, D>(x, count, dim(), [&](int64_t i) { return to + at[i]; });
    for (int64_t i = 0; i < dim() && columns.channels > 1; ++i) {
      const Vec<T> value = load(to + at[i]);
      for (int64_t c = 1; c < columns.channels; ++c) store(to + at[i] + c * step, value);
    }
  }

  template <int D>
  void unpack_rows(T* from, int64_t row, T* y) const {
    const int64_t count = std::min<int64_t>(lanes<T>, rows - row), size = dim() * channels;
    y += row * size;
    if (channels > 1) return turn_back<T>([&](int64_t j) { return from + order_[j]; }, y, size, count, size);
    for (int64_t i = 0; i < dim() && columns.channels > 1; ++i) {
      Vec<T> value = load(from + at[i]);
      for (int64_t c = 1; c < columns.channels; ++c) value += load(from + at[i] + c * step);
      store(from + at[i], value);
    }
    collect<T, D>([&](int64_t i) { return from + at[i]; }, y, count, dim(), past);
  }

  void arrange() {
    order_.resize(dim() * channels);
    for (int64_t l = 0, i = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i)
        for (int64_t c = 0; c < channels; ++c) order_[columns.index(l, m, c, channels)] = at[i] + c * step;
  }

  // One row, or one channel, in all lanes.
  void repeat(const T* x, T* to) const {
    const bool all = shares_channels() || columns.by_rows();  // a vector has one value
    for (int64_t l = 0, i = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i)
        for (int64_t v = 0; v < columns.vectors(); ++v) {
          const int64_t c = shares_channels() ? 0 : columns.by_rows() ? v : v * lanes<T>;
          const T* from = x + columns.index(l, m, c, channels);
          T* target = to + at[i] + v * step;
          if (all)
            store(target, Vec<T>{} + *from);
          else
            for (int64_t lane = 0; lane < lanes<T>; ++lane)
              target[lane] = c + lane < channels ? x[columns.index(l, m, c + lane, channels)] : T(0);
        }
  }
};

}  // namespace ace::sphere
