// Gradient of shared "uvw" weights: g_W[u, w] = sum over rows z and components k of t[k, z, u] g[z, w, k], with the
// t[k, z, u] = sum_i x1[z, u, i] M[z, i, k] of dense.cuh. One block for a path, a channel v, a tile [u, w] and a
// stretch of rows; the stretches are added afterwards, in order.
#pragma once

#include "dense.cuh"

namespace ace::product {

constexpr int kHigh = 80;                           // channels u of a tile: 66 and 37 of SEGNN in one
constexpr int kAtOnce = 3;                          // components k at a time
constexpr int kUStride = kHigh + 8, kWStride = kWide + 8;  // of shared memory, free of bank conflicts
constexpr int kWeightTile = kAtOnce * kRows * (kUStride + kWStride);

template <class T>
struct WeightOperands {
  const T *g, *x1, *x2;
  int64_t ld_g, ld_x1, ld_x2, Z, rows;  // rows of a stretch
  Coefficients table;
  T* part;  // [stretch, n]
  int64_t n;
  bool ir_mul;
  Precision precision;
  int space, rows_of_m;
};

// The tile of this block: a path, a channel of x2, first channels u and w.
struct WeightTile { int path, v, u, w; };

__device__ __forceinline__ WeightTile find_tile(const Paths& paths, int index) {
  for (int n = 0;; ++n) {
    const Path& p = paths.path[n];
    const int high = (p.U + kHigh - 1) / kHigh, wide = (p.W + kWide - 1) / kWide, tiles = high * wide * p.V;
    if (index < tiles) return {n, index % p.V, index / p.V % high * kHigh, index / (p.V * high) * kWide};
    index -= tiles;
  }
}

// t[k, z, u] and g[k, z, w] of 16 rows and the components k from `component` on; zero outside.
template <class T>
__device__ void form_operands(const Path& p, const WeightTile& tile, const WeightOperands<T>& in, const T* m, T* left,
                              T* right, int64_t z0, int64_t stop, int component, int high, int wide) {
  for (int item = threadIdx.x; item < kRows * high; item += kTeam) {
    const int u = item % high, z = item / high;
    T value[kAtOnce] = {};
    if (z0 + z < stop && tile.u + u < p.U) {
      const T* x = in.x1 + (z0 + z) * in.ld_x1 + column(p.o1, p.U, p.d1, in.ir_mul, tile.u + u, 0);
      const int stride = in.ir_mul ? p.U : 1;
      for (int i = 0; i < p.d1; ++i) {
        const T xi = x[i * stride];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) value[k] += xi * m[(z * p.d1 + i) * kAtOnce + k];
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) left[(k * kRows + z) * kUStride + u] = value[k];
  }
  for (int item = threadIdx.x; item < kRows * wide; item += kTeam) {
    const int w = item % wide, z = item / wide;
    const bool there = z0 + z < stop && tile.w + w < p.W;
    const T* g = in.g + (there ? z0 + z : 0) * in.ld_g;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      right[(k * kRows + z) * kWStride + w] =
          there && component + k < p.d3 ? g[column(p.o3, p.W, p.d3, in.ir_mul, tile.w + w, component + k)] : T(0);
  }
}

template <class T> struct WeightAccumulator;

// float32: a warp has the 8-channel tiles warp and warp + 4 of w, and all 16-channel tiles of u.
template <>
struct WeightAccumulator<float> {
  static constexpr int kTiles = kHigh / 16;
  float sum[kTiles][2][4] = {};

  __device__ void multiply(const float* left, const float* right, int components, int high, int wide,
                           Precision precision) {
    const int warp = threadIdx.x / 32, mine = warp * 8 >= wide ? 0 : (warp + 4) * 8 < wide ? 2 : 1;
    if (mine == 0) return;
#pragma unroll 1
    for (int k = 0; k < components; ++k) {
      const float *a = left + k * kRows * kUStride, *b = right + k * kRows * kWStride + warp * 8;
      if (precision == Precision::medium) multiply_bf16(a, b, high, mine);
      else multiply_tf32(a, b, high, mine, precision == Precision::high);
    }
  }

