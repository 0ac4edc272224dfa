// The kernels around the two large ones: which coefficients the compiler knows, what begins as zero, ordered sums.
#pragma once

#include "stage.cuh"

namespace ace::conv {

constexpr int kBlock = 256;  // threads of these kernels

// ---- coefficients -----------------------------------------------------------------------------------------------

constexpr int kDegrees = kMaxDegree + 1;

// All coefficients known to the compiler, one dense block for each (l1, l2, l3), to be compared with a table.
struct KnownCoefficients {
  short first[kDegrees][kDegrees][kDegrees] = {}, nonzeros[kDegrees][kDegrees][kDegrees] = {};
  double value[3436] = {};

  template <int L1, int L2, int L3>
  constexpr void add(int& at) {
    if constexpr (triangle(L1, L2, L3)) {
      first[L1][L2][L3] = static_cast<short>(at);
      for (int i = 0; i <= 2 * L1; ++i)
        for (int j = 0; j <= 2 * L2; ++j)
          for (int k = 0; k <= 2 * L3; ++k) {
            const double c = kCoefficients<L1, L2, L3>.at[i][j][k];
            nonzeros[L1][L2][L3] += c != 0;
            value[at++] = c;
          }
    }
  }
  template <int... n>
  constexpr explicit KnownCoefficients(std::integer_sequence<int, n...>) {
    int at = 0;
    (add<n / (kDegrees * kDegrees), n / kDegrees % kDegrees, n % kDegrees>(at), ...);
  }
};

__device__ constexpr KnownCoefficients kKnown{std::make_integer_sequence<int, kDegrees * kDegrees * kDegrees>{}};

struct Check { int start, stop; short number; signed char l1, l2, l3, candidate; };
constexpr int kChecks = 200;
struct Checks { int count; Check check[kChecks]; };

// info[number] of each path, a warp for each: `known` where its coefficients are the compiler's times a number. Zeroes
// `size` values at `zero` besides.
template <class T>
__global__ void __launch_bounds__(kBlock) check_kernel(ACE_ARGUMENT(Checks) checks, Table table, PathInfo<T>* info,
                                                       T* zero, int64_t size) {
  const int64_t step = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < size; i += step) zero[i] = T(0);
  const int n = static_cast<int>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32, lane = lane_id();
  if (n >= checks.count) return;
  const Check c = checks.check[n];
  double scale = 0;
  bool good = c.candidate && c.stop > c.start && c.stop - c.start == kKnown.nonzeros[c.l1][c.l2][c.l3];
  if (good) {
    const int d2 = 2 * c.l2 + 1, d3 = 2 * c.l3 + 1;
    const double* const value = kKnown.value + kKnown.first[c.l1][c.l2][c.l3];
    const auto known = [&](int row) {
      const int64_t *ijk = table.index + 3 * int64_t(row), i = ijk[0], j = ijk[1], k = ijk[2];
      const bool inside = i >= 0 && i <= 2 * c.l1 && j >= 0 && j < d2 && k >= 0 && k < d3;
      return inside ? value[(i * d2 + j) * d3 + k] : 0.0;
    };
    const double first = known(c.start);
    scale = first == 0 ? 0 : table.value[c.start] / first;
    good = first != 0;
    for (int row = c.start + lane; row < c.stop; row += 32) {
      const double expected = known(row);
      good = good && expected != 0 && fabs(table.value[row] - scale * expected) <= 1e-12 * fabs(scale);
    }
  }
  good = __ballot_sync(kWarp, good) == kWarp;
  if (lane == 0) info[c.number] = {static_cast<T>(scale), c.start, c.stop, good};
}

// ---- sums -------------------------------------------------------------------------------------------------------

// Adds to out, for a node whose edges lie in several stretches, the parts of all of them but the first, in order: the
// block of the first part does it.
template <class T>
__global__ void __launch_bounds__(kBlock) sum_parts_kernel(Graph graph, const T* part, T* out, int dim, int most,
                                                           int64_t blocks) {
  const int64_t first = blockIdx.x, node = Stretch::continued(graph, first * most);
  if (node < 0 || (first > 1 && Stretch::continued(graph, (first - 1) * most) == node)) return;
  int64_t last = first + 1;
  while (last < blocks && Stretch::continued(graph, last * most) == node) ++last;
  for (int c = threadIdx.x; c < dim; c += kBlock) {
    T sum = out[node * dim + c];
    for (int64_t b = first; b < last; ++b) sum += part[b * dim + c];
    out[node * dim + c] = sum;
  }
}

// where[order[p]] = p
__global__ void __launch_bounds__(kBlock) invert_kernel(const int64_t* order, int* where, int64_t edges) {
  const int64_t p = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (p < edges && order[p] >= 0 && order[p] < edges) where[order[p]] = static_cast<int>(p);
}

// out[n] (+)= sum over the edges e of node n, in order, of row where[e] - begin (of their positions where it is null),
// where it lies in 0 .. count - 1. A thread has one column; blockIdx.y counts blocks of columns. Edges whose other end
// is outside are left out.
template <class T>
__global__ void __launch_bounds__(kBlock) sum_rows_kernel(const int64_t* order, const int64_t* ptr, const int* where,
    const int64_t* far, int64_t fars, const T* rows, T* out, int dim, int64_t edges, int64_t begin, int64_t count,
    bool add) {
  ACE_SHARED(int, found, kBlock);
  const int64_t n = blockIdx.x, last = ptr[n + 1] < edges ? ptr[n + 1] : edges;
  const int c = static_cast<int>(blockIdx.y) * kBlock + threadIdx.x;
  T sum = add && c < dim ? out[n * dim + c] : T(0);
  for (int64_t first = ptr[n] > 0 ? ptr[n] : 0; first < last; first += kBlock) {
    const int64_t p = first + threadIdx.x, e = p < last ? order[p] : -1;
    const bool inside = e >= 0 && e < edges && far[e] >= 0 && far[e] < fars;
    const int64_t row = !inside ? -1 : where ? where[e] - begin : p - begin;
    __syncthreads();
    found[threadIdx.x] = row >= 0 && row < count ? static_cast<int>(row) : -1;
    __syncthreads();
    const int some = last - first < kBlock ? static_cast<int>(last - first) : kBlock;
#pragma unroll 8
    for (int i = 0; i < some; ++i) {
      const int64_t r = found[i];
      sum += r >= 0 && c < dim ? rows[r * dim + c] : T(0);
    }
  }
  if (c < dim) out[n * dim + c] = sum;
}

// out[c] (+)= sum of part[.][c], in order
template <class T>
__global__ void __launch_bounds__(kBlock) sum_blocks_kernel(const T* part, T* out, int64_t n, int64_t blocks,
                                                            bool add) {
  const int64_t c = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (c >= n) return;
  T sum = add ? out[c] : T(0);
  for (int64_t b = 0; b < blocks; ++b) sum += part[b * n + c];
  out[c] = sum;
}

}  // namespace ace::conv
