// The tensor product and its gradients for every connection mode, degree, layout and kind of weights: one block for a
// row, one thread for a pair of channels (u, v), the coefficients read from the table. It is the complete version; what
// matters for speed has kernels of its own (dense.cuh, channels.cuh), which leave the rest to this one.
#pragma once

#include "product.cuh"

namespace ace::product {

constexpr int kPairs = 128;  // threads of a block, pairs at a time

template <class T>
struct Operands {
  const T *g, *x1, *x2, *weight;  // rows of each at ld_*; ld_weight = 0 for shared weights
  int64_t ld_g, ld_x1, ld_x2, ld_weight;
  Coefficients table;
  bool ir_mul;
};

// Where gradients are added, rows at ld_*; null for those that nobody asked for.
template <class T>
struct Gradients {
  T *x1, *x2, *weight;
  int64_t ld_x1, ld_x2, ld_weight;
};

// ---- pairs of channels ---------------------------------------------------------------------------------------------

__device__ __forceinline__ bool is_mixing(const Path& p) {  // weights [pair, w] take every pair to every channel
  return p.mode == kUVW || p.mode == kUUW || p.mode == kPairsW;
}
__device__ __forceinline__ bool is_triangle(const Path& p) { return p.mode == kUVUpairs || p.mode == kPairsW; }
__device__ __forceinline__ bool is_diagonal(const Path& p) { return p.mode == kUUW || p.mode == kUUU; }
__device__ __forceinline__ int before(int u, int U) { return u * (2 * U - u - 1) / 2; }  // pairs whose first is < u

__device__ __forceinline__ int pairs_of(const Path& p) {
  return is_triangle(p) ? before(p.U, p.U) : is_diagonal(p) ? p.U : p.U * p.V;
}

__device__ __forceinline__ void channels_of(const Path& p, int pair, int& u, int& v) {
  if (is_diagonal(p)) {
    u = v = pair;
  } else if (is_triangle(p)) {
    u = 0;
    while (before(u + 1, p.U) <= pair) ++u;
    v = pair - before(u, p.U) + u + 1;
  } else {
    u = pair / p.V;
    v = pair % p.V;
  }
}

// f(pair) for the pairs in first..end-1 whose first channel is u.
template <class F>
__device__ __forceinline__ void pairs_with_first(const Path& p, int u, int first, int end, F&& f) {
  const int begin = is_diagonal(p) ? u : is_triangle(p) ? before(u, p.U) : u * p.V;
  const int stop = is_diagonal(p) ? u + 1 : is_triangle(p) ? before(u + 1, p.U) : (u + 1) * p.V;
  for (int q = begin > first ? begin : first; q < stop && q < end; ++q) f(q);
}

// The same for the second channel, v.
template <class F>
__device__ __forceinline__ void pairs_with_second(const Path& p, int v, int first, int end, F&& f) {
  const int many = is_diagonal(p) ? 1 : is_triangle(p) ? v : p.U;
  for (int n = 0; n < many; ++n) {
    const int q = is_diagonal(p) ? v : is_triangle(p) ? before(n, p.U) + v - n - 1 : n * p.V + v;
    if (q >= first && q < end) f(q);
  }
}

// The same for the output channel w of a mode that is not mixing.
template <class F>
__device__ __forceinline__ void pairs_with_output(const Path& p, int w, int first, int end, F&& f) {
  if (p.mode == kUVU) pairs_with_first(p, w, first, end, f);
  else if (p.mode == kUVV) pairs_with_second(p, w, first, end, f);
  else if (w >= first && w < end) f(w);
}

__device__ __forceinline__ int output_of(const Path& p, int pair, int u, int v) {
  return p.mode == kUVU ? u : p.mode == kUVV ? v : pair;
}

// ---- one row of one path -------------------------------------------------------------------------------------------

template <class T>
struct Row {
  const T *g, *x1, *x2, *weight;
  Coefficients table;
  bool ir_mul;

  __device__ Row(const Operands<T>& in, int64_t z)
      : g(in.g ? in.g + z * in.ld_g : nullptr), x1(in.x1 + z * in.ld_x1), x2(in.x2 + z * in.ld_x2),
        weight(in.weight + z * in.ld_weight), table(in.table), ir_mul(in.ir_mul) {}

