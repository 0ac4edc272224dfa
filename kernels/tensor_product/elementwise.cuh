// Around the product: biases, their gradient, sums of partial results, and e3nn's gate with its gradient.
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

// ---- gate ----------------------------------------------------------------------------------------------------------

// Layout of the gate: in = scalars, gates, gated slices (mul, d); out = scalars, gated slices.
struct GateSlices {
  int scalars, gates, count, mul[kSlices], d[kSlices];
  bool ir_mul;
  double scalar_gain, gate_gain;
};

// Which gate a column of the gated part has, counted from its beginning; component and slice too.
struct Gated { int gate, offset, slice, channel; };
__device__ __forceinline__ Gated find_gated(const GateSlices& gate, int c) {
  Gated at{0, 0, 0, 0};
  while (c >= at.offset + gate.mul[at.slice] * gate.d[at.slice]) {
    at.gate += gate.mul[at.slice];
    at.offset += gate.mul[at.slice] * gate.d[at.slice];
    ++at.slice;
  }
  const int inside = c - at.offset;
  at.channel = gate.ir_mul ? inside % gate.mul[at.slice] : inside / gate.d[at.slice];
  at.gate += at.channel;
  return at;
}

// out [Z, dim - gates] from pre [Z, dim]
template <class T>
__global__ void __launch_bounds__(kThreads) gate_fwd_kernel(ACE_ARGUMENT(GateSlices) gate, const T* pre, T* out,
                                                            int64_t size, int dim) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= size) return;
  const int width = dim - gate.gates, c = static_cast<int>(item % width);
  pre += item / width * dim;
  if (c < gate.scalars) {
    out[item] = silu(pre[c]) * static_cast<T>(gate.scalar_gain);
    return;
  }
  const Gated at = find_gated(gate, c - gate.scalars);
  out[item] = sigmoid(pre[gate.scalars + at.gate]) * static_cast<T>(gate.gate_gain) * pre[c + gate.gates];
}

// g_pre [Z, dim] from g [Z, dim - gates] and pre [Z, dim]
template <class T>
__global__ void __launch_bounds__(kThreads) gate_bwd_kernel(ACE_ARGUMENT(GateSlices) gate, const T* g, const T* pre,
                                                            T* g_pre, int64_t size, int dim) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= size) return;
  const int c = static_cast<int>(item % dim), first = gate.scalars + gate.gates;
  g += item / dim * (dim - gate.gates);
  pre += item / dim * dim;
  const T gain = static_cast<T>(gate.gate_gain);
  if (c < gate.scalars) {
    g_pre[item] = g[c] * static_cast<T>(gate.scalar_gain) * silu_grad(pre[c]);
  } else if (c >= first) {
    const Gated at = find_gated(gate, c - first);
    g_pre[item] = g[c - gate.gates] * sigmoid(pre[gate.scalars + at.gate]) * gain;
  } else {  // a gate: the sum over the components of its channel
    int slice = 0, offset = 0, channel = c - gate.scalars;
    while (channel >= gate.mul[slice]) {
      channel -= gate.mul[slice];
      offset += gate.mul[slice] * gate.d[slice];
      ++slice;
    }
    T sum = T(0);
    for (int i = 0; i < gate.d[slice]; ++i) {
      const int at = column(offset, gate.mul[slice], gate.d[slice], gate.ir_mul, channel, i);
      sum += g[gate.scalars + at] * pre[first + at];
    }
    const T s = sigmoid(pre[c]);
    g_pre[item] = sum * gain * s * (T(1) - s);
  }
}

}  // namespace ace::product
