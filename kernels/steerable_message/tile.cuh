// A steerable product of 16 edges by one block: t[b, z, column] = sum_a x[z, a] M[z, a, b] for the columns (path, v,
// channel) of a slice of the result, in shared memory, times the weights [column, channel]. float32 runs on the tensor
// cores by three TF32 products of parts, or one of TF32 or bfloat16 where torch's switch allows it, float64 by FMA.
#pragma once

#include "tensor_product/product.cuh"

namespace ace::message {

using product::Coefficients;
using product::dense_size;
using product::Path;
using product::Role;

constexpr int kEdges = 16, kThreads = 256, kWarps = kThreads / 32, kWide = 8 * kWarps;  // kWide: channels at a time

// Paths by the slice of out that they reach; by_in: the same by the slice of in1.
struct Table {
  const Path* path;
  const unsigned char* by_in;
  int count, dim1, dim3;
};

template <Role role>
__device__ __forceinline__ const Path& path_at(const Table& table, int n) {
  return table.path[role == Role::forward ? n : table.by_in[n]];
}

// The slice that is read (a) and the one that is written (b) by a path.
template <Role role>
struct Ends {
  int a_offset, a_mul, a_d, b_offset, b_mul, b_d;
  __host__ __device__ explicit Ends(const Path& p)
      : a_offset(role == Role::forward ? p.o1 : p.o3), a_mul(role == Role::forward ? p.U : p.W),
        a_d(role == Role::forward ? p.d1 : p.d3), b_offset(role == Role::forward ? p.o3 : p.o1),
        b_mul(role == Role::forward ? p.W : p.U), b_d(role == Role::forward ? p.d3 : p.d1) {}
};

// One column of t: its offset in a row of x, its M, its components, and where its weights lie: weight + n * stride.
struct Column { int x, m, rows, weight, stride; };

// Shared memory of a product.
template <class T>
struct Space {
  T *m, *t;         // [cells][kEdges], [components][kEdges][columns + 4]
  Column* columns;  // two lists of `most`
  int t_size, most;
  int turn = 0;     // which of the lists
};

// Part of a slice of the result: its paths, first component and channel.
struct Job { int first, end, component, channel; };

// The columns of t that fit: a multiple of 8.
template <class T>
__device__ __forceinline__ int columns_at_once(const Space<T>& space, int components) {
  const int fit = space.t_size / (components * kEdges) - 4;
  return (fit < space.most ? fit : space.most) / 8 * 8;
}

// ---- what a product is made of -------------------------------------------------------------------------------------

// M of all paths of a job: cells (path, v, a, b < DB), each for kEdges edges. dense: coefficients [i, k, j] of each path,
// one after the other; attr [kEdges][ld_attr].
template <class T, Role role, int DB>
__device__ void couple(const Table& table, const Job& job, const T* dense, const T* attr, int ld_attr, T* m) {
  for (int n = job.first; n < job.end; ++n) {
    const Path& p = path_at<role>(table, n);
    const T* c = dense;
    for (const Path* q = table.path; q != &p; ++q) c += dense_size(*q);
    const Ends<role> ends(p);
    const int cells = p.V * ends.a_d * DB;
    for (int item = threadIdx.x; item < cells * kEdges; item += kThreads) {
      const int z = item % kEdges, cell = item / kEdges, b = job.component + cell % DB, a = cell / DB % ends.a_d;
      const int v = cell / (DB * ends.a_d);
      T value = T(0);
      if (b < ends.b_d) {
        const T *from = c + (role == Role::forward ? a * p.d3 + b : b * p.d3 + a) * p.d2;
        const T* x2 = attr + z * ld_attr + p.o2 + v * p.d2;
        for (int j = 0; j < p.d2; ++j) value += from[j] * x2[j];
      }
      m[item] = value;
    }
    m += cells * kEdges;
  }
}

// The columns first .. first + most - 1 of a job; beyond its end they have no rows. Returns how many a job has.
template <Role role, int DB>
__device__ int list_columns(const Table& table, const Job& job, int first, int most, Column* columns) {
  int total = 0;
  for (int n = job.first; n < job.end; ++n) {
    const Path& p = path_at<role>(table, n);
    total += p.V * Ends<role>(p).a_mul;
  }
  for (int c = threadIdx.x; c < most; c += kThreads) {
    Column found{0, 0, 0, -1, 0};
    int left = first + c, m = 0;
    for (int n = job.first; n < job.end && left >= 0; ++n) {
      const Path& p = path_at<role>(table, n);
      const Ends<role> ends(p);
      if (left < p.V * ends.a_mul) {
        const int v = left / ends.a_mul, a = left % ends.a_mul;
        found = {ends.a_offset + a * ends.a_d, m + v * ends.a_d * DB, ends.a_d,
                 role == Role::forward ? p.weight + (a * p.V + v) * p.W : p.weight + v * p.W + a,
                 role == Role::forward ? 1 : p.V * p.W};
      }
      left -= p.V * ends.a_mul;
      m += p.V * ends.a_d * DB;
    }
    columns[c] = found;
  }
  return total;
}

// t[b, z, c]; a warp takes an edge, its lanes the columns.
template <class T, int DB>
__device__ void form(const Space<T>& space, const Column* columns, int count, const T* x, int ld_x) {
  const int stride = count + 4;
  for (int z = threadIdx.x / 32; z < kEdges; z += kWarps)
    for (int c = lane_id(); c < count; c += 32) {
      const Column column = columns[c];
      T value[DB] = {};
      for (int a = 0; a < column.rows; ++a) {
        const T from = x[z * ld_x + column.x + a];
        const T* m = space.m + (column.m + a * DB) * kEdges + z;
#pragma unroll
        for (int b = 0; b < DB; ++b) value[b] += from * m[b * kEdges];
      }
#pragma unroll
      for (int b = 0; b < DB; ++b) space.t[(b * kEdges + z) * stride + c] = value[b];
    }
}

// ---- products of tiles ---------------------------------------------------------------------------------------------
// A warp has a tile of 16 rows and 8 channels; a lane has four of its elements.

template <class T> __device__ __forceinline__ int tile_row(int i);
template <class T> __device__ __forceinline__ int tile_channel(int i);
template <> __device__ __forceinline__ int tile_row<float>(int i) { return lane_id() / 4 + i / 2 * 8; }
template <> __device__ __forceinline__ int tile_channel<float>(int i) { return lane_id() % 4 * 2 + i % 2; }
template <> __device__ __forceinline__ int tile_row<double>(int i) { return lane_id() / 8 + i * 4; }
template <> __device__ __forceinline__ int tile_channel<double>(int) { return lane_id() % 8; }

// Which tile of channels a warp has, and which share of what else there is to do where there are fewer than kWarps tiles.
struct Share {
  int tile, tiles, group, groups;
  __device__ explicit Share(int width) {
    const int warp = threadIdx.x / 32;
    tiles = (width + 7) / 8;
    groups = kWarps / tiles;
    tile = warp % tiles;
    group = warp / tiles < groups ? warp / tiles : -1;  // none for the warps left over
  }
};

// sum[b] += t[b] (16 x count) times weights (count x 8); components b of the warp's group alone. channel .. end - 1: those
// of the job.
template <int DB>
__device__ void multiply(float (&sum)[DB][4], const Share& share, const float* t, const Column* columns, int count,
                         const float* weight, int channel, int end, Precision precision) {
  const bool bf16 = precision == Precision::medium;
  const int g = lane_id() / 4, k = lane_id() % 4, n = channel + share.tile * 8 + g, stride = count + 4;
  float next[2][2];  // weights come from L2: the next ones are asked for before these are used
  const auto fetch = [&](int first) {
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int c = first + s * 8 + (bf16 ? 2 * k + h : k + h * 4);
        const bool there = c < count && n < end && columns[c].weight >= 0;
        next[s][h] = there ? __ldg(weight + columns[c].weight + n * columns[c].stride) : 0.0f;
      }
  };
  fetch(0);
#pragma unroll 1
  for (int first = 0; first < count; first += 16) {
    uint32_t big[2][2], small[2][2];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int h = 0; h < 2; ++h) split_tf32(next[s][h], big[s][h], small[s][h]);
    const uint32_t w[2] = {pack_bf16(next[0][0], next[0][1]), pack_bf16(next[1][0], next[1][1])};
    fetch(first + 16);
#pragma unroll
    for (int b = 0; b < DB; ++b) {
      if (b % share.groups != share.group) continue;
      float main[4] = {}, rest[4] = {};
      if (bf16) {
        const float* x = t + (b * kEdges + g) * stride + first + 2 * k;
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* from = x + i % 2 * 8 * stride + i / 2 * 8;
          a[i] = i < 2 || first + 8 < count ? pack_bf16(from[0], from[1]) : 0;
        }
        mma_bf16(main, a, w);
      }
#pragma unroll
      for (int s = 0; s < 2 && !bf16; ++s) {
        if (first + s * 8 >= count) break;
        uint32_t a[4], a_small[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          split_tf32(t[(b * kEdges + g + i % 2 * 8) * stride + first + s * 8 + k + i / 2 * 4], a[i], a_small[i]);
        mma_tf32(main, a, big[s]);
        if (precision == Precision::high) continue;
        mma_tf32(rest, a_small, big[s]);
        mma_tf32(rest, a, small[s]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[b][i] += main[i] + rest[i];
    }
  }
}

template <int DB>
__device__ void multiply(double (&sum)[DB][4], const Share& share, const double* t, const Column* columns, int count,
                         const double* weight, int channel, int end, Precision) {
  const int n = channel + share.tile * 8 + tile_channel<double>(0), stride = count + 4;
  if (n >= end) return;
  for (int c = 0; c < count && columns[c].weight >= 0; ++c) {
    const double w = __ldg(weight + columns[c].weight + n * columns[c].stride);
#pragma unroll
    for (int b = 0; b < DB; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (b % share.groups == share.group) sum[b][i] += t[(b * kEdges + tile_row<double>(i)) * stride + c] * w;
  }
}

// Gradient of the weights of 16 columns from `first` on: sum over b < components and z of t[b, z, c] g[z, n, b].
// g: the first channel's first component in a row of gradients, channels `step` apart.
template <int DB>
__device__ void multiply_transposed(float (&sum)[4], const Share& share, const float* t, int count, int first,
                                    const float* g, int ld_g, int step, int components, int width,
                                    Precision precision) {
  const int row = lane_id() / 4, k = lane_id() % 4, n = share.tile * 8 + row, stride = count + 4;
  const auto left = [&](int b, int z, int c) { return c < count ? t[(b * kEdges + z) * stride + c] : 0.0f; };
  const auto right = [&](int b, int z) { return n < width ? g[z * ld_g + n * step + b] : 0.0f; };
#pragma unroll 1
  for (int b = 0; b < components; ++b) {
    float main[4] = {}, rest[4] = {};
    uint32_t a[4], a_small[4], w[2], w_small[2];
    if (precision == Precision::medium) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int z = 2 * k + i / 2 * 8, c = first + row + i % 2 * 8;
        a[i] = pack_bf16(left(b, z, c), left(b, z + 1, c));
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) w[h] = pack_bf16(right(b, 2 * k + 8 * h), right(b, 2 * k + 8 * h + 1));
      mma_bf16(main, a, w);
    }
#pragma unroll
    for (int s = 0; s < 2 && precision != Precision::medium; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        split_tf32(left(b, s * 8 + k + i / 2 * 4, first + row + i % 2 * 8), a[i], a_small[i]);
#pragma unroll
      for (int h = 0; h < 2; ++h) split_tf32(right(b, s * 8 + k + h * 4), w[h], w_small[h]);
      mma_tf32(main, a, w);
      if (precision == Precision::high) continue;
      mma_tf32(rest, a_small, w);
      mma_tf32(rest, a, w_small);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += main[i] + rest[i];
  }
}

template <int DB>
__device__ void multiply_transposed(double (&sum)[4], const Share& share, const double* t, int count, int first,
                                    const double* g, int ld_g, int step, int components, int width, Precision) {
  const int n = share.tile * 8 + tile_channel<double>(0), stride = count + 4;
  if (n >= width) return;
  for (int b = 0; b < components; ++b)
    for (int z = 0; z < kEdges; ++z) {
      const double w = g[z * ld_g + n * step + b];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = first + tile_row<double>(i);
        if (c < count) sum[i] += t[(b * kEdges + z) * stride + c] * w;
      }
    }
}