  __device__ T in1(const Path& p, int u, int i) const { return x1[column(p.o1, p.U, p.d1, ir_mul, u, i)]; }
  __device__ T in2(const Path& p, int v, int j) const { return x2[column(p.o2, p.V, p.d2, ir_mul, v, j)]; }
  __device__ T grad(const Path& p, int w, int k) const { return g[column(p.o3, p.W, p.d3, ir_mul, w, k)]; }
  __device__ T weight_at(const Path& p, int n) const { return p.weight < 0 ? T(1) : weight[p.weight + n]; }

  // f(i, j, k, coefficient) for the non-zeros of a path.
  template <class F>
  __device__ void coefficients(const Path& p, F&& f) const {
    for (int n = p.start; n < p.stop; ++n) {
      const int64_t* at = table.index + 3 * int64_t(n);
      f(static_cast<int>(at[0]), static_cast<int>(at[1]), static_cast<int>(at[2]), static_cast<T>(table.value[n]));
    }
  }

  // c[k * kPairs] = sum_ij C x1[u, i] x2[v, j]
  __device__ void couple_pair(const Path& p, int u, int v, T* c) const {
    for (int k = 0; k < p.d3; ++k) c[k * kPairs] = T(0);
    coefficients(p, [&](int i, int j, int k, T value) { c[k * kPairs] += value * in1(p, u, i) * in2(p, v, j); });
  }

