// Shared by all cpu.cpp files: tensors with pointers, the parallel loop, vectors, the matrix tile, elementary functions.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace ace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- tensors -------------------------------------------------------------------------------------------------------

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// A matrix whose rows lie at stride(0), each contiguous: slices of columns come without a copy.
inline Tensor dense_rows(const Tensor& x) { return x.stride(1) == 1 ? x : dense(x); }

template <class T>
const T* in(const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); }

template <class T>
T* out(const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); }

inline Tensor empty(const Tensor& like, std::vector<int64_t> size) { return torch::stable::new_empty(like, size); }

// Calls f.template operator()<float or double>(); the Python side has already refused other dtypes.
template <class F>
void dispatch(const Tensor& x, F&& f) {
  if (x.scalar_type() == ScalarType::Float) return f.template operator()<float>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "ace_fast: expected float32 or float64");
  f.template operator()<double>();
}

// f(i) for i in 0..n-1 on torch's own threads. What is computed must not depend on which thread runs i.
template <class F>
void parallel(int64_t n, int64_t grain, F&& f) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- vectors -------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8, kTileVectors = 3;  // 24 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6, kTileVectors = 2;  // 12 of 16 registers accumulate
#else
constexpr int kVectorBytes = 16, kTileRows = 4, kTileVectors = 2;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <class T> using Vec = typename VectorOf<T>::type;
template <class T> constexpr int lanes = kVectorBytes / sizeof(T);

template <class T> inline Vec<T> load(const T* p) { return *reinterpret_cast<const typename VectorOf<T>::loose*>(p); }
template <class T> inline void store(T* p, Vec<T> v) { *reinterpret_cast<typename VectorOf<T>::loose*>(p) = v; }
template <class T> inline int64_t round_up(int64_t n) { return ceil_div(n, lanes<T>) * lanes<T>; }

// Grow-only scratch, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(static_cast<T*>(std::aligned_alloc(64, ceil_div(n * sizeof(T) + 64, 64) * 64))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }
 private:
  T* data_;
};

// ---- transposition --------------------------------------------------------------------------------------------------

template <class T, bool High, int... I>
inline Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I), half = High ? L / 2 : 0;
  return __builtin_shufflevector(a, b, (half + I / 2 + (I % 2) * L)...);
}

// Transposes an L x L block: log2(L) rounds of interleaving row i with row i + L/2.
template <class T>
inline void transpose_block(const T* from, int64_t ld_from, T* to, int64_t ld_to) {
  constexpr int L = lanes<T>;
  using Sequence = std::make_integer_sequence<int, L>;
  Vec<T> a[L], b[L];
  for (int i = 0; i < L; ++i) a[i] = load(from + i * ld_from);
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = interleave<T, false>(a[i], a[i + L / 2], Sequence{});
      b[2 * i + 1] = interleave<T, true>(a[i], a[i + L / 2], Sequence{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
  for (int i = 0; i < L; ++i) store(to + i * ld_to, a[i]);
}

// to[c, r] = from[r, c] for a rows x cols matrix.
template <class T>
void transpose(const T* from, int64_t rows, int64_t cols, int64_t ld_from, T* to, int64_t ld_to) {
  constexpr int L = lanes<T>;
  const int64_t whole_rows = rows / L * L, whole_cols = cols / L * L;
  for (int64_t r = 0; r < whole_rows; r += L)
    for (int64_t c = 0; c < whole_cols; c += L)
      transpose_block(from + r * ld_from + c, ld_from, to + c * ld_to + r, ld_to);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; ++c) to[c * ld_to + r] = from[r * ld_from + c];
}

// ---- matrix product ------------------------------------------------------------------------------------------------
// C[m, n] (+)= sum_k A(m, k) B[k, n]. A has any strides (each element is broadcast); rows of B and C are contiguous and
// may be read and written up to n rounded up to whole vectors.

template <class T, int M, int V>
inline void tile(int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c, int64_t ldc, bool add) {
  Vec<T> acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = add ? load(c + m * ldc + v * lanes<T>) : Vec<T>{};
  for (int64_t p = 0; p < k; ++p) {
    Vec<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + p * ldb + v * lanes<T>);
    for (int m = 0; m < M; ++m) {
      const T x = a[m * am + p * ak];
      for (int v = 0; v < V; ++v) acc[m][v] += x * row[v];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * ldc + v * lanes<T>, acc[m][v]);
}

template <class T, int V, int M = kTileRows>
inline void tile_rows(int64_t rows, int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c,
                      int64_t ldc, bool add) {
  if constexpr (M > 1) {
    if (rows < M) return tile_rows<T, V, M - 1>(rows, k, a, am, ak, b, ldb, c, ldc, add);
  }
  tile<T, M, V>(k, a, am, ak, b, ldb, c, ldc, add);
}

template <class T>
void matmul(int64_t m, int64_t n, int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c,
            int64_t ldc, bool add) {
  constexpr int L = lanes<T>;
  const int64_t vectors = ceil_div(n, L);
  for (int64_t j = 0; j < vectors; j += kTileVectors) {
    const int width = static_cast<int>(std::min<int64_t>(kTileVectors, vectors - j));
    for (int64_t i = 0; i < m; i += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, m - i);
      const T* ai = a + i * am;
      const T* bj = b + j * L;
      T* cij = c + i * ldc + j * L;
      if (width == 3) tile_rows<T, std::min(3, kTileVectors)>(rows, k, ai, am, ak, bj, ldb, cij, ldc, add);
      else if (width == 2) tile_rows<T, 2>(rows, k, ai, am, ak, bj, ldb, cij, ldc, add);
      else tile_rows<T, 1>(rows, k, ai, am, ak, bj, ldb, cij, ldc, add);
    }
  }
}

}  // namespace ace
