// What may follow a product on CUDA, e3nn's Gate and NormActivation: elementwise kernels and their launches.
#pragma once

#include "elementwise.cuh"

#include <algorithm>
#include <optional>
#include <tuple>

namespace ace::product {

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

// ---- activation of norms -------------------------------------------------------------------------------------------

// Layout of the norms that one launch has: slices (mul, d) from column `offset` and channel `channel` on. A block has
// `rows` rows and `width` channels side by side, with as many teams of threads, a row each, as there is room for.
struct NormSlices {
  int count, offset, channel, channels, mul[kSlices], d[kSlices], activation, width;
  bool ir_mul;
  double epsilon;
  int64_t rows;
};

// A thread's channel (below 0: none), its first column, the distance between its components and their number.
struct Channel { int index, first, step, d; };
__device__ __forceinline__ Channel find_channel(const NormSlices& norm) {
  const int c = blockIdx.y * norm.width + threadIdx.x % norm.width;
  if (c >= norm.channels) return {-1, 0, 0, 0};
  int slice = 0, offset = norm.offset, u = c;
  while (u >= norm.mul[slice]) {
    u -= norm.mul[slice];
    offset += norm.mul[slice] * norm.d[slice];
    ++slice;
  }
  const int mul = norm.mul[slice], d = norm.d[slice];
  return {norm.channel + c, column(offset, mul, d, norm.ir_mul, u, 0), norm.ir_mul ? mul : 1, d};
}

__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float sqrt_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_of(double x) { return sqrt(x); }

// Value and derivative of a nonlinearity; its number as in table.py, ACTIVATIONS.
template <class T>
struct Activated { T value, slope; };
template <class T>
__device__ __forceinline__ Activated<T> activate(int activation, T x) {
  if (activation == 2) {
    const T y = tanh_of(x);
    return {y, T(1) - y * y};
  }
  if (activation == 3) return {x < T(0) ? T(0) : x, x > T(0) ? T(1) : T(0)};
  const T s = sigmoid(x);
  if (activation == 1) return {s, s * (T(1) - s)};
  return {x * s, s * (T(1) + x * (T(1) - s))};
}

// The norm of a channel x, not below epsilon; whether it is free, not clamped.
template <class T>
__device__ __forceinline__ T norm_of(const T* x, const Channel& at, double epsilon, bool& free) {
  T square = T(0);
  for (int i = 0; i < at.d; ++i) square += x[i * at.step] * x[i * at.step];
  const T least = static_cast<T>(epsilon * epsilon);
  free = square >= least;
  return sqrt_of(free ? square : least);
}

// f(row) for the rows of a thread.
template <class F>
__device__ __forceinline__ void for_rows(const NormSlices& norm, int64_t Z, F&& f) {
  const int teams = kThreads / norm.width, team = threadIdx.x / norm.width;
  const int64_t begin = blockIdx.x * norm.rows, stop = begin + norm.rows < Z ? begin + norm.rows : Z;
  if (team < teams)
    for (int64_t z = begin + team; z < stop; z += teams) f(z);
}

// out [Z, dim] from pre [Z, dim] and bias [channels] or null
template <class T>
__global__ void __launch_bounds__(kThreads) norm_fwd_kernel(ACE_ARGUMENT(NormSlices) norm, const T* pre, const T* bias,
                                                            T* out, int64_t Z, int dim) {
  const Channel at = find_channel(norm);
  if (at.index < 0) return;
  const T shift = bias ? bias[at.index] : T(0);
  for_rows(norm, Z, [&](int64_t z) {
    const T* x = pre + z * dim + at.first;
    T* y = out + z * dim + at.first;
    bool free;
    const T n = norm_of(x, at, norm.epsilon, free);
    const T factor = activate(norm.activation, n + shift).value / n;
    for (int i = 0; i < at.d; ++i) y[i * at.step] = x[i * at.step] * factor;
  });
}

// g_pre [Z, dim] from g and pre [Z, dim] and bias [channels] or null; part [channels of the launch, stretches] or null:
// sums of the bias's gradient over the rows of a block, each thread's in order, then teams in pairs.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_bwd_kernel(ACE_ARGUMENT(NormSlices) norm, const T* g, const T* pre,
                                                            const T* bias, T* g_pre, T* part, int64_t Z, int dim) {
  ACE_SHARED(T, sums, kThreads);
  const Channel at = find_channel(norm);
  const T shift = bias && at.index >= 0 ? bias[at.index] : T(0);
  T sum = T(0);
  if (at.index >= 0)
    for_rows(norm, Z, [&](int64_t z) {
      const T *from = g + z * dim + at.first, *x = pre + z * dim + at.first;
      T* to = g_pre + z * dim + at.first;
      bool free;
      const T n = norm_of(x, at, norm.epsilon, free);
      T along = T(0);
      for (int i = 0; i < at.d; ++i) along += from[i * at.step] * x[i * at.step];
      along /= n;
      const Activated<T> f = activate(norm.activation, n + shift);
      const T factor = f.value / n, radial = free ? (f.slope - factor) * along / n : T(0);
      for (int i = 0; i < at.d; ++i) to[i * at.step] = from[i * at.step] * factor + x[i * at.step] * radial;
      sum += f.slope * along;
    });
  if (!part) return;
  sums[threadIdx.x] = sum;
  int half = 1;
  const int teams = kThreads / norm.width, team = threadIdx.x / norm.width;
  while (half < teams) half *= 2;
  for (half /= 2; half > 0; half /= 2) {
    __syncthreads();
    if (team < half && team + half < teams) sums[threadIdx.x] += sums[threadIdx.x + half * norm.width];
  }
  if (team == 0 && at.index >= 0) part[int64_t(at.index - norm.channel) * gridDim.x + blockIdx.x] = sums[threadIdx.x];
}

