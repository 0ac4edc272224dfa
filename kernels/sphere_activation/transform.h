// Transforms between coefficients and points of the sphere for a block of lanes: an element, which is a row and channel,
// is a lane. Points come in groups that stay in the first cache: rings of azimuths, or any few points.
#pragma once

#include "native.h"
#include "tensor_product/interleave.h"

namespace ace::sphere_activation {

template <class T> constexpr int64_t kLanes = gemm::kPanel<T>;  // elements of a block
constexpr int64_t kRun = 3 * kTileRows;                         // points of a group that is no ring

// Rows [Z, d C] in either layout, seen as elements (z, c).
struct Layout {
  int64_t rows, channels;
  bool ir_mul;
  int64_t elements() const { return rows * channels; }
};

// f(row, first channel, channels, first lane) for each row that the elements first .. first + count reach.
template <class F>
void runs(const Layout& at, int64_t first, int64_t count, F&& f) {
  for (int64_t lane = 0; lane < count;) {
    const int64_t z = (first + lane) / at.channels, c = (first + lane) % at.channels;
    const int64_t run = std::min(at.channels - c, count - lane);
    f(z, c, run, lane);
    lane += run;
  }
}

// Coefficients of elements to block rows: row place[i] has component i of all lanes. Lanes without an element are zero.
template <class T>
void load_block(const T* x, const Layout& at, int64_t first, int64_t count, const std::vector<int64_t>& place, T* to) {
  constexpr int64_t W = kLanes<T>, L = lanes<T>;
  const int64_t d = place.size();
  if (count < W) std::fill_n(to, d * W, T(0));
  if (at.channels == 1)
    return transpose_rows<T>([=](int64_t r) { return x + (first + r) * d; }, count, d,
                             [&](int64_t i) { return to + place[i] * W; });
  runs(at, first, count, [&](int64_t z, int64_t c, int64_t run, int64_t lane) {
    const T* row = x + z * d * at.channels;
    if (at.ir_mul) {
      for (int64_t i = 0; i < d; ++i) std::copy_n(row + i * at.channels + c, run, to + place[i] * W + lane);
      return;
    }
    for (int64_t l = 0; l * l < d; ++l)
      product::with_degree(2 * l + 1, [&]<int D>() {
        const int64_t width = 2 * l + 1;
        const T* from = row + l * l * at.channels + c * width;
        const int64_t* target = place.data() + l * l;
        if constexpr (D == 0) {
          for (int64_t u = 0; u < run; ++u)
            for (int64_t i = 0; i < width; ++i) to[target[i] * W + lane + u] = from[u * width + i];
        } else {
          for (int64_t u = 0; u < run; u += L) {
            Vec<T> v[D], y[D];
            product::load_vectors<T, D>(from + u * D, (run - u) * D, v);
            product::deinterleave<T, D>(v, y);
            for (int i = 0; i < D; ++i) store_first(to + target[i] * W + lane + u, y[i], run - u);
          }
        }
      });
  });
}

// The way back; `from` may be read up to a vector beyond its end.
template <class T>
void store_block(const T* from, const Layout& at, int64_t first, int64_t count, const std::vector<int64_t>& place, T* y) {
  constexpr int64_t W = kLanes<T>, L = lanes<T>;
  const int64_t d = place.size();
  if (at.channels == 1)
    return transpose_rows<T>([&](int64_t i) { return from + place[i] * W; }, d, count,
                             [=](int64_t r) { return y + (first + r) * d; });
  runs(at, first, count, [&](int64_t z, int64_t c, int64_t run, int64_t lane) {
    T* row = y + z * d * at.channels;
    if (at.ir_mul) {
      for (int64_t i = 0; i < d; ++i) std::copy_n(from + place[i] * W + lane, run, row + i * at.channels + c);
      return;
    }
    for (int64_t l = 0; l * l < d; ++l)
      product::with_degree(2 * l + 1, [&]<int D>() {
        const int64_t width = 2 * l + 1;
        T* to = row + l * l * at.channels + c * width;
        const int64_t* source = place.data() + l * l;
        if constexpr (D == 0) {
          for (int64_t u = 0; u < run; ++u)
            for (int64_t i = 0; i < width; ++i) to[u * width + i] = from[source[i] * W + lane + u];
        } else {
          for (int64_t u = 0; u < run; u += L) {
            Vec<T> v[D], x[D];
            for (int i = 0; i < D; ++i) v[i] = load(from + source[i] * W + lane + u);
            product::interleave_components<T, D>(v, x);
            product::store_vectors<T, D>(to + u * D, (run - u) * D, x);
          }
        }
      });
  });
}

// C[M, W] (+)= A B, as `tile` of native.h for sums so short that its way of leaving the registers counts; k > 0.
template <class T, int M, bool Unit>
inline void short_tile(int64_t k, const T* a, int64_t am, int64_t step, const T* b, int64_t ldb, T* c, int64_t ldc,
                       bool add) {
  constexpr int V = kTileVectors, L = lanes<T>;
  const int64_t ak = Unit ? 1 : step;
  Vec<T> sum[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sum[m][v] = a[m * am] * load(b + v * L);
  for (int64_t p = 1; p < k; ++p)
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] += a[m * am + p * ak] * load(b + p * ldb + v * L);
  if (add)
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] += load(static_cast<const T*>(c + m * ldc + v * L));
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * ldc + v * L, sum[m][v]);
}

