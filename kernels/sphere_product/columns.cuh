// What the kernels of products at points are given, and columns (a row and channel each) between global and shared
// memory. There component (l, m) of column j lies at width l^2 + j (2l + 1) + l + m, as a row of mul_ir has it, or at
// width (l^2 + l + m) + j, in planes, as ir_mul has it: an odd number from its neighbours: lanes meet in no bank.
#pragma once

#include "native.cuh"
#include "sphere_product/slots.h"

namespace ace::sphere {

constexpr int kThreads = 128, kDegrees = 10, kFewChannels = 8;
constexpr int kFactors = 7, kMatrices = 9, kComponents = (kDegrees + 1) * (kDegrees + 1);  // factors: six inputs and g

// What is multiplied at the points: x [rows, channels of dim], to a power.
struct Factor {
  const void* x;
  int64_t row;             // values from a row to the next, 0 where all have one
  int channels, dim, power;
  int at, matrix;          // where its columns and its matrix lie
};

// The sum over the points, times `scale`: y [rows, channels of dim].
struct Result {
  void* y;
  float scale;
  int dim, at, matrix;
};

// A matrix [parts or 1, points, dim] of the table, and where it lies among those of a few points.
struct Matrix {
  int64_t from;
  int dim, parts, at;
};

struct Problem {
  int64_t columns;
  const double* table;
  int tiles, channels, factors, matrices, points, rings, parts;
  int blocks, chunk;       // blocks of points, of all parts; how many of them fit
  int signs;               // three bits a part: how derivatives change the parity of the product
  int width, step;         // columns of a tile; matrices of a block of points
  bool ir_mul, planes, half;
  Factor factor[kFactors];
  Result result[2];
  Matrix from[kMatrices];
};

// The degree of every component.
struct Degrees {
  unsigned char* of;
  __device__ explicit Degrees(unsigned char* shared) : of(shared) {
    for (int i = threadIdx.x; i < kComponents; i += blockDim.x) {
      int l = 0;
      while ((l + 1) * (l + 1) <= i) ++l;
      of[i] = static_cast<unsigned char>(l);
    }
    __syncthreads();
  }
};

// The columns of a tile: `count` from channel `channel` of row `row` on.
struct Tile {
  int64_t row;
  int channel, count;
  __device__ Tile(const Problem& p, int tile) {
    const int64_t first = int64_t(tile) * p.width;
    row = first / p.channels;
    channel = static_cast<int>(first - row * p.channels);
    count = static_cast<int>(p.columns - first < p.width ? p.columns - first : p.width);
  }
};

// Calls move(from, to, step, count, lane, lanes): `count` neighbours in global memory, `step` apart in shared memory,
// which `lanes` threads share.
template <class Move>
__device__ __forceinline__ void walk(const Problem& p, const Tile& t, const Degrees& degrees, int64_t row, int channels,
                                     int dim, Move&& move) {
  const int C = p.channels;
  if (channels == C && C >= kFewChannels) {  // a warp takes what a row has of a degree, or of a component
    const int blocks = p.ir_mul ? dim : degrees.of[dim - 1] + 1, rows = (t.channel + t.count + C - 1) / C;
#pragma unroll 1
    for (int q = threadIdx.x / 32; q < rows * blocks; q += blockDim.x / 32) {
      const int r = q / blocks, b = q - r * blocks, l = p.ir_mul ? degrees.of[b] : b, w = 2 * l + 1;
      const int first = r == 0 ? 0 : r * C - t.channel;  // the row's columns in the tile
      const int end = (r + 1) * C - t.channel < t.count ? (r + 1) * C - t.channel : t.count;
      const int c = first + t.channel - r * C, to = p.width * l * l + first * w;
      const int64_t from = (t.row + r) * row + (p.ir_mul ? int64_t(C) * b + c : int64_t(C) * l * l + int64_t(c) * w);
      if (p.ir_mul) move(from, to + b - l * l, w, end - first, lane_id(), 32);
      else move(from, to, 1, (end - first) * w, lane_id(), 32);
    }
    return;
  }
  const int by_j = blockDim.x / dim, by_i = blockDim.x % dim;
  int j = threadIdx.x / dim, i = threadIdx.x - j * dim;
#pragma unroll 1
  while (j < t.count) {
    const int l = degrees.of[i], m = i - l * l, w = 2 * l + 1, r = C == 1 ? j : (t.channel + j) / C;
    const int c = channels == 1 ? 0 : t.channel + j - r * C;
    const int64_t inside = p.ir_mul ? int64_t(channels) * i + c : int64_t(channels) * l * l + c * w + m;
    move((t.row + r) * row + inside, p.width * l * l + j * w + m, 1, 1, 0, 1);
    j += by_j;
    i += by_i;
    if (i >= dim) i -= dim, ++j;
  }
}

__device__ __forceinline__ bool aligned(const void* a, const void* b, int count) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) & 15) == 0 && count % 4 == 0;
}

