// Coefficients of fields on the sphere to values at points and back, many columns (a row and channel each) at a time.
// The matrices and their three forms are those of sphere_product/tables.py; a column is a lane, a block of n columns
// has the stride n, and n is a multiple of a vector's lanes.
#pragma once

#include "native.h"
#include "sphere_product/slots.h"

#include <algorithm>

namespace ace::sphere {

struct Points {
  int64_t form, rings, ring_size, parts;
  int64_t size() const { return rings * ring_size; }
  int64_t images() const { return form == kMirrored || form == kSeparable ? kMirrors : 1; }
  int64_t total() const { return size() * images(); }  // of one part
};

// Values by parity to values at the eight images of a point, and, since it is symmetric, back.
template <class T>
[[gnu::always_inline]] inline void mirror(Vec<T> (&v)[kMirrors]) {
#pragma GCC unroll 3
  for (int half = 1; half < kMirrors; half *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < kMirrors; ++i)
      if (!(i & half)) {
        const Vec<T> a = v[i], b = v[i + half];
        v[i] = a + b, v[i + half] = a - b;
      }
}

// Values at points: of parity c at point s, columns from here on. Dense points have no parity: row s.
inline int64_t at_point(const Points& points, int64_t n, int64_t s, int64_t c) {
  return points.form == kDense ? s * n : (((c & 3) * points.size() + s) * 2 + (c >> 2)) * n;
}

// One part of a slot's matrix M. Blocks of coefficients [d][n] have component i in row place[i]; values at the points
// are as `at_point` says: by parity, so that `mirror` has yet to be applied where they are mirrored.
template <class T>
class Transform {
 public:
  std::vector<int64_t> place;

  Transform(const Points& points, const Slot& slot, int64_t part, const double* table)
      : place(slot.dim()), points_(points), dim_(slot.dim()), twist_(slot.twist >> 3 * part & 7) {
    const double* from = table + slot.offset;
    if (points.form == kSeparable) {
      const int64_t legendre = points.rings * dim_, fourier = points.ring_size * (2 * slot.degree + 1);
      separate(slot.degree, from + part * legendre, from + slot.parts * legendre + part * fourier);
    } else if (points.form == kMirrored) {
      group(slot.degree, from + part * points.size() * dim_);
    } else {
      for (int64_t i = 0; i < dim_; ++i) place[i] = i;
      from += part * points.size() * dim_;
      matrix_.assign(from, from + points.size() * dim_);
    }
  }

  int64_t work() const { return points_.form == kSeparable ? orders_.size() * points_.rings * 2 : 0; }  // a column
  int64_t products() const {  // multiply-adds a column
    if (points_.form != kSeparable) return matrix_.size();
    return matrix_.size() + 2 * points_.rings * around_.size();
  }

  void to_points(const T* x, int64_t n, T* g, T* work) const {
    const int64_t size = points_.size();
    if (points_.form == kDense) return matmul<T>(size, n, dim_, matrix_.data(), dim_, 1, x, n, g, n, false);
    if (points_.form == kMirrored) {
      for (int64_t c = 0; c < kMirrors; ++c) {
        const int64_t first = starts_[c], count = starts_[c + 1] - first;
        matmul<T>(size, n, count, matrix_.data() + size * first, count, 1, x + first * n, n,
                  g + at_point(points_, n, 0, c ^ twist_), 2 * n, false);
      }
      return;
    }
    const int64_t rings = points_.rings, wide = rings * 2 * n;
    for (size_t o = 0; o < orders_.size(); ++o)
      for (int64_t odd = 0; odd < 2; ++odd) {
        const Half& half = orders_[o].half[odd];
        matmul<T>(rings, n, half.count, matrix_.data() + rings * half.first, half.count, 1, x + half.first * n, n,
                  work + o * wide + (odd ^ twist_ >> 2) * n, 2 * n, false);
      }
    for (int64_t q = 0; q < 4; ++q) {
      const int64_t first = starts_[q], count = starts_[q + 1] - first;
      matmul<T>(points_.ring_size, wide, count, around_.data() + points_.ring_size * first, count, 1,
                work + first * wide, wide, g + at_point(points_, n, 0, q ^ (twist_ & 3)), wide, false);
    }
  }

