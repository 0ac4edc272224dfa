// Around the product: biases, their gradient and sums of partial results.
#pragma once

#include "product.cuh"

namespace ace::product {

constexpr int kThreads = 256, kSlices = 64;

// ---- biases and sums -----------------------------------------------------------------------------------------------

// Stretches of columns of the output: offset and length.
struct Slots {
  int count, offset[kSlices], length[kSlices];
};

// out [Z, dim] = the bias [b] in its slots, zero elsewhere.
template <class T>
__global__ void __launch_bounds__(kThreads) start_kernel(ACE_ARGUMENT(Slots) slots, const T* bias, T* out, int64_t size,
                                                         int dim) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= size) return;
  const int c = static_cast<int>(item % dim);
  T value = T(0);
  for (int s = 0, first = 0; s < slots.count; first += slots.length[s++]) {
    const int m = c - slots.offset[s];
    if (bias && m >= 0 && m < slots.length[s]) value = bias[first + m];
  }
  out[item] = value;
}

// part [stretch, b]: sums of g [Z, dim] over a stretch of rows, in a fixed order. Blocks of 32 columns x 8 rows.
template <class T>
__global__ void __launch_bounds__(kThreads) bias_bwd_kernel(ACE_ARGUMENT(Slots) slots, const T* g, int64_t ld,
                                                            int64_t Z, int64_t rows, T* part, int biases) {
  ACE_SHARED(T, sums, kThreads);
  const int lane = threadIdx.x % 32, team = threadIdx.x / 32, m = blockIdx.y * 32 + lane;
  int c = -1;
  for (int s = 0, first = 0; s < slots.count; first += slots.length[s++])
    if (m >= first && m < first + slots.length[s]) c = slots.offset[s] + m - first;
  const int64_t begin = blockIdx.x * rows, stop = begin + rows < Z ? begin + rows : Z;
  T sum = T(0);
  for (int64_t z = begin + team; c >= 0 && z < stop; z += 8) sum += g[z * ld + c];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (team || m >= biases) return;
  for (int t = 1; t < 8; ++t) sum += sums[t * 32 + lane];
  part[int64_t(blockIdx.x) * biases + m] = sum;
}

// out [n] = sum of part [stretches, n], in order.
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const T* part, T* out, int64_t n, int stretches) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= n) return;
  T sum = T(0);
  for (int s = 0; s < stretches; ++s) sum += part[s * n + item];
  out[item] = sum;
}

}  // namespace ace::product