// out [n] = sums of part [n, stretches], a warp each: its lanes' in order, then lanes in pairs.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_bias_kernel(const T* part, T* out, int64_t n, int stretches) {
  const int64_t c = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (c >= n) return;
  T sum = T(0);
  for (int s = lane_id(); s < stretches; s += 32) sum += part[c * stretches + s];
  sum = warp_sum(sum);
  if (lane_id() == 0) out[c] = sum;
}

// ---- launches ------------------------------------------------------------------------------------------------------

// The gate as an epilogue; op: who asks, for messages.
class Gate {
 public:
  Gate(const char* op, const std::vector<int64_t>& layout, double scalar_gain, double gate_gain, bool ir_mul)
      : slices_{static_cast<int>(layout[0]), static_cast<int>(layout[1]), 0, {}, {}, ir_mul, scalar_gain, gate_gain} {
    STD_TORCH_CHECK(layout.size() <= 2 + 2 * kSlices, op, ": layout must be at most ", kSlices, " gated slices, got ",
                    (layout.size() - 2) / 2, "; use another backend");
    for (size_t n = 2; n + 1 < layout.size(); n += 2) {
      slices_.mul[slices_.count] = static_cast<int>(layout[n]);
      slices_.d[slices_.count++] = static_cast<int>(layout[n + 1]);
    }
  }

  // pre [Z, dim] -> [Z, dim - gates]
  Tensor forward(const Tensor& pre_) const {
    const Tensor pre = dense(pre_);
    const int64_t Z = pre.size(0), dim = pre.size(1), size = Z * (dim - slices_.gates);
    Tensor y = empty(pre, {Z, dim - slices_.gates});
    const Stream stream(pre);
    dispatch(pre, [&]<class T>() {
      stream.launch("gate_fwd_kernel", gate_fwd_kernel<T>, grid(ceil_div(size, kThreads)), kThreads, 0, slices_,
                    in<T>(pre), out<T>(y), size, static_cast<int>(dim));
    });
    return y;
  }

  // g [Z, dim - gates], pre [Z, dim] -> gradient of pre
  Tensor backward(const Tensor& g_, const Tensor& pre_) const {
    const Tensor g = dense(g_), pre = dense(pre_);
    const int64_t size = pre.numel();
    Tensor g_pre = empty(pre, {pre.size(0), pre.size(1)});
    const Stream stream(pre);
    dispatch(pre, [&]<class T>() {
      stream.launch("gate_bwd_kernel", gate_bwd_kernel<T>, grid(ceil_div(size, kThreads)), kThreads, 0, slices_,
                    in<T>(g), in<T>(pre), out<T>(g_pre), size, static_cast<int>(pre.size(1)));
    });
    return g_pre;
  }

