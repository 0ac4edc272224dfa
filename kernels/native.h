// Shared by all cpu.cpp files: the parallel loop, vectors, the matrix tile, large products.
#pragma once

#include "tensors.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ace {

// New memory, asked to lie in huge pages where it is large: the first write to each small page costs more than the
// page's other 1023 floats.
inline void use_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(data), last = first + bytes;
  const uintptr_t begin = (first + page - 1) / page * page, end = last / page * page;
  if (first && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline const Tensor& in_huge_pages(const Tensor& x) {
  use_huge_pages(x.mutable_data_ptr(), x.numel() * x.element_size());
  return x;
}

// f(i) for i in 0..n-1 on torch's own threads. What is computed must not depend on which thread runs i.
template <class F>
void parallel(int64_t n, int64_t grain, F&& f) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

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
// The first `count` lanes, for the ends of rows: nothing beyond is touched, and lanes beyond are read as zero.
template <class T>
inline Vec<T> load_first(const T* p, int64_t count) {
  if (count >= lanes<T>) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps((1u << count) - 1, p));
  else return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_pd((1u << count) - 1, p));
#else
  Vec<T> v{};
  std::memcpy(&v, p, count * sizeof(T));
  return v;
#endif
}

template <class T>
inline void store_first(T* p, Vec<T> v, int64_t count) {
  if (count >= lanes<T>) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (1u << count) - 1, reinterpret_cast<__m512>(v));
  else _mm512_mask_storeu_pd(p, (1u << count) - 1, reinterpret_cast<__m512d>(v));
#else
  std::memcpy(p, &v, count * sizeof(T));
#endif
}

// Bit i: a[i] < b[i].
template <class T>
inline uint64_t less_bits(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
  else return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps((__m256)(a < b));
  else return _mm256_movemask_pd((__m256d)(a < b));
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return _mm_movemask_ps((__m128)(a < b));
  else return _mm_movemask_pd((__m128d)(a < b));
#else
  const auto less = a < b;
  uint64_t bits = 0;
  for (int i = 0; i < lanes<T>; ++i) bits |= static_cast<uint64_t>(less[i] & 1) << i;
  return bits;
#endif
}

template <class T> inline int64_t round_up(int64_t n) { return ceil_div(n, lanes<T>) * lanes<T>; }

// Grow-only scratch, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) {
    const int64_t bytes = ceil_div(n * sizeof(T) + 64, 64) * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    use_huge_pages(data_, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }
  void swap(Scratch& other) { std::swap(data_, other.data_); }
 private:
  T* data_;
};

// ---- transposition --------------------------------------------------------------------------------------------------

template <class T, bool High, int... I>
inline Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I), half = High ? L / 2 : 0;
  return __builtin_shufflevector(a, b, (half + I / 2 + (I % 2) * L)...);
}

// Transposes an L x L block in place: log2(L) rounds of interleaving row i with row i + L/2.
template <class T>
inline void transpose_vectors(Vec<T> (&a)[lanes<T>]) {
  constexpr int L = lanes<T>;
  using Sequence = std::make_integer_sequence<int, L>;
  Vec<T> b[L];
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
}

// The same from one place to another. from(i), to(i): where row i lies.
template <class T, class From, class To>
inline void transpose_block(From&& from, To&& to) {
  constexpr int L = lanes<T>;
  Vec<T> a[L];
  for (int i = 0; i < L; ++i) a[i] = load<T>(from(i));
  transpose_vectors<T>(a);
  for (int i = 0; i < L; ++i) store(to(i), a[i]);
}

// Lane l of the result is the sum of a[l]: the same rounds, the two halves of each added. Overwrites a.
template <class T>
inline Vec<T> sum_each(Vec<T> (&a)[lanes<T>]) {
  constexpr int L = lanes<T>;
  using Sequence = std::make_integer_sequence<int, L>;
#pragma GCC unroll 4
  for (int half = L / 2; half >= 1; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      a[i] = interleave<T, false>(a[i], a[i + half], Sequence{}) + interleave<T, true>(a[i], a[i + half], Sequence{});
  return a[0];
}

// to(c)[r] = from(r)[c] for a rows x cols matrix; from and to say where a row lies.
template <class T, class From, class To>
void transpose_rows(From&& from, int64_t rows, int64_t cols, To&& to) {
  constexpr int L = lanes<T>;
  const int64_t whole_rows = rows / L * L, whole_cols = cols / L * L;
  for (int64_t r = 0; r < whole_rows; r += L)
    for (int64_t c = 0; c < whole_cols; c += L)
      transpose_block<T>([&](int64_t i) { return from(r + i) + c; }, [&](int64_t i) { return to(c + i) + r; });
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; ++c) to(c)[r] = from(r)[c];
}

