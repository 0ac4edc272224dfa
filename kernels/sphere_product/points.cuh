// Products at points on a GPU, in the mirrored form: a thread has a column (a row and channel) and takes it to a few
// points of the octant at a time. Products of the eight parities, their images, what multiplies there and what returns
// stay in its registers; columns and matrices lie in shared memory.
#pragma once

#include "native.cuh"
#include "sphere_product/parity.h"

namespace ace::sphere {

constexpr int kThreads = 128, kDegrees = 10;
constexpr int kFactors = 7, kMatrices = 8;  // six inputs and g; the result's too

template <int L> constexpr int kAtOnce = L == 1 ? 1 : L == 3 ? 3 : 4;  // points at once; L = 1 has one, L = 3 nine
template <int L> constexpr int kStride = kAtOnce<L> == 1 ? 1 : 4;      // from a component to the next in a matrix
template <int L> constexpr int kBlocks = L == 1 ? 8 : L <= 3 ? 4 : L <= 6 ? 3 : 2;  // of a multiprocessor, at least

// What is multiplied at the points: x [rows, channels of dim], to a power.
struct Factor {
  const void* x;
  int64_t row;                   // values from a row to the next, 0 where all have one
  int channels, dim, power;
  int at, matrix;                // where its columns lie in shared memory, and its matrix in those of a few points
};

// A matrix [parts or 1, points, dim] of the table, and where it lies among those of a few points.
struct Matrix {
  int64_t from;
  int dim, parts, at;
};

struct Problem {
  int64_t rows, columns, tiles;
  const double* table;
  void* y;                       // [rows, channels of dim], the sum over the points times `scale`
  float scale;
  int channels, dim, matrix;
  int factors, matrices, points, parts, blocks, chunk;  // blocks of points, all parts; how many fit at once
  int signs;                     // three bits a part: how derivatives change the parity of the product
  int width, step, stage;        // columns of a tile; matrices of a block of points; where the columns begin
  bool ir_mul, half;
  Factor factor[kFactors];
  Matrix from[kMatrices];
};

__device__ __forceinline__ int degree_of(int i) { return static_cast<int>(sqrtf(i + 0.5f)); }

__device__ __forceinline__ float load_bf16(const void* x, int64_t i) {
  return float_of(uint32_t(static_cast<const uint16_t*>(x)[i]) << 16);
}
__device__ __forceinline__ void store_bf16(void* x, int64_t i, float value) {
  static_cast<uint16_t*>(x)[i] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
}

// ---- columns between global and shared memory ----------------------------------------------------------------------
// In shared memory component (l, m) of column j lies at width l^2 + j (2l + 1) + l + m: as in a row of mul_ir. Neighbours
// are an odd number apart, so that the lanes of a warp meet in no bank.

// The columns of a tile: `count` from channel `channel` of row `row` on.
struct Tile {
  int64_t row;
  int channel, count;
  __device__ Tile(const Problem& p, int64_t tile)
      : row(tile * p.width / p.channels), channel(static_cast<int>(tile * p.width % p.channels)),
        count(static_cast<int>(p.columns - tile * p.width < p.width ? p.columns - tile * p.width : p.width)) {}
};

// Calls move(from, to, step, count, lane, lanes): `count` neighbours in global memory, `step` apart in shared memory,
// which `lanes` threads share.
template <class Move>
__device__ __forceinline__ void walk(const Problem& p, const Tile& t, int64_t row, int channels, int dim, Move&& move) {
  const int C = p.channels;
  if (channels == C && C >= 8) {  // a warp takes what a row has of a degree, or of a component
    const int blocks = p.ir_mul ? dim : degree_of(dim - 1) + 1, rows = (t.channel + t.count + C - 1) / C;
    for (int q = threadIdx.x / 32; q < rows * blocks; q += kThreads / 32) {
      const int r = q / blocks, b = q - r * blocks, l = p.ir_mul ? degree_of(b) : b, w = 2 * l + 1;
      const int first = r == 0 ? 0 : r * C - t.channel;  // the row's columns in the tile
      const int end = (r + 1) * C - t.channel < t.count ? (r + 1) * C - t.channel : t.count;
      const int64_t c = first + t.channel - r * C, from = (t.row + r) * row;
      if (p.ir_mul) move(from + int64_t(C) * b + c, p.width * l * l + first * w + b - l * l, w, end - first, lane_id(), 32);
      else move(from + (int64_t(C) * l * l + c * w), p.width * l * l + first * w, 1, (end - first) * w, lane_id(), 32);
    }
    return;
  }
  for (int e = threadIdx.x; e < t.count * dim; e += kThreads) {
    const int j = e / dim, i = e - j * dim, l = degree_of(i), m = i - l * l, w = 2 * l + 1;
    const int r = (t.channel + j) / C, c = channels == 1 ? 0 : t.channel + j - r * C;
    const int64_t inside = p.ir_mul ? int64_t(channels) * i + c : int64_t(channels) * l * l + c * w + m;
    move((t.row + r) * row + inside, p.width * l * l + j * w + m, 1, 1, 0, 1);
  }
}

__device__ __forceinline__ bool aligned(const void* a, const void* b, int count) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) & 15) == 0 && count % 4 == 0;
}

