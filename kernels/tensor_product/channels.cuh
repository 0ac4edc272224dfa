// The channel-wise product ("uvu") with shared weights, weights of every row or none, and its gradients: a warp takes a
// row, its lanes the channels, 32 G at a time. M[a, b] of product.cuh is formed once for a row, a path and a channel of
// x2 and read by all lanes, so that a channel costs d1 d3 multiplications a path whatever the degrees. Components of
// the slice that is written are unrolled (DB at once), those of the slice that is read are a loop.
#pragma once

#include "general.cuh"

namespace ace::product {

constexpr int kWarps = 4, kChannelPaths = 48, kChannelSpace = 2048;  // of a block; of a launch; dense coefficients

// Paths of one slice of the output, or of in1 for the gradients, lie together; `first` marks the first of a slice.
struct ChannelPaths {
  int count;
  Path path[kChannelPaths];
  bool add[kChannelPaths];  // the slice has been written before
};

// Values of shared memory: dense coefficients of a block; staged channels, M and a buffer of each warp.
struct ChannelSpace { int dense, staged, m, buffer; };

template <class T>
struct Warp {
  T *staged, *m, *buffer;
  int lane;

  __device__ Warp(T* shared, const ChannelSpace& space) : lane(lane_id()) {
    staged = shared + space.dense + threadIdx.x / 32 * (space.staged + space.m + space.buffer);
    m = staged + space.staged;
    buffer = m + space.m;
  }
};

// M[a, b < DB] for one row, path and channel of x2; barriers of the warp around it.
template <class T, Role role, int DB>
__device__ __forceinline__ void couple_row(const Warp<T>& warp, const T* dense, const Path& p, const T* x2, bool ir_mul, int v,
                           int component) {
  const int rows = rows_of<role>(p), columns = columns_of<role>(p);
  const T* x = x2 + column(p.o2, p.V, p.d2, ir_mul, v, 0);
  __syncwarp();
#pragma unroll 1
  for (int cell = warp.lane; cell < rows * DB; cell += 32) {
    const int a = cell / DB, b = cell % DB + component;
    warp.m[cell] = b < columns ? couple(dense, a * columns + b, p.d2, x, ir_mul ? p.V : 1) : T(0);
  }
  __syncwarp();
}

// Channels from one on of a slice: component a of the n-th lies at data[n * step + a * stride].
template <class T>
struct Channels {
  const T* data;
  int step, stride, count, d;

  __device__ T at(int n, int a) const { return n < count ? data[n * step + a * stride] : T(0); }
};

// The channels of a slice of row x from `first` on, at most 32 G: where they lie apart, through shared memory.
template <int G, class T>
__device__ __forceinline__ Channels<T> stage(const Warp<T>& warp, const T* x, int offset, int mul, int d, bool ir_mul, int first) {
  const int count = mul - first < 32 * G ? mul - first : 32 * G;
  x += column(offset, mul, d, ir_mul, first, 0);
  if (ir_mul || d == 1) return {x, 1, mul, count, d};
  __syncwarp();
#pragma unroll 4
  for (int n = warp.lane; n < count * d; n += 32) warp.staged[n] = x[n];
  __syncwarp();
  return {warp.staged, d, 1, count, d};
}

// value[g, b] = sum_a x[channel lane + 32 g, a] M[a, b]
template <class T, int G, int DB>
__device__ __forceinline__ void contract(T (&value)[G][DB], const Warp<T>& warp, const Channels<T>& x) {
#pragma unroll
  for (int g = 0; g < G; ++g)
#pragma unroll
    for (int b = 0; b < DB; ++b) value[g][b] = T(0);
#pragma unroll 2
  for (int a = 0; a < x.d; ++a) {
    T row[DB];
#pragma unroll
    for (int b = 0; b < DB; ++b) row[b] = warp.m[a * DB + b];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const T xa = x.at(warp.lane + 32 * g, a);
#pragma unroll
      for (int b = 0; b < DB; ++b) value[g][b] += xa * row[b];
    }
  }
}

// to[slice] (+)= value, components from `component` on; through the buffer where that makes neighbours of the lanes'.
template <class T, int G, int DB>
__device__ __forceinline__ void store_channels(const Warp<T>& warp, const T (&value)[G][DB], T* to, int offset, int mul, int d,
                               bool ir_mul, int first, int component, bool add) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int begin = first + 32 * g, channels = mul - begin < 32 ? mul - begin : 32;
    if (channels <= 0) break;
    if (ir_mul || d != DB) {
#pragma unroll
      for (int b = 0; b < DB; ++b)
        if (warp.lane < channels && component + b < d) {
          T* at = to + column(offset, mul, d, ir_mul, begin + warp.lane, component + b);
          *at = add ? *at + value[g][b] : value[g][b];
        }
      continue;
    }
    __syncwarp();
#pragma unroll
    for (int b = 0; b < DB; ++b) warp.buffer[warp.lane * DB + b] = value[g][b];
    __syncwarp();
    T* at = to + offset + begin * DB;
