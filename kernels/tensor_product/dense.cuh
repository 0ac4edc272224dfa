// The fully connected product ("uvw") with shared weights, and its gradient in in1 (the same product with the gradient
// in the place of in1), as matrix products. For 16 rows and a slice of the output, t[b, z, a] = sum_i x[z, a, i]
// M[z, i, b] is formed in shared memory and multiplied with the weights [a, output channels]; a stage between barriers
// takes as many segments (a path, a channel of x2, channels a) as fit into 72 channels, to hide latencies together:
// float32 on the tensor cores by three TF32 products of parts, or by one of TF32 or bfloat16 where torch's switch for the
// precision of matrix products allows it (native.cuh, Precision), float64 by FMA.
#pragma once

#include "general.cuh"

namespace ace::product {

constexpr int kRows = 16, kTeam = 128, kWide = 64;  // rows and threads of a team; width of a tile
template <class T> constexpr int kSegments = sizeof(T) == 4 ? 3 : 2;  // the most segments of a stage
template <class T> constexpr int kDeep = sizeof(T) == 4 ? 72 : 32;  // channels of a stage
template <class T> constexpr int kLeftStride = kDeep<T> + 4;        // of shared memory, free of bank conflicts
constexpr int kRightStride = kWide + 8;
template <class T>
constexpr int kRightSize = kWide * kLeftStride<T> > kDeep<T> * kRightStride ? kWide * kLeftStride<T>
                                                                            : kDeep<T> * kRightStride;
constexpr int kDensePaths = 48, kJobs = 40, kDenseSpace = 1024;
constexpr int kRunning = 32;  // stages that are summed in registers before they are added to the output

// One slice of the output: its paths, first component and channel of the tile; where its bias lies, -1 without.
struct Job { int first, end, component, channel, bias; bool add; };

struct DenseJobs {
  int paths, count;
  Path path[kDensePaths];
  Job job[kJobs];
};

// The operands by their parts: `left` is x1, or g for the gradient, `right` the shared weights.
template <class T>
struct DenseOperands {
  const T *left, *x2, *weight, *bias;
  int64_t ld_left, ld_x2, ld_out, Z;
  Coefficients table;
  T* out;
  bool ir_mul;
  Precision precision;
  int space, rows_of_m;  // values of shared memory for dense coefficients, and for a row's M
};

// The slice that is read (a) and the one that is written (b).
template <Role role>
struct Ends {
  int a_offset, a_mul, a_d, b_offset, b_mul, b_d;
  __device__ explicit Ends(const Path& p)
      : a_offset(role == Role::forward ? p.o1 : p.o3), a_mul(role == Role::forward ? p.U : p.W),
        a_d(rows_of<role>(p)), b_offset(role == Role::forward ? p.o3 : p.o1),
        b_mul(role == Role::forward ? p.W : p.U), b_d(columns_of<role>(p)) {}
};

// Where a segment begins: a path, a channel of x2 and one of the operand that is read; the path's dense coefficients.
struct Place { int path, v, a, dense; };

// f(number, path, place, channels, column) for the segments of the stage that begins at `at`; returns where the next
// stage does. `columns` gets the stage's depth, each segment rounded up to 8.
template <class T, Role role, class F>
__device__ __forceinline__ Place for_segments(const DenseJobs& jobs, Place at, int end, int& columns, F&& f) {
  columns = 0;
#pragma unroll 1
  for (int s = 0; s < kSegments<T> && at.path < end; ++s) {
    const Path& p = jobs.path[at.path];
    const int mul = Ends<role>(p).a_mul, deep = mul - at.a < kDeep<T> ? mul - at.a : kDeep<T>;
    if (columns + deep > kDeep<T>) break;
    f(s, p, at, deep, columns);
    columns += (deep + 7) / 8 * 8;
    at.a += deep;
    if (at.a < mul) continue;
    at.a = 0;
    if (++at.v < p.V) continue;
    at.v = 0;
    at.dense += dense_size(p);
    ++at.path;
  }
  return at;
}

// M[z, a, b < DB] of the team's rows for one path and channel of x2; components from `component` on.
template <class T, Role role, int DB>
__device__ void couple_rows(T* m, const T* dense, const Path& p, const DenseOperands<T>& in, int64_t z0, int v,
                            int component, int thread) {
  const int rows = rows_of<role>(p), columns = columns_of<role>(p), stride = in.ir_mul ? p.V : 1;
  for (int item = thread; item < kRows * rows * DB; item += kTeam) {
    const int b = item % DB, a = item / DB % rows, z = item / (DB * rows);
    T value = T(0);
    if (z0 + z < in.Z && component + b < columns) {
      const T* x2 = in.x2 + (z0 + z) * in.ld_x2 + column(p.o2, p.V, p.d2, in.ir_mul, v, 0);
      const T* c = dense + (a * columns + component + b) * p.d2;
#pragma unroll 4
      for (int j = 0; j < p.d2; ++j) value += c[j] * x2[j * stride];
    }
    m[(z * rows + a) * DB + b] = value;
  }
}

// t[b, z, a] for channels first..first + 8 * steps - 1 of the operand that is read, from column `to` of t on.
template <class T, int DB>
__device__ void form_left(const T* m_rows, T* t, int offset, int mul, int d, const DenseOperands<T>& in, int64_t z0,
                          int first, int steps, int thread) {
  constexpr int kLoads = 7;  // under way at once
  for (int step = 0; step < steps; ++step) {
    const int a = step * 8 + thread % 8, z = thread / 8;
    T value[DB] = {};
    if (z0 + z < in.Z && first + a < mul) {
      const T* x = in.left + (z0 + z) * in.ld_left + column(offset, mul, d, in.ir_mul, first + a, 0);
      const int stride = in.ir_mul ? mul : 1;
      const T* m = m_rows + z * d * DB;
      for (int i0 = 0; i0 < d; i0 += kLoads) {
        T xi[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) xi[i] = i0 + i < d ? x[(i0 + i) * stride] : T(0);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (i0 + i >= d) break;
#pragma unroll
          for (int b = 0; b < DB; ++b) value[b] += xi[i] * m[(i0 + i) * DB + b];
        }
      }
    }
#pragma unroll
    for (int b = 0; b < DB; ++b) t[(b * kRows + z) * kLeftStride<T> + a] = value[b];
  }
}

