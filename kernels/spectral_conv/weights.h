// The weights of a spectral convolution as the real matrices that its terms multiply with, and their gradients back.
#pragma once

#include "native.h"

namespace ace::spectral {

// sums[to] += rows[source] (re Re W[mode] + im Im W[mode]); table.py
struct Term {
  int64_t source, to, mode, re, im;
};

struct Sizes {
  int64_t times, nodes, inner, outer, modes;  // x [times, nodes, inner], weight [inner, outer, modes, 2]
};

template <class T> inline int64_t panels(int64_t k, int64_t n) { return gemm::panels_size<T>(k, n); }

// The matrix of each term, [inner, outer] in panels of columns, or its transpose [outer, inner] in panels of columns.
template <class T>
void pack_weights(const T* weight, const Sizes& s, const std::vector<Term>& terms, bool transposed, T* to) {
  constexpr int64_t W = gemm::kPanel<T>, L = lanes<T>;
  const int64_t ld = ceil_div(s.outer, W) * W, width = 2 * s.modes, count = terms.size();
  const int64_t size = transposed ? panels<T>(s.outer, s.inner) : panels<T>(s.inner, s.outer);
  parallel(ceil_div(s.inner, L), ceil_div(20000, L * s.outer * width + 1), [&](int64_t block) {
    const int64_t first = block * L, rows = std::min(L, s.inner - first);
    const Scratch<T> planes(width * ld), matrix(transposed ? count * rows * ld : 0);  // planes [mode, part][o]
    std::fill_n(static_cast<T*>(planes), width * ld, T(0));
    for (int64_t r = 0; r < rows; ++r) {
      transpose<T>(weight + (first + r) * s.outer * width, s.outer, width, width, planes, ld);
      for (int64_t k = 0; k < count; ++k) {
        const T *re = planes + 2 * terms[k].mode * ld, *im = re + ld;
        const T by_re = terms[k].re, by_im = terms[k].im;
        for (int64_t j = 0; j < ld; j += W) {
          T* target = transposed ? matrix + (k * rows + r) * ld + j : to + k * size + j * s.inner + (first + r) * W;
          for (int64_t c = 0; c < W; ++c) target[c] = by_re * re[j + c] + by_im * im[j + c];
        }
      }
    }
    for (int64_t k = 0; transposed && k < count; ++k) {
      T* target = to + k * size + first / W * W * s.outer + first % W;
      for (int64_t o = 0; rows < L && o < s.outer; ++o) std::fill(target + o * W + rows, target + o * W + L, T(0));
      transpose<T>(matrix + k * rows * ld, rows, s.outer, ld, target, W);
    }
  });
}

// Gradient of the weight [inner, outer, modes, 2] from those of the terms' matrices, each [inner][ld].
template <class T>
void unpack_gradients(const T* matrices, int64_t ld, const Sizes& s, const std::vector<Term>& terms, T* weight) {
  const int64_t width = 2 * s.modes, rows = 8;
  parallel(ceil_div(s.inner, rows), ceil_div(20000, rows * s.outer * width + 1), [&](int64_t block) {
    const Scratch<T> planes(width * ld);
    for (int64_t i = block * rows; i < std::min(s.inner, (block + 1) * rows); ++i) {
      std::fill_n(static_cast<T*>(planes), width * ld, T(0));
      for (size_t k = 0; k < terms.size(); ++k) {
        const T* from = matrices + (k * s.inner + i) * ld;
        T *re = planes + 2 * terms[k].mode * ld, *im = re + ld;
        const T by_re = terms[k].re, by_im = terms[k].im;
        for (int64_t o = 0; o < s.outer; ++o) re[o] += by_re * from[o], im[o] += by_im * from[o];
      }
      transpose<T>(planes, width, s.outer, ld, weight + i * s.outer * width, width);
    }
  });
}

}  // namespace ace::spectral