// ---- products ------------------------------------------------------------------------------------------------------

// What is multiplied: rows x [kEdges][ld_x], attributes, dense coefficients and weights of the table.
template <class T>
struct Factors {
  const T* x;
  int ld_x;
  const T* attr;
  int ld_attr;
  const T *dense, *weight;
  Precision precision;
};

// Runs f(columns, count) for the columns of a job, as many at a time as fit, their t formed. All threads take part; there
// is no barrier after the last f.
template <class T, Role role, int DB, class F>
__device__ void run_job(const Table& table, const Job& job, Space<T>& space, const Factors<T>& in, F&& f) {
  const int most = columns_at_once(space, DB);
  int first = 0, total;
  do {
    Column* columns = space.columns + space.turn * space.most;
    space.turn ^= 1;
    if (first == 0) couple<T, role, DB>(table, job, in.dense, in.attr, in.ld_attr, space.m);
    total = list_columns<role, DB>(table, job, first, most, columns);
    const int count = total - first < most ? (total - first + 7) / 8 * 8 : most;
    __syncthreads();  // M and the columns are there, and nobody reads the last t
    form<T, DB>(space, columns, count, in.x, in.ld_x);
    __syncthreads();
    f(columns, count);
    first += most;
  } while (first < total);
}

// f.template operator()<DB>(job) for every part of every slice that the table reaches.
template <Role role, class F>
__device__ void for_jobs(const Table& table, F&& f) {
  for (int first = 0, end; first < table.count; first = end) {
    const Ends<role> ends(path_at<role>(table, first));
    for (end = first + 1; end < table.count; ++end)
      if (Ends<role>(path_at<role>(table, end)).b_offset != ends.b_offset) break;
    for (int channel = 0; channel < ends.b_mul; channel += kWide)
      for (int component = 0; component < ends.b_d; component += 5) {
        const Job job{first, end, component, channel};
        if (ends.b_d == 1) f.template operator()<1>(job);
        else if (ends.b_d == 3) f.template operator()<3>(job);
        else f.template operator()<5>(job);
      }
  }
}