template <class T>
void transpose(const T* from, int64_t rows, int64_t cols, int64_t ld_from, T* to, int64_t ld_to) {
  transpose_rows<T>([=](int64_t r) { return from + r * ld_from; }, rows, cols, [=](int64_t c) { return to + c * ld_to; });
}

// ---- matrix product ------------------------------------------------------------------------------------------------
// C[m, n] (+)= sum_k A(m, k) B[k, n]. A has any strides (each element is broadcast); rows of B and C are contiguous and
// may be read and written up to n rounded up to whole vectors. What is in C is added last: a sum taken in several calls
// is one of partial sums.

// C = A B, plus what lies at `from` where that is not null.
template <class T, int M, int V>
inline void tile(int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c, int64_t ldc,
                 const T* from, int64_t ldf) {
  Vec<T> acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = Vec<T>{};
  const auto sum = [&](auto step) __attribute__((always_inline)) {  // compiled for a step of one and for any
    for (int64_t p = 0; p < k; ++p) {
      Vec<T> row[V];
      for (int v = 0; v < V; ++v) row[v] = load(b + p * ldb + v * lanes<T>);
      for (int m = 0; m < M; ++m) {
        const T x = a[m * am + p * step];
        for (int v = 0; v < V; ++v) acc[m][v] += x * row[v];
      }
    }
  };
  if (ak == 1) sum(std::integral_constant<int64_t, 1>{});
  else sum(ak);
  if (from)
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] += load(from + m * ldf + v * lanes<T>);
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * ldc + v * lanes<T>, acc[m][v]);
}

template <class T, int V, int M = kTileRows>
inline void tile_rows(int64_t rows, int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c,
                      int64_t ldc, const T* from, int64_t ldf) {
  if constexpr (M > 1) {
    if (rows < M) return tile_rows<T, V, M - 1>(rows, k, a, am, ak, b, ldb, c, ldc, from, ldf);
  }
  tile<T, M, V>(k, a, am, ak, b, ldb, c, ldc, from, ldf);
}

template <class T>
inline void tile_of(int64_t rows, int64_t vectors, int64_t k, const T* a, int64_t am, int64_t ak, const T* b,
                    int64_t ldb, T* c, int64_t ldc, const T* from, int64_t ldf) {
  if (vectors == 3) tile_rows<T, std::min(3, kTileVectors)>(rows, k, a, am, ak, b, ldb, c, ldc, from, ldf);
  else if (vectors == 2) tile_rows<T, 2>(rows, k, a, am, ak, b, ldb, c, ldc, from, ldf);
  else tile_rows<T, 1>(rows, k, a, am, ak, b, ldb, c, ldc, from, ldf);
}

template <class T>
void matmul(int64_t m, int64_t n, int64_t k, const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, T* c,
            int64_t ldc, bool add) {
  constexpr int L = lanes<T>;
  const int64_t vectors = ceil_div(n, L);
  for (int64_t j = 0; j < vectors; j += kTileVectors)
    for (int64_t i = 0; i < m; i += kTileRows) {
      T* to = c + i * ldc + j * L;
      tile_of<T>(std::min<int64_t>(kTileRows, m - i), std::min<int64_t>(kTileVectors, vectors - j), k, a + i * am, am,
                 ak, b + j * L, ldb, to, ldc, add ? to : nullptr, ldc);
    }
}

// ---- large matrix products ------------------------------------------------------------------------------------------
// The same tile on torch's threads: B lies in panels as wide as a tile, so that it streams, and A either as it is or in
// panels as high as a tile (for A transposed, whose rows are far apart).