// Starts the copies of a factor's columns.
__device__ void copy_in(const Problem& p, const Tile& t, const Factor& f, float* xs) {
  walk(p, t, f.row, f.channels, f.dim, [&](int64_t from, int to, int step, int count, int lane, int lanes) {
    const float* x = static_cast<const float*>(f.x) + from;
    if (p.half) {
      for (int e = lane; e < count; e += lanes) xs[to + e * step] = load_bf16(f.x, from + e);
    } else if (step == 1 && aligned(x, xs + to, count)) {
      for (int e = 4 * lane; e < count; e += 4 * lanes) copy_async<16>(xs + to + e, x + e);
    } else {
      for (int e = lane; e < count; e += lanes) copy_async<4>(xs + to + e * step, x + e);
    }
  });
}

__device__ void copy_out(const Problem& p, const Tile& t, const float* ys) {
  walk(p, t, int64_t(p.channels) * p.dim, p.channels, p.dim,
       [&](int64_t from, int to, int step, int count, int lane, int lanes) {
         float* y = static_cast<float*>(p.y) + from;
         if (p.half) {
           for (int e = lane; e < count; e += lanes) store_bf16(p.y, from + e, ys[to + e * step]);
         } else if (step == 1 && aligned(y, ys + to, count)) {
           for (int e = 4 * lane; e < count; e += 4 * lanes) store_pack(y + e, load_pack<4>(ys + to + e));
         } else {
           for (int e = lane; e < count; e += lanes) y[e] = ys[to + e * step];
         }
       });
}

// The matrices of blocks of points: of each block all of them, [component][point] one after the other.
template <int L>
__device__ void load_matrices(const Problem& p, int first, int count, float* m) {
  const int each = p.blocks / p.parts;
  for (int u = threadIdx.x / 32; u < count; u += kThreads / 32)
    for (int q = 0; q < p.matrices; ++q) {
      const Matrix& from = p.from[q];
      const int part = (first + u) / each, point = ((first + u) - part * each) * kAtOnce<L>;
      const double* x = p.table + from.from + int64_t(from.parts > 1 ? part : 0) * p.points * from.dim;
      for (int s = 0; s < kAtOnce<L>; ++s)
        for (int i = lane_id(); i < from.dim; i += 32)
          m[u * p.step + from.at + i * kStride<L> + s] =
              point + s < p.points ? static_cast<float>(x[int64_t(point + s) * from.dim + i]) : 0.0f;
    }
}

// ---- points --------------------------------------------------------------------------------------------------------

template <int L> using AtPoints = float[kMirrors][kAtOnce<L>];  // by parity, or by image

// Values by parity to values at the eight images, and, since it is symmetric, back.
template <int n>
__device__ __forceinline__ void mirror(float (&v)[kMirrors][n]) {
#pragma unroll
  for (int half = 1; half < kMirrors; half *= 2)
#pragma unroll
    for (int i = 0; i < kMirrors; ++i)
      if (!(i & half))
#pragma unroll
        for (int s = 0; s < n; ++s) {
          const float a = v[i][s], b = v[i + half][s];
          v[i][s] = a + b;
          v[i + half][s] = a - b;
        }
}