__device__ __forceinline__ int end_of(int channel, int channels) {
  return channels - channel < kWide ? channels : channel + kWide;
}

// y [kEdges][ld_y] += the product (role gradient: of gradients of its result with the weights transposed). y was written
// before a barrier; the block needs one before it reads y.
template <class T, Role role>
__device__ void multiply_add(const Table& table, Space<T>& space, const Factors<T>& in, T* y, int ld_y) {
  for_jobs<role>(table, [&]<int DB>(const Job& job) {
    const Ends<role> ends(path_at<role>(table, job.first));
    const int end = end_of(job.channel, ends.b_mul);
    const Share share(end - job.channel);
    T sum[DB][4] = {};
    run_job<T, role, DB>(table, job, space, in, [&](const Column* columns, int count) {
      if (share.group >= 0)
        multiply<DB>(sum, share, space.t, columns, count, in.weight, job.channel, end, in.precision);
    });
    if (share.group < 0) return;
#pragma unroll
    for (int b = 0; b < DB; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = job.channel + share.tile * 8 + tile_channel<T>(i);
        if (b % share.groups == share.group && n < end && job.component + b < ends.b_d)
          y[tile_row<T>(i) * ld_y + ends.b_offset + n * ends.b_d + job.component + b] += sum[b][i];
      }
  });
}