  // x (+)= M^T g.
  void from_points(const T* g, int64_t n, T* x, T* work, bool add) const {
    const int64_t size = points_.size();
    if (points_.form == kDense) return matmul<T>(dim_, n, size, matrix_.data(), 1, dim_, g, n, x, n, add);
    if (points_.form == kMirrored) {
      for (int64_t c = 0; c < kMirrors; ++c) {
        const int64_t first = starts_[c], count = starts_[c + 1] - first;
        matmul<T>(count, n, size, matrix_.data() + size * first, 1, count, g + at_point(points_, n, 0, c ^ twist_),
                  2 * n, x + first * n, n, add);
      }
      return;
    }
    const int64_t rings = points_.rings, wide = rings * 2 * n;
    for (int64_t q = 0; q < 4; ++q) {
      const int64_t first = starts_[q], count = starts_[q + 1] - first;
      matmul<T>(count, wide, points_.ring_size, around_.data() + points_.ring_size * first, 1, count,
                g + at_point(points_, n, 0, q ^ (twist_ & 3)), wide, work + first * wide, wide, false);
    }
    for (size_t o = 0; o < orders_.size(); ++o)
      for (int64_t odd = 0; odd < 2; ++odd) {
        const Half& half = orders_[o].half[odd];
        matmul<T>(half.count, n, rings, matrix_.data() + rings * half.first, 1, half.count,
                  work + o * wide + (odd ^ twist_ >> 2) * n, 2 * n, x + half.first * n, n, add);
      }
  }

 private:
  struct Half { int64_t first, count; };  // the components of an order m that are even or odd in y
  struct Order { Half half[2]; };

  Points points_;
  int64_t dim_, twist_;
  std::vector<T> matrix_, around_;
  std::vector<int64_t> starts_;  // of the components of each parity; of the orders of each parity in phi
  std::vector<Order> orders_;

  // Components of the same parity lie together, each group with its matrix [points][components].
  void group(int64_t degree, const double* from) {
    starts_.assign(kMirrors + 1, 0);
    matrix_.resize(points_.size() * dim_);
    int64_t next = 0;
    for (int64_t c = 0; c < kMirrors; ++c) {
      starts_[c] = next;
      for (int64_t l = 0; l <= degree; ++l)
        for (int64_t m = -l; m <= l; ++m)
          if (parity(l, m) == c) place[l * (l + 1) + m] = next++;
      starts_[c + 1] = next;
    }
    for (int64_t i = 0, l = 0; l <= degree; ++l)
      for (int64_t m = -l; m <= l; ++m, ++i) {
        const int64_t c = parity(l, m), first = starts_[c], count = starts_[c + 1] - first;
        for (int64_t s = 0; s < points_.size(); ++s)
          matrix_[points_.size() * first + s * count + place[i] - first] = static_cast<T>(from[s * dim_ + i]);
      }
  }

  // Orders of the same parity in phi lie together, each with its components even and then odd in y.
  void separate(int64_t degree, const double* legendre, const double* fourier) {
    const int64_t rings = points_.rings, width = 2 * degree + 1;
    starts_.assign(5, 0);
    matrix_.resize(rings * dim_);
    int64_t next = 0;
    for (int64_t q = 0; q < 4; ++q) {
      starts_[q] = orders_.size();
      for (int64_t m = -degree; m <= degree; ++m) {
        if ((parity(0, m) & 3) != q) continue;
        Order order;
        for (int64_t odd = 0; odd < 2; ++odd) {
          const int64_t lowest = std::abs(m) + odd, count = lowest > degree ? 0 : (degree - lowest) / 2 + 1;
          order.half[odd] = {next, count};
          for (int64_t k = 0; k < count; ++k) {
            const int64_t l = lowest + 2 * k, i = l * (l + 1) + m;
            place[i] = next + k;
            for (int64_t t = 0; t < rings; ++t)
              matrix_[rings * next + t * count + k] = static_cast<T>(legendre[t * dim_ + i]);
          }
          next += count;
        }
        orders_.push_back(order);
      }
      starts_[q + 1] = orders_.size();
      for (int64_t f = 0; f < points_.ring_size; ++f)
        for (int64_t m = -degree; m <= degree; ++m)
          if ((parity(0, m) & 3) == q) around_.push_back(static_cast<T>(fourier[f * width + m + degree]));
    }
  }
};

}  // namespace ace::sphere