// Calls move(from, to, count) for the parts of a tile's planes, `count` neighbours both in global and in shared memory.
template <class Move>
__device__ __forceinline__ void walk_planes(const Problem& p, const Tile& t, int64_t row, int channels, int dim,
                                            bool vectors, Move&& move) {
  const int count = vectors ? 4 : 1, j = threadIdx.x * count % p.width;
  if (j >= t.count) return;
  const int r = (t.channel + j) / p.channels, c = channels == 1 ? 0 : t.channel + j - r * p.channels;
  const int64_t from = (t.row + r) * row + c;
#pragma unroll 4
  for (int i = threadIdx.x * count / p.width; i < dim; i += blockDim.x * count / p.width)
    move(from + int64_t(i) * channels, i * p.width + j, count);
}

__device__ __forceinline__ bool in_vectors(const Problem& p, const void* x, int channels) {
  return !p.half && channels % 4 == 0 && (reinterpret_cast<uintptr_t>(x) & 15) == 0;
}

// Whether a tile is a row of mul_ir, which lies in shared memory as it does in global memory.
__device__ __forceinline__ bool is_row(const Problem& p, int channels) {
  return p.width == p.channels && channels == p.channels && !p.ir_mul && !p.half;
}

// Starts the copies of a factor's columns.
__device__ __forceinline__ void copy_in(const Problem& p, const Tile& t, const Degrees& degrees, const Factor& f,
                                        float* xs) {
  if (is_row(p, f.channels)) {
    const float* x = static_cast<const float*>(f.x) + t.row * f.row;
    const int count = p.width * f.dim;
    if (aligned(x, xs, count))
#pragma unroll 4
      for (int e = 4 * threadIdx.x; e < count; e += 4 * blockDim.x) copy_async<16>(xs + e, x + e);
    else
#pragma unroll 4
      for (int e = threadIdx.x; e < count; e += blockDim.x) copy_async<4>(xs + e, x + e);
    return;
  }
  if (p.planes) {
    walk_planes(p, t, f.row, f.channels, f.dim, in_vectors(p, f.x, f.channels), [&](int64_t from, int to, int count) {
      const float* x = static_cast<const float*>(f.x) + from;
      if (p.half) xs[to] = float_of(uint32_t(static_cast<const uint16_t*>(f.x)[from]) << 16);
      else if (count == 4) copy_async<16>(xs + to, x);
      else copy_async<4>(xs + to, x);
    });
    return;
  }
  walk(p, t, degrees, f.row, f.channels, f.dim, [&](int64_t from, int to, int step, int count, int lane, int lanes) {
    const float* x = static_cast<const float*>(f.x) + from;
    if (p.half) {
#pragma unroll 1
      for (int e = lane; e < count; e += lanes)
        xs[to + e * step] = float_of(uint32_t(static_cast<const uint16_t*>(f.x)[from + e]) << 16);
    } else if (step == 1 && aligned(x, xs + to, count)) {
#pragma unroll 1
      for (int e = 4 * lane; e < count; e += 4 * lanes) copy_async<16>(xs + to + e, x + e);
    } else {
#pragma unroll 1
      for (int e = lane; e < count; e += lanes) copy_async<4>(xs + to + e * step, x + e);
    }
  });
}