template <class T, bool Unit, int M = kTileRows>
inline void short_rows(int64_t rows, int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c,
                       int64_t ldc, bool add) {
  if constexpr (M > 1) {
    if (rows < M) return short_rows<T, Unit, M - 1>(rows, k, a, am, ak, b, ldb, c, ldc, add);
  }
  short_tile<T, M, Unit>(k, a, am, ak, b, ldb, c, ldc, add);
}

// C[m, W] (+)= A B for a block; A with any strides. Rows are shared out evenly: a tile of a row or two waits for its sums.
template <class T>
void product_of(int64_t m, int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c, int64_t ldc,
                bool add = false) {
  if (m == 0) return;
  const int64_t rows = ceil_div(m, ceil_div(m, kTileRows));
  for (int64_t i = 0; i < m; i += rows) {
    const int64_t count = std::min(rows, m - i);
    if (k == 0)
      for (int64_t r = i; r < i + count; ++r) std::fill_n(c + r * ldc, kLanes<T>, T(0));
    else if (ak == 1) short_rows<T, true>(count, k, a + i * am, am, ak, b, ldb, c + i * ldc, ldc, add);
    else short_rows<T, false>(count, k, a + i * am, am, ak, b, ldb, c + i * ldc, ldc, add);
  }
}

// Whether sums over degrees and then over orders beat the table as it is: their products are shorter, and measured to be
// as fast only where the flops are 2.5 times fewer.
inline bool rings_pay(int64_t points, int64_t d, int64_t ring) {
  if (!ring) return false;
  const double orders = 2 * std::sqrt(static_cast<double>(d)) - 1;
  return 2.0 * points * d > 2.5 * (points / ring * 2.0 * d + points * (orders + 1));
}

// Both directions of a table [S, d]. In rings a component (l, m) is polar(ring, l, |m|) times cos(m phi) or sin(|m| phi), and
// the sums over l and over m follow each other; the azimuths phi and -phi share the sums over cosines and sines, even + odd
// and even - odd, where those of 0 and pi have even alone. `work` holds, for each ring, the sums over l by order: cosines 0..L, then sines 1..L.
template <class T>
class Transform {
 public:
  static constexpr int64_t W = kLanes<T>;

  Transform(const double* table, int64_t points, int64_t d, int64_t ring)
      : d_(d), degrees_(std::llround(std::sqrt(static_cast<double>(d)))), points_(points), ring_(ring), place(d) {
    if (ring) split(table);
    else {
      for (int64_t i = 0; i < d; ++i) place[i] = i;
      even_.assign(table, table + points * d);
    }
  }

  bool paired() const { return ring_ > 0; }
  int64_t groups() const { return ring_ ? points_ / ring_ : ceil_div(points_, kRun); }
  int64_t height() const { return ring_ ? ring_ / 2 + 1 : kRun; }  // the most that a group has, azimuths +-phi counted once
  int64_t count(int64_t group) const { return ring_ ? height() : std::min(kRun, points_ - group * kRun); }
  int64_t size() const { return d_ * W; }
  int64_t work_size() const { return ring_ ? groups() * orders() * W : 0; }
  int64_t opposite() const { return ring_ && ring_ % 2 == 0 ? ring_ / 2 : 0; }  // the azimuth pi, if it is there