 private:
  GateSlices slices_;
};

// The activation of norms as an epilogue: a launch has up to kSlices slices, those that have channels.
class Norm {
 public:
  Norm(const std::vector<int64_t>& layout, int64_t activation, double epsilon, const std::optional<Tensor>& bias,
       bool ir_mul) {
    if (bias) bias_ = dense(*bias);
    int offset = 0;
    for (size_t n = 0; n < layout.size(); n += 2) {
      if (layout[n] == 0) continue;
      if (launches_.empty() || launches_.back().count == kSlices)
        launches_.push_back({0, offset, channels_, 0, {}, {}, static_cast<int>(activation), 1, ir_mul, epsilon, 1});
      NormSlices& norm = launches_.back();
      const int mul = norm.mul[norm.count] = static_cast<int>(layout[n]);
      const int d = norm.d[norm.count++] = static_cast<int>(layout[n + 1]);
      norm.channels += mul;
      norm.width = static_cast<int>(ceil_div(norm.channels, ceil_div(norm.channels, kSide)));
      channels_ += mul;
      offset += mul * d;
    }
  }

  // pre [Z, dim] -> [Z, dim]
  Tensor forward(const Tensor& pre_) const {
    const Tensor pre = dense(pre_);
    const int64_t Z = pre.size(0), dim = pre.size(1);
    Tensor y = empty(pre, {Z, dim});
    const Stream stream(pre);
    dispatch(pre, [&]<class T>() {
      for (NormSlices norm : launches_) {
        const dim3 blocks = share(norm, least_rows(norm), Z);
        stream.launch("norm_fwd_kernel", norm_fwd_kernel<T>, blocks, kThreads, 0, norm, in<T>(pre),
                      bias_ ? in<T>(*bias_) : nullptr, out<T>(y), Z, static_cast<int>(dim));
      }
    });
    return y;
  }

  // g and pre [Z, dim] -> gradients of pre and of the bias, empty where there is none or nobody needs it
  std::tuple<Tensor, Tensor> backward(const Tensor& g_, const Tensor& pre_, bool need_bias = true) const {
    const Tensor g = dense(g_), pre = dense(pre_);
    const int64_t Z = pre.size(0), dim = pre.size(1), channels = bias_ && need_bias ? channels_ : 0;
    Tensor g_pre = empty(pre, {Z, dim}), g_bias = empty(pre, {channels});
    const Stream stream(pre);
    dispatch(pre, [&]<class T>() {
      for (NormSlices norm : launches_) {
        const int64_t rows = std::max(least_rows(norm), ceil_div(Z, kStretches));
        const dim3 blocks = share(norm, rows, Z);
        const int64_t n = channels ? norm.channels : 0, stretches = ceil_div(Z, rows);
        const Tensor part = empty(pre, {n * stretches});
        stream.launch("norm_bwd_kernel", norm_bwd_kernel<T>, blocks, kThreads, 0, norm, in<T>(g), in<T>(pre),
                      bias_ ? in<T>(*bias_) : nullptr, out<T>(g_pre), n ? out<T>(part) : nullptr, Z,
                      static_cast<int>(dim));
        stream.launch("norm_bias_kernel", norm_bias_kernel<T>, grid(ceil_div(n, kThreads / 32)), kThreads, 0,
                      in<T>(part), out<T>(g_bias) + norm.channel, n, static_cast<int>(stretches));
      }
    });
    return {g_pre, g_bias};
  }

 private:
  static constexpr int64_t kStretches = 512;  // at most, in sums over rows
  static constexpr int kSide = 128;           // channels of a block, at most

  // Four rows to a thread.
  static int64_t least_rows(const NormSlices& norm) { return 4 * (kThreads / norm.width); }

  // Gives a block so many rows; the blocks that Z rows take.
  static dim3 share(NormSlices& norm, int64_t rows, int64_t Z) {
    norm.rows = rows;
    return grid(ceil_div(Z, rows), ceil_div(norm.channels, norm.width));
  }

  std::vector<NormSlices> launches_;
  std::optional<Tensor> bias_;
  int channels_ = 0;
};

}  // namespace ace::product