// The gradient of the weights from that of the product, g [kEdges][ld_g]: written, or added, at `part`.
template <class T>
__device__ void weight_gradient(const Table& table, Space<T>& space, const Factors<T>& in, const T* g, int ld_g, T* part,
                                bool add) {
  for_jobs<Role::forward>(table, [&]<int DB>(const Job& job) {
    const Ends<Role::forward> ends(table.path[job.first]);
    const int end = end_of(job.channel, ends.b_mul), components = ends.b_d - job.component < DB ? ends.b_d - job.component : DB;
    const Share share(end - job.channel);
    const T* from = g + ends.b_offset + job.channel * ends.b_d + job.component;
    const bool more = add || job.component > 0;
    run_job<T, Role::forward, DB>(table, job, space, in, [&](const Column* columns, int count) {
      if (share.group < 0) return;
      for (int first = share.group * 16; first < count; first += share.groups * 16) {
        T sum[4] = {};
        multiply_transposed<DB>(sum, share, space.t, count, first, from, ld_g, ends.b_d, components, end - job.channel,
                                in.precision);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = first + tile_row<T>(i), n = job.channel + share.tile * 8 + tile_channel<T>(i);
          if (c >= count || columns[c].weight < 0 || n >= end) continue;
          T* to = part + columns[c].weight + n;
          *to = more ? *to + sum[i] : sum[i];
        }
      }
    });
  });
}

}  // namespace ace::message