  void begin(const T* x, T* work) const {
    for (int64_t s = 0; ring_ && s < orders(); ++s) {
      const int64_t k = terms(s);
      product_of<T>(groups(), k, polar(s), k, 1, x + start(s) * W, W, work + s * W, orders() * W);
    }
  }

  void to_points(int64_t group, const T* x, const T* work, T* even, T* odd) const {
    if (!ring_) return product_of<T>(count(group), d_, even_.data() + group * kRun * d_, d_, 1, x, W, even, W);
    const T* sums = work + group * orders() * W;
    const int64_t sines = degrees_ - 1;
    product_of<T>(height(), degrees_, even_.data(), degrees_, 1, sums, W, even, W);
    product_of<T>(pairs(), sines, odd_.data(), sines, 1, sums + degrees_ * W, W, odd + W, W);
  }

  // Of points, even and odd, what belongs to the coefficients: `work` and `x` as above, the transposed tables.
  void from_points(int64_t group, const T* even, const T* odd, T* x, T* work) const {
    if (!ring_)
      return product_of<T>(d_, count(group), even_.data() + group * kRun * d_, 1, d_, even, W, x, W, group > 0);
    T* sums = work + group * orders() * W;
    const int64_t sines = degrees_ - 1;
    product_of<T>(degrees_, height(), even_back_.data(), height(), 1, even, W, sums, W);
    product_of<T>(sines, pairs(), odd_back_.data(), pairs(), 1, odd + W, W, sums + degrees_ * W, W);
  }

  void end(const T* work, T* x) const {
    for (int64_t s = 0; ring_ && s < orders(); ++s) {
      const int64_t k = terms(s);
      product_of<T>(k, groups(), polar(s), 1, k, work + s * W, orders() * W, x + start(s) * W, W);
    }
  }

 private:
  int64_t d_, degrees_, points_, ring_;
  std::vector<T> polar_, even_, odd_, even_back_, odd_back_;  // without rings the table itself is even_
  std::vector<int64_t> polar_at_, start_;

 public:
  std::vector<int64_t> place;  // of a component among the rows of a block

 private:
  int64_t orders() const { return 2 * degrees_ - 1; }
  int64_t pairs() const { return (ring_ - 1) / 2; }  // of opposite azimuths, rows 1..pairs of a group
  int64_t order(int64_t s) const { return s < degrees_ ? s : s - degrees_ + 1; }  // |m|
  int64_t terms(int64_t s) const { return degrees_ - order(s); }                   // degrees |m|..L
  int64_t start(int64_t s) const { return start_[s]; }
  const T* polar(int64_t s) const { return polar_.data() + polar_at_[order(s)]; }

  void split(const double* table) {
    for (int64_t s = 0, row = 0; s < orders(); row += terms(s), ++s) {
      start_.push_back(row);
      const int64_t m = order(s);
      for (int64_t l = m; l < degrees_; ++l) place[l * l + l + (s < degrees_ ? m : -m)] = row + l - m;
      if (s >= degrees_) continue;
      polar_at_.push_back(polar_.size());
      for (int64_t r = 0; r < groups(); ++r)  // at azimuth 0 the cosines are 1
        for (int64_t l = m; l < degrees_; ++l) polar_.push_back(static_cast<T>(table[r * ring_ * d_ + l * l + l + m]));
    }
    around();
  }

  void around() {
    const int64_t n = height(), sines = degrees_ - 1;
    even_.resize(n * degrees_), even_back_.resize(n * degrees_);
    odd_.resize(pairs() * sines), odd_back_.resize(pairs() * sines);
    for (int64_t j = 0; j < n; ++j)
      for (int64_t m = 0; m < degrees_; ++m) {
        const double phi = 2 * M_PI * (m * j % ring_) / ring_;
        even_[j * degrees_ + m] = even_back_[m * n + j] = static_cast<T>(std::cos(phi));
        if (m == 0 || j == 0 || j > pairs()) continue;
        odd_[(j - 1) * sines + m - 1] = odd_back_[(m - 1) * pairs() + j - 1] = static_cast<T>(std::sin(phi));
      }
  }
};

}  // namespace ace::sphere_activation