// Starts the copy of a tile of weights, rows x columns with what is outside as zero; rows of the source at `ld`.
template <class T>
__device__ void copy_tile(T* to, int stride, const T* from, int64_t ld, int rows, int columns, int valid_rows,
                          int valid_columns, bool vectors) {
  constexpr int V = 16 / sizeof(T);
  const int step = vectors ? V : 1, across = columns / step;
  for (int item = threadIdx.x; item < rows * across; item += blockDim.x) {
    const int r = item / across, c = item % across * step;
    const bool valid = r < valid_rows && c < valid_columns;
    const T* source = valid ? from + r * ld + c : from;
    if (vectors) copy_async<16>(to + r * stride + c, source, valid);
    else copy_async<sizeof(T)>(to + r * stride + c, source, valid);
  }
  copy_commit();
}

// ---- products of tiles ---------------------------------------------------------------------------------------------

// Element (a, n) of the tile of weights: rows a in the forward product, rows n in the gradient.
template <class T, Role role>
__device__ __forceinline__ int right_at(int a, int n) {
  return role == Role::forward ? a * kRightStride + n : n * kLeftStride<T> + a;
}

template <class T, Role role, int DB> struct Accumulator;

// float32: a warp has the 8-channel tiles warp and warp + 4 of all components, or, where there are one or two tiles, a
// share of the components. Products of 16 channels are summed apart and then added, which keeps float32's accuracy.
template <Role role, int DB>
struct Accumulator<float, role, DB> {
  float sum[DB][2][4] = {};
  int tile0, tiles, groups, group;

  __device__ Accumulator(int thread, int width) : tiles((width + 7) / 8) {
    const int warp = thread / 32;
    groups = tiles == 1 ? 4 : tiles == 2 ? 2 : 1;
    group = tiles == 1 ? warp : tiles == 2 ? warp / 2 : 0;
    tile0 = tiles == 1 ? 0 : tiles == 2 ? warp % 2 : warp;
  }