  // One component: 16 rows, by one bfloat16 product.
  __device__ __forceinline__ void multiply_bf16(const float* left, const float* right, int high, int mine) {
    const int g = lane_id() / 4, t = lane_id() % 4 * 2;
    uint32_t b[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* x = right + (t + 8 * h) * kWStride + 32 * j + g;
        b[j][h] = j < mine ? pack_bf16(x[0], x[kWStride]) : 0;
      }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (m * 16 >= high) break;
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* x = left + (t + i / 2 * 8) * kUStride + m * 16 + g + i % 2 * 8;
        a[i] = pack_bf16(x[0], x[kUStride]);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j >= mine) break;
        float main[4] = {};
        mma_bf16(main, a, b[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][j][i] += main[i];
      }
    }
  }

  // The same by three TF32 products of parts, or a single one.
  __device__ __forceinline__ void multiply_tf32(const float* left, const float* right, int high, int mine, bool single) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    uint32_t big[2][2][2], small[2][2][2];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          split_tf32(j < mine ? right[(s * 8 + t + 4 * h) * kWStride + 32 * j + g] : 0.0f,
                     big[s][j][h], small[s][j][h]);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (m * 16 >= high) break;
      float main[2][4] = {}, rest[2][4] = {};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a[4], a_small[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          split_tf32(left[(s * 8 + t + i / 2 * 4) * kUStride + m * 16 + g + i % 2 * 8], a[i], a_small[i]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (j >= mine) break;
          mma_tf32(main[j], a, big[s][j]);
          if (single) continue;
          mma_tf32(rest[j], a_small, big[s][j]);
          mma_tf32(rest[j], a, small[s][j]);
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][j][i] += main[j][i] + rest[j][i];
    }
  }

  // f(u, w, value)
  template <class F>
  __device__ void each(F&& f) const {
    const int g = lane_id() / 4, t = lane_id() % 4, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) f(m * 16 + g + i / 2 * 8, (warp + 4 * j) * 8 + 2 * t + i % 2, sum[m][j][i]);
  }
};

// float64: a thread has every fourth channel u and the channels lane and lane + 32 of w.
template <>
struct WeightAccumulator<double> {
  static constexpr int kTiles = kHigh / 4;
  double sum[kTiles][2] = {};

  __device__ void multiply(const double* left, const double* right, int components, int high, int, Precision) {
    const int lane = lane_id(), warp = threadIdx.x / 32;
#pragma unroll 1
    for (int row = 0; row < components * kRows; ++row) {
      const double g0 = right[row * kWStride + lane], g1 = right[row * kWStride + lane + 32];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (4 * m >= high) break;
        const double x = left[row * kUStride + 4 * m + warp];
        sum[m][0] += x * g0;
        sum[m][1] += x * g1;
      }
    }
  }

  template <class F>
  __device__ void each(F&& f) const {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int j = 0; j < 2; ++j) f(4 * m + int(threadIdx.x) / 32, lane_id() + 32 * j, sum[m][j]);
  }
};

template <class T>
__global__ void __launch_bounds__(kTeam, 3) dense_weight_kernel(ACE_ARGUMENT(Paths) paths, WeightOperands<T> in) {
  const WeightTile tile = find_tile(paths, blockIdx.y);
  const Path& p = paths.path[tile.path];
  const int high = p.U - tile.u < kHigh ? (p.U - tile.u + 15) / 16 * 16 : kHigh;
  const int wide = p.W - tile.w < kWide ? (p.W - tile.w + 7) / 8 * 8 : kWide;
  T* const dense = dynamic_shared<T>();
  T* const m = dense + in.space;
  T* const left = m + in.rows_of_m * kRows;
  T* const right = left + kAtOnce * kRows * kUStride;
  DenseOperands<T> rows{};  // what couple_rows reads
  rows.x2 = in.x2, rows.ld_x2 = in.ld_x2, rows.Z = in.Z, rows.ir_mul = in.ir_mul;
  WeightAccumulator<T> accumulator;
  load_dense<T, Role::forward>(dense, paths.path, tile.path, tile.path + 1, in.table, threadIdx.x, kTeam);
  const int64_t begin = blockIdx.x * in.rows, stop = begin + in.rows < in.Z ? begin + in.rows : in.Z;
  for (int64_t z0 = begin; z0 < stop; z0 += kRows)
    for (int component = 0; component < p.d3; component += kAtOnce) {
      couple_rows<T, Role::forward, kAtOnce>(m, dense, p, rows, z0, tile.v, component, threadIdx.x);
      __syncthreads();  // M is there, and nobody reads the last operands
      form_operands(p, tile, in, m, left, right, z0, stop, component, high, wide);
      __syncthreads();
      const int components = p.d3 - component < kAtOnce ? p.d3 - component : kAtOnce;
      accumulator.multiply(left, right, components, high, wide, in.precision);
    }
  T* const to = in.part + blockIdx.x * in.n + p.weight;
  accumulator.each([&](int u, int w, T value) {
    if (u < high && w < wide && tile.u + u < p.U && tile.w + w < p.W)
      to[(int64_t(tile.u + u) * p.V + tile.v) * p.W + tile.w + w] = value;
  });
}

}  // namespace ace::product