  // c[k * kPairs] = the gradient of what couple_pair gives
  __device__ void gradient_of_pair(const Path& p, int pair, int u, int v, T* c) const {
    for (int k = 0; k < p.d3; ++k) {
      T sum = T(0);
      if (is_mixing(p))
        for (int w = 0; w < p.W; ++w) sum += weight_at(p, pair * p.W + w) * grad(p, w, k);
      else sum = weight_at(p, pair) * grad(p, output_of(p, pair, u, v), k);
      c[k * kPairs] = sum;
    }
  }
};

// out [Z, dim_out] += the product
template <class T>
__global__ void __launch_bounds__(kPairs) general_fwd_kernel(ACE_ARGUMENT(Paths) paths, Operands<T> in, T* out,
                                                             int64_t ld_out) {
  T* const shared = dynamic_shared<T>();  // [k, pair]
  const Row<T> row(in, blockIdx.x);
  out += blockIdx.x * ld_out;
  for (int n = 0; n < paths.count; ++n) {
    const Path& p = paths.path[n];
    const int pairs = pairs_of(p);
    for (int first = 0; first < pairs; first += kPairs) {
      const int pair = first + threadIdx.x, end = first + kPairs < pairs ? first + kPairs : pairs;
      if (pair < end) {
        int u, v;
        channels_of(p, pair, u, v);
        row.couple_pair(p, u, v, shared + threadIdx.x);
      }
      __syncthreads();
      for (int item = threadIdx.x; item < p.W * p.d3; item += kPairs) {
        const int w = item / p.d3, k = item % p.d3;
        const T* c = shared + k * kPairs;
        T sum = T(0);
        if (is_mixing(p)) {
#pragma unroll 8
          for (int q = first; q < end; ++q) sum += row.weight_at(p, q * p.W + w) * c[q - first];
        } else pairs_with_output(p, w, first, end, [&](int q) { sum += row.weight_at(p, q) * c[q - first]; });
        out[column(p.o3, p.W, p.d3, in.ir_mul, w, k)] += sum;
      }
      __syncthreads();
    }
  }
}

// Gradients of one row and of the pairs first..end-1 of a path. Columns of threads in shared memory: the coupled pair
// [k], its gradient [k], and the shares of the pair in the gradients of in1 [i] and in2 [j]. Ends with a barrier.
template <class T>
__device__ void general_bwd_pairs(const Path& p, const Row<T>& row, int first, int end, T* shared, T* x1, T* x2,
                                  T* weight) {
  const int thread = threadIdx.x, pair = first + thread;
  T* const coupled = shared;
  T* const gradient = coupled + p.d3 * kPairs;
  T* const share1 = gradient + p.d3 * kPairs;
  T* const share2 = share1 + p.d1 * kPairs;
  int u, v;
  if (pair < end) {
    channels_of(p, pair, u, v);
    if (weight) row.couple_pair(p, u, v, coupled + thread);
    if (x1 || x2) {
      T* c = gradient + thread;
      row.gradient_of_pair(p, pair, u, v, c);
      for (int i = 0; i < p.d1; ++i) share1[i * kPairs + thread] = T(0);
      for (int j = 0; j < p.d2; ++j) share2[j * kPairs + thread] = T(0);
      row.coefficients(p, [&](int i, int j, int k, T value) {
        share1[i * kPairs + thread] += value * row.in2(p, v, j) * c[k * kPairs];
        share2[j * kPairs + thread] += value * row.in1(p, u, i) * c[k * kPairs];
      });
    }
    if (weight && !is_mixing(p)) {
      T sum = T(0);
      for (int k = 0; k < p.d3; ++k) sum += coupled[k * kPairs + thread] * row.grad(p, output_of(p, pair, u, v), k);
      weight[p.weight + pair] += sum;
    }
  }
  __syncthreads();
  for (int item = thread; x1 && item < p.U * p.d1; item += kPairs) {
    T sum = T(0);
    const T* c = share1 + item % p.d1 * kPairs;
    pairs_with_first(p, item / p.d1, first, end, [&](int q) { sum += c[q - first]; });
    x1[column(p.o1, p.U, p.d1, row.ir_mul, item / p.d1, item % p.d1)] += sum;
  }
  for (int item = thread; x2 && item < p.V * p.d2; item += kPairs) {
    T sum = T(0);
    const T* c = share2 + item % p.d2 * kPairs;
    pairs_with_second(p, item / p.d2, first, end, [&](int q) { sum += c[q - first]; });
    x2[column(p.o2, p.V, p.d2, row.ir_mul, item / p.d2, item % p.d2)] += sum;
  }
  for (int item = thread; weight && is_mixing(p) && item < (end - first) * p.W; item += kPairs) {
    const int q = item / p.W, w = item % p.W;
    T sum = T(0);
    for (int k = 0; k < p.d3; ++k) sum += coupled[k * kPairs + q] * row.grad(p, w, k);
    weight[p.weight + int64_t(first) * p.W + item] += sum;
  }
  __syncthreads();
}

// Gradients of a block's `rows` rows. Those of x1, x2 and of weights of every row are added to the rows of `to`; those
// of shared weights to row blockIdx.x of `to.weight`, in the order of the rows. Blocks in y share the paths out, where
// weights alone are asked for.
template <class T>
__global__ void __launch_bounds__(kPairs) general_bwd_kernel(ACE_ARGUMENT(Paths) paths, Operands<T> in,
                                                             Gradients<T> to, int64_t Z, int rows) {
  const bool shared_weight = in.ld_weight == 0;
  const int64_t stop = (blockIdx.x + int64_t(1)) * rows < Z ? (blockIdx.x + int64_t(1)) * rows : Z;
  for (int64_t z = int64_t(blockIdx.x) * rows; z < stop; ++z) {
    const Row<T> row(in, z);
    T* const x1 = to.x1 ? to.x1 + z * to.ld_x1 : nullptr;
    T* const x2 = to.x2 ? to.x2 + z * to.ld_x2 : nullptr;
    T* const weight = to.weight ? to.weight + (shared_weight ? blockIdx.x : z) * to.ld_weight : nullptr;
    for (int n = blockIdx.y; n < paths.count; n += gridDim.y) {
      const Path& p = paths.path[n];
      const int pairs = pairs_of(p);
      for (int first = 0; first < pairs; first += kPairs) {
        const int end = first + kPairs < pairs ? first + kPairs : pairs;
        general_bwd_pairs(p, row, first, end, dynamic_shared<T>(), x1, x2, p.weight < 0 ? nullptr : weight);
      }
    }
  }
}

}  // namespace ace::product
