// Blocks of rows as vector lanes: how the columns of a matrix become [component][row] and back, in either layout.
#pragma once

#include "native.h"

namespace ace::product {

constexpr int64_t kRows = 48;  // three AVX-512 vectors of floats, a multiple of every vector length

// Calls f(z) for the vectors of one row of a block.
template <class T, class F>
inline void lanes_of_row(F&& f) {
  for (int64_t z = 0; z < kRows; z += lanes<T>) f(z);
}

// `mul` channels of `d` components from column o on; in ir_mul the channels of a component lie together.
struct Slice { int64_t o, mul, d; };

// The slices of a matrix of `dim` columns: those given, which are equal or apart, and single columns between them; in
// mul_ir, which is the order inside, one slice for all.
inline std::vector<Slice> fill_slices(std::vector<Slice> given, int64_t dim, bool ir_mul) {
  if (!ir_mul) return {{0, dim, 1}};
  std::sort(given.begin(), given.end(), [](const Slice& a, const Slice& b) { return a.o < b.o; });
  std::vector<Slice> slices;
  int64_t end = 0;
  for (const Slice& s : given) {
    if (s.o < end) continue;
    if (s.o > end) slices.push_back({end, s.o - end, 1});
    slices.push_back(s);
    end = s.o + s.mul * s.d;
  }
  if (end < dim) slices.push_back({end, dim - end, 1});
  return slices;
}

// The rows of a block in a matrix of which they are any rows: where each lies, and how many there are.
template <class P>
struct Rows {
  P at[kRows];
  int64_t count;
};

// The rows z .. z + count of a matrix of `dim` columns.
template <class P>
Rows<P> rows_from(P matrix, int64_t z, int64_t count, int64_t dim) {
  Rows<P> rows{{}, count};
  for (int64_t i = 0; i < count; ++i) rows.at[i] = matrix + (z + i) * dim;
  return rows;
}

// Rows into [component][kRows], the components in mul_ir order; missing rows are zero.
template <class T>
void load_rows(const Rows<const T*>& from, const std::vector<Slice>& slices, T* to) {
  for (const Slice& s : slices)
    for (int64_t i = 0; i < s.d; ++i) {
      T* target = to + (s.o + i) * kRows;
      const int64_t first = s.o + i * s.mul, step = s.d * kRows;
      if (from.count < kRows)
        for (int64_t u = 0; u < s.mul; ++u) std::fill(target + u * step + from.count, target + u * step + kRows, T(0));
      transpose_rows<T>([&](int64_t r) { return from.at[r] + first; }, from.count, s.mul,
                        [&](int64_t u) { return target + u * step; });
    }
}

template <class T>
void store_rows(const T* from, const std::vector<Slice>& slices, const Rows<T*>& to) {
  for (const Slice& s : slices)
    for (int64_t i = 0; i < s.d; ++i) {
      const T* source = from + (s.o + i) * kRows;
      const int64_t first = s.o + i * s.mul, step = s.d * kRows;
      transpose_rows<T>([&](int64_t u) { return source + u * step; }, s.mul, to.count,
                        [&](int64_t r) { return to.at[r] + first; });
    }
}

// Blocks are handed out in chunks whose number depends on the size alone.
struct Chunks {
  int64_t rows, blocks, count;
  explicit Chunks(int64_t rows) : rows(rows), blocks(ceil_div(rows, kRows)),
                                  count(std::min(blocks, std::max<int64_t>(8, blocks / 16))) {}

  // f(chunk, visit) on torch's threads; visit(g) calls g(first row, rows) for each block of the chunk.
  template <class F>
  void run(F&& f) const {
    parallel(count, 1, [&](int64_t chunk) {
      f(chunk, [&](auto&& g) {
        for (int64_t b = chunk * blocks / count; b < (chunk + 1) * blocks / count; ++b)
          g(b * kRows, std::min(kRows, rows - b * kRows));
      });
    });
  }
};

// Asks for rows before they are needed: a transposition reads too many at once to be foreseen.
template <class T>
void prefetch_rows(const T* matrix, int64_t dim, int64_t first, int64_t last) {
  const T* end = matrix + last * dim;
  for (const T* p = matrix + first * dim; p < end; p += 64 / sizeof(T)) __builtin_prefetch(p);
}

}  // namespace ace::product