  __device__ void multiply(const float* left, const float* right, int steps, Precision precision) {
    const int mine = tile0 >= tiles ? 0 : tile0 + 4 < tiles ? 2 : 1;
    if (mine == 0) return;
#pragma unroll 1
    for (int s = 0; s < steps; s += 2) {
      const int some = steps - s < 2 ? 1 : 2;
      if (precision == Precision::medium) multiply_bf16(left, right, s, some, mine);
      else multiply_two(left, right, s, some, mine, precision == Precision::high);
    }
  }

  // As multiply_two, by one bfloat16 product.
  __device__ __forceinline__ void multiply_bf16(const float* left, const float* right, int first, int steps, int mine) {
    const int g = lane_id() / 4, t = lane_id() % 4 * 2;
    uint32_t w[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int a = (first + s) * 8 + t, n = (tile0 + 4 * j) * 8 + g;
        const bool there = s < steps && j < mine;
        w[j][s] = there ? pack_bf16(right[right_at<float, role>(a, n)], right[right_at<float, role>(a + 1, n)]) : 0;
      }
#pragma unroll
    for (int b = 0; b < DB; ++b) {
      if (b % groups != group) continue;
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* x = left + (b * kRows + g + i % 2 * 8) * kLeftStride<float> + (first + i / 2) * 8 + t;
        a[i] = i / 2 < steps ? pack_bf16(x[0], x[1]) : 0;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j >= mine) break;
        float main[4] = {};
        mma_bf16(main, a, w[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[b][j][i] += main[i];
      }
    }
  }

  // Two steps of 8 channels; what there is only of one is zero.
  __device__ __forceinline__ void multiply_two(const float* left, const float* right, int first, int steps, int mine,
                                               bool single) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    uint32_t big[2][2][2], small[2][2][2];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const bool there = s < steps && j < mine;
          split_tf32(there ? right[right_at<float, role>((first + s) * 8 + t + 4 * h, (tile0 + 4 * j) * 8 + g)] : 0.0f,
                     big[s][j][h], small[s][j][h]);
        }
#pragma unroll
    for (int b = 0; b < DB; ++b) {
      if (b % groups != group) continue;
      float main[2][4] = {}, rest[2][4] = {};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        if (s >= steps) break;
        uint32_t a[4], a_small[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          split_tf32(left[(b * kRows + g + i % 2 * 8) * kLeftStride<float> + (first + s) * 8 + t + i / 2 * 4], a[i],
                     a_small[i]);
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
        for (int i = 0; i < 4; ++i) sum[b][j][i] += main[j][i] + rest[j][i];
    }
  }

  // f(b, z, n, value) for the elements that this thread has
  template <class F>
  __device__ void each(F&& f) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int b = 0; b < DB; ++b)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (b % groups == group && tile0 + 4 * j < tiles)
#pragma unroll
          for (int i = 0; i < 4; ++i) f(b, g + i / 2 * 8, (tile0 + 4 * j) * 8 + 2 * t + i % 2, sum[b][j][i]);
  }
};

// float64: a thread has 4 rows of the channels lane and lane + 32.
template <Role role, int DB>
struct Accumulator<double, role, DB> {
  double sum[DB][4][2] = {};
  int n, z0;

  __device__ Accumulator(int thread, int) : n(thread % 32), z0(thread / 32 * 4) {}

  __device__ void multiply(const double* left, const double* right, int steps, Precision) {
#pragma unroll 1
    for (int a = 0; a < 8 * steps; ++a) {
      const double w0 = right[right_at<double, role>(a, n)], w1 = right[right_at<double, role>(a, n + 32)];
#pragma unroll
      for (int b = 0; b < DB; ++b)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const double x = left[(b * kRows + z0 + r) * kLeftStride<double> + a];
          sum[b][r][0] += x * w0;
          sum[b][r][1] += x * w1;
        }
    }
  }

  template <class F>
  __device__ void each(F&& f) {
#pragma unroll
    for (int b = 0; b < DB; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < 2; ++j) f(b, z0 + r, n + 32 * j, sum[b][r][j]);
  }
};

// ---- the kernel ----------------------------------------------------------------------------------------------------