__device__ __forceinline__ void copy_out(const Problem& p, const Tile& t, const Degrees& degrees, const Result& result,
                                         const float* ys) {
  if (is_row(p, p.channels)) {
    const int count = p.width * result.dim;
    float* y = static_cast<float*>(result.y) + t.row * count;
    if (aligned(y, ys, count))
#pragma unroll 4
      for (int e = 4 * threadIdx.x; e < count; e += 4 * blockDim.x) store_pack(y + e, load_pack<4>(ys + e));
    else
#pragma unroll 4
      for (int e = threadIdx.x; e < count; e += blockDim.x) y[e] = ys[e];
    return;
  }
  if (p.planes) {
    walk_planes(p, t, int64_t(p.channels) * result.dim, p.channels, result.dim, in_vectors(p, result.y, p.channels),
                [&](int64_t from, int to, int count) {
                  float* y = static_cast<float*>(result.y) + from;
                  if (p.half) static_cast<uint16_t*>(result.y)[from] = static_cast<uint16_t>(pack_bf16(ys[to], 0.0f));
                  else if (count == 4) store_pack(y, load_pack<4>(ys + to));
                  else *y = ys[to];
                });
    return;
  }
  walk(p, t, degrees, int64_t(p.channels) * result.dim, p.channels, result.dim,
       [&](int64_t from, int to, int step, int count, int lane, int lanes) {
         float* y = static_cast<float*>(result.y) + from;
         if (p.half) {
#pragma unroll 1
           for (int e = lane; e < count; e += lanes)
             static_cast<uint16_t*>(result.y)[from + e] = static_cast<uint16_t>(pack_bf16(ys[to + e * step], 0.0f));
         } else if (step == 1 && aligned(y, ys + to, count)) {
#pragma unroll 2
           for (int e = 4 * lane; e < count; e += 4 * lanes) store_pack(y + e, load_pack<4>(ys + to + e));
         } else {
#pragma unroll 2
           for (int e = lane; e < count; e += lanes) y[e] = ys[to + e * step];
         }
       });
}

// The matrices of blocks of points: of each block all of them, [component][at_once].
template <int at_once>
__device__ __forceinline__ void load_matrices(const Problem& p, int first, int count, float* m) {
  const int each = p.blocks / p.parts;
#pragma unroll 1
  for (int q = 0; q < p.matrices; ++q) {
    const Matrix& from = p.from[q];
#pragma unroll 8
    for (int e = threadIdx.x; e < count * at_once * from.dim; e += blockDim.x) {
      const int row = e / from.dim, i = e - row * from.dim, u = row / at_once, s = row % at_once;
      const int part = (first + u) / each, point = (first + u - part * each) * at_once + s;
      const int64_t at = (from.parts > 1 ? int64_t(part) * p.points : 0) + point;
      m[u * p.step + from.at + i * at_once + s] =
          point < p.points ? static_cast<float>(p.table[from.from + at * from.dim + i]) : 0.0f;
    }
  }
}

// x, of which the compiler knows nothing: addresses of it are made where they are used, and hold no registers before.
__device__ __forceinline__ int opaque(int x) {
#if !defined(ACE_EMULATE)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// A result's columns in shared memory: the sums of the threads of a column, added in order. Ends with a barrier.
template <int L>
__device__ __forceinline__ void add_columns(const Problem& p, const Result& result,
                                            const float (&sum)[(L + 1) * (L + 1)], float* shared, int j, int group) {
#pragma unroll 1
  for (int g = 0; g < static_cast<int>(blockDim.x) / p.width; ++g) {
    if (g == group)
#pragma unroll
      for (int l = 0; l <= L; ++l) {
        if (l * l >= result.dim) break;
        float* y = shared + result.at + p.width * l * l + (p.planes ? j : j * (2 * l + 1));
        const int step = p.planes ? p.width : 1;
#pragma unroll
        for (int k = 0; k <= 2 * l; ++k, y += step) *y = g == 0 ? sum[l * l + k] : *y + sum[l * l + k];
      }
    __syncthreads();
  }
}

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

// f(i, l, k, w): for component i = l^2 + k, that of order k - l, with w = m[i], read four at a time.
template <int L, class F>
__device__ __forceinline__ void each_component(const float* m, F f) {
  Pack<float, 4> w;
#pragma unroll
  for (int l = 0; l <= L; ++l)
#pragma unroll
    for (int k = 0; k <= 2 * l; ++k) {
      const int i = l * l + k;
      if (i % 4 == 0) w = load_pack<4>(m + i);
      f(i, l, k, w[i % 4]);
    }
}

}  // namespace ace::sphere