#pragma unroll 1
    for (int n = warp.lane; n < channels * DB; n += 32) at[n] = add ? at[n] + warp.buffer[n] : warp.buffer[n];
  }
}

template <class T>
__device__ __forceinline__ T weight_of(const T* weight, const Path& p, int u, int v) {
  return p.weight < 0 ? T(1) : u < p.U ? weight[p.weight + int64_t(u) * p.V + v] : T(0);
}

// The end of the slice that begins at path `first`.
template <Role role>
__device__ __forceinline__ int slice_end(const ChannelPaths& paths, int first, int end) {
  const auto offset = [&](int n) { return role == Role::forward ? paths.path[n].o3 : paths.path[n].o1; };
  int next = first + 1;
  while (next < end && offset(next) == offset(first)) ++next;
  return next;
}

// One slice of the output for one row: the sum over its paths.
template <class T, int G, int DB>
__device__ __forceinline__ void channel_fwd_slice(const ChannelPaths& paths, int first, int end, const T* dense, const Warp<T>& warp,
                                  const Row<T>& row, T* out, bool add) {
  const Path& whole = paths.path[first];
#pragma unroll 1
  for (int component = 0; component < whole.d3; component += DB)
#pragma unroll 1
    for (int c = 0; c < whole.U; c += 32 * G) {
      T sum[G][DB] = {}, value[G][DB];
      const T* coefficients = dense;
      for (int n = first; n < end; coefficients += dense_size(paths.path[n++])) {
        const Path& p = paths.path[n];
        const Channels<T> x1 = stage<G>(warp, row.x1, p.o1, p.U, p.d1, row.ir_mul, c);
#pragma unroll 1
        for (int v = 0; v < p.V; ++v) {
          couple_row<T, Role::forward, DB>(warp, coefficients, p, row.x2, row.ir_mul, v, component);
          contract<T, G, DB>(value, warp, x1);
#pragma unroll
          for (int g = 0; g < G; ++g) {
            const T w = weight_of(row.weight, p, c + warp.lane + 32 * g, v);
#pragma unroll
            for (int b = 0; b < DB; ++b) sum[g][b] += w * value[g][b];
          }
        }
      }
      store_channels<T, G, DB>(warp, sum, out, whole.o3, whole.W, whole.d3, row.ir_mul, c, component, add);
    }
}

// The components of a slice that are taken at once.
#define ACE_WITH_COMPONENTS(d, DB, call) \
  switch (d) {                           \
    case 1: { constexpr int DB = 1; call; break; } \
    case 3: { constexpr int DB = 3; call; break; } \
    case 5: { constexpr int DB = 5; call; break; } \
    default: { constexpr int DB = 7; call; } \
  }