// All paths and channels of one job for the block's rows.
template <class T, Role role, int DB>
__device__ void dense_job(const DenseJobs& jobs, const Job& job, const DenseOperands<T>& in) {
  const int thread = threadIdx.x % kTeam, team_index = threadIdx.x / kTeam, teams = blockDim.x / kTeam;
  T* const dense = dynamic_shared<T>();
  T* const right = dense + (in.space + 3) / 4 * 4;
  const int m_size = (kRows * in.rows_of_m + 3) / 4 * 4, t_size = DB * kRows * kLeftStride<T>;
  T* const m = right + kRightSize<T> + team_index * (kSegments<T> * m_size + t_size);
  T* const t = m + kSegments<T> * m_size;
  const int64_t z0 = (int64_t(blockIdx.x) * teams + team_index) * kRows;
  const Ends<role> whole(jobs.path[job.first]);
  const int width = whole.b_mul - job.channel < kWide ? whole.b_mul - job.channel : kWide, wide = (width + 7) / 8 * 8;
  Accumulator<T, role, DB> accumulator(thread, width);
  bool add = job.add;
  int running = 0;
  const auto store = [&] {  // long sums are taken in two levels
    accumulator.each([&](int b, int z, int n, T& value) {
      if (z0 + z >= in.Z || n >= width || job.component + b >= whole.b_d) return;
      T* to = in.out + (z0 + z) * in.ld_out +
              column(whole.b_offset, whole.b_mul, whole.b_d, in.ir_mul, job.channel + n, job.component + b);
      if (add) value += *to;
      else if (job.bias >= 0) value += in.bias[job.bias + job.channel + n];
      *to = value;
      value = T(0);
    });
    add = true;
  };
  for (int first = job.first; first < job.end;) {
    const int end = first + paths_that_fit(jobs.path, first, job.end, in.space);
    __syncthreads();
    load_dense<T, role>(dense, jobs.path, first, end, in.table, threadIdx.x, blockDim.x);
    for (Place at{first, 0, 0, 0}; at.path < end;) {
      int columns;
      for_segments<T, role>(jobs, at, end, columns, [&](int, const Path& p, const Place& place, int deep, int column) {
        const T* weight = in.weight + p.weight;
        const bool vectors = p.W % (16 / sizeof(T)) == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
        const int padded = (deep + 7) / 8 * 8;
        const int64_t row = role == Role::forward ? place.a : job.channel, ld = int64_t(p.V) * p.W;
        const T* tile = weight + (row * p.V + place.v) * p.W + (role == Role::forward ? job.channel : place.a);
        if (role == Role::forward)
          copy_tile(right + column * kRightStride, kRightStride, tile, ld, padded, wide, deep, width, vectors);
        else
          copy_tile(right + column, kLeftStride<T>, tile, ld, wide, padded, width, deep, vectors);
      });
      for_segments<T, role>(jobs, at, end, columns, [&](int s, const Path& p, const Place& place, int, int) {
        couple_rows<T, role, DB>(m + s * m_size, dense + place.dense, p, in, z0, place.v, job.component, thread);
      });
      __syncthreads();  // M is there
      at = for_segments<T, role>(jobs, at, end, columns, [&](int s, const Path& p, const Place& place, int deep, int to) {
        const Ends<role> ends(p);
        form_left<T, DB>(m + s * m_size, t + to, ends.a_offset, ends.a_mul, ends.a_d, in, z0, place.a, (deep + 7) / 8,
                         thread);
      });
      copy_wait<0>();
      __syncthreads();
      accumulator.multiply(t, right, columns / 8, in.precision);
      if (++running % kRunning == 0) store();
      __syncthreads();  // nobody reads these tiles
    }
    first = end;
  }
  if (running % kRunning) store();
}

// `high`: slices with more than 5 components, 7 at once; they take more registers.
template <class T, Role role, bool high>
__global__ void __launch_bounds__(2 * kTeam, high || sizeof(T) == 8 ? 1 : 2)
dense_kernel(ACE_ARGUMENT(DenseJobs) jobs, DenseOperands<T> in) {
  const Job& job = jobs.job[blockIdx.y];
  if constexpr (high) {
    dense_job<T, role, 7>(jobs, job, in);
  } else {
    const int d = columns_of<role>(jobs.path[job.first]);
    if (d == 1) dense_job<T, role, 1>(jobs, job, in);
    else if (d == 3) dense_job<T, role, 3>(jobs, job, in);
    else dense_job<T, role, 5>(jobs, job, in);
  }
}

}  // namespace ace::product