// u = M x, by parity. xs: the tile's columns, of which this is the j-th.
template <int L>
__device__ __forceinline__ void to_points(AtPoints<L>& u, const float* xs, int width, int j, int dim, const float* m) {
#pragma unroll
  for (int c = 0; c < kMirrors; ++c)
#pragma unroll
    for (int s = 0; s < kAtOnce<L>; ++s) u[c][s] = 0.0f;
#pragma unroll
  for (int l = 0; l <= L; ++l) {
    if (l * l >= dim) break;
    const float* x = xs + width * l * l + j * (2 * l + 1);
#pragma unroll
    for (int k = 0; k <= 2 * l; ++k) {
      const float value = x[k];
      const auto w = load_pack<kStride<L>>(m + (l * l + k) * kStride<L>);
#pragma unroll
      for (int s = 0; s < kAtOnce<L>; ++s) u[parity(l, k - l)][s] += w[s] * value;
    }
  }
}

// sum += M^T v, by parity.
template <int L>
__device__ __forceinline__ void from_points(float (&sum)[(L + 1) * (L + 1)], const AtPoints<L>& v, int dim, const float* m) {
#pragma unroll
  for (int l = 0; l <= L; ++l) {
    if (l * l >= dim) break;
#pragma unroll
    for (int k = 0; k <= 2 * l; ++k) {
      const auto w = load_pack<kStride<L>>(m + (l * l + k) * kStride<L>);
#pragma unroll
      for (int s = 0; s < kAtOnce<L>; ++s) sum[l * l + k] += w[s] * v[parity(l, k - l)][s];
    }
  }
}

// The product of all factors at the images of a block of points, by parity. m: the block's matrices; signs: three bits.
template <int L>
__device__ __forceinline__ void multiply(const Problem& p, AtPoints<L>& v, const float* shared, int j, const float* m,
                                         int signs) {
#pragma unroll
  for (int c = 0; c < kMirrors; ++c) {
    const int common = signs & c;
    const float sign = (common ^ common >> 1 ^ common >> 2) & 1 ? -p.scale : p.scale;
#pragma unroll
    for (int s = 0; s < kAtOnce<L>; ++s) v[c][s] = sign;
  }
#pragma unroll 1
  for (int n = 0; n < p.factors; ++n) {
    const Factor& f = p.factor[n];
    AtPoints<L> u;
    to_points<L>(u, shared + f.at, p.width, j, f.dim, m + f.matrix);
    mirror(u);
#pragma unroll 1
    for (int e = 0; e < f.power; ++e)
#pragma unroll
      for (int c = 0; c < kMirrors; ++c)
#pragma unroll
        for (int s = 0; s < kAtOnce<L>; ++s) v[c][s] *= u[c][s];
  }
  mirror(v);
}

// A block takes tiles of `width` columns; the threads of a column share its points, and add what they have in order.
template <int L>
__global__ void __launch_bounds__(kThreads, kBlocks<L>) point_product_kernel(ACE_ARGUMENT(Problem) p) {
  float* const shared = dynamic_shared<float>();
  const int j = threadIdx.x % p.width, group = threadIdx.x / p.width, groups = kThreads / p.width;
  float* const ys = shared + p.stage;
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const Tile t(p, tile);
    for (int n = 0; n < p.factors; ++n) copy_in(p, t, p.factor[n], shared + p.factor[n].at);
    copy_commit();
    float sum[(L + 1) * (L + 1)] = {};
    for (int first = 0; first < p.blocks; first += p.chunk) {
      const int count = p.blocks - first < p.chunk ? p.blocks - first : p.chunk;
      if (p.chunk < p.blocks || tile == blockIdx.x) {
        if (first) __syncthreads();  // nobody reads the last ones
        load_matrices<L>(p, first, count, shared);
      }
      copy_wait<0>();
      __syncthreads();
#pragma unroll 1
      for (int u = group; u < count; u += groups) {
        AtPoints<L> v;
        const float* m = shared + u * p.step;
        multiply<L>(p, v, shared, j, m, p.signs >> 3 * ((first + u) / (p.blocks / p.parts)) & 7);
        from_points<L>(sum, v, p.dim, m + p.matrix);
      }
    }
    for (int g = 0; g < groups; ++g) {
      __syncthreads();  // before the first: nobody reads the columns
      if (g != group) continue;
#pragma unroll
      for (int l = 0; l <= L; ++l) {
        if (l * l >= p.dim) break;
        float* y = ys + p.width * l * l + j * (2 * l + 1);
#pragma unroll
        for (int k = 0; k <= 2 * l; ++k) y[k] = g == 0 ? sum[l * l + k] : y[k] + sum[l * l + k];
      }
    }
    __syncthreads();
    copy_out(p, t, ys);
    __syncthreads();
  }
}

}  // namespace ace::sphere