// A block has kWarps * rows rows, `rows` for each warp; out [Z, dim_out].
template <class T, int G>
__global__ void __launch_bounds__(32 * kWarps, sizeof(T) == 8 ? 2 : 4) channel_fwd_kernel(ACE_ARGUMENT(ChannelPaths) paths, Operands<T> in,
    T* out, int64_t ld_out, int64_t Z, int rows, ChannelSpace space) {
  T* const dense = dynamic_shared<T>();
  const Warp<T> warp(dense, space);
  const int64_t z0 = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * rows;
  for (int first = 0; first < paths.count;) {
    const int end = first + paths_that_fit(paths.path, first, paths.count, space.dense);
    __syncthreads();
    load_dense<T, Role::forward>(dense, paths.path, first, end, in.table, threadIdx.x, 32 * kWarps);
    for (int64_t z = z0; z < z0 + rows && z < Z; ++z) {
      const Row<T> row(in, z);
      const T* coefficients = dense;
      for (int n = first, next; n < end; n = next) {
        next = slice_end<Role::forward>(paths, n, end);
        const bool add = paths.add[n] || (n == first && n > 0 && paths.path[n].o3 == paths.path[n - 1].o3);
        ACE_WITH_COMPONENTS(paths.path[n].d3, DB, (channel_fwd_slice<T, G, DB>(
            paths, n, next, coefficients, warp, row, out + z * ld_out, add)))
        for (int i = n; i < next; ++i) coefficients += dense_size(paths.path[i]);
      }
    }
    first = end;
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------------

// g_x2[v, j] += sum_ik C sum_u w x1[u, i] g[u, k] for the channels of this tile.
template <class T, int G, int DB>
__device__ __forceinline__ void second_gradient(const Warp<T>& warp, const T* dense, const Path& p, const Channels<T>& g,
                                const T (&x1)[G][DB], const T (&weight)[G], bool ir_mul,
                                                int component, int v, T* g_x2) {
  constexpr int N = DB == 1 ? 1 : DB == 3 ? 4 : 8;
#pragma unroll 1
  for (int k = 0; k < p.d3; ++k) {
    T value[N] = {};
#pragma unroll
    for (int n = 0; n < G; ++n) {
      const T gk = weight[n] * g.at(warp.lane + 32 * n, k);
#pragma unroll
      for (int b = 0; b < DB; ++b) value[b] += x1[n][b] * gk;
    }
    const T sum = sum_scattered<T, N>(value, warp.lane);
    if (warp.lane < DB) warp.buffer[k * DB + warp.lane] = sum;
  }
  __syncwarp();
#pragma unroll 1
  for (int j = warp.lane; j < p.d2; j += 32) {
    T sum = T(0);
#pragma unroll 1
    for (int k = 0; k < p.d3; ++k)
      for (int b = 0; b < DB && component + b < p.d1; ++b)
        sum += dense[(k * p.d1 + component + b) * p.d2 + j] * warp.buffer[k * DB + b];
    g_x2[column(p.o2, p.V, p.d2, ir_mul, v, j)] += sum;
  }
  __syncwarp();
}

// One slice of in1 for one row: the gradient of x1, and the shares of its paths in those of x2 and of the weights.
template <class T, int G, int DB>
__device__ __forceinline__ void channel_bwd_slice(const ChannelPaths& paths, int first, int end, const T* dense, const Warp<T>& warp,
                                  const Row<T>& row, T* g_x1, T* g_x2, T* g_weight, bool shared_weight, bool add) {
  const Path& whole = paths.path[first];
#pragma unroll 1
  for (int component = 0; component < whole.d1; component += DB)
#pragma unroll 1
    for (int c = 0; c < whole.U; c += 32 * G) {
      T x1[G][DB], sum[G][DB] = {}, value[G][DB];
#pragma unroll
      for (int n = 0; n < G; ++n)
#pragma unroll
        for (int b = 0; b < DB; ++b) {
          const int u = c + warp.lane + 32 * n, i = component + b;
          x1[n][b] = u < whole.U && i < whole.d1 ? row.in1(whole, u, i) : T(0);
        }
      const T* coefficients = dense;
      for (int n = first; n < end; coefficients += dense_size(paths.path[n++])) {
        const Path& p = paths.path[n];
        const Channels<T> g = stage<G>(warp, row.g, p.o3, p.W, p.d3, row.ir_mul, c);
#pragma unroll 1
        for (int v = 0; v < p.V; ++v) {
          couple_row<T, Role::gradient, DB>(warp, coefficients, p, row.x2, row.ir_mul, v, component);
          contract<T, G, DB>(value, warp, g);
          T weight[G];
#pragma unroll
          for (int m = 0; m < G; ++m) {
            const int u = c + warp.lane + 32 * m;
            const T w = weight[m] = weight_of(row.weight, p, u, v);
            T share = T(0);
#pragma unroll
            for (int b = 0; b < DB; ++b) {
              share += x1[m][b] * value[m][b];
              sum[m][b] += w * value[m][b];
            }
            if (g_weight && p.weight >= 0 && u < p.U) {
              T* to = g_weight + p.weight + int64_t(u) * p.V + v;
              *to = shared_weight || component ? *to + share : share;
            }
          }
          if (g_x2)
            second_gradient<T, G, DB>(warp, coefficients, p, g, x1, weight, row.ir_mul, component, v, g_x2);
        }
      }
      if (g_x1) store_channels<T, G, DB>(warp, sum, g_x1, whole.o1, whole.U, whole.d1, row.ir_mul, c, component, add);
    }
}

// Gradients of x1 (written, or added where `add` says so), x2 (added) and weights of every row (written), or of shared
// weights: to row n of `to.weight` those of warp n's rows are added.
template <class T, int G>
__global__ void __launch_bounds__(32 * kWarps, 2) channel_bwd_kernel(ACE_ARGUMENT(ChannelPaths) paths, Operands<T> in,
    Gradients<T> to, int64_t Z, int rows, ChannelSpace space) {
  T* const dense = dynamic_shared<T>();
  const Warp<T> warp(dense, space);
  const int64_t index = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, z0 = index * rows;
  for (int first = 0; first < paths.count;) {
    const int end = first + paths_that_fit(paths.path, first, paths.count, space.dense);
    __syncthreads();
    load_dense<T, Role::gradient>(dense, paths.path, first, end, in.table, threadIdx.x, 32 * kWarps);
    for (int64_t z = z0; z < z0 + rows && z < Z; ++z) {
      const Row<T> row(in, z);
      T* const g_x1 = to.x1 ? to.x1 + z * to.ld_x1 : nullptr;
      T* const g_x2 = to.x2 ? to.x2 + z * to.ld_x2 : nullptr;
      T* const g_weight = to.weight ? to.weight + (in.ld_weight ? z : index) * to.ld_weight : nullptr;
      const T* coefficients = dense;
      for (int n = first, next; n < end; n = next) {
        next = slice_end<Role::gradient>(paths, n, end);
        const bool add = paths.add[n] || (n == first && n > 0 && paths.path[n].o1 == paths.path[n - 1].o1);
        ACE_WITH_COMPONENTS(paths.path[n].d1, DB, (channel_bwd_slice<T, G, DB>(
            paths, n, next, coefficients, warp, row, g_x1, g_x2, g_weight, in.ld_weight == 0, add)))
        for (int i = n; i < next; ++i) coefficients += dense_size(paths.path[i]);
      }
    }
    first = end;
  }
}

}  // namespace ace::product