namespace gemm {

template <class T> constexpr int64_t kPanel = kTileVectors * lanes<T>;
template <class T> inline int64_t panels_size(int64_t k, int64_t n) { return k * ceil_div(n, kPanel<T>) * kPanel<T>; }

// The size of equal chunks of k, at most `most`.
inline int64_t chunk(int64_t k, int64_t most) {
  return k > most ? ceil_div(k, ceil_div(k, most)) : std::max<int64_t>(k, 1);
}

// to[j / W][p][j % W] = from[p, j] for a k x n matrix, zeros up to a multiple of W; a panel of `to` has `depth` rows.
template <class T, int64_t W>
void pack_panels(int64_t k, int64_t n, const T* from, int64_t ld, T* to, int64_t depth) {
  constexpr int64_t step = 8;  // rows at a time: each panel is written in bursts
  const int64_t whole = n / W * W;
  for (int64_t first = 0; first < k; first += step) {
    const int64_t last = std::min(k, first + step);
    for (int64_t j = 0; j < whole; j += W)
      for (int64_t p = first; p < last; ++p) std::memcpy(to + j * depth + p * W, from + p * ld + j, W * sizeof(T));
    for (int64_t p = first; p < last && whole < n; ++p) {
      T* row = to + whole * depth + p * W;
      std::fill(std::copy_n(from + p * ld + whole, n - whole, row), row + W, T(0));
    }
  }
}

template <class T, int64_t W>
void pack_panels_parallel(int64_t k, int64_t n, const T* from, int64_t ld, T* to) {
  constexpr int64_t step = 16;
  parallel(ceil_div(k, step), ceil_div(50000, step * n + 1), [&](int64_t i) {
    const int64_t p = i * step;
    pack_panels<T, W>(std::min(step, k - p), n, from + p * ld, ld, to + p * W, k);
  });
}

// A(i, k) = data[(i / kTileRows) tile + (i % kTileRows) row + k depth]
template <class T>
struct Left {
  const T* data;
  int64_t tile, row, depth;
  static Left rows(const T* a, int64_t ld) { return {a, kTileRows * ld, ld, 1}; }
  static Left panels(const T* a, int64_t k) { return {a, kTileRows * k, 1, kTileRows}; }
};

// Rows that a tile starts from, in whole vectors, `stride` apart: 0 repeats one row; null for zeros.
template <class T>
struct From {
  const T* data;
  int64_t stride;
};

// C[m, n] (+)= A B with B in panels. Without `add`, start(i, rows, j, scratch) says what a tile of C starts from, and
// may write it to scratch. Only n columns of C are touched, and the order of the sums depends on k alone.
template <class T, class Start>
void multiply(int64_t m, int64_t n, int64_t k, Left<T> a, const T* b, T* c, int64_t ldc, bool add, Start&& start) {
  constexpr int64_t W = kPanel<T>, L = lanes<T>, most = 160;  // a block of rows of A stays in L2
  const int64_t panels = ceil_div(n, W), depth = chunk(k, 1024);
  const int64_t height = kTileRows * std::clamp<int64_t>(m * panels / (64 * kTileRows), 1, most / kTileRows);
  parallel(ceil_div(m, height) * panels, ceil_div(200000, height * W * k + 1), [&](int64_t item) {
    const int64_t first = item / panels * height, last = std::min(m, first + height), j = item % panels * W;
    const int64_t columns = std::min(W, n - j), vectors = ceil_div(columns, L);
    alignas(64) T base[kTileRows * W], whole[kTileRows * W];
    for (int64_t p = 0; p == 0 || p < k; p += depth)
      for (int64_t i = first; i < last; i += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, last - i), deep = std::min(depth, k - p);
        const T *left = a.data + i / kTileRows * a.tile + p * a.depth, *right = b + j * k + p * W;
        T* to = c + i * ldc + j;
        const From<T> from = add || p > 0 ? From<T>{to, ldc} : start(i, rows, j, static_cast<T*>(base));
        if (columns == vectors * L) {
          tile_of<T>(rows, vectors, deep, left, a.row, a.depth, right, W, to, ldc, from.data, from.stride);
          continue;
        }
        tile_of<T>(rows, vectors, deep, left, a.row, a.depth, right, W, whole, W, nullptr, 0);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t v = 0; v < columns; v += L) {
            Vec<T> y = load(whole + r * W + v);
            if (from.data) y += load_first(from.data + r * from.stride + v, columns - v);
            store_first(to + r * ldc + v, y, columns - v);
          }
      }
  });
}

template <class T> inline From<T> from_zero(int64_t, int64_t, int64_t, T*) { return {nullptr, 0}; }

// C[m, n] = sum_k A[k, m] B[k, n], a sum over rows, in chunks that fit the scratch; with `ones` as if B had one more
// column, of ones. Rows of C are written up to n (+ 1) rounded up to whole vectors.
template <class T>
void multiply_transposed(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                         int64_t ldc, bool ones = false) {
  constexpr int64_t W = kPanel<T>, values = 1 << 20, deepest = 1024;
  const int64_t width = n + ones, high = ceil_div(m, kTileRows) * kTileRows, wide = ceil_div(width, W) * W;
  const int64_t most = std::clamp<int64_t>(values / std::max<int64_t>(1, high + wide), 128, deepest);
  const int64_t depth = chunk(k, most);
  const Scratch<T> left(high * depth), right(wide * depth);
  for (int64_t p = 0; p == 0 || p < k; p += depth) {
    const int64_t deep = std::min(depth, k - p);
    pack_panels_parallel<T, kTileRows>(deep, m, a + p * lda, lda, left);
    pack_panels_parallel<T, W>(deep, n, b + p * ldb, ldb, right);
    for (int64_t r = 0; ones && r < deep; ++r) {
      T* last = right + n / W * W * deep + r * W;
      std::fill(last + n % W, last + W, T(0));
      last[n % W] = T(1);
    }
    multiply<T>(m, round_up<T>(width), deep, Left<T>::panels(left, deep), right, c, ldc, p > 0, from_zero<T>);
  }
}

}  // namespace gemm

}  // namespace ace
