// Rows of C channels of degrees 0..L as columns, one lane each, and back: lanes are channels where there are enough to
// fill a vector, rows where there are not.
#pragma once

#include "tensor_product/interleave.h"

namespace ace::sphere {

// The columns of a call come in units: a row with its channels in whole vectors, or a vector of rows for each channel.
template <class T>
struct Columns {
  int64_t rows, channels;
  bool ir_mul;

  bool by_rows() const { return channels < lanes<T>; }
  int64_t height() const { return by_rows() ? lanes<T> : 1; }  // rows of a unit
  int64_t width() const { return by_rows() ? channels * lanes<T> : round_up<T>(channels); }  // columns of a unit
  int64_t units() const { return channels ? ceil_div(rows, height()) : 0; }
  // Where component m of degree l of channel c lies in a row of `of` channels.
  int64_t index(int64_t l, int64_t m, int64_t c, int64_t of) const {
    return ir_mul ? (l * (l + 1) + m) * of + c : l * l * of + c * (2 * l + 1) + l + m;
  }
};

// to(c) takes lane r from from[r ld + c]: `count` items of `cols` components, at most a vector of items.
template <class T, class To>
inline void turn(const T* from, int64_t ld, int64_t count, int64_t cols, To&& to) {
  constexpr int L = lanes<T>;
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

// f<D>() for the D whose items are taken apart by shuffles of two vectors, f<0>() for others.
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

// As `turn`, where the items lie one after the other.
template <class T, class To>
inline void spread(const T* from, int64_t count, int64_t cols, To&& to) {
  with_components(cols, [&]<int D>() {
    if constexpr (D == 0) {
      turn<T>(from, cols, count, cols, to);
    } else {
      Vec<T> x[D], y[D];
      product::load_vectors<T, D>(from, count * D, x);
      product::deinterleave<T, D>(x, y);
      for (int c = 0; c < D; ++c) store(to(c), y[c]);
    }
  });
}

template <class T, class From>
inline void collect(From&& from, T* to, int64_t count, int64_t cols) {
  with_components(cols, [&]<int D>() {
    if constexpr (D == 0) {
      turn_back<T>(from, to, cols, count, cols);
    } else {
      Vec<T> x[D], y[D];
      for (int c = 0; c < D; ++c) x[c] = load<T>(from(c));
      product::interleave_components<T, D>(x, y);
      product::store_vectors<T, D>(to, count * D, y);
    }
  });
}

// A tensor [Z or 1, C or 1 channels of degrees 0..L] whose component i lies in row place[i] of blocks of n columns.
template <class T>
struct Field {
  Columns<T> columns;
  int64_t rows, channels, degree, n;
  std::vector<int64_t> at;  // place[i] n

  Field(const Columns<T>& columns, int64_t rows, int64_t channels, int64_t degree, const std::vector<int64_t>& place,
        int64_t n)
      : columns(columns), rows(rows), channels(channels), degree(degree), n(n) {
    for (int64_t p : place) at.push_back(p * n);
    if (columns.by_rows() && channels > 1) arrange();
  }

  int64_t dim() const { return at.size(); }
  bool shares_rows() const { return rows != columns.rows; }
  bool shares_channels() const { return channels != columns.channels; }

  // Unit u of x into the columns from `to` on.
  void pack(const T* x, int64_t u, T* to) const {
    if (shares_rows() || (shares_channels() && !columns.by_rows()))
      return repeat(x + (shares_rows() ? 0 : u) * dim() * channels, to);
    const int64_t row = u * columns.height(), count = std::min(columns.height(), rows - row), D = dim() * channels;
    x += row * D;
    if (!columns.by_rows()) return each([&](int64_t from, int64_t d, int64_t c, int64_t some, const int64_t* at) {
      if (columns.ir_mul)
        for (int64_t i = 0; i < d; ++i) store(to + at[i] + c, load_first(x + from + i * channels, some));
      else
        spread<T>(x + from, some, d, [&](int64_t i) { return to + at[i] + c; });
    });
    if (channels == 1) {
      spread<T>(x, count, dim(), [&](int64_t i) { return to + at[i]; });
      for (int64_t i = 0; i < dim() && columns.channels > 1; ++i) {
        const Vec<T> value = load(to + at[i]);
        for (int64_t c = 1; c < columns.channels; ++c) store(to + at[i] + c * lanes<T>, value);
      }
      return;
    }
    turn<T>(x, D, count, D, [&](int64_t j) { return to + order_[j]; });
  }

  // The columns from `from` on to unit u of y, summed over the channels that y shares.
  void unpack(T* from, int64_t u, T* y) const {
    const int64_t row = u * columns.height(), count = std::min(columns.height(), rows - row), D = dim() * channels;
    y += row * D;
    if (!columns.by_rows() && shares_channels()) {
      for (int64_t i = 0; i < dim(); ++i) y[i] = sum(from + at[i], columns.width());
      return;
    }
    if (!columns.by_rows()) return each([&](int64_t to, int64_t d, int64_t c, int64_t some, const int64_t* at) {
      if (columns.ir_mul)
        for (int64_t i = 0; i < d; ++i) store_first(y + to + i * channels, load(from + at[i] + c), some);
      else
        collect<T>([&](int64_t i) { return from + at[i] + c; }, y + to, some, d);
    });
    if (channels == 1) {
      for (int64_t i = 0; i < dim() && columns.channels > 1; ++i) {
        Vec<T> value = load(from + at[i]);
        for (int64_t c = 1; c < columns.channels; ++c) value += load(from + at[i] + c * lanes<T>);
        store(from + at[i], value);
      }
      return collect<T>([&](int64_t i) { return from + at[i]; }, y, count, dim());
    }
    turn_back<T>([&](int64_t j) { return from + order_[j]; }, y, D, count, D);
  }

  // Sums of a unit's columns over rows: sums [dim][width] (+)= those from `from` on.
  void accumulate(const T* from, T* sums, bool add) const {
    const int64_t width = columns.width();
    for (int64_t i = 0; i < dim(); ++i)
      for (int64_t v = 0; v < width; v += lanes<T>) {
        const Vec<T> value = load(from + at[i] + v);
        store(sums + i * width + v, add ? load(sums + i * width + v) + value : value);
      }
  }

  // Sums over rows to y, a row that all share.
  void finish(const T* sums, T* y) const {
    const int64_t width = columns.width();
    for (int64_t l = 0, i = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i)
        for (int64_t c = 0; c < channels; ++c) {
          const T* at = sums + i * width;
          y[columns.index(l, m, c, channels)] = shares_channels() ? sum(at, width)
              : columns.by_rows() ? sum(at + c * lanes<T>, lanes<T>) : at[c];
        }
  }

 private:
  std::vector<int64_t> order_;  // where the elements of a row go where lanes are rows

  static T sum(const T* x, int64_t count) {  // whole vectors
    Vec<T> lanewise{};
    for (int64_t v = 0; v < count; v += lanes<T>) lanewise += load(x + v);
    T total = 0;
    for (int i = 0; i < lanes<T>; ++i) total += lanewise[i];
    return total;
  }

  // f(element, components d, channel c, channels up to a vector's, places of the components).
  template <class F>
  void each(F&& f) const {
    for (int64_t l = 0; l <= degree; ++l)
      for (int64_t c = 0; c < channels; c += lanes<T>)
        f(columns.index(l, -l, c, channels), 2 * l + 1, c, std::min<int64_t>(lanes<T>, channels - c),
          at.data() + l * l);
  }

  void arrange() {
    order_.resize(dim() * channels);
    for (int64_t l = 0, i = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i)
        for (int64_t c = 0; c < channels; ++c) order_[columns.index(l, m, c, channels)] = at[i] + c * lanes<T>;
  }

  // One row, or one channel, in all lanes.
  void repeat(const T* x, T* to) const {
    const int64_t step = columns.by_rows() ? lanes<T> : 1;
    for (int64_t l = 0, i = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i)
        for (int64_t c = 0; c < columns.channels; c += step == 1 ? lanes<T> : 1) {
          T* target = to + at[i] + c * step;
          if (shares_channels() || columns.by_rows())
            store(target, Vec<T>{} + x[columns.index(l, m, shares_channels() ? 0 : c, channels)]);
          else
            for (int64_t lane = 0; lane < lanes<T>; ++lane)
              target[lane] = c + lane < channels ? x[columns.index(l, m, c + lane, channels)] : T(0);
        }
  }
};

}  // namespace ace::sphere
