// What the CUDA kernels of tensor products share: paths as kernel arguments, elements of both layouts, and the coupling
// matrices M[a, b] = sum_j C[i, j, k] x2[j], formed once for a row, a path and a channel of x2 from the table of
// coefficients, so that the work of a channel is a dense contraction of the components (a, b) for any degrees.
#pragma once

#include "native.cuh"

namespace ace::product {

enum Mode : int { kUVW, kUVU, kUVV, kUUW, kUUU, kUVUV, kUVUpairs, kPairsW };  // table.py, MODES

// table.py, Path
struct Path {
  int o1, U, d1, o2, V, d2, o3, W, d3, weight, start, stop, mode;
};

constexpr int kPaths = 72;  // in one launch; more take several, which add to each other

struct Paths {
  int count;
  Path path[kPaths];
};

// The non-zero coefficients, index [nnz, 3] (i, j, k), sorted, and value [nnz], float64 whatever the tensors are.
struct Coefficients {
  const int64_t* index;
  const double* value;
};

// Paths in which something is multiplied, from the operator's integers.
inline std::vector<Path> read_paths(const std::vector<int64_t>& flat) {
  std::vector<Path> paths;
  constexpr size_t n = sizeof(Path) / sizeof(int);
  for (size_t first = 0; first + n <= flat.size(); first += n) {
    int values[n];
    for (size_t i = 0; i < n; ++i) {
      STD_TORCH_CHECK(flat[first + i] <= INT32_MAX, "tensor_product: paths must be 32-bit, got ", flat[first + i]);
      values[i] = static_cast<int>(flat[first + i]);
    }
    Path p;
    std::memcpy(&p, values, sizeof(p));
    if (p.U && p.V && p.W && p.stop > p.start) paths.push_back(p);
  }
  return paths;
}

// Column of component i of channel u in a slice.
__host__ __device__ __forceinline__ int column(int offset, int mul, int d, bool ir_mul, int u, int i) {
  return offset + (ir_mul ? i * mul + u : u * d + i);
}

// Which operand's components are a, the rows of M, and b, its columns: in1 and out, or out and in1 for the gradient of
// in1, which is the same product with the gradient in the place of in1.
enum class Role { forward, gradient };

template <Role role>
__device__ __forceinline__ int rows_of(const Path& p) { return role == Role::forward ? p.d1 : p.d3; }
template <Role role>
__device__ __forceinline__ int columns_of(const Path& p) { return role == Role::forward ? p.d3 : p.d1; }

__host__ __device__ __forceinline__ int dense_size(const Path& p) { return p.d1 * p.d2 * p.d3; }

// The number of paths from `first` on whose dense coefficients fit into `space` values; at least one.
__device__ __forceinline__ int paths_that_fit(const Path* path, int first, int end, int space) {
  int size = dense_size(path[first]), next = first + 1;
  while (next < end && size + dense_size(path[next]) <= space) size += dense_size(path[next++]);
  return next - first;
}

// Dense coefficients [a, b, j] of paths first..end-1 one after the other, by all `threads` of a block; ends with a
// barrier. The caller has a barrier between the last use of `dense` and this.
template <class T, Role role>
__device__ void load_dense(T* dense, const Path* path, int first, int end, Coefficients c, int thread, int threads) {
  int size = 0;
  for (int p = first; p < end; ++p) size += dense_size(path[p]);
#pragma unroll 1
  for (int n = thread; n < size; n += threads) dense[n] = T(0);
  __syncthreads();
  for (int p = first; p < end; ++p) {
    const int d2 = path[p].d2, columns = columns_of<role>(path[p]);
#pragma unroll 1
    for (int n = path[p].start + thread; n < path[p].stop; n += threads) {
      const int64_t* ijk = c.index + 3 * int64_t(n);
      const int i = static_cast<int>(ijk[0]), j = static_cast<int>(ijk[1]), k = static_cast<int>(ijk[2]);
      const int a = role == Role::forward ? i : k, b = role == Role::forward ? k : i;
      dense[(a * columns + b) * d2 + j] = static_cast<T>(c.value[n]);
    }
    dense += dense_size(path[p]);
  }
  __syncthreads();
}

// One element of M: the sum over j of the coefficients at `cell` = a * columns + b with x2[j * stride].
template <class T>
__device__ __forceinline__ T couple(const T* dense, int cell, int d2, const T* x2, int stride) {
  T sum = T(0);
#pragma unroll 4
  for (int j = 0; j < d2; ++j) sum += dense[cell * d2 + j] * x2[j * stride];
  return sum;
}

}  // namespace ace::product
